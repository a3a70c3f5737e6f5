"""What comes before and around the use of a SQLite file: where it lies, its tables, its clock, its driver's errors."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator

from delayed.brokers.scripts import script
from delayed.errors import BrokerError, BrokerFull, BrokerUnavailable, ConfigError

SCHEMA_STEPS = ("sqlite_schema.sql", "sqlite_2.sql", "sqlite_3.sql", "sqlite_4.sql", "sqlite_5.sql")
SCHEMA_VERSION = len(SCHEMA_STEPS)
LEAST = 5  # the oldest version that may use the tables as this one leaves them
LOCK_TIMEOUT = 5.0  # seconds to wait for whoever else writes

# POSIX locks or shared memory maps, both of which SQLite needs, do not hold between hosts on these. (9p, virtiofs and
# overlay are not among them: they are the ordinary disk of many containers and virtual machines.)
# fmt: off
NETWORK_FILE_SYSTEMS = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "glusterfs", "gpfs", "beegfs", "ncpfs",
    "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone", "fuse.mfs",
})
# fmt: on

Clock = Callable[[], int]  # milliseconds


# -- the place -------------------------------------------------------------------------------------------------


def path_of(conn: sqlite3.Connection) -> str:
    """The path of the file that a connection of somebody else's is to; "" if it is in memory."""
    cursor = conn.cursor()
    cursor.row_factory = None  # whatever the rows of its owner look like
    ((path,),) = cursor.execute("SELECT file FROM pragma_database_list WHERE name = 'main'").fetchall()
    return os.fsdecode(path or "")


def check_place(path: str, mounts: list[str]) -> None:
    """Raise ConfigError when a database can't safely be at `path`.

    Args:
        mounts: the lines of ``/proc/self/mountinfo``.
    """
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise ConfigError(f"can't open {path}: there is no folder {folder}; make it first")
    kind = file_system(folder, mounts)
    if kind in NETWORK_FILE_SYSTEMS and os.environ.get("DELAYED_ALLOW_NETWORK_FS") != "1":
        raise ConfigError(
            f"{path} is on a network file system ({kind}), where SQLite's locks do not hold and tasks would be lost: "
            "use a local disk, or a server (redis://). If you know better, set DELAYED_ALLOW_NETWORK_FS=1"
        )
    with contextlib.suppress(FileNotFoundError):
        links = os.stat(path).st_nlink
        if links > 1:
            raise ConfigError(
                f"{path} has {links} hard links, and SQLite would keep a log beside each of them: keep one"
            )


def mount_lines() -> list[str]:
    """What is mounted where; nothing if the system does not say."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError:
        return []


def file_system(folder: str, mounts: list[str]) -> str:
    """The type of the file system that `folder` is on, or "" if that can't be told."""
    best, kind = "", ""
    for line in mounts:
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        point = fields[4]
        for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            point = point.replace(escape, character)
        inside = folder == point or folder.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two on one point, the later hides the earlier
            best, kind = point, right.split()[0]
    return kind


# -- the tables and the clock ----------------------------------------------------------------------------------


def configure(db: sqlite3.Connection, path: str, *, durable: bool) -> None:
    """Set what SQLite keeps per connection."""
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise BrokerError(f"{path}: SQLite can't keep a write-ahead log here; use a local disk")
    for pragma in (
        "wal_autocheckpoint = 0",
        f"synchronous = {'FULL' if durable else 'NORMAL'}",
        "foreign_keys = OFF",
        "temp_store = MEMORY",
        "secure_delete = FAST",  # some builds write zeros over what is deleted: twice the log for each large task
    ):
        db.execute(f"PRAGMA {pragma}").fetchall()


def prepare(db: sqlite3.Connection, path: str) -> Clock:
    """Make the tables on first use, or bring them up to date, and return the file's clock.

    It never goes back, and setting the host's clock does not move it: it is the host's boot-time clock plus an anchor
    that the first process after a boot stores in the file.
    """
    boot, boot_time = _boot_clock()
    found = _meta(db)
    # Later versions may leave the tables so that this one, which runs beside them while they take over, goes on.
    if found is None or found[:2] != (SCHEMA_VERSION, boot):
        db.execute("BEGIN IMMEDIATE")
        try:
            found = _meta(db)
            version = found[0] if found is not None else 0
            if version < SCHEMA_VERSION:
                for statement in _schema(version):
                    db.execute(statement)
                columns = "one, version, boot, anchor, seen"
                db.execute(f"INSERT OR IGNORE INTO delayed_meta ({columns}) VALUES (1, 0, '', 0, 0)")
                db.execute("UPDATE delayed_meta SET version = ?, least = ?", (SCHEMA_VERSION, LEAST))
            elif version > SCHEMA_VERSION:
                (least,) = db.execute("SELECT least FROM delayed_meta").fetchone()
                if least > SCHEMA_VERSION:
                    raise BrokerError(
                        f"{path} was written by a later version of delayed (its tables have version {version}, this "
                        f"one knows {SCHEMA_VERSION}): upgrade delayed here"
                    )
            db.execute(
                "UPDATE delayed_meta SET boot = :boot, anchor = max(:now, seen) - :running WHERE boot <> :boot",
                {"boot": boot, "now": time.time_ns() // 1_000_000, "running": boot_time()},
            )
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
        found = _meta(db)
    assert found is not None
    anchor = found[2]
    return lambda: anchor + boot_time()


def _meta(db: sqlite3.Connection) -> tuple[int, str, int] | None:
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'delayed_meta'").fetchone():
        return None
    version, boot, anchor = db.execute("SELECT version, boot, anchor FROM delayed_meta").fetchone()
    return version, boot, anchor


def _schema(version: int) -> list[str]:
    """What brings tables of `version` (0: none yet) up to date."""
    text = "\n".join(script(f"sql/{name}") for name in SCHEMA_STEPS[version:])
    code = "\n".join(line.partition("--")[0] for line in text.splitlines())
    return [statement for statement in code.split(";") if statement.strip()]


def _boot_clock() -> tuple[str, Clock]:
    """A name for this boot of the host, and its clock: one that nobody sets, and that counts suspension.

    Where the system has none, the wall clock takes its place under the name "-".
    """
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        clock = time.CLOCK_BOOTTIME
    except (OSError, AttributeError):
        return "-", lambda: time.time_ns() // 1_000_000
    return boot, lambda: time.clock_gettime_ns(clock) // 1_000_000


# -- errors ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def driver_errors(path: str, *, growing: bool = False) -> Iterator[None]:
    """Turn the errors of the driver and of the system into the library's.

    Args:
        growing: True for an enqueue: a full disk is then :class:`BrokerFull`.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _translate(error, path, growing) from error
    except OSError as error:
        if isinstance(error, BrokerError):
            raise
        raise BrokerError(
            f"{path}: {error.strerror or error} ({error.filename or 'beside it'}): "
            "this user must be able to write the file and its folder"
        ) from error


def _translate(error: sqlite3.Error, path: str, growing: bool) -> BrokerError:
    code = getattr(error, "sqlite_errorcode", 0)
    text = f"{path}: {error} ({getattr(error, 'sqlite_errorname', type(error).__name__)})"
    # A quota or a limit on file sizes shows as a failed write, not as FULL. Nothing of the transaction is kept.
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE):
        if growing:
            return BrokerFull(f"{text}: nothing was stored; free some space, or raise the limit")
        return BrokerUnavailable(f"{text}: free some space, or raise the limit", sent=False)
    match code & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return BrokerUnavailable(f"{text}: another program has kept it for {LOCK_TIMEOUT:g} s", sent=False)
        case sqlite3.SQLITE_IOERR:
            return BrokerUnavailable(text)
        case sqlite3.SQLITE_NOTADB:
            return BrokerError(f"{text}: give the path of a SQLite database, or one where there is no file yet")
        case sqlite3.SQLITE_CORRUPT:
            return BrokerError(f"{text}: restore a backup, or save what is left with: sqlite3 {path} .recover")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return BrokerError(f"{text}: this user must be able to write the file and its folder")
    return BrokerError(text)
