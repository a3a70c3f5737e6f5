"""The way to the store: it is cut for a while, for one worker or in one direction, or it is slow."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.chaos.proxy import Slow
from tests.chaos.records import now
from tests.chaos.scenarios.scene import Guardians, Scene, scenario

LONG = 2.2  # leases that a worker is cut off
SLACK = 1.0  # seconds that a busy machine takes for what should be done at once
LATE = Slow(0.1, 0.9, piece=1)
LATE_EACH = Slow(0.01, 0.09, piece=1)
BUSY = 0.3  # of a core, that nobody needs for waiting


@scenario("N5")
def pulled_short(scene: Scene) -> None:
    """A worker hears nothing for half a lease: a pause."""
    lease = scene.arena.lease
    first = scene.worker(processes=3)
    scene.put(2 * lease, count=1)
    scene.put(2 * lease, count=1, exclusive=True)
    scene.wait_for(lambda: scene.begun() == 2)
    scene.arena.start("sweeper", url=scene.arena.direct)
    _cut(scene, first, "swallow")
    time.sleep(lease / 2)
    at = _heal(scene, first)
    scene.measure("served again after", scene.probe(first) - at, most=5.0)


@scenario("N5")
def pulled_long(scene: Scene) -> None:
    """... for two leases: what it had runs elsewhere, and what is exclusive not before it has ended."""
    _for_long(scene, "swallow")


@scenario("N7")
def deaf(scene: Scene) -> None:
    """... but the store hears it: the same."""
    _for_long(scene, "deaf")


def _for_long(scene: Scene, state: str) -> None:
    lease = scene.arena.lease
    first = scene.worker(processes=3)
    numbers = [*scene.put(4 * lease, count=1), *scene.put(4 * lease, count=1, exclusive=True)]
    watched = scene.put_watched((LONG + 1.0) / 2 * lease)
    scene.wait_for(lambda: scene.begun() == len([*numbers, *watched]))
    scene.worker(url=scene.arena.direct)
    at = _cut(scene, first, state)
    scene.wait_for(lambda: all(len(scene.runs(number)) == 2 for number in numbers))
    time.sleep(max(at + LONG * lease - now(), 0.0))
    healed = _heal(scene, first)
    scene.measure("served again after", scene.probe(first) - healed, most=5.0)
    (ordinary, _), (exclusive, after) = (scene.runs(number) for number in numbers)
    scene.measure("ran on after the way was open for", max(ordinary.sign - healed, 0.0), most=SLACK)
    scene.measure("the exclusive one had ended before", after.begun - exclusive.sign, least=0.0)


def _cut(scene: Scene, worker: Guardians, state: str) -> float:
    scene.arena.note("cut", worker=worker.monitor)
    scene.proxy.state(state)
    return now()


def _heal(scene: Scene, worker: Guardians) -> float:
    scene.proxy.state("open")
    scene.arena.note("healed", worker=worker.monitor)
    return now()


@scenario("N6", lease=15.0)
def slow(scene: Scene) -> int:
    """Half a second each way, one byte at a time: late, and nothing else.

    On MongoDB, where an operation is up to a dozen requests, a tenth of that.
    """
    first, second = scene.worker(), scene.worker()
    scene.put(count=1)  # connects: in a slow network that takes longer than an enqueue may
    scene.wait_for(scene.all_begun)
    scene.proxy.slow(LATE if scene.store.server.name != "mongod" else LATE_EACH)
    at, used = time.monotonic(), _cpu(first, second)
    scene.put(2.5 * scene.arena.lease, count=2)
    scene.put(0.05, count=scene.tasks // 6)
    scene.wait_for(scene.all_begun)
    scene.wait_for(lambda: not scene.arena.counts().running)
    busy = (_cpu(first, second) - used) / (time.monotonic() - at)
    scene.measure("cores that the monitors used", busy, most=BUSY)
    words = scene.worker_log()
    scene.measure("times that a worker complained", words.count("can't reach"), most=0)
    scene.proxy.slow(Slow())
    return 1


def _cpu(*workers: Guardians) -> float:
    """Seconds of CPU that their monitors have used."""
    ticks = 0
    for worker in workers:
        fields = Path(f"/proc/{worker.monitor}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
