"""Clocks jump: a worker's, which nobody goes by, and the store's, which everybody does.

Only the wall clock of chosen processes does, by ``shims/wall.c``; what is measured here goes by another one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.chaos.records import now
from tests.chaos.scenarios.scene import ALL, Scene, Unplayable, scenario

SOURCE = Path(__file__).parent.parent / "shims" / "wall.c"
HOUR = 3600  # seconds
JUMPS = (HOUR, -HOUR, 87_600 * HOUR, -87_600 * HOUR, 0, HOUR)  # ten years are the longest
PACE = 2.0  # seconds between two of them
EXACT = 0.2  # seconds by which a task may be early or late
SLACK = 1.0  # seconds that a busy machine takes for what should be done at once


class Clock:
    """A wall clock of its own for whoever is started with its environment.

    Args:
        folder: for the shim, and for what the clock is ahead by; who has the clock has to be able to read it.
    """

    def __init__(self, folder: Path) -> None:
        if not (compiler := shutil.which("cc")):
            raise Unplayable("there is no C compiler (cc) for shims/wall.c")
        shim, self._ahead = folder / "wall.so", folder / "ahead"
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(shim), str(SOURCE)], check=True)
        self.set(0)
        self.environ = {"LD_PRELOAD": str(shim), "CHAOS_WALL": str(self._ahead)}

    def set(self, seconds: int) -> None:
        """From now on it is ahead of the host's by so many seconds."""
        fresh = self._ahead.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.chmod(0o644)
        fresh.replace(self._ahead)  # nobody reads half of it


@scenario("C1", stores=ALL, proxied=False, lease=6.0)
def worker_clock(scene: Scene) -> int:
    """One worker's clock jumps by hours and years, every two seconds: nobody notices, and delays are exact."""
    arena = scene.arena
    clock = Clock(arena.folder)
    arena.extra = clock.environ
    scene.worker()
    arena.extra = {}
    scene.worker()
    delays = Delays(scene)
    scene.put(2 * arena.lease, count=2)
    for jump in JUMPS:
        clock.set(jump)
        scene.put(0.05, count=scene.tasks // len(JUMPS))
        delays.put(PACE)
        time.sleep(PACE)
    scene.wait_for(scene.all_begun)
    delays.measure()
    return len(JUMPS)


@scenario("C2", stores=("redis", "postgres"), proxied=False, lease=6.0)
def store_clock(scene: Scene) -> int:
    """The store's clock goes forward by an hour, and back again: nothing runs twice, nothing waits for an hour.

    Not MongoDB's: it sleeps until a time of the clock that it is shown, and the kernel wakes it by its own.
    """
    arena, server = scene.arena, scene.store.server
    assert server is not None
    server.kill()
    clock = Clock(server.folder)
    server.process_options["env"] = {**os.environ, **clock.environ}
    server.start()
    scene.worker()
    scene.worker()

    for ahead in (HOUR, 0):
        (running,) = scene.put(1.5 * arena.lease, count=1)
        (soon,) = scene.put(0.0, count=1, delay=HOUR / 2) if ahead else (running,)
        scene.wait_for(lambda running=running: scene.runs(running))
        clock.set(ahead)
        at = now()
        scene.wait_for(lambda soon=soon: scene.runs(soon))
        if ahead:
            scene.measure("due by the new time, and begun after", scene.runs(soon)[0].begun - at, most=arena.lease)
        (number,) = scene.put(count=1)
        (run,) = scene.wait_for(lambda number=number: scene.runs(number))
        scene.measure("begun after the clock had jumped", run.begun - at, most=2 * arena.lease)
        delays = Delays(scene)
        delays.put(PACE)
        scene.wait_for(lambda running=running: scene.runs(running)[0].ended)
        scene.wait_for(scene.all_begun)
        delays.measure()
    return 2


class Delays:
    """Tasks for later, and when they begin."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._due: dict[int, tuple[float, float]] = {}  # task -> not before, not after

    def put(self, delay: float) -> None:
        before = now()
        (number,) = self._scene.put(count=1, delay=delay)
        self._due[number] = before + delay, now() + delay

    def measure(self) -> None:
        begun = {number: self._scene.runs(number)[0].begun for number in self._due}
        early = max(first - begun[number] for number, (first, _) in self._due.items())
        late = max(begun[number] - last for number, (_, last) in self._due.items())
        self._scene.measure("delayed ones began too early by", max(early, 0.0), most=EXACT)
        self._scene.measure("... and too late by", max(late, 0.0), most=EXACT + SLACK)
