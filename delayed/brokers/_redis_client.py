"""The connection of the Redis broker: from a URL or a client to scripts that run and errors that are ours.

Usage::

    RedisClient("redis://localhost:6379/0")                     own client
    RedisClient("redis://a:6379,b:6379/?cluster=1")             own cluster client; any of its nodes
    RedisClient("redis://a:26379,b:26379/0?sentinel=mymaster")  own client of the master that the sentinels name
    RedisClient(redis.Redis(...))                               the connections of the user's client

The other options of a URL are redis-py's. With rediss:// instead of redis:// all of it speaks TLS; ?sentinel_ssl=no
leaves out the sentinels. Our own clients never resend by themselves, and give up after 5 seconds of silence. In a fork
they are made anew; the pool of a given one notices it by the process id.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn
from urllib.parse import parse_qsl, urlsplit

import redis
from redis.client import NEVER_DECODE
from redis.cluster import RedisCluster
from redis.sentinel import SentinelConnectionPool

from delayed.brokers import _redis_url as urls
from delayed.brokers import deadline
from delayed.brokers._forks import afresh_after_fork
from delayed.brokers._redis_idle import Idle, close_those_of_parent, may_keep
from delayed.brokers.masked import masked
from delayed.brokers.scripts import script
from delayed.errors import BrokerError, BrokerFull, BrokerUnavailable, ConfigError

# Redis answers these when it can't serve now, and may later. Up to version 6.2 they stand inside the text of a script's
# error, so they are searched for.
_LATER = re.compile(
    r"\b(READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MOVED|ASK|BUSY|MISCONF|NOREPLICAS|UNBLOCKED)\b"
    r"|read only replica"
)
_LATER_TYPES = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.ClusterDownError,  # and MasterDownError
    redis.exceptions.TryAgainError,
    redis.exceptions.AskError,  # and MovedError
    redis.exceptions.NoScriptError,  # the script was flushed again before its second sending
    redis.exceptions.RedisClusterException,
    OSError,
)

_THEIRS = (redis.exceptions.RedisError, redis.exceptions.RedisClusterException, OSError)

_parents: list[Any] = []  # clients of the parent's, kept because their end takes a lock that may be held

_FULL = re.compile(r"\bOOM\b|command not allowed when used memory")
_WRONG_TYPE = re.compile(r"\bWRONGTYPE\b|wrong kind of value")
_UNTRUSTED = re.compile(r"certificate verify failed")
_UNKNOWN = re.compile(r"alert (certificate required|unknown ca|bad certificate)", re.IGNORECASE)


class Script:
    """One Lua script: its source with the names of its keys, and what EVALSHA calls it."""

    def __init__(self, name: str) -> None:
        body = script(f"lua/{name}.lua")
        self.keys = re.findall(r"^-- KEYS\[\d+\] -> (\w+)", body, re.MULTILINE)
        heads = "\n".join(f"local {key} = KEYS[{place}]" for place, key in enumerate(self.keys, 1))
        self.source = f"{heads}\n{_needed(script('lua/common.lua'), body)}".encode()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()


def _needed(common: str, body: str) -> str:
    """A script behind what it needs of what all share: each call makes all functions that are in it anew."""
    source = body
    for part in reversed(re.split(r"^(?=local )", common, flags=re.MULTILINE)[1:]):
        names = re.match(r"local (?:function )?(\w+(?:, \w+)*)", part)
        assert names is not None
        if re.search(rf"\b(?:{names[1].replace(', ', '|')})\b", source):
            source = part + source
    return source


class Call:
    """A script and the keys of one queue, the part of its calls that is always the same."""

    def __init__(self, script: Script, keys: Sequence[bytes]) -> None:
        self.script = script
        self.keys = keys
        self.packed = _pack([b"EVALSHA", script.sha, len(keys), *keys])


class Packed:
    """Arguments that are packed before it is their turn to be sent.

    Args:
        make: makes them, once more if they are needed as they are.

    Attributes:
        count: how many they are.
        packed: as they are sent.
    """

    __slots__ = ("count", "make", "packed")

    def __init__(self, make: Callable[[], Sequence[bytes | int]]) -> None:
        self.make = make
        args = make()
        self.count = len(args)
        self.packed = _pack(args)


class RedisClient:
    """See the module.

    Attributes:
        owned: whether the connections are ours, not a client's that was given.
        cluster: whether the keys of a queue need a hash tag.
        url: what opens the same store elsewhere, with its password; None if no URL says it.
        shown: where it is, without its password.
    """

    def __init__(self, conn: Any) -> None:
        self.owned = isinstance(conn, str)
        self._opened: Any = None
        self._idle: Idle | None = None  # connections that wait, if ours may
        self._lock = threading.Lock()  # held while one thread opens
        afresh_after_fork(self)
        self._given = None if self.owned else conn
        self.url: str | None
        if isinstance(conn, str):
            self.url = conn
            self._open = urls.opener(conn)
            self.cluster = "cluster" in dict(parse_qsl(urlsplit(conn).query))
        elif isinstance(conn, RedisCluster):
            cluster: Any = conn
            self.url = urls.of_cluster(cluster)
            self._open = lambda: cluster
            self.cluster = True
        elif isinstance(conn, redis.Redis):
            # Its pool without the rest: the client may hold one connection for itself, which two threads, or a parent
            # and its child, would share; and it may have callbacks that change answers. It is kept alive, because its
            # end would close the pool.
            pool = conn.connection_pool
            self.url = urls.of_pool(pool)
            self._open = lambda: redis.Redis(connection_pool=pool)
            self.cluster = False
        else:
            raise ConfigError(
                f"a {type(conn).__module__}.{type(conn).__qualname__} is no client that can be used here; give a URL, "
                "a redis.Redis (with Sentinel: what master_for() returns) or a redis.RedisCluster"
            )
        self.shown = masked(self.url) if self.url else f"<{type(conn).__name__}>"

    def start_afresh(self) -> None:
        """See :func:`afresh_after_fork`. redis-py's pools notice a fork by themselves, but since version 8 they take a
        lock then that another thread of the parent may have held.
        """
        self._lock = threading.Lock()
        if self.owned and self._opened is not None:
            if not self.cluster:
                close_those_of_parent(self._opened.connection_pool)
            _parents.append(self._opened)
            self._opened = self._idle = None

    @property
    def _client(self) -> Any:
        """Opened at the first use, because a cluster client reaches for its nodes at once."""
        if self._opened is None:
            with self._lock:
                if self._opened is None:
                    try:
                        opened = self._open()
                        if self.owned and not self.cluster and may_keep(opened.connection_pool):
                            self._idle = Idle(opened.connection_pool, keeps=True)
                        self._opened = opened
                    except _THEIRS as error:
                        if _is_later(error):
                            raise BrokerUnavailable(f"{self.shown}: {_words(error)}", sent=False) from _cause(error)
                        with self.errors():
                            raise
        return self._opened

    # -- commands ----------------------------------------------------------------------------------------------

    def pack(self, call: Call, args: Sequence[bytes | int], more: Packed | None = None) -> bytes:
        """The call of a script as it is sent; not for a cluster."""
        size = 3 + len(call.keys) + len(args)
        if more is None:
            return b"*%d\r\n%b%b" % (size, call.packed, _pack(args))
        return b"*%d\r\n%b%b%b" % (size + more.count, call.packed, _pack(args), more.packed)

    def run(self, call: Call, args: Sequence[bytes | int], more: Packed | None = None) -> Any:
        """Run a script; its answer in bytes, ints and lists, whatever the client's settings.

        Args:
            more: further arguments; not on a cluster.
        """
        try:  # not with errors(), which takes a while
            try:
                if self.cluster:
                    return self._route(b"EVALSHA", call.script.sha, len(call.keys), *call.keys, *args)
                return self._on(self._client.connection_pool, self.pack(call, args, more))
            except redis.exceptions.NoScriptError:  # nothing ran: a new server, a failover, or SCRIPT FLUSH
                rest = () if more is None else more.make()
                return self._execute(b"EVAL", call.script.source, len(call.keys), *call.keys, *args, *rest)
        except _THEIRS as error:
            self._raise(error)

    def command(self, *args: bytes | int) -> Any:
        """Send one command; its answer is not decoded."""
        with self.errors():
            return self._execute(*args)

    def ask(self, *args: bytes) -> Any:
        """Send a command that has no key; on a cluster, to one of its nodes."""
        with self.errors():
            client = self._client
            if self.cluster:
                client = client.get_redis_connection(client.get_default_node())
            return self._on(client.connection_pool, _command(args))

    def _execute(self, *args: bytes | int) -> Any:
        if self.cluster:
            return self._route(*args)
        return self._on(self._client.connection_pool, _command(args))

    def _route(self, *args: bytes | int) -> Any:
        # The cluster's client finds the node, and follows a key that moved. The name must be a str for that.
        name = args[0].decode() if isinstance(args[0], bytes) else args[0]
        return self._client.execute_command(name, *args[1:], **{NEVER_DECODE: True})

    def _on(self, pool: Any, command: bytes) -> Any:
        idle = self._idle
        if idle is None or idle.pool is not pool:
            idle = Idle(pool, keeps=False)
        try:
            connection = idle.take()
        except _LATER_TYPES as error:
            if not _is_later(error):
                raise
            raise BrokerUnavailable(f"{self.shown}: {_words(error)}", sent=False) from _cause(error)
        whole = False
        try:
            limit = pool.connection_kwargs.get("socket_timeout")
            if limit == connection._sock.gettimeout() and limit and deadline.left(limit) > limit - deadline.SLACK:
                answer = idle.ask(connection, command)  # as nearly always, and a tenth quicker
            else:
                with self._limits(connection, limit):
                    answer = idle.ask(connection, command)
            whole = True
            return answer
        except redis.exceptions.ResponseError as error:
            if _is_later(error) and not isinstance(error, redis.exceptions.NoScriptError):
                connection.disconnect()  # perhaps its name leads to another server next time
            raise
        except BaseException:
            connection.disconnect()  # the answer may still come: nobody may take it for the next one's
            raise
        finally:
            if whole:
                idle.keep(connection)
            else:
                pool.release(connection)

    @contextmanager
    def _limits(self, connection: Any, usual: float | None) -> Iterator[None]:
        """Let its socket wait for no longer than the caller does: redis-py sets the limits when it connects."""
        socket: Any = connection._sock
        before, limit = socket.gettimeout(), urls.limited(connection.socket_timeout)
        after = usual if self.owned else before  # it may have been made in a hurry
        if limit != before:
            socket.settimeout(limit)
        try:
            yield
        finally:
            if limit != after and connection._sock is socket:
                socket.settimeout(after)

    def lines(self, keys: Sequence[bytes]) -> list[tuple[list[bytes], Any]]:
        """The keys that one blocking command can wait for, each group with the pool of its server."""
        client = self._client
        if not self.cluster:
            return [(list(keys), client.connection_pool)]
        with self.errors():
            return [([key], client.get_redis_connection(client.get_node_from_key(key)).connection_pool) for key in keys]

    def is_plain(self, pool: Any) -> bool:
        """Whether answers may be read without redis-py on connections like those of a pool."""
        return self._idle is not None and self._idle.pool is pool

    def connect(self, pool: Any) -> Any:
        """A connection like those of a pool, but not of it: a waiter would take the place of somebody who works."""
        with self.errors():
            connection = pool.connection_class(**pool.connection_kwargs)
            connection.connect()
            return connection

    def unblock(self, pool: Any, number: int) -> bool:
        """End the blocking command of the connection that its server calls `number`; False if there is none."""
        with self.errors():
            return bool(self._on(pool, _command((b"CLIENT", b"UNBLOCK", number))))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn redis-py's errors into ours, the cause kept if it tells no secret."""
        try:
            yield
        except _THEIRS as error:
            self._raise(error)

    def _raise(self, error: Exception) -> NoReturn:
        """Raise what an error of redis-py's is to us."""
        if isinstance(error, BrokerError):  # which may be a ConnectionError too
            raise error
        text, cause = f"{self.shown}: {_words(error)}", _cause(error)
        if _UNTRUSTED.search(str(error)):
            text += "; the certificate must be for this host, and signed by an authority in ssl_ca_certs="
        if _UNKNOWN.search(str(error)):
            text += "; the server wants a certificate of yours: give it with ssl_certfile= and ssl_keyfile="
        if _FULL.search(str(error)) or type(error).__name__ == "OutOfMemoryError":
            raise BrokerFull(f"{text}; give it more maxmemory, or workers to empty it") from cause
        if _is_later(error):
            raise BrokerUnavailable(text) from cause
        if _WRONG_TYPE.search(str(error)):
            text += "; another program uses the key, or another queue whose name is this one's and a suffix"
        raise BrokerError(text) from cause

    def close(self) -> None:
        """Close the connections, unless they are those of the user's client."""
        if self.owned and self._opened is not None:
            self._opened.close()
            pool = None if self.cluster else self._opened.connection_pool
            if pool is not None:
                pool.disconnect()  # which redis-py 5.0.0 leaves out
            if isinstance(pool, SentinelConnectionPool):
                manager: Any = pool.sentinel_manager
                for watcher in manager.sentinels:
                    watcher.close()


def _command(args: Sequence[bytes | int]) -> bytes:
    return b"*%d\r\n%b" % (len(args), _pack(args))


def _pack(args: Sequence[bytes | int]) -> bytes:
    """Arguments as they are sent. redis-py's own packing takes as long as the server does for a short command."""
    parts = []
    for arg in args:
        data = b"%d" % arg if isinstance(arg, int) else arg
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


# What Redis repeats of a command that it does not know: the password of AUTH, a payload.
_REPEATED = re.compile(r",? with args beginning with:.*", re.DOTALL)


def _words(error: BaseException) -> str:
    return _REPEATED.sub("", str(error)) or type(error).__name__


def _cause(error: BaseException) -> BaseException | None:
    return None if _REPEATED.search(str(error)) else error


def _is_later(error: BaseException) -> bool:
    text = str(error)
    if isinstance(error, redis.exceptions.AuthenticationError) or _UNTRUSTED.search(text) or _UNKNOWN.search(text):
        return False  # a ConnectionError to redis-py, but waiting does not help
    return isinstance(error, _LATER_TYPES) or bool(_LATER.search(text))
