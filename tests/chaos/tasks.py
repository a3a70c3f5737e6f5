"""Tasks that note in the ledger what becomes of them. Each is given the number of its intent."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delayed import current
from tests.chaos.records import LEDGER, note

if TYPE_CHECKING:
    from delayed import Queue

COUNT = "count"
FOLDER, URL = "CHAOS_FOLDER", "CHAOS_URL"  # where the workers' children find the ledger and the store
OUTSIDE = "CHAOS_OUTSIDE"  # ... and, if they have a PID namespace of their own, the /proc of the judge
TICK = 0.05  # seconds between two signs of life
LOCK_TTL = 2.0  # seconds for which a task that was killed keeps others waiting for its lock
EFFECTS = "chaos_effect"  # the table that transactions write to


def _pid() -> int:
    """Of this process, as the judge sees it: a procfs says who reads it by the pid in its own namespace."""
    outside = os.environ.get(OUTSIDE)
    return int(os.readlink(f"{outside}/self")) if outside else os.getpid()


_forked_by = 0  # the pid of the fork server; getppid() does not tell it any more when a run begins just after its death


def _before_fork() -> None:
    global _forked_by
    _forked_by = _pid()


os.register_at_fork(before=_before_fork)


class Moody(Exception):
    """Raised by a task that succeeds another time."""


def _note(what: str, run: str, **facts: Any) -> None:
    note(Path(os.environ[FOLDER], LEDGER), what, run=run, **facts)


@contextmanager
def recorded(intent: int) -> Iterator[str]:
    """Note when the block begins and how it ends. Gives the run's own random name, which no broker knows."""
    run = os.urandom(6).hex()
    token = {"id": current.id, "attempt": current.attempt, "token": current.fencing_token}
    _note("S", run, intent=intent, pid=_pid(), ppid=_forked_by or os.getppid(), **token)
    try:
        yield run
    except BaseException as error:
        _note("X", run, why=type(error).__name__)
        raise
    _note("E", run)


def noop(intent: int) -> None:
    with recorded(intent):
        pass


def count() -> None:
    """Append a byte to a file. It has no number, and stands in no log: for crowds."""
    file = os.open(Path(os.environ[FOLDER], COUNT), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, b".")
    os.close(file)


def bulky(intent: int, load: str) -> None:
    """As :func:`noop`, with an argument that takes room."""
    with recorded(intent):
        pass


def nap(intent: int, seconds: float) -> None:
    with recorded(intent) as run:
        _sleep(run, seconds)


def leave_daemon(intent: int, seconds: float) -> None:
    """As :func:`nap`, and leave a process whose parent is gone at once, and that ends when half of the nap is over."""
    with recorded(intent) as run:
        import subprocess  # not at the top, see below

        subprocess.run(["sh", "-c", f"setsid sleep {seconds / 2} &"], start_new_session=True, check=True)
        _sleep(run, seconds)


async def nap_async(intent: int, seconds: float) -> None:
    with recorded(intent) as run:
        import asyncio  # not at the top, for the fork server has this module loaded, and should stay small

        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, TICK))
            _note("T", run)


def moody(intent: int, failures: int) -> None:
    """Raise in the first `failures` runs that count."""
    with recorded(intent):
        if current.attempt <= failures:
            raise Moody(f"attempt {current.attempt}")


def late_moody(intent: int, seconds: float) -> None:
    """Raise at the end of the first run that counts."""
    with recorded(intent) as run:
        _sleep(run, seconds)
        if current.attempt == 1:
            raise Moody("attempt 1")


def watch(intent: int, seconds: float) -> None:
    """As :func:`nap`; then look whether the store still knows the claim that this run is for."""
    with recorded(intent) as run:
        _sleep(run, seconds)
        from delayed.brokers import broker_for

        broker = broker_for(os.environ[URL])
        entry = broker.get(current.queue, current.id)
        broker.close()
        held = entry is not None and entry.state == "running" and entry.delivery == current.fencing_token
        _note("H", run, held=held)


def locked(intent: int, name: str) -> None:
    """Hold a lock for a moment."""
    with recorded(intent), _queue(os.getpid()).lock(name, ttl=LOCK_TTL):
        pass


def effect(intent: int, seconds: float) -> None:
    """Write one row in a transaction that is also the end of this task."""
    with recorded(intent) as run:
        with current.transaction() as tx:
            scheme = os.environ[URL].partition(":")[0]
            if scheme == "mongodb":
                tx.client.get_default_database()[EFFECTS].insert_one({"intent": intent, "run": run}, session=tx)
            else:
                mark = "?" if scheme == "sqlite" else "%s"
                tx.execute(f"INSERT INTO {EFFECTS} (intent, run) VALUES ({mark}, {mark})", (intent, run))
            time.sleep(seconds)
            _note("B", run)
        _note("C", run)


@lru_cache(maxsize=1)
def _queue(pid: int) -> Queue:
    """The queue of the running task, whose connections this process keeps."""
    from delayed import Queue

    return Queue(current.queue, os.environ[URL])


def _sleep(run: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, TICK))
        _note("T", run)
