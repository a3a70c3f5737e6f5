"""Somebody stands still, and closes nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from delayed.patience import Patience
from tests.chaos import tasks
from tests.chaos.processes import send, state_of
from tests.chaos.records import now
from tests.chaos.scenarios.scene import ALL, BOUND, Guardians, Scene, scenario

LONG = 2.5  # leases that a freeze lasts
SLACK = 1.0  # seconds that a busy machine takes for what should be done at once
NOTICED = 5.0  # seconds after which a fork server that is silent is replaced


@scenario("Z1", stores=ALL, proxied=False, lease=6.0)
def worker_stops(scene: Scene) -> None:
    """A whole worker, for two and a half leases: what it had runs elsewhere, which it learns at once."""
    stand_still(scene, lambda worker: _stopped(scene, worker), LONG)


def stand_still(scene: Scene, still: Callable[[Guardians], AbstractContextManager[None]], leases: float) -> None:
    """One of two workers does, for so long: what it had runs elsewhere, which it learns at once.

    Args:
        still: keeps the worker so, and notes it.
    """
    lease = scene.arena.lease
    first = scene.worker()
    numbers = scene.put(4 * lease, count=scene.arena.processes - 1)
    numbers += scene.put_watched((leases + 1.0) / 2 * lease)
    scene.wait_for(lambda: scene.begun() == len(numbers))
    scene.worker()
    with still(first):
        frozen = now()
        scene.wait_for(lambda: all(len(scene.runs(number)) == 2 for number in numbers))
        _until(frozen + leases * lease)
    thawed = now()
    scene.measure("served again after", scene.probe(first) - thawed, most=2.0 + SLACK)
    scene.wait_for(lambda: all(scene.runs(number)[1].ended for number in numbers))
    last = max(scene.runs(number)[0].sign for number in numbers)
    scene.measure("ran on after it was woken for", max(last - thawed, 0.0), most=SLACK)


@contextmanager
def _stopped(scene: Scene, worker: Guardians) -> Iterator[None]:
    pids = scene.arena.freeze(worker.monitor)
    try:
        yield
    finally:
        scene.arena.thaw(worker.monitor, pids)


@scenario("Z2", stores=ALL, proxied=False, lease=15.0)  # a stand-in has to load a driver on a busy machine
def monitor_stops(scene: Scene) -> None:
    """A monitor alone: its fork server stands in, and nothing runs twice."""
    lease = scene.arena.lease
    workers = [scene.worker(), scene.worker()]
    (number,) = scene.put(1.5 * lease, count=1)
    (run,) = scene.wait_for(lambda: scene.runs(number))
    worker = next(each for each in workers if each.monitor == scene.arena.history().worker_of(run))
    at = _stop(scene, worker.monitor, "monitor", worker)
    scene.wait_for(lambda: state_of(worker.monitor) in ("", "Z"))
    scene.measure("its fork server stood in after", now() - at, most=lease / 2 + SLACK)
    _until(at + LONG * lease)
    _go_on(scene, worker.monitor, "monitor", worker)


@scenario("Z3", stores=ALL, proxied=False)
def child_stops(scene: Scene) -> None:
    """A child alone: it is killed when the time of its task is up."""
    worker = scene.worker()
    timeout = 1.5
    number = scene.arena.put(scene.nap, 60.0, timeout=timeout, retry=None)
    (run,) = scene.wait_for(lambda: scene.runs(number))
    send(run.pid, signal.SIGSTOP)
    scene.wait_for(lambda: state_of(run.pid) in ("", "Z"))
    scene.arena.note("kill", role="child", pid=run.pid)
    scene.measure("killed after its time was up", now() - run.begun - timeout, least=0.0, most=0.5 + SLACK)
    (number,) = scene.put(count=1)
    scene.wait_for(lambda: scene.runs(number))
    assert worker.house.poll() is None


@scenario("Z4", stores=ALL, proxied=False)
def server_stops(scene: Scene) -> None:
    """A fork server alone: its monitor replaces it, and nothing runs twice."""
    worker = scene.worker()
    numbers = scene.put(NOTICED * 1.5, count=scene.arena.processes)
    scene.wait_for(lambda: scene.begun() == len(numbers))
    at = _stop(scene, worker.server, "forkserver", worker)
    scene.put(0.05, count=5)  # children are needed for these, in some kinds of worker
    scene.wait_for(lambda: state_of(worker.server) in ("", "Z"))
    scene.measure("replaced after", now() - at, most=NOTICED + SLACK)
    _go_on(scene, worker.server, "forkserver", worker)


@scenario("Z5", stores=ALL, proxied=False, lease=6.0)
def short_silence(scene: Scene) -> None:
    """The store, for less than a lease: a pause."""
    _store_stops(scene, 0.6)


@scenario("Z5", stores=ALL, proxied=False, lease=6.0)
def long_silence(scene: Scene) -> None:
    """The store, for longer than two leases: a pause, but for what is exclusive: that is run again."""
    _store_stops(scene, 2.7)


@scenario("Z5", stores=ALL, proxied=False, lease=6.0)
def silence_after_silence(scene: Scene) -> None:
    """The store, for longer than two leases, and again when it has been there for a third of one: two pauses."""
    lease = scene.arena.lease
    _two_workers(scene)
    scene.put((2 * LONG + 1.0) * lease + SLACK, count=2)
    scene.wait_for(lambda: scene.begun() == 2)
    for pause in (lease / 3, 0.0):
        _stop_store(scene, LONG)
        time.sleep(pause)


def _store_stops(scene: Scene, leases: float) -> None:
    lease = scene.arena.lease
    _two_workers(scene)
    numbers = scene.put((leases + 0.5) * lease + SLACK, count=1)
    numbers += scene.put((leases + 0.5) * lease + SLACK, count=1, exclusive=True)
    scene.wait_for(lambda: scene.begun() == len(numbers))
    scene.put(0.1, count=scene.tasks // 10)
    at, until = _stop_store(scene, leases)
    ordinary, exclusive = (scene.runs(number)[0] for number in numbers)
    if leases > 1:
        scene.measure("the exclusive one ran on for, in leases", (exclusive.sign - at) / lease, most=0.85)
    scene.measure("the others ran on", ordinary.sign - at, least=until - at - 3 * tasks.TICK - SLACK)


def _two_workers(scene: Scene) -> None:
    scene.worker()
    scene.worker()


def _stop_store(scene: Scene, leases: float) -> tuple[float, float]:
    """From when to when it stood still. Who sweeps then is quicker than who renews."""
    queue = scene.arena.queue
    scene.arena.note("down", lossy=False)
    with scene.store.stopped():
        at = now()
        _until(at + leases * scene.arena.lease)
        until = now()
    Patience(BOUND, 0.0).insist(lambda: queue.broker.sweep(queue.name, scene.arena.lease))
    scene.arena.note("up")
    return at, until


def _stop(scene: Scene, pid: int, role: str, worker: Guardians) -> float:
    scene.arena.note("stop", role=role, pid=pid, worker=worker.monitor)
    send(pid, signal.SIGSTOP)
    return now()


def _go_on(scene: Scene, pid: int, role: str, worker: Guardians) -> None:
    send(pid, signal.SIGCONT)
    scene.arena.note("cont", role=role, pid=pid, worker=worker.monitor)


def _until(at: float) -> None:
    time.sleep(max(at - now(), 0.0))
