"""The answers of tasks in a SQLite file, and who waits for them: one FIFO for each listener, for all shall hear."""

from __future__ import annotations

import contextlib
import os
import select
import sqlite3
import time
from collections.abc import Mapping, Sequence

from delayed.brokers.base import Listener
from delayed.brokers.sqlite_wake import NO_FIFOS, make_fifo, open_fifo, open_folder
from delayed.message import Answer, Settlement

IDS_MAX = 500  # that one statement names
FORGET_MAX = 10_000  # answers that one sweep removes at most
POLL_WITHOUT_FIFO = 0.05  # seconds between looks where there are no FIFOs to ring with

_PUT = """
    INSERT INTO delayed_answer (queue, id, until, data) VALUES (?, ?, ?, ?)
    ON CONFLICT (queue, id) DO UPDATE SET until = excluded.until, data = excluded.data
"""
_FORGET = "DELETE FROM delayed_answer WHERE seat IN (SELECT seat FROM delayed_answer WHERE until <= ? LIMIT ?)"


def put(db: sqlite3.Connection, number: int, id: int, answer: Answer, now: int) -> None:
    """Store an answer in the place of what is there."""
    db.execute(_PUT, (number, id, now + round(answer.ttl * 1000), answer.data))


def put_settled(
    db: sqlite3.Connection,
    numbers: Mapping[str, int],
    settlements: Sequence[Settlement],
    accepted: Sequence[bool],
    now: int,
) -> set[int]:
    """Store the answers of the settlements that were accepted; the numbers of the queues that have some."""
    changed = set()
    for settlement, good in zip(settlements, accepted, strict=True):
        if good and settlement.answer is not None and settlement.action in ("done", "dead"):
            number = numbers[settlement.ref.queue]
            put(db, number, settlement.ref.id, settlement.answer, now)
            changed.add(number)
    return changed


def get(db: sqlite3.Connection, queue: str, ids: Sequence[int], now: int) -> dict[int, bytes]:
    """See :meth:`Broker.get_results`."""
    found: dict[int, bytes] = {}
    for start in range(0, len(ids), IDS_MAX):
        part = ids[start : start + IDS_MAX]
        marks = ", ".join("?" * len(part))
        found.update(
            db.execute(
                "SELECT id, data FROM delayed_answer WHERE queue = (SELECT number FROM delayed_queue WHERE name = ?) "
                f"AND until > ? AND id IN ({marks})",
                (queue, now, *part),
            ).fetchall()
        )
    return found


def forget(db: sqlite3.Connection, now: int) -> None:
    """Remove the answers whose time is over."""
    db.execute(_FORGET, (now, FORGET_MAX))


class SQLiteListener(Listener):
    """A FIFO of its own in the folder of the wake-ups, which whoever stores an answer writes to.

    Args:
        folder: the wake-ups'.
        number: of the queue.
    """

    def __init__(self, folder: str, number: int) -> None:
        name = f"{_start(number)}{os.urandom(8).hex()}"
        self._path = os.path.join(folder, name)
        self._fifo = -1
        self._closed = False
        with contextlib.suppress(*NO_FIFOS):
            place = open_folder(folder)
            try:
                make_fifo(f"new-{name}", place)
                self._fifo = open_fifo(f"new-{name}", place, os.O_RDWR)
                # One that nobody has open would be taken for a dead listener's.
                os.rename(f"new-{name}", name, src_dir_fd=place, dst_dir_fd=place)
            finally:
                os.close(place)

    def wait(self, timeout: float) -> bool:
        if self._fifo < 0:
            time.sleep(min(timeout, POLL_WITHOUT_FIFO))
            return True
        poll = select.poll()
        poll.register(self._fifo, select.POLLIN)
        if self._closed or not poll.poll(timeout * 1000) or self._closed:
            return False
        with contextlib.suppress(OSError):
            os.read(self._fifo, 65536)
        return True

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._fifo >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            # What sleeps on it is woken, and its number stays taken until nobody can.
            with contextlib.suppress(OSError):
                os.write(self._fifo, b"!")

    def __del__(self) -> None:
        self.close()
        if self._fifo >= 0:
            os.close(self._fifo)


def ring(folder: str, number: int) -> None:
    """Wake every listener of a queue. Never blocks."""
    start = _start(number)
    try:
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # nobody has ever waited
        return
    try:
        for name in os.listdir(place):
            if not name.startswith(start):
                continue
            try:
                fifo = open_fifo(name, place, os.O_WRONLY)
            except OSError:  # its listener is gone, and could not say goodbye
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=place)
                continue
            with contextlib.suppress(OSError):  # full: it rings already
                os.write(fifo, b"!")
            os.close(fifo)
    finally:
        os.close(place)


def _start(number: int) -> str:
    """How the names of a queue's listeners begin."""
    return f"answers-{number}-"
