"""The shorter way of plain tasks through a lane: of those that are nothing but calls of a function.

What depends on the header of a task is looked at once, when the first has run as all others do. Those whose headers are
the same but for the date of their enqueue are called with what their payloads say, in the same steps and order. If one
does anything but return, the rest is done as for any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from delayed.codec import BY_VALUE, Call, Codec
from delayed.context import NO_TRANSACTION
from delayed.errors import DelayedError, TaskStopped
from delayed.functions import resolved, stand_for_main
from delayed.hints import types_of
from delayed.message import SHAPES_MAX, around_date
from delayed.task import Task, finished
from delayed.worker import process, verdict
from delayed.worker.channel import TaskFrame
from delayed.worker.lane import Lane, LaneRun, Start, flush

if TYPE_CHECKING:
    from delayed.worker.child import Child


class Plan(NamedTuple):
    """What there is to do for all tasks of a queue whose headers are alike.

    Attributes:
        path: of their function.
        func: the function; None: there is more to do than to call one.
        timeout: seconds that they may take; 0 means no limit.
        codec: the queue's.
        prefix: what a payload begins with that can be decoded without looking at it any further.
    """

    path: str
    func: Callable[..., object] | None
    timeout: float
    codec: Codec
    prefix: bytes


class PlainLane(Lane):
    """A lane that knows the shorter way."""

    # Of the last task: its header and queue, and their plan, if there is one.
    header = b""
    queue = -1
    plan: Plan | None = None

    def __init__(self, child: Child, number: int) -> None:
        super().__init__(child, number)
        self.plans: dict[tuple[int, tuple[bytes, bytes]], Plan] = {}
        # Else each task is followed by something.
        self.may_be_plain = not (self.config.success_handler or self.config.hooks)

    def run(self, frame: TaskFrame) -> None:
        _, slot, queue, serial, _, _, _, _, header, payload, detail = frame
        plan = self.plan
        if plan is None or header != self.header or queue != self.queue:
            plan = self.plan = self.plan_for(frame)
            self.header, self.queue = header, queue
        if plan is None or plan.func is None or detail or not payload.startswith(plan.prefix):
            super().run(frame)
            if plan is None and self.may_be_plain:
                self.learn(frame)
            return
        self.expect(serial)
        begun = process.now()
        if not self.board.begin(self.seat, self.number, slot, serial, plan.timeout, begun):
            self.expected, self.recalled = 0, True
            return
        error: BaseException | None = None
        call: Call | None = None
        run = LaneRun(None, frame, self)
        try:
            try:
                call = args, kwargs, _ = self.decode(plan, payload)
                self.enter(run)
                self.arm(serial)
                result = plan.func(*args, **kwargs)
                if hasattr(result, "__await__"):
                    finished(result)
                self.serial = 0
            except BaseException as raised:
                self.serial = 0
                error = raised
            self.disarm()
        except TaskStopped as raised:
            self.serial = 0
            error = raised
        if error is not None or run.state != NO_TRANSACTION:
            self.rejoin(frame, plan, begun, call, run, error)
            return
        self.mind_copy()
        flush()
        ended = process.now()
        self.enter(None)
        self.board.end(self.seat, slot, verdict.RETURNED, ended, self.used(ended, self.cpu))
        self.board.idle(self.seat, self.number)
        self.child.returned(slot, serial, verdict.RETURNED, ended)

    def decode(self, plan: Plan, payload: bytes) -> Call:
        """What to call the function with.

        Raises:
            DecodeError: When the payload can't be decoded.
        """
        stand_for_main(plan.path)
        return plan.codec.decode(payload)

    def rejoin(
        self, frame: TaskFrame, plan: Plan, begun: float, call: Call | None, run: LaneRun, error: BaseException | None
    ) -> None:
        """Do for a task that has not simply returned what is done for any other."""
        seen = self.parse(frame.id, frame.header, frame.payload)
        message = plan.codec.open(seen, frame.header)
        task: Task | None = None
        if call is not None:
            task = Task.from_message(message, plan.codec, call)
            if isinstance(error, TypeError) and plan.func is not None:
                misfit = task.misfit(plan.func, error)
                if misfit is not None:
                    misfit.__cause__, error = error, misfit
        self.finish(frame, Start(message, seen, None, begun, self.cpu), task, run, error)

    # -- plans -------------------------------------------------------------------------------------------------

    def plan_for(self, frame: TaskFrame) -> Plan | None:
        """The plan for a task; None if there is none yet."""
        parts = around_date(frame.header)
        return None if parts is None else self.plans.get((frame.queue, parts[1]))

    def learn(self, frame: TaskFrame) -> None:
        """A task has run as any other: see whether those that are alike need not."""
        parts = around_date(frame.header)
        if parts is None:
            return
        try:
            plan = self.plan_of(frame)
        except DelayedError:  # which it was not run for either
            return
        if plan is not None:
            if len(self.plans) >= SHAPES_MAX:
                self.plans.clear()
            self.plans[(frame.queue, parts[1])] = plan

    def plan_of(self, frame: TaskFrame) -> Plan | None:
        """The plan for all tasks that are like this one; None if it is another that may show it."""
        codec = self.child.codecs[frame.queue]
        message = self.parse(frame.id, frame.header, frame.payload)
        path = message.func
        longer = Plan(path, None, 0.0, codec, b"")
        if message.keep is not None or message.limits is not None or path.startswith(BY_VALUE):
            return longer
        if codec.seals is not None or not codec.is_ours:
            return longer
        func = resolved(path)
        if func is None or not frame.payload.startswith(codec.prefix):
            return None
        codec.check_function(path, func, codec.plain)
        if codec.plain and types_of(func) is not None:
            return longer
        codec.open(message, frame.header)
        return Plan(path, func, message.timeout or 0.0, codec, codec.prefix)
