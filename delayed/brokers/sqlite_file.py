"""The file of the SQLite broker: one connection a process, who may write, checkpoints, and what a fork does to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from delayed.brokers import deadline as deadlines
from delayed.brokers.sqlite_access import create
from delayed.brokers.sqlite_open import (
    LOCK_TIMEOUT,
    Clock,
    check_place,
    configure,
    driver_errors,
    mount_lines,
    prepare,
)
from delayed.brokers.sqlite_wake import Bell
from delayed.errors import BrokerFull, BrokerUnavailable, ConfigError
from delayed.logger import logger

MIN_SQLITE = (3, 35, 0)  # RETURNING
WAL_LIMIT = 4 << 20  # bytes of write-ahead log after which it is copied into the file
RESERVE = 16 << 20  # bytes of disk that enqueue leaves free, so that settling and checkpoints still have room
LOG_ROOM = 12 << 20  # bytes of it that the write-ahead log needs, also where there is room in the file
HEADROOM = 256  # pages above `max_size` for everything but enqueue


class OpenFile:
    """What one process has open.

    Attributes:
        db: the connection.
        now: the clock of the file.
        numbers: the numbers of queues, as far as this process has seen them.
        lock: the descriptor of the lock file.
        identity: device and inode of the database.
        patience: seconds for which SQLite waits for other programs that write.
        checkpoint_at: the size of the write-ahead log at which it is next copied into the file.
    """

    def __init__(
        self, db: sqlite3.Connection, now: Clock, lock: int, identity: tuple[int, int], patience: float
    ) -> None:
        self.db = db
        self.now = now
        self.numbers: dict[str, int] = {}
        self.lock = lock
        self.identity = identity
        self.patience = patience
        self.checkpoint_at = WAL_LIMIT

    def close(self) -> None:
        """Close both. When the last connection of all processes closes, SQLite checkpoints; so that is done under our
        lock too. Who can't have it at once leaves its holder behind, and so is not the last.
        """
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.db.close()
        os.close(self.lock)


_FILES: weakref.WeakSet[SQLiteFile] = weakref.WeakSet()
_LEAKED: list[OpenFile] = []


class SQLiteFile:
    """One database file, opened on first use, with one connection per process on which its threads take turns.

    No connection crosses a fork, which SQLite forbids: the child would take the locks of its parent for its own. It is
    closed before a fork, between two transactions, and either process opens one anew when it next needs it.

    Every write transaction and every checkpoint runs under an exclusive flock on a file beside the database. SQLite
    has one writer at a time anyway; what the lock adds is that nobody writes while another process checkpoints, which
    in every version before 3.51.3 (but 3.44.6 and 3.50.7) may corrupt the file:
    https://sqlite.org/wal.html#walresetbug. Automatic checkpoints are off, and all versions are treated the same.

    Args:
        path: the absolute path of the database; it is created, for its owner only, where there is none.
        durable: wait for the disk at every commit, so that a power cut loses nothing.
        max_size: bytes that the database may grow to before enqueue is refused; 0 means the disk is the limit.
        mounts: returns the lines of ``/proc/self/mountinfo``.
        factory: makes the connection.
    """

    def __init__(
        self,
        path: str,
        *,
        durable: bool = False,
        max_size: int = 0,
        mounts: Callable[[], list[str]] = mount_lines,
        factory: type[sqlite3.Connection] = sqlite3.Connection,
    ) -> None:
        if sqlite3.sqlite_version_info < MIN_SQLITE:
            raise ConfigError(
                f"this Python has SQLite {sqlite3.sqlite_version}, and 3.35 or later is needed: "
                "use a newer Python, or another broker"
            )
        self.path = path
        self.wakes = path + "-wake"  # the folder of the wake-ups
        self._durable = durable
        self._max_size = max_size
        self._mounts = mounts
        self._factory = factory
        self._turn = threading.RLock()
        self._opened: OpenFile | None = None
        self._bell: Bell | None = None
        self._bell_turn = threading.RLock()  # its own: a signal handler may ring while this process writes
        self._finalizer: weakref.finalize[..., Any] | None = None
        _FILES.add(self)

    def another(self, factory: type[sqlite3.Connection]) -> SQLiteFile:
        """The same file, with a connection of its own."""
        return SQLiteFile(
            self.path, durable=self._durable, max_size=self._max_size, mounts=self._mounts, factory=factory
        )

    # -- using it ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def read(self) -> Iterator[OpenFile]:
        """The open file, to read from; each statement sees the last commit."""
        with self._in_turn(), driver_errors(self.path):
            yield self._open()

    @contextlib.contextmanager
    def write(self, *, growing: bool = False) -> Iterator[OpenFile]:
        """The open file in a write transaction: committed after the block, rolled back if it raises.

        Args:
            growing: True for an enqueue, which leaves a reserve of space to everything else.
        """
        with driver_errors(self.path, growing=growing), self.transaction(growing=growing) as opened:
            yield opened

    @contextlib.contextmanager
    def transaction(self, *, growing: bool = False) -> Iterator[OpenFile]:
        """As :meth:`write`, for statements that are not ours: what the block raises comes out as it is."""
        with self._in_turn():
            with driver_errors(self.path, growing=growing):
                opened = self._open()
                if opened.db.in_transaction:
                    raise BrokerUnavailable(f"{self.path}: called by a signal handler amid another call", sent=False)
                if growing:
                    self._check_space(opened.db)
            # A signal handler may raise at any moment, also between the return of what takes a lock and the next line:
            # so it is taken inside of what gives it back, which does no harm where it was not taken.
            try:
                try:
                    with driver_errors(self.path, growing=growing):
                        self._begin(opened, growing)
                    yield opened
                    with driver_errors(self.path, growing=growing):
                        opened.db.execute("COMMIT")
                finally:
                    if opened.db.in_transaction:
                        opened.db.execute("ROLLBACK")
                self._checkpoint(opened)
            finally:
                fcntl.flock(opened.lock, fcntl.LOCK_UN)

    @property
    def bell(self) -> Bell:
        with self._bell_turn:
            if self._bell is None:
                self._bell = Bell(self.wakes)
                weakref.finalize(self, self._bell.close).atexit = False
            return self._bell

    def wal_size(self) -> int:
        """Bytes of the write-ahead log."""
        try:
            return os.stat(self.path + "-wal").st_size
        except OSError:
            return 0

    def free_space(self) -> int:
        """Bytes left on the disk for this user."""
        disk = os.statvfs(os.path.dirname(self.path))
        return disk.f_bavail * disk.f_frsize

    def close(self) -> None:
        """Close what this process has open, and end its sleeps; the next use opens it again."""
        with self._bell_turn:
            bell, self._bell = self._bell, None
        if bell is not None:
            bell.close()
        self._disconnect()

    # -- opening it --------------------------------------------------------------------------------------------

    def _open(self) -> OpenFile:
        """What is open, opened on first use, and anew when the file was removed or replaced."""
        opened = self._opened
        if opened is not None:
            what = "replaced"
            try:
                found = os.stat(self.path)
                if (found.st_dev, found.st_ino) == opened.identity:
                    return opened
            except FileNotFoundError:
                what = "removed"
            logger.error("%s was %s while it was in use: what was in it is not in the one used now", self.path, what)
            self._disconnect()
        check_place(self.path, self._mounts())
        lock = create(self.path + "-lock")
        try:
            self._lock(lock)
            try:
                opened = self._connect(lock)
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)
        except BaseException:
            os.close(lock)
            raise
        self._opened = opened
        self._finalizer = weakref.finalize(self, opened.close)
        return opened

    def _connect(self, lock: int) -> OpenFile:
        if not os.path.exists(self.path):
            os.close(create(self.path))  # SQLite would let everybody read it
        found = os.stat(self.path)
        db = sqlite3.connect(
            self.path,
            timeout=(patience := deadlines.left(LOCK_TIMEOUT)),
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
            factory=self._factory,
        )
        try:
            configure(db, self.path, durable=self._durable)
            now = prepare(db, self.path)
        except BaseException:
            db.close()
            raise
        return OpenFile(db, now, lock, (found.st_dev, found.st_ino), patience)

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        """One thread at a time; and who has a deadline does not wait longer for another that waits for the file."""
        turn: Any = self._turn
        again, taken = turn._is_owned(), False
        try:
            taken = turn.acquire(timeout=deadlines.left(threading.TIMEOUT_MAX))
            if not taken:
                raise BrokerUnavailable(f"{self.path}: other threads have kept it in use", sent=False)
            yield
        finally:
            if taken or (not again and turn._is_owned()):  # a signal handler may have raised before it was noted
                turn.release()

    def _disconnect(self) -> None:
        with self._turn:
            self._opened = None
            finalizer, self._finalizer = self._finalizer, None
            if finalizer is not None:
                finalizer()

    # -- writing -----------------------------------------------------------------------------------------------

    def _begin(self, opened: OpenFile, growing: bool) -> None:
        self._lock(opened.lock)
        if self._max_size:
            self._limit(opened.db, growing)
        self._be_patient(opened)
        opened.db.execute("BEGIN IMMEDIATE")

    def _lock(self, lock: int) -> None:
        """Take the lock. It polls, for flock has no timeout, and a holder that is frozen must not freeze everybody."""
        patience = deadlines.left(LOCK_TIMEOUT)
        deadline = time.monotonic() + patience
        pause = 0.0002
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(
                        f"{self.path}: another process has kept the lock for {patience:.2g} s; "
                        f"to see which: fuser {self.path}-lock",
                        sent=False,
                    ) from None
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 1.5, 0.005)

    def _be_patient(self, opened: OpenFile) -> None:
        """Set how long SQLite itself waits for other programs that write, where that is to change."""
        patience = deadlines.left(LOCK_TIMEOUT)
        if patience > LOCK_TIMEOUT - deadlines.SLACK:
            patience = LOCK_TIMEOUT
        if patience != opened.patience:
            opened.db.execute(f"PRAGMA busy_timeout = {patience * 1000:.0f}").fetchall()
            opened.patience = patience

    def _check_space(self, db: sqlite3.Connection) -> None:
        free = self.free_space()
        if free >= RESERVE:
            return
        # What has left the file has left room in it; but on its way there everything goes through the log.
        if free < LOG_ROOM or free + self._unused(db) < RESERVE:
            raise BrokerFull(
                f"{self.path}: the disk has {free >> 20} MB left, and {RESERVE >> 20} MB are kept for the tasks that "
                "are stored already: free some space"
            )

    @staticmethod
    def _unused(db: sqlite3.Connection) -> int:
        """Bytes of the file that nothing lies in."""
        ((pages,),) = db.execute("PRAGMA freelist_count").fetchall()
        ((page_size,),) = db.execute("PRAGMA page_size").fetchall()
        return int(pages * page_size)

    def _limit(self, db: sqlite3.Connection, growing: bool) -> None:
        (page_size,) = db.execute("PRAGMA page_size").fetchone()
        pages = self._max_size // page_size + (0 if growing else HEADROOM)
        db.execute(f"PRAGMA max_page_count = {pages}").fetchall()

    def _checkpoint(self, opened: OpenFile) -> None:
        """Copy the write-ahead log into the file when it is large. We hold the lock, so nobody writes.

        A reader amid a long transaction may keep a part of it in use. The next try is when it has grown by as much
        again, so that the same part is not gone through after every commit.
        """
        if self.wal_size() < opened.checkpoint_at:
            return
        try:
            opened.db.execute("PRAGMA busy_timeout = 0").fetchall()
            opened.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error:
            pass  # our transaction is committed; a full disk or a busy reader only leaves the log longer
        finally:
            opened.db.execute(f"PRAGMA busy_timeout = {opened.patience * 1000:.0f}").fetchall()
        opened.checkpoint_at = self.wal_size() + WAL_LIMIT

    # -- forking -----------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        self._turn.acquire()
        if self._opened is not None and not self._opened.db.in_transaction:
            self._disconnect()

    def after_fork_in_parent(self) -> None:
        self._turn.release()

    def after_fork_in_child(self) -> None:
        self._turn = threading.RLock()  # other threads, which the child does not have, may be in line for the old ones
        self._bell_turn = threading.RLock()
        bell, self._bell = self._bell, None
        if bell is not None:
            bell.abandon()
        if self._opened is not None:  # forked by a signal handler amid a transaction: never to be touched again
            _LEAKED.append(self._opened)
            self._opened = None
            if self._finalizer is not None:
                self._finalizer.detach()


_forking: list[SQLiteFile] = []
_fork_turn = threading.RLock()


def _before_fork() -> None:
    _fork_turn.acquire()  # two threads that fork at once would wait for each other's files
    _forking[:] = _FILES
    for file in _forking:
        file.before_fork()


def _after_fork_in_parent() -> None:
    for file in _forking:
        file.after_fork_in_parent()
    _forking.clear()
    _fork_turn.release()


def _after_fork_in_child() -> None:
    global _fork_turn
    _fork_turn = threading.RLock()
    for file in _forking:
        file.after_fork_in_child()
    _forking.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
