"""A worker whose children run several tasks at once, in threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Unpack

from delayed.worker.base import LANES_MAX, Worker, WorkerOptions, whole

if TYPE_CHECKING:
    from delayed.queue import Queue


class ThreadedWorker(Worker):
    """Runs tasks in threads: for tasks that wait for others more than they compute, in little memory.

    A task whose time is up gets :class:`~delayed.TaskTimeout` in its thread, as soon as that runs Python code. If it
    has not ended `kill_timeout` later, because it waits in a system call or C code holds the interpreter, the child is
    killed: the task has timed out, and its neighbours go back to the queue, uncharged, and run again.

    Args:
        threads: how many tasks each child runs at once; the worker runs ``processes * threads``.
        queue, options: what every :class:`Worker` takes.

    Raises:
        ConfigError: When an argument makes no sense; the message names it.
    """

    mode = "threaded"
    child = "delayed.worker.threads:ThreadedChild"
    lanes_are = "threads"
    one_reader = False
    own_options: ClassVar[tuple[str, ...]] = ("threads",)

    def __init__(self, queue: Queue | None = None, *, threads: int = 8, **options: Unpack[WorkerOptions]) -> None:
        super().__init__(queue, **options)
        self.threads = self.lanes = whole("threads", threads, 1, LANES_MAX)
