"""Who enqueues all the while that harm is done, and sees how long that takes him."""

from __future__ import annotations

import asyncio
import threading
import time
from itertools import count
from typing import Self

from delayed import EnqueueRefused, EnqueueUncertain
from delayed.delay import Call
from delayed.options import Options
from tests.chaos import tasks
from tests.chaos.records import ENQUEUED, note
from tests.chaos.scenarios.scene import Scene

TICK = 0.02  # seconds between two looks of an event loop at the time


class Producing(threading.Thread):
    """Enqueues one nap after the other, as long as the block runs.

    Args:
        seconds: that each nap takes.
        pause: seconds between two of them.

    Attributes:
        longest: seconds that one call took at most.
        calls: how many there have been.
    """

    def __init__(self, scene: Scene, seconds: float = 0.02, pause: float = 0.02) -> None:
        super().__init__(name="chaos-producing", daemon=True)
        self._scene, self._seconds, self._pause = scene, seconds, pause
        self._over = threading.Event()
        self._error: BaseException | None = None
        self.longest = 0.0
        self.calls = 0

    def run(self) -> None:
        try:
            while not self._over.wait(self._pause):
                begun = time.monotonic()
                self.one()
                self.calls += 1
                self.longest = max(self.longest, time.monotonic() - begun)
        except BaseException as error:
            self._error = error

    def one(self) -> None:
        self._scene.put(self._seconds, count=1)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        if self._error is not None:
            raise self._error


class ProducingInALoop(Producing):
    """The same in an event loop that has something else to do too.

    Attributes:
        late: seconds by which that was done late at most.
    """

    late = 0.0
    _numbers = count(10_000_000)  # far from those of the arena

    def run(self) -> None:
        try:
            asyncio.run(self._both())
        except BaseException as error:
            self._error = error

    async def _both(self) -> None:
        ticking = asyncio.ensure_future(self._tick())
        arena = self._scene.arena
        call = Call(tasks.noop, arena.queue, Options())  # not by decorating it, which can be done for one queue only
        while not self._over.is_set():
            number = next(self._numbers)
            note(arena.folder / ENQUEUED, "intent", intent=number, kind="noop")
            begun = time.monotonic()
            try:
                handle = await call.adelay(number)
            except EnqueueRefused:
                note(arena.folder / ENQUEUED, "refused", intent=number)
            except EnqueueUncertain as error:
                note(arena.folder / ENQUEUED, "uncertain", intent=number, id=error.ids[0])
            else:
                note(arena.folder / ENQUEUED, "ok", intent=number, id=handle.id)
            self.calls += 1
            self.longest = max(self.longest, time.monotonic() - begun)
            await asyncio.sleep(self._pause)
        ticking.cancel()

    async def _tick(self) -> None:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(TICK)
            self.late = max(self.late, time.monotonic() - begun - TICK)


class Pressing(Producing):
    """Enqueues one large task after the other, of `load` each."""

    def __init__(self, scene: Scene, load: str) -> None:
        super().__init__(scene)
        self._load = load

    def one(self) -> None:
        self._scene.arena.put(tasks.bulky, self._load)
