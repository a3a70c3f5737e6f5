"""How a worker on PostgreSQL sleeps until there is something to do: LISTEN, on connections of its own.

A notification is a hint. Who sleeps says so in ``delayed_sleeper``, without which nobody notifies; looks whether
something is there; looks once more a moment later, for what was being committed at the first look; and then every two
seconds. Where notifications do not arrive, behind a proxy that pools transactions, it polls.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import psycopg

from delayed.brokers._forks import afresh_after_fork
from delayed.brokers.base import WAIT_TIMEOUT
from delayed.brokers.postgres_link import Line, Link
from delayed.brokers.postgres_schema import quoted
from delayed.errors import BrokerError, BrokerUnavailable

SECOND_LOOK = 0.05  # seconds after the first
POLL = (0.001, 0.25)  # seconds between looks where there are no notifications: at first, and at most
PROBE_TIMEOUT = 1.0  # seconds in which a notification of our own has to arrive
SLEEP_NOTE = 2 * WAIT_TIMEOUT  # seconds that a note of being asleep holds; it is renewed by every look


class Sleeper:
    """One thread's wait: its connection, kept for the next one, and the socket pair that wakes it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._line: Line | None = None
        self._look = link.schema.sql("SELECT @.delayed_sleep(%s::text[], %s::float8)")
        self._ear, self._bell = socket.socketpair()
        self._ear.setblocking(False)
        self._bell.setblocking(False)

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it rings already; closed: it is awake
            self._bell.send(b"!")

    def sleep(self, queues: Sequence[str], timeout: float) -> None:
        """Sleep until one of the queues may have something to claim, for `timeout` seconds at most, or until woken."""
        names = {queue[:1000].encode() for queue in queues}
        listening = self._listens()
        deadline = time.monotonic() + timeout
        pause, slowest = (SECOND_LOOK, WAIT_TIMEOUT) if listening else POLL
        while True:
            due = self._seconds_until_due(queues, listening)
            left = min(due, deadline - time.monotonic())
            if left <= 0 or self._rest(names, min(left, pause)) or time.monotonic() >= deadline:
                return
            pause = slowest if listening else min(pause * 2, slowest)

    def _seconds_until_due(self, queues: Sequence[str], listening: bool) -> float:
        if not listening:
            return float(self._link.run(self._look, (list(queues), 0.0))[0][0])
        assert self._line is not None
        try:
            with self._link.errors():
                cursor = psycopg.Cursor(self._line)
                cursor.execute(self._look, (list(queues), SLEEP_NOTE), prepare=False)
                return float(cursor.fetchall()[0][0])
        except BrokerError:
            self._hang_up()
            raise

    def _rest(self, names: set[bytes], seconds: float) -> bool:
        """Sleep; True if it was ended by a wake or by a notification for one of the queues."""
        poll = select.poll()  # not select(2), which fails at the 1,024th open file
        poll.register(self._ear, select.POLLIN)
        if self._line is not None:
            if self._heard(names):  # came with the answer of the look
                return True
            poll.register(self._line.fileno(), select.POLLIN)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for number, _ in poll.poll(left * 1000 + 1):
                if number == self._ear.fileno() or self._heard(names):
                    return True
        return False

    def _heard(self, names: set[bytes]) -> bool:
        assert self._line is not None
        pgconn = self._line.pgconn
        try:
            pgconn.consume_input()
            found = False
            while notify := pgconn.notifies():
                found = found or notify.extra in names
            return found
        except psycopg.Error as error:
            self._hang_up()
            raise BrokerUnavailable(f"{self._link.shown}: {error}") from error

    # -- the connection ----------------------------------------------------------------------------------------

    def _listens(self) -> bool:
        """Have a connection that listens, if that works here."""
        if not self._link.listens:
            return False
        if self._line is not None and not self._line.closed:
            return True
        with self._link.connection():  # makes the schema, if it has to be made
            pass
        line: Line = self._link.connect(Line)
        try:
            with self._link.errors():
                line.execute(f"LISTEN {quoted(self._link.schema.channel)}".encode())
                ((pid,),) = line.execute("SELECT pg_backend_pid()", prepare=False).fetchall()
            self._line = line
            # A proxy shows another number than the server's own process. Some pass notifications on, others do not.
            self._link.listens = pid == line.info.backend_pid or self._probe()
        except BaseException:
            self._line = line
            self._hang_up()
            raise
        if not self._link.listens:
            self._hang_up()
        return self._link.listens

    def _probe(self) -> bool:
        """Whether a notification that is sent from another connection arrives."""
        word = f"probe {os.urandom(8).hex()}"
        self._link.run(b"SELECT pg_notify(%s, %s)", (self._link.schema.channel, word))
        return self._rest({word.encode()}, PROBE_TIMEOUT)

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            with contextlib.suppress(psycopg.Error):
                line.close()

    def drain(self) -> None:
        with contextlib.suppress(OSError):
            while self._ear.recv(64):
                pass

    def close(self) -> None:
        self._hang_up()
        self._ear.close()
        self._bell.close()

    __del__ = close  # of a broker that nobody closed


class Waiter:
    """All waits of one broker in one process. After a fork the child starts with a new one: the connections and the
    lock of the parent's are left alone.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._idle: list[Sleeper] = []
        self._asleep: set[Sleeper] = set()
        self._rung = False  # woken while nobody slept: the next one does not begin
        afresh_after_fork(self)

    def start_afresh(self) -> None:
        """See :func:`afresh_after_fork`."""
        _parents.append((self._idle, self._asleep))
        self._lock = threading.Lock()
        self._idle = []
        self._asleep = set()
        self._rung = False

    def sleep(self, queues: Sequence[str], timeout: float) -> None:
        """See :meth:`Sleeper.sleep`."""
        with self._lock:
            if self._rung:
                self._rung = False
                return
            sleeper = self._idle.pop() if self._idle else Sleeper(self._link)
            self._asleep.add(sleeper)
        try:
            sleeper.sleep(queues, timeout)
        finally:
            with self._lock:
                kept = sleeper in self._asleep  # else close() was called meanwhile
                self._asleep.discard(sleeper)
                sleeper.drain()
                if kept:
                    self._idle.append(sleeper)
            if not kept:
                sleeper.close()

    def wake(self) -> None:
        """End the waits that are under way, or the next one if none is."""
        with self._lock:
            self._rung = not self._asleep
            for sleeper in self._asleep:
                sleeper.wake()

    def close(self) -> None:
        """End all waits, and close the connections."""
        with self._lock:
            idle, self._idle = self._idle, []
            asleep, self._asleep = self._asleep, set()
            self._rung = False
            for sleeper in asleep:
                sleeper.wake()  # its thread closes it
        for sleeper in idle:
            sleeper.close()


_parents: list[Any] = []  # sleepers of the parent's, kept because their end would say goodbye to the server
