"""What happens to SQLite alone: its disk is full, somebody reads it for long."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import subprocess
import time
from pathlib import Path

from tests.chaos import syscalls, tasks
from tests.chaos.scenarios.outages import BACK, SLACK, back
from tests.chaos.scenarios.producing import Pressing, Producing
from tests.chaos.scenarios.scene import Scene, Unplayable, scenario
from tests.chaos.stores import SQLiteStore

DISK = 48 << 20  # bytes: more than what the broker leaves free when it enqueues
LOAD = "x" * 200_000
NAP = 0.05  # seconds that a task takes
AT_ONCE = 1.0  # seconds in which a busy machine refuses what a store has no room for
LOG = 12 << 20  # bytes of write-ahead log: it is copied when it has 4 MB, and again at 8
CALLS = ("pwrite64", "fdatasync")  # with which the log is written
FAILING = ("1", "2", "3", "5", "8", "13", "5+40")  # which calls of each thread; the last: the 5th, the 45th ...
READ = 10.0  # seconds
PRODUCERS = 11  # with four workers and a sweeper these are sixteen processes that write


@scenario("S1", stores=("sqlite",), proxied=False)
def disk_is_full(scene: Scene) -> int:
    """The disk is filled by producers, who are refused, and then to its last block by somebody else: a pause."""
    path = _small_disk(scene)
    arena = scene.arena
    with Pressing(scene, LOAD) as pressing:
        scene.wait_for(lambda: scene.refused() > 5)
    scene.measure("refused after", pressing.longest, most=AT_ONCE)
    scene.worker()
    scene.worker()
    scene.wait_for(lambda: not sum(arena.counts()[:3]))
    scene.measure("used again, of what was refused", float(_takes_more(scene)), least=1.0)

    (number,) = scene.put(1.5 * arena.lease + SLACK, count=1)
    scene.wait_for(lambda: scene.runs(number))
    scene.put(NAP, count=scene.tasks)
    arena.note("down", lossy=False)
    _fill(path.parent / "ballast")
    time.sleep(1.5 * arena.lease)
    (path.parent / "ballast").unlink()
    arena.note("up")
    scene.put(NAP, count=1)
    scene.measure("served again after", back(scene), most=BACK + SLACK)
    scene.wait_for(scene.all_begun)
    _check(scene, path)
    return 1


def _takes_more(scene: Scene) -> bool:
    before = scene.refused()
    scene.arena.put(tasks.bulky, LOAD)
    return scene.refused() == before


def _small_disk(scene: Scene) -> Path:
    """Put the store on a file system of its own; returns the path of its file."""
    assert isinstance(scene.store, SQLiteStore)
    folder = scene.store.path.parent
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        raise Unplayable(f"a small file system can't be mounted: {done.stderr.strip()}")
    scene.later.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
    scene.store.prepare()
    return scene.store.path


def _fill(path: Path) -> None:
    """Write until there is no block left."""
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)


@scenario("S2", stores=("sqlite",), proxied=False)
def long_reader(scene: Scene) -> int:
    """Somebody reads for long while sixteen processes write: nobody waits for him, and the log becomes small again."""
    assert isinstance(scene.store, SQLiteStore)
    path, arena = scene.store.path, scene.arena
    for _ in range(4):
        scene.worker(processes=1)
    arena.start("sweeper")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM delayed_task").fetchall()
        producers = [_producer(scene, number) for number in range(PRODUCERS)]
        with Producing(scene, 0.0) as producing:
            time.sleep(READ)
        scene.measure(".delay() took at most", producing.longest, most=SLACK)
    for producer in producers:
        producer.wait(60)
    for _ in range(200):  # so that the log is copied once more
        arena.put(tasks.bulky, LOAD)
    scene.wait_for(lambda: not sum(arena.counts()[:3]))
    scene.measure("bytes of log", Path(f"{path}-wal").stat().st_size, most=LOG)
    _check(scene, path)
    return 1


@scenario("S2", stores=("sqlite",), proxied=False)
def bad_disk(scene: Scene) -> int:
    """A write of a worker's fails, or a sync: what it was to store is stored soon after, and nothing runs twice."""
    assert isinstance(scene.store, SQLiteStore)
    if why := syscalls.missing():
        raise Unplayable(why)
    workers = itertools.cycle([scene.worker(url=f"{scene.arena.direct}?durability=disk") for _ in range(2)])
    trace = scene.arena.folder / "failing"
    failed = 0
    for call, error, when in itertools.product(CALLS, ("EIO", "ENOSPC"), FAILING):
        scene.put(NAP, count=20)
        effect = f"error={error}"
        with syscalls.traced(next(workers).monitor, trace, call, when, effect=effect, threads=True):
            scene.wait_for(scene.all_begun)
        failed += trace.read_text().count("(INJECTED)")
    scene.wait_for(lambda: not sum(scene.arena.counts()[:3]))
    scene.measure("calls that failed", float(failed), least=20.0)
    _check(scene, scene.store.path)
    return failed


def _producer(scene: Scene, number: int) -> subprocess.Popen[bytes]:
    order = {"queue": scene.arena.name, "seed": str(number), "first": (number + 1) * 100_000, "count": 40}
    more = {"seconds": READ * 0.8, "mix": "mixed", "mode": scene.arena.mode, "transactional": False, "backlog": 0}
    return scene.arena.run("tests.chaos.producer", **order, **more)


def _check(scene: Scene, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        ((words,),) = db.execute("PRAGMA integrity_check(1)").fetchall()
    scene.measure(f"integrity: {words}", float(words == "ok"), least=1.0)
