"""Hearing of answers in PostgreSQL: LISTEN, on a connection of its own.

Nobody notifies unless somebody waits, which a listener notes in ``delayed_listener``. An answer that was being stored
just then may have missed the note: so the first wait is a short one. Where notifications do not arrive, it polls.
"""

from __future__ import annotations

import contextlib
import select
import time

import psycopg

from delayed.brokers.base import Listener
from delayed.brokers.postgres_link import Line, Link
from delayed.errors import BrokerUnavailable

NOTE = 10.0  # seconds that a note of waiting holds; it is renewed at a third of that
FIRST = 0.05  # seconds that the first wait lasts at most
SLICE = 0.5  # seconds after which a wait looks whether it was closed
POLL = (0.01, 0.25)  # seconds between looks where nothing is heard: at first, and at most


class PostgresListener(Listener):
    """See :class:`Listener`."""

    def __init__(self, link: Link, queue: str) -> None:
        self._link = link
        self._queue = queue
        self._listen = link.schema.sql("SELECT @.delayed_listen(%s::text, %s::float8)")
        self._closed = False
        self._line: Line | None = None
        self._pause = POLL[0]
        self._noted = 0.0
        self._first = True
        self._rung = False
        if not link.listens:
            return
        with link.connection():  # makes the schema, if it has to be made
            pass
        line = link.connect()
        try:
            with link.errors(sent=False):
                line.add_notify_handler(lambda notify: self._hear(notify.payload.encode()))
                ((pid,),) = line.execute("SELECT pg_backend_pid()", prepare=False).fetchall()
            if pid == line.info.backend_pid:  # else a proxy is between, which may keep notifications to itself
                self._line = line
                self._note(line)
        finally:
            if self._line is None:
                line.close()

    def wait(self, timeout: float) -> bool:
        line = self._line
        if line is None:
            time.sleep(min(timeout, self._pause))
            self._pause = min(self._pause * 2, POLL[1])
            return True
        first, self._first = self._first, False
        if first:
            timeout = min(timeout, FIRST)
        end = time.monotonic() + timeout
        poll = select.poll()  # not select(2), which fails at the 1,024th open file
        poll.register(line.fileno(), select.POLLIN)
        while not self._closed:
            if self._heard(line):
                return True
            left = end - time.monotonic()
            if left <= 0:
                break
            if time.monotonic() > self._noted + NOTE / 3:
                self._note(line)
            poll.poll(min(left, SLICE) * 1000 + 1)
        return first

    def _note(self, line: Line) -> None:
        self._noted = time.monotonic()
        with self._link.errors(sent=False):
            line.execute(self._listen, (self._queue, NOTE), prepare=False)

    def _heard(self, line: Line) -> bool:
        """Whether a notification for the queue has come."""
        try:
            line.pgconn.consume_input()
            while notify := line.pgconn.notifies():
                self._hear(notify.extra)
        except psycopg.Error as error:
            raise BrokerUnavailable(f"{self._link.shown}: {error}") from error
        heard, self._rung = self._rung, False
        return heard

    def _hear(self, queue: bytes) -> None:
        self._rung = self._rung or queue == self._queue[:1000].encode()

    def close(self) -> None:
        self._closed = True  # its thread ends the wait, for nobody else may touch the connection meanwhile

    def __del__(self) -> None:
        if self._line is not None:
            with contextlib.suppress(psycopg.Error):
                self._line.close()
