"""The hooks of a child: which of them are to be called, and when. Loaded only where a worker has hooks."""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from delayed.errors import ConfigError, RetireChild, StopWorkers, TaskControl, TaskStopped
from delayed.events import Hooks
from delayed.functions import resolve
from delayed.message import Claim
from delayed.task import Task, finished
from delayed.worker import board as boards
from delayed.worker import channel, fate, outcome, process, verdict
from delayed.worker.channel import TaskFrame
from delayed.worker.lane import Call, Lane
from delayed.worker.verdict import Verdict

if TYPE_CHECKING:
    from delayed.worker.child import Child

NAMES = (
    "start", "stop", "before", "success", "failure", "timeout", "retry", "exhausted", "dead", "given_back", "after",
    "expired", "idle",
)  # fmt: skip


class Hooking:
    """One child's object of the user's class, and those of its methods that do anything.

    Raises:
        ConfigError: When the path leads to something else.
    """

    def __init__(self, child: Child) -> None:
        self.child = child
        self.path = child.config.hooks or ""
        kind: Any = resolve(self.path)
        if not isinstance(kind, type) or not issubclass(kind, Hooks):
            raise ConfigError(
                f"{self.path} is not a subclass of delayed.Hooks: give a worker's hooks as a class of them"
            )
        self.hooks = kind()
        self.methods: dict[str, Callable[..., Any]] = {
            name: getattr(self.hooks, name)
            for name in NAMES
            if name in vars(self.hooks) or getattr(kind, name) is not getattr(Hooks, name)
        }
        self.awaits_before = child.awaits(self.methods.get("before"))  # on an event loop
        self.lane = Lane(child, 0)  # for what is called in the main thread and for no task
        self.serial = boards.HOOK_SERIALS
        self.stopped = False

    # -- around a task -----------------------------------------------------------------------------------------

    def call(self, name: str, *args: Any) -> list[Call]:
        """The call of a hook, if it is overridden."""
        method = self.methods.get(name)
        return [] if method is None else [Call(method, args, f"hook {name} of {self.path}")]

    def label(self, task: Task, frame: TaskFrame) -> None:
        """Let the task know which run it is."""
        task.attempt = frame.attempt
        task.queue = self.child.config.queues[frame.queue]

    @property
    def mind_failures(self) -> bool:
        """Whether any of them has to be asked when a run has failed."""
        return "failure" in self.methods or "timeout" in self.methods

    def failing(self, task: Task, found: Verdict, error: BaseException | None) -> Call | None:
        """The hook that a failed run has before it is decided what becomes of it."""
        if found.code in verdict.NO_FAILURES or found.by_wish:
            return None
        calls = self.call("timeout" if found.code == verdict.TIMED_OUT else "failure", task, found, error)
        return calls[0] if calls else None

    def returned(self, task: Task, result: Any, found: Verdict) -> list[Call]:
        """The hooks of a run that returned."""
        return self.call("success", task, result) + self.call("after", task, found)

    def decided(self, frame: TaskFrame, found: Verdict, transaction: int) -> tuple[str, Verdict]:
        """What the monitor will make of a verdict: the hook's name for it, and the verdict with the delay until the
        next run, which the monitor would otherwise draw anew.
        """
        if found.code == verdict.EXPIRED:
            return "expired", found
        queue = self.child.config.queues[frame.queue]
        _, _, _, _, id, delivery, attempt, nonce, header, payload, _ = frame
        settlement = fate.settle(Claim(queue, id, delivery, nonce, attempt, header, payload), found, transaction)
        if settlement is None or found.code == verdict.CANCELLED:  # which is no failure for good
            return "", found
        if settlement.action == "retry" or (settlement.action == "back" and found.code == verdict.POSTPONED):
            return "retry", found._replace(delay=settlement.delay)
        return {"back": "given_back", "dead": "dead", "done": "exhausted"}[settlement.action], found

    def ended(self, name: str, task: Task, found: Verdict) -> list[Call]:
        """The hooks of a run that did not return, once it is decided what becomes of it."""
        args = (found.delay or 0.0,) if name == "retry" else ()
        return (self.call(name, task, found, *args) if name else []) + self.call("after", task, found)

    def before(self, task: Task) -> None:
        """Call the hook that goes before a task.

        Raises:
            TaskControl: When it ends the run instead.
            TaskStopped: When the run is stopped in it.
        """
        method = self.methods.get("before")
        if method is not None:
            try:
                finished(method(task))
            except BaseException as error:
                self.before_failed(error)

    def before_failed(self, error: BaseException) -> None:
        """The hook that goes before a task has raised; see :meth:`before`."""
        if isinstance(error, (RetireChild, StopWorkers)):
            self.child.obey(error)
        elif isinstance(error, (TaskStopped, TaskControl)):
            raise error
        else:
            outcome.log_error(
                self.child.config, f"hook before of {self.path} failed; the task runs all the same", error
            )

    # -- around a process --------------------------------------------------------------------------------------

    def start(self) -> bool:
        """Call the hook for the beginning of the process; False if it failed."""
        error = self.call_alone("start")
        self.stopped = error is not None
        return error is None

    def stop(self) -> None:
        """Call the hook for the end of the process, once."""
        if not self.stopped:
            self.stopped = True
            self.call_alone("stop")

    def call_alone(self, name: str, *args: Any) -> BaseException | None:
        """Call a hook that belongs to no task, in the main thread; what it raised."""
        method = self.methods.get(name)
        if method is None:
            return None
        child, lane = self.child, self.lane
        error: BaseException | None = None
        self.serial += 1
        with self.alone():
            child.board.handler(child.seat, 0, self.serial, process.now())
            try:
                lane.serial = self.serial | boards.OF_HANDLER
                child.finish(method(*args))
                lane.serial = 0
            except BaseException as raised:
                lane.serial = 0
                error = raised
            child.board.idle(child.seat, 0)
        if error is not None:
            self.failed(name, error)
        return error

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Signals to stop are for the hook."""
        lanes, self.child.lanes = self.child.lanes, (self.lane,)
        try:
            yield
        finally:
            self.child.lanes = lanes

    def failed(self, name: str, error: BaseException) -> None:
        """A hook that belongs to no task has raised."""
        if isinstance(error, (RetireChild, StopWorkers)):
            self.child.obey(error)
        else:
            how = "was stopped" if isinstance(error, TaskStopped) else "failed"
            more = "; this process leaves, and another one tries again" if name == "start" else ""
            outcome.log_error(self.child.config, f"hook {name} of {self.path} {how}{more}", error)

    # -- idleness ----------------------------------------------------------------------------------------------

    @property
    def mind_idleness(self) -> bool:
        """Whether any of them is to be called when there is nothing to do."""
        return "idle" in self.methods

    def next_frames(self) -> list[TaskFrame]:
        """The next frames for a child with one lane, which calls the hook while there are none; none if it leaves."""
        child, every = self.child, self.hooks.idle_after
        poll = select.poll()
        poll.register(child.sock, select.POLLIN)
        since = process.now()
        at = since + every
        while not child.leaving:
            if poll.poll(max(0.0, at - process.now()) * 1000):
                with contextlib.suppress(BlockingIOError):  # the monitor may have taken it back
                    return channel.receive_tasks(child.sock, child.buffer, channel.NO_WAIT)
            elif process.now() >= at:
                self.call_alone("idle", process.now() - since)
                at = process.now() + every
        return []


class Idleness:
    """For how long a child with several lanes has had nothing to do, by looking at it four times as often as needed.

    Args:
        every: seconds after which the hook is called, each time.
    """

    def __init__(self, every: float) -> None:
        self.every = every
        self.tick = every / 4
        self.done = 0
        self.since = process.now()
        self.at = self.since + every

    def look(self, done: int, busy: bool) -> float:
        """Seconds that the hook is to be told of; 0 if it is not to be called now.

        Args:
            done: what the child has done so far.
            busy: whether it does anything now.
        """
        at = process.now()
        if busy or done != self.done:
            self.done = done
            self.since = at
            self.at = at + self.every
        if at < self.at:
            return 0.0
        self.at = at + self.every
        return at - self.since
