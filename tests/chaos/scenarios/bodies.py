"""What tasks do that harms nobody but their own process: they hang, in Python and in C, with guardians and without."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from math import inf
from typing import Any, Self

from tests.chaos import hangs
from tests.chaos.history import Run
from tests.chaos.records import LEDGER, Tail, now
from tests.chaos.scenarios.scene import ALL, Scene, scenario

TIMEOUT = 1.0  # seconds that a task may take
KILL_TIMEOUT = 0.5  # ... and that it gets then to end by itself
LATE = 0.2  # seconds by which its end may be late
EARLY = 0.05  # ... and early: a task notes its begin a moment after its guardians count from
LOOK = 10  # milliseconds between two looks at what begins
PATIENCE = 300.0  # seconds until all of them have ended
CHILDREN = 4
NEIGHBOURS = 6  # tasks in the child of one that hangs
NAP = 2.5  # seconds that they take
ROUNDS = 2
ORPHANS = 20  # workers whose guardians are killed, one after the other
OUTLIVED = 0.1  # seconds by which a child may outlive them


@scenario("T2", stores=ALL, proxied=False)
def hanging(scene: Scene) -> int:
    """Tasks hang in every way among others that do not: each is stopped in time, and the log says where it stood."""
    ways = _ways(scene)
    each = max(1, scene.tasks // 50)
    healthy = max(1, scene.tasks // (each * len(ways)))
    scene.arena.preload = (hangs.__name__,)
    worker = scene.worker(processes=CHILDREN, kill_timeout=KILL_TIMEOUT)
    with Deaths(scene) as deaths:
        numbers = []
        for _ in range(each):
            for way in ways:
                numbers.append(_put(scene, way))
                scene.put(count=healthy)
        _wait_till_empty(scene)
    runs = [run for number in numbers for run in scene.runs(number)]
    _measure_ends(scene, runs, deaths)
    log = scene.worker_log()
    unnamed = [way for way in ways if f" in {way}\n" not in log]
    scene.measure(f"ways to hang that the log does not name {unnamed or ''}".rstrip(), len(unnamed), most=0)
    assert worker.house.poll() is None
    return sum(run.ended is not None for run in runs)  # the others were killed, which the log has


@scenario("T10", stores=ALL, proxied=False)
def bad_neighbour(scene: Scene) -> None:
    """A task blocks what it shares with others: if nothing stops it but the end of their process, they run again."""
    loops = (*(each.__name__ for each in hangs.BLOCKING), "stubbornly_awaiting")
    threads = (*hangs.HOLDING, "waiting_for_a_lock", "stubborn")
    scene.arena.preload = (hangs.__name__,)
    scene.worker(processes=1, kill_timeout=KILL_TIMEOUT)
    bad, wrong, charged = [], 0, 0
    with Deaths(scene) as deaths:
        for way in (loops if scene.arena.mode == "async" else threads) * ROUNDS:
            neighbours = scene.put(NAP, count=NEIGHBOURS)
            scene.wait_for(lambda neighbours=neighbours: all(scene.runs(number) for number in neighbours))
            number = _put(scene, way)
            _wait_till_empty(scene)
            bad += scene.runs(number)
            again = 2 if bad[-1].ended is None else 1
            runs = [scene.runs(number) for number in neighbours]
            wrong += sum(len(each) != again for each in runs)
            charged += sum(each[-1].attempt > 1 for each in runs)
    _measure_ends(scene, bad, deaths)
    scene.measure("neighbours that ran too often, or too seldom", wrong, most=0)
    scene.measure("neighbours that were charged", charged, most=0)


@scenario("K9", stores=ALL, proxied=False)
def orphans_in_c(scene: Scene) -> None:
    """Both guardians are killed while their child is in C code, and holds the GIL: it does not outlive them."""
    hang = hangs.hang_once_async if scene.arena.mode == "async" else hangs.hang_once
    scene.arena.preload = (hangs.__name__,)
    lived = []
    for _ in range(ORPHANS):
        worker = scene.worker(processes=1)
        number = scene.arena.put(hang, "in_c_with_the_gil")
        (run,) = scene.wait_for(lambda number=number: scene.runs(number))
        child = os.pidfd_open(run.pid)
        scene.arena.kill(worker.monitor, "monitor")  # first: else it may have started another fork server, which guards
        scene.arena.kill(worker.server, "forkserver")
        dead = now()
        poller = select.poll()
        poller.register(child, select.POLLIN)
        assert poller.poll(PATIENCE * 1000)
        lived.append(now() - dead)
        os.close(child)
        worker.house.wait()
    scene.measure("a child outlived both guardians by", max(lived), most=OUTLIVED)
    scene.worker()


class Deaths:
    """Sees when processes die in which something runs, and notes that they were killed. A context.

    Attributes:
        at: when each of them died, by its pid.
    """

    def __init__(self, scene: Scene) -> None:
        self.at: dict[int, float] = {}
        self._arena = scene.arena
        self._ledger = Tail(scene.arena.folder / LEDGER)
        self._running: dict[int, set[str]] = defaultdict(set)
        self._pids: dict[str, int] = {}
        self._fds: dict[int, int] = {}  # of those that are watched -> their pid
        self._poller = select.poll()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="chaos-deaths", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for fd in self._fds:
            os.close(fd)

    def _watch(self) -> None:
        while not self._over.is_set():
            self._read()
            for fd, _ in self._poller.poll(LOOK):
                self._died(fd, now())

    def _read(self) -> None:
        for record in self._ledger.new():
            run = record["run"]
            if record["what"] == "S":
                pid = self._pids[run] = record["pid"]
                self._running[pid].add(run)
                with contextlib.suppress(ProcessLookupError):  # it was quick
                    if pid not in self._fds.values():
                        fd = os.pidfd_open(pid)
                        self._fds[fd] = pid
                        self._poller.register(fd, select.POLLIN)
            elif record["what"] in "EX":
                self._running[self._pids[run]].discard(run)

    def _died(self, fd: int, at: float) -> None:
        self._poller.unregister(fd)
        os.close(fd)
        pid = self._fds.pop(fd)
        self._read()
        if self._running.pop(pid, None):
            self.at[pid] = at
            # A moment before it was seen. What it had waits for others that hang, too, however soon it could begin.
            self._arena.note("kill", role="stuck child", pid=pid, sent=at - LATE / 4)


def _ways(scene: Scene) -> Iterable[str]:
    # Those who hold up the loop, or the GIL, keep others from noting that they have begun: see the next scenario.
    if scene.arena.mode == "async":
        return [way for way in hangs.COROUTINES if hangs.COROUTINES[way] not in hangs.BLOCKING]
    return [way for way in hangs.HANGS if scene.arena.mode != "threaded" or way not in hangs.HOLDING]


def _put(scene: Scene, way: str) -> int:
    hang: Callable[..., Any] = hangs.hang_async if scene.arena.mode == "async" else hangs.hang
    return scene.arena.put(hang, way, kind="hang", timeout=TIMEOUT, retry=None)


def _wait_till_empty(scene: Scene) -> None:
    deadline = time.monotonic() + PATIENCE
    while (counts := scene.arena.counts()).ready + counts.scheduled + counts.running:
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {counts}"
        time.sleep(0.05)


def _measure_ends(scene: Scene, runs: Iterable[Run], deaths: Deaths) -> None:
    """Note how late, and how early, these ended: some by themselves, some with their process."""
    raised = [run.ended - run.begun for run in runs if run.ended is not None]
    killed = [deaths.at.get(run.pid, inf) - run.begun for run in runs if run.ended is None]
    scene.measure("ended later than it had to by", max(*raised, *killed) - TIMEOUT - KILL_TIMEOUT, most=LATE)
    if raised:
        scene.measure("stopped before its time by", TIMEOUT - min(raised), most=EARLY)
