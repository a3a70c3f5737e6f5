"""How a worker on PostgreSQL sleeps until there is something to do: LISTEN, on connections of its own.

A notification is a hint. Who sleeps says so in ``delayed_sleeper``, without which nobody notifies; looks whether
something is there; looks once more a moment later, for what was being committed at the first look; and then every
three seconds. Where notifications do not arrive, behind a proxy that pools transactions, it polls.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Sequence

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from delayed.brokers._sleepers import Sleeper, Sleepers
from delayed.brokers.postgres_link import Line, Link
from delayed.brokers.postgres_schema import quoted
from delayed.errors import BrokerError, BrokerUnavailable

SECOND_LOOK = 0.05  # seconds after the first
LOOK = 3.0  # seconds between the others
POLL = (0.001, 0.25)  # seconds between looks where there are no notifications: at first, and at most
REST = (0.005, 0.25)  # seconds to rest when what seems to be there can't be claimed: at first, and at most
PROBE_AGAIN = 300.0  # seconds after which notifications that did not arrive are tried again
PROBE_TIMEOUT = 1.0  # seconds in which a notification of our own has to arrive
SLEEP_NOTE = 2 * LOOK  # seconds that a note of being asleep holds; it is renewed by every look


class PostgresSleeper(Sleeper):
    """One thread's wait: its connection, kept for the next one."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        self._line: Line | None = None
        self._look = link.schema.sql("SELECT @.delayed_sleep(%s::text[], %s::float8)")
        self._rung: set[bytes] = set()  # the queues that notifications have named
        self._parting = False  # whether the answer to UNLISTEN has not been read yet
        self._polls_until = 0.0

    def sleep(self, queues: Sequence[str], timeout: float, misses: int) -> None:
        """Sleep until one of the queues may have something to claim, for `timeout` seconds at most, or until woken.

        Args:
            misses: claims in a row that found nothing. If something seems to be there nevertheless, it is locked by
                somebody: then rest.
        """
        names = {queue[:1000].encode() for queue in queues}
        listening = self._listens()
        deadline = time.monotonic() + timeout
        pause, slowest = (SECOND_LOOK, LOOK) if listening else POLL
        try:
            while True:
                self._rung.clear()
                due = self._seconds_until_due(queues, listening)
                left = min(due, deadline - time.monotonic())
                if due <= 0 and misses > 1:
                    self._rest(set(), min(REST[0] * 2 ** min(misses - 2, 10), REST[1], deadline - time.monotonic()))
                if left <= 0 or self._rest(names, min(left, pause)) or time.monotonic() >= deadline:
                    break
                pause = slowest if listening else min(pause * 2, slowest)
        finally:
            self._part()

    def _seconds_until_due(self, queues: Sequence[str], listening: bool) -> float:
        if not listening:
            return float(self._link.run(self._look, (list(queues), 0.0))[0][0])
        assert self._line is not None
        try:
            with self._link.errors():
                cursor = psycopg.Cursor(self._line, row_factory=tuple_row)
                cursor.execute(self._look, (list(queues), SLEEP_NOTE), prepare=False)
                return float(cursor.fetchall()[0][0])
        except BrokerError:
            self.hang_up()
            raise

    def _rest(self, names: set[bytes], seconds: float) -> bool:
        """Sleep; True if it was ended by a wake or by a notification for one of the queues."""
        poll = select.poll()  # not select(2), which fails at the 1,024th open file
        poll.register(self._ear, select.POLLIN)
        if self._line is not None:
            if self._heard(names):
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
            while notify := pgconn.notifies():
                self._rung.add(notify.extra)
        except psycopg.Error as error:
            self.hang_up()
            raise BrokerUnavailable(f"{self._link.shown}: {error}") from error
        return not self._rung.isdisjoint(names)

    def _note(self, notify: psycopg.Notify) -> None:
        """What came with the answer to a statement."""
        self._rung.add(notify.payload.encode())

    def _part(self) -> None:
        """Listen no more until the next wait: what nobody reads fills the server's queue, and keeps it from cleaning
        up. The answer is read at the next wait, so that this one ends at once.
        """
        if self._line is None:
            return
        try:
            self._line.pgconn.send_query(b"UNLISTEN *")
            self._line.pgconn.flush()
            self._parting = True
        except psycopg.Error:
            self.hang_up()

    def _parted(self) -> bool:
        """Read the answer of UNLISTEN; False if the connection is lost."""
        assert self._line is not None
        if not self._parting:
            return True
        self._parting = False
        pgconn = self._line.pgconn
        poll = select.poll()
        poll.register(self._line.fileno(), select.POLLIN)
        deadline = time.monotonic() + PROBE_TIMEOUT
        with contextlib.suppress(psycopg.Error):
            while True:  # get_result() would wait for what is missing, for ever, and meanwhile no thread runs
                while pgconn.is_busy():
                    if not poll.poll(max(deadline - time.monotonic(), 0.0) * 1000):
                        return False
                    pgconn.consume_input()
                if pgconn.get_result() is None:
                    return pgconn.transaction_status == TransactionStatus.IDLE
        return False

    # -- the connection ----------------------------------------------------------------------------------------

    def _listens(self) -> bool:
        """Have a connection that can listen, if that works here."""
        if not self._link.listens or time.monotonic() < self._polls_until:
            return False
        if self._line is not None:
            if not self._line.closed and self._parted():
                return True
            self.hang_up()
        with self._link.connection():  # makes the schema, if it has to be made
            pass
        line = self._line = self._link.connect()
        try:
            with self._link.errors():
                line.add_notify_handler(self._note)
                ((pid,),) = line.execute("SELECT pg_backend_pid()", prepare=False).fetchall()
            # A proxy shows another number than the server's own process. Some pass notifications on, others do not.
            works = pid == line.info.backend_pid or self._probe(line)
        except BaseException:
            self.hang_up()
            raise
        if not works:
            self._polls_until = time.monotonic() + PROBE_AGAIN
            self.hang_up()
        return works

    def _probe(self, line: Line) -> bool:
        """Whether a notification that is sent from another connection arrives."""
        with self._link.errors():
            line.execute(f"LISTEN {quoted(self._link.schema.channel)}".encode(), prepare=False)
        word = f"probe {os.urandom(8).hex()}"
        self._link.run(b"SELECT pg_notify(%s, %s)", (self._link.schema.channel, word))
        return self._rest({word.encode()}, PROBE_TIMEOUT)

    def hang_up(self) -> None:
        line, self._line = self._line, None
        self._parting = False
        if line is not None:
            with contextlib.suppress(psycopg.Error):
                line.close()


class Waiter(Sleepers[PostgresSleeper]):
    """All waits of one broker in one process."""

    def __init__(self, link: Link) -> None:
        super().__init__(lambda: PostgresSleeper(link))
        self._misses = 0

    def sleep(self, queues: Sequence[str], timeout: float) -> None:
        """See :meth:`PostgresSleeper.sleep`."""
        with self.one() as sleeper:
            if sleeper is not None:
                sleeper.sleep(queues, timeout, self._misses)

    def note_claim(self, found: int) -> None:
        """A claim that may take anything has found so many."""
        self._misses = 0 if found else self._misses + 1
