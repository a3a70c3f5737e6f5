"""A worker whose children run several tasks at once, on an event loop."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, ClassVar, Unpack

from delayed.errors import MissingDependency
from delayed.worker.base import LANES_MAX, Worker, WorkerOptions, whole

if TYPE_CHECKING:
    from delayed.queue import Queue


class AsyncWorker(Worker):
    """Runs ``async def`` tasks concurrently on an event loop, hundreds of them in one child, and others in threads.

    A task whose time is up is cancelled, and ends with :class:`~delayed.TaskTimeout`; one that blocks the loop gets
    that exception where it is. If it has not ended `kill_timeout` later, because it swallows the cancellation or C code
    holds the interpreter, the child is killed: the task has timed out, and its neighbours go back to the queue,
    uncharged, and run again. A loop that does not turn for a second is reported, with the stack that blocks it.

    Args:
        concurrency: how many tasks each child runs at once; the worker runs ``processes * concurrency``.
        uvloop: use uvloop's event loop, which has to be installed (``pip install 'delayed[uvloop]'``).
        queue, options: what every :class:`Worker` takes.

    Raises:
        ConfigError: When an argument makes no sense; the message names it.
        MissingDependency: When uvloop is asked for and missing.
    """

    mode = "async"
    child = "delayed.worker.loop:AsyncChild"
    lanes_are = "coroutines"
    own_options: ClassVar[tuple[str, ...]] = ("concurrency", "uvloop")

    def __init__(
        self,
        queue: Queue | None = None,
        *,
        concurrency: int = 100,
        uvloop: bool = False,
        **options: Unpack[WorkerOptions],
    ) -> None:
        super().__init__(queue, **options)
        self.concurrency = self.lanes = whole("concurrency", concurrency, 1, LANES_MAX)
        self.uvloop = uvloop
        if uvloop and importlib.util.find_spec("uvloop") is None:
            raise MissingDependency("uvloop=True needs uvloop, which is not installed: pip install 'delayed[uvloop]'")
