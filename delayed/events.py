"""What happens to tasks, as code of yours hears of it: hooks in workers, and listeners where tasks are enqueued."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from delayed.task import Task
    from delayed.worker.verdict import Verdict


class Hooks:
    """What a worker calls around its tasks: subclass it, override what you need, and give the class to a worker.

    >>> class MyHooks(Hooks):
    ...     def start(self) -> None:
    ...         self.db = connect()
    ...     def exhausted(self, task: Task, verdict: Verdict) -> None:
    ...         self.db.report(f"{task.func_path} has failed for good: {verdict}")
    >>> PreforkedWorker(queue, hooks=MyHooks)

    Each child process makes one object of it, without arguments. Only overridden methods are called. Around a run::

        before ─▶ task ─┬─▶ success ──────────────────────────────────────────▶ after
                        ├─▶ failure or timeout ─▶ retry, exhausted or dead ───▶ after
                        └─▶ retry (RetryLater), given_back or dead (Reject) ──▶ after

    They run in the process that ran the task: in its main thread (forked, preforked), in the thread of the task
    (threaded), or, asynchronous: an ``async def`` on the event loop, any other in a thread. (Where there is no loop an
    ``async def`` is run to its end.) If the task killed its process, ``failure`` or ``timeout``, and what follows, are
    called in another child.

    What a hook raises is logged and harms nothing. But what a task may raise to say how it goes on, some hooks may
    too: all :class:`~delayed.RetireChild` and :class:`~delayed.StopWorkers`; `before`, which then ends the run, and
    `failure` and `timeout`, in the task's own process, also :class:`~delayed.RetryLater`, :class:`~delayed.GiveBack`
    and :class:`~delayed.Reject`.

    All hooks that follow a task take 30 s together at most, and so does each of the others; then they are stopped, and
    `kill_timeout` later killed. `before` is a part of the task's own time.

    In all of them ``task.attempt`` and ``task.queue`` say which run it is and of which queue; `before`, `failure` and
    `timeout` may also ask :data:`delayed.current`, if they are called in the task's process.

    Attributes:
        idle_after: seconds without anything to do after which :meth:`idle` is called.
    """

    idle_after: float = 10.0

    def start(self) -> None:
        """The process begins: called once, before its first task. If it raises, the process leaves, and another one
        tries after a pause that grows to 5 s; no task is lost by that.
        """

    def stop(self) -> None:
        """The process ends, by itself or because its worker does: called once, after its last task. It is not called
        in a process that is killed, or whose :meth:`start` failed. When the worker leaves, it has 4 s.
        """

    def before(self, task: Task) -> None:
        """The task is about to be called."""

    def success(self, task: Task, result: Any) -> None:
        """The task has returned.

        Args:
            result: what it returned; or the RetireChild or StopWorkers that it raised; None after ``sys.exit(0)``.
        """

    def failure(self, task: Task, verdict: Verdict, error: BaseException | None) -> None:
        """The run has failed, in any other way than by running out of time. What becomes of it is not decided yet.

        Args:
            verdict: how it ended.
            error: what it raised; None if it killed its process.
        """

    def timeout(self, task: Task, verdict: Verdict, error: BaseException | None) -> None:
        """The task's time was up. What becomes of it is not decided yet.

        Args:
            verdict: how it ended; ``verdict.stack`` says where it stood.
            error: the :class:`~delayed.TaskTimeout`.
        """

    def retry(self, task: Task, verdict: Verdict, delay: float) -> None:
        """The task runs again: because its run failed and it has retries left, or because it asked for it.

        Args:
            delay: seconds until then.
        """

    def exhausted(self, task: Task, verdict: Verdict) -> None:
        """The task has failed for good: its retries are used up, or it had none."""

    def dead(self, task: Task, verdict: Verdict) -> None:
        """The task is kept as a dead letter: it was rejected, can't be decoded or found, or was delivered too often."""

    def given_back(self, task: Task, verdict: Verdict) -> None:
        """The task goes back to its queue, uncharged: it asked for it, or was stopped because its worker leaves."""

    def expired(self, task: Task, verdict: Verdict) -> None:
        """The task was not run: it had not begun within its `expires`. Of all hooks only `after` follows."""

    def after(self, task: Task, verdict: Verdict) -> None:
        """All is done for this run, however it ended, also if its claim was lost. Called last."""

    def idle(self, seconds: float) -> None:
        """The process has had nothing to do for :attr:`idle_after`, and again each time as long has passed. With
        threads and coroutines up to a quarter later, and in a thread of its own, beside which a task may begin.

        Args:
            seconds: how long it has been so.
        """


Listener = Callable[[str, Sequence["Task"]], Any]
L = TypeVar("L", bound=Listener)

listeners: list[Listener] = []


def on_enqueued(listener: L) -> L:
    """Call ``listener(queue_name, tasks)`` after each enqueue of this process; may be used as a decorator.

    It is called in the thread that enqueues, with tasks that have their ids. What it raises is logged. In a
    transaction of yours the tasks are not stored before its commit.
    """
    listeners.append(listener)
    return listener


def tell_enqueued(queue: str, tasks: Sequence[Task]) -> None:
    """Tell all listeners."""
    for listener in listeners:
        try:
            listener(queue, tasks)
        except Exception:
            from delayed.logger import logger

            logger.exception("listener %r failed; what was enqueued stands", listener)
