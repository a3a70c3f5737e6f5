"""The connections of a client of our own between two commands.

redis-py's pool locks and counts, and looks for what came meanwhile, in a way that takes a quarter of the CPU time of a
short command, and a tenth of a millisecond in a process that was asleep. So what has come from the pool stays here,
where it is taken at once, and goes back when it can't be used as it is.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import redis

from delayed.brokers._redis_ask import ask, ask_plainly


class Idle:
    """Connections of one pool that wait for a command. Any thread may take and give.

    Args:
        pool: the pool that they come from.
        keeps: whether they may stay here; else all go back at once.
    """

    __slots__ = ("_found", "ask", "keep", "pool")

    def __init__(self, pool: Any, *, keeps: bool) -> None:
        self.pool = pool
        self._found: list[Any] = []
        # Gives back one on which nothing is under way any more. The method itself, for between a call and its first
        # line a signal handler may raise.
        self.keep: Callable[[Any], object] = self._found.append if keeps else pool.release
        self.ask = ask_plainly if keeps else ask  # a command on one that was taken

    def take(self) -> Any:
        """A connection on which nothing is under way."""
        while self._found:
            try:
                connection = self._found.pop()
            except IndexError:  # another thread took the last
                break
            try:
                if connection.pid != os.getpid():  # of the parent: not every fork tells Python
                    continue
                if _is_quiet(connection._sock):
                    return connection
            except BaseException:
                self.pool.release(connection)
                raise
            self.pool.release(connection)  # which opens it again when it is wanted
        return self.pool.get_connection(*_TAKE_ARGS)


def close_those_of_parent(pool: Any) -> None:
    """In a forked child: close its ends of the connections of its parent, which lose nothing by it; else they would be
    open on the server for as long as any descendant lives. The pool itself takes locks that may be held.
    """
    for connection in (*getattr(pool, "_available_connections", ()), *getattr(pool, "_in_use_connections", ())):
        with suppress(Exception):  # such as of one that a thread of the parent was just making: the child needs none
            connection.disconnect()


def may_keep(pool: Any) -> bool:
    """Whether the connections of a pool of our own may stay here: not if they speak TLS, or may be told something that
    nobody has asked for, for then there may be something to read; not if the master may have moved; and not if redis-py
    is to look now and then whether they are healthy.
    """
    return (
        hasattr(select, "poll")  # which eventlet takes away
        and type(pool) is redis.ConnectionPool
        and not issubclass(pool.connection_class, redis.SSLConnection)
        and str(pool.connection_kwargs.get("protocol")) == "2"
        and not pool.connection_kwargs.get("health_check_interval")
    )


# redis-py 5.3 made the command's name superfluous, and warns if it is given.
_TAKE_ARGS: tuple[str, ...] = () if tuple(map(int, redis.__version__.split(".")[:2])) >= (5, 3) else ("EVALSHA",)


def _is_quiet(sock: Any) -> bool:
    """Whether a connection is open and has nothing to read, which would be its end, or another's answer."""
    if sock is None:
        return False
    poller = select.poll()
    try:
        poller.register(sock, select.POLLIN)
        return not poller.poll(0)
    except (OSError, ValueError):  # another thread has closed it
        return False
