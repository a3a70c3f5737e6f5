"""All of a worker goes at once: its host is lost, nobody of it is left, or it is frozen from outside.

A host is a PID namespace here, of which the worker is the first process: a container, as far as processes know.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.chaos import tasks
from tests.chaos.processes import below, children_of, command_of, send, state_of
from tests.chaos.records import now
from tests.chaos.scenarios.freezes import stand_still
from tests.chaos.scenarios.scene import ALL, Guardians, Scene, Unplayable, scenario

LOST = 5  # workers, one after the other
RENEWED = 6.0  # seconds from one renewal to the next, at most: in so many they are killed, that leases have all ages
NAP = 16.0  # seconds that a task takes: two renewals, and a worker's start
SWEPT = 3.0  # seconds between two sweeps at most, as it is promised
SLACK = 1.0  # seconds that a busy machine takes for what should be done at once
FROZEN = 3.0  # leases
# Tasks have to know their pids as the judge sees them, so what /proc was before stays at another place.
SCRIPT = 'mount --bind /proc "$0" && mount -t proc proc /proc && exec "$@"'
NAMESPACE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", SCRIPT)


@scenario("K7", stores=ALL, proxied=False, lease=15.0)
def host_is_lost(scene: Scene) -> None:
    """The first process of a namespace is killed, and all in it with it: who is outside runs what they had."""
    with _namespaces(scene):
        workers = [scene.worker(sweep=False) for _ in range(LOST)]
    _lose(scene, workers, lambda monitor: [monitor])


@scenario("K7", stores=ALL, proxied=False)
def orphans_of_strangers(scene: Scene) -> int:
    """A worker is the first process of a namespace, into which somebody comes, and leaves a process: it buries that."""
    with _namespaces(scene):
        worker = scene.worker()
    stranger = ["nsenter", f"--target={worker.monitor}", "--pid", "--mount", "sh", "-c", "setsid sleep 0.5 &"]
    subprocess.run(stranger, check=True)
    scene.probe(worker)
    return 1


@scenario("K7", stores=ALL, proxied=False)
def orphans_of_a_task(scene: Scene) -> None:
    """... and its fork server is killed, to which the daemon of a task had come: it buries that, too."""
    with _namespaces(scene):
        worker = scene.worker()
    number = scene.arena.put(tasks.leave_daemon, 2.0)
    scene.wait_for(lambda: scene.runs(number))
    scene.wait_for(lambda: any(command_of(pid) == "sleep" for pid in children_of(worker.server)))
    scene.arena.kill(worker.server, "forkserver")
    scene.wait_for(lambda: scene.runs(number)[0].ended)
    scene.probe(worker)


@scenario("K8", stores=("sqlite",), proxied=False, lease=15.0)
def nobody_is_left(scene: Scene) -> None:
    """All processes of a worker are killed in the same instant: another one of the host sees that nobody is left."""
    _lose(scene, [scene.worker(sweep=False) for _ in range(LOST)], below)


@scenario("C3", stores=ALL, proxied=False, lease=6.0)
def cgroup_is_frozen(scene: Scene) -> None:
    """A whole worker, for three leases, by its cgroup."""
    freezer = _freezer()
    stand_still(scene, lambda worker: _frozen(scene, worker, freezer), FROZEN)


def _lose(scene: Scene, workers: Iterable[Guardians], whom: Callable[[int], Iterable[int]]) -> None:
    """Kill those of each worker that `whom` gives of its monitor, while it has all that it can run.

    The workers should not sweep: what they had waits for nobody then but the one that is left, which is the worst.
    """
    arena, workers = scene.arena, list(workers)
    deaths: dict[int | None, float] = {}
    numbers = scene.put(NAP, count=len(workers) * arena.processes)
    scene.wait_for(lambda: scene.begun() == len(numbers))
    moments = sorted(now() + scene.dice.uniform(RENEWED, 2 * RENEWED) for _ in workers)
    scene.dice.shuffle(workers)  # who started first renews first
    scene.worker(processes=len(numbers))
    for worker, at in zip(workers, moments, strict=True):
        time.sleep(max(at - now(), 0.0))
        deaths[worker.monitor] = _kill(scene, worker, whom)
    scene.wait_for(lambda: all(len(scene.runs(number)) > 1 for number in numbers))
    history = arena.history()
    runs = [history.intents[number].runs for number in numbers]
    took = [again.begun - deaths[history.worker_of(lost)] for lost, again, *_ in runs]
    most = SWEPT + (SLACK if scene.store.server is None else arena.lease + SLACK)
    scene.measure("half of what was lost ran again after", median(took))
    scene.measure("all of it ran again after", max(took), most=most)


def _kill(scene: Scene, worker: Guardians, whom: Callable[[int], Iterable[int]]) -> float:
    """Kill these of it, and see all of it die; returns when."""
    everybody, chosen = list(below(worker.monitor)), list(whom(worker.monitor))
    sent = now()
    for pid in chosen:
        send(pid, signal.SIGKILL)
    worker.house.wait()
    scene.wait_for(lambda: all(state_of(pid) in ("", "Z") for pid in everybody))
    scene.arena.note("kill", role="host", pid=worker.monitor, also=everybody[1:], sent=sent)
    return sent


@contextmanager
def _namespaces(scene: Scene) -> Iterator[None]:
    """Each process that is started in the block is the first of a namespace of its own."""
    arena = scene.arena
    outside = arena.folder / "proc"
    outside.mkdir()
    under = [*NAMESPACE, str(outside)]
    try:
        subprocess.run([*under, "true"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", "").partition("\n")[0] or error
        raise Unplayable(f"a PID namespace can't be made: {why}") from None
    arena.under, arena.extra = under, {tasks.OUTSIDE: str(outside)}
    try:
        yield
    finally:
        arena.under, arena.extra = (), {}


class Freezer(NamedTuple):
    """What freezes the cgroups below `place`: writing `on` to this file of theirs."""

    place: Path
    file: str
    on: str
    off: str


def _freezer() -> Freezer:
    """The one of this process's own cgroup, of the one version or the other."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if controllers == "freezer":
            found = [Freezer(Path(f"/sys/fs/cgroup/freezer{path}"), "freezer.state", "FROZEN", "THAWED")]
        elif number == "0":
            places = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
            found = [Freezer(Path(f"{place}{path}"), "cgroup.freeze", "1", "0") for place in places]
        else:
            continue
        for freezer in found:
            with contextlib.suppress(OSError):
                (freezer.place / "cgroup.procs").open("r+").close()
                return freezer
    raise Unplayable("there is no cgroup that can be written to, and frozen")


@contextmanager
def _frozen(scene: Scene, worker: Guardians, freezer: Freezer) -> Iterator[None]:
    """Put a worker into a cgroup, and freeze that for as long as the block runs."""
    place, file, on, off = freezer
    group = place / scene.arena.name
    facts = {"role": "worker", "pid": worker.monitor, "worker": worker.monitor}
    group.mkdir()
    try:
        for _ in range(2):  # the second time those that were forked meanwhile
            _move(below(worker.monitor), group)
        scene.arena.note("stop", **facts)
        (group / file).write_text(on)
        yield
    finally:
        (group / file).write_text(off)
        scene.arena.note("cont", **facts)
        while pids := (group / "cgroup.procs").read_text().split():
            _move(map(int, pids), place)
        group.rmdir()


def _move(pids: Iterable[int], group: Path) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            (group / "cgroup.procs").write_text(str(pid))
