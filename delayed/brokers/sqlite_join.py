"""Enqueueing in a SQLite transaction that is not the broker's, and the connection of a task's own transaction."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from delayed.brokers import sqlite_once as onces
from delayed.brokers import sqlite_tasks as tasks
from delayed.brokers.base import Joined
from delayed.brokers.sqlite_file import SQLiteFile
from delayed.brokers.sqlite_open import path_of
from delayed.brokers.unwrap import driver_connection
from delayed.errors import BrokerError, BrokerUnavailable, ConfigError
from delayed.message import Message, Once

COMMIT_WATCHED = 10.0  # seconds that a commit is waited for to ring the bell; later ones are seen by polling
COMMIT_POLL = 0.002  # seconds between two looks
COMMIT_TAKES = (0.0, 0.004, 0.03, 0.2)  # seconds between the rings for one commit, which may take a moment


class SQLiteJoined(Joined):
    """A transaction on a connection to the broker's file.

    Args:
        file: the broker's file.
        connection: open on the same file.
    """

    def __init__(self, file: SQLiteFile, connection: sqlite3.Connection) -> None:
        self.connection: sqlite3.Connection = connection
        self._file = file
        self._rung: set[int] = set()

    def reserve_ids(self, queue: str, n: int) -> int:
        return int(self._run(lambda db, number, now: tasks.reserve_ids(db, number, n, now), queue))

    def clock(self, queue: str) -> float:
        with self._file.read() as file:
            return file.now() / 1000

    def enqueue(self, queue: str, messages: Sequence[Message]) -> None:
        def store(db: sqlite3.Cursor, number: int, now: int) -> None:
            tasks.store(db, number, messages, now)
            self._rung.add(number)

        self._run(store, queue)

    def enqueue_once(self, queue: str, message: Message, once: Once) -> int:
        def store(db: sqlite3.Cursor, number: int, now: int) -> int:
            id = onces.store(db, number, message, once, now)
            if id == message.id:
                self._rung.add(number)
            return id

        return int(self._run(store, queue))

    def leave(self) -> None:
        """Ring for the tasks once they are committed. SQLite tells nobody of a commit, so a thread looks for it."""
        if self._rung:
            if self._committed():
                self._ring()
            else:
                threading.Thread(target=self._ring_later, name="delayed-commit", daemon=True).start()

    def _run(self, step: Any, queue: str) -> Any:
        conn = self.connection
        with self._file.read() as opened:
            now = opened.now()
        cursor = conn.cursor()
        cursor.row_factory = None  # whatever the rows of its owner look like
        try:
            if not conn.in_transaction and _begins_by_itself(conn):
                cursor.execute(f"BEGIN {conn.isolation_level or ''}")  # as the driver does before it writes
            cursor.execute("SAVEPOINT delayed")
            try:
                # Not by the broker's own connection: it would wait for this transaction to end.
                cursor.execute("INSERT INTO delayed_queue (name) VALUES (?) ON CONFLICT DO NOTHING", (queue,))
                ((number,),) = cursor.execute("SELECT number FROM delayed_queue WHERE name = ?", (queue,)).fetchall()
                return step(cursor, number, now)
            except BaseException:
                if conn.in_transaction:
                    cursor.execute("ROLLBACK TO delayed")
                raise
            finally:
                if conn.in_transaction:  # some errors end it
                    cursor.execute("RELEASE delayed")
        except sqlite3.Error as error:
            raise _translate(self._file.path, error) from error
        finally:
            cursor.close()

    def _committed(self) -> bool:
        """Whether the transaction is over. May be asked by any thread."""
        try:
            return not self.connection.in_transaction
        except sqlite3.ProgrammingError:  # closed
            return True

    def _ring_later(self) -> None:
        deadline = time.monotonic() + COMMIT_WATCHED
        while not self._committed() and time.monotonic() < deadline:
            time.sleep(COMMIT_POLL)
        # It counts as over when its COMMIT begins, and who is woken now may find nothing. Looking is no answer: at the
        # end of the program the file is closed, whatever this thread does with it.
        for pause in COMMIT_TAKES:
            time.sleep(pause)
            self._ring()

    def _ring(self) -> None:
        for number in self._rung:
            self._file.bell.ring(number)


class TaskConnection(sqlite3.Connection):
    """A connection whose transaction ends with its task, and not before."""

    def commit(self) -> None:
        _refuse()

    def rollback(self) -> None:
        _refuse()

    def executescript(self, sql_script: str, /) -> NoReturn:
        _refuse("executescript() would commit first: call execute() for each statement")

    def __enter__(self) -> TaskConnection:
        return self

    def __exit__(self, *_: object) -> None:  # type: ignore[override]
        """Nothing: an error rolls back where it leaves the block of the transaction."""


def join(file: SQLiteFile, conn: Any) -> SQLiteJoined:
    """The transaction of `conn`, which may be SQLAlchemy's or Django's.

    Raises:
        ConfigError: When it is no connection to that file.
    """
    found = driver_connection(conn)
    if not isinstance(found, sqlite3.Connection):
        kind = type(found)
        raise ConfigError(
            f"tasks of {file.path} can be enqueued in the transaction of a sqlite3.Connection, not of a "
            f"{kind.__module__}.{kind.__qualname__}"
        )
    path = path_of(found)
    if os.path.realpath(path or "/") != file.path:
        raise ConfigError(
            f"the queue is in {file.path}, and the connection is to {path or 'a database in memory'}: one "
            "transaction can't hold both; give the queue the URL of the connection's file"
        )
    try:
        with file.read():
            pass
    except BrokerUnavailable as error:
        raise BrokerUnavailable(
            f"{error}. If that is the transaction that is to be joined: the queue's tables can't be made while it "
            "is open, so use the queue once before (queue.broker.check())",
            sent=False,
        ) from error
    # Only the broker's own connections copy the log into the file, see SQLiteFile.
    found.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
    return SQLiteJoined(file, found)


def _begins_by_itself(conn: sqlite3.Connection) -> bool:
    """Whether the driver begins a transaction before a statement that writes."""
    if getattr(conn, "autocommit", -1) != -1:  # Python 3.12; -1 is the way of earlier versions
        return False
    return conn.isolation_level is not None


def _refuse(what: str = "") -> NoReturn:
    raise sqlite3.ProgrammingError(
        what
        or "this transaction is committed together with the end of its task, when the block of "
        "current.transaction() ends; to roll it back, raise an exception in the block"
    )


def _translate(path: str, error: sqlite3.Error) -> BrokerError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    text = f"{path}: not enqueued: {error}"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return BrokerUnavailable(
            f"{text}: another connection writes, or has written since this transaction first read; begin it with "
            "BEGIN IMMEDIATE",
            sent=False,
        )
    return BrokerError(text)
