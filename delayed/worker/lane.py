"""A lane of a child: where one task at a time runs. For each task it does this:

1. note on the board that it begins, so that the guardians can keep the deadline;
2. decode, resolve and call;
3. note on the board how it ended, then say so to the monitor: from then on the child's own death harms nothing;
4. call the handler, and the hooks that follow.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from delayed import context
from delayed.codec import BY_VALUE, Opened
from delayed.errors import (
    DecodeError,
    NotAllowed,
    NotReadable,
    RetireChild,
    StopWorkers,
    TaskControl,
    TaskStopped,
    TaskTimeout,
)
from delayed.functions import resolve, stand_for_main
from delayed.message import Message, Ref
from delayed.task import Task, finished
from delayed.worker import board as boards
from delayed.worker import channel, outcome, process, verdict
from delayed.worker.channel import TaskFrame
from delayed.worker.ladder import read_stack
from delayed.worker.verdict import Verdict

if TYPE_CHECKING:
    from delayed.worker.child import Child
    from delayed.worker.deciding import Decision
    from delayed.worker.limits import Limits


# Seconds for which tasks that return may share one look at the clock of the CPU, which takes as long as a quick one. So
# by as much may the first that is told wrong: that takes what quick ones before it have used for its own.
CLOCK_INTERVAL = 0.001
_RETURNS = (verdict.RETURNED, verdict.COMMITTED)


class Call(NamedTuple):
    """A call of a handler or hook that is due: the function or its path, the arguments, and its name in the log."""

    function: str | Callable[..., Any]
    args: tuple[Any, ...]
    name: str

    @classmethod
    def of_handler(cls, path: str, *args: Any) -> Call:
        """The call of a handler."""
        return cls(path, args, f"handler {path}")

    def resolve(self) -> Callable[..., Any]:
        """The function."""
        return resolve(self.function) if isinstance(self.function, str) else self.function


class Start(NamedTuple):
    """What is known of a task when it begins.

    Attributes:
        message: its message, which somebody vouches for as far as its queue asks for that; None if not.
        seen: the same as it came, for people; None if its header can't be read.
        error: why there is no message.
        begun: when it began.
        cpu: seconds of CPU that the lane had used then.
    """

    message: Opened | None
    seen: Message | None
    error: Exception | None
    begun: float
    cpu: float


class LaneRun(context.Run):
    """One run of a task in a lane. What few tasks ask of it is made when they do."""

    __slots__ = ("frame", "lane")

    def __init__(self, message: Message | None, frame: TaskFrame, lane: Lane) -> None:
        if message is not None:
            self.message = message
        self.begun = time.monotonic()
        self.state = context.NO_TRANSACTION
        self.progress = None
        self.frame = frame
        self.lane = lane

    def __getattr__(self, name: str) -> Any:
        if name == "ref":
            frame = self.frame
            return Ref(self.lane.config.queues[frame.queue], frame.id, frame.delivery, frame.nonce)
        if name == "attempt":
            return self.frame.attempt
        if name == "url":
            return self.lane.config.url
        if name == "message":
            frame = self.frame
            return self.lane.parse(frame.id, frame.header, frame.payload)
        raise AttributeError(name)

    def note(self, state: int, *progress: Any) -> None:
        board, seat, frame = self.lane.board, self.lane.seat, self.frame
        if progress:
            board.note_progress(seat, frame.slot, frame.serial, *progress)
        else:
            board.note_transaction(seat, frame.slot, state)


class Lane:
    """One lane of a child; this one runs its tasks in the thread that calls :meth:`run`.

    Attributes:
        serial: of the task that may be stopped, with ``OF_HANDLER`` of its handler; 0 while no user code runs.
        expected: of the task that has begun, until its own code does; 0 else.
        early: why that task has to stop before its own code has begun; None if it need not.
        noted: how the task that has returned was noted on the board already; None if it was not.
        recalled: whether a task was not begun, since it was recalled, and nobody has asked.
    """

    noted: int | None = None
    recalled = False

    def __init__(self, child: Child, number: int) -> None:
        self.child = child
        self.config = child.config
        self.board = child.board
        self.seat = child.seat
        self.number = number
        self.serial = 0
        self.expected = 0
        self.early: TaskStopped | None = None
        # One that reads one header and goes has to copy less memory for the plain way.
        self.parse = Message.parse if child.config.one_shot else Message.parse_another
        self.cpu = 0.0  # seconds of CPU used before the task that runs now, as of ...
        self.clocked = 0.0  # ... when that was looked at last
        self.limits: Limits | None = None  # of the task that runs now, if it has some of its own
        self.result: Any = None  # what the task returned
        self.verdict: Verdict | None = None  # on its failure, from before its hook was asked
        self.decision: Decision | None = None  # whether it is repeated

    # -- what differs between the kinds of children --------------------------------------------------------------

    clock = staticmethod(time.process_time)  # of the CPU that the lane uses

    def enter(self, run: context.Run | None) -> None:
        """Let this be the run that ``current`` speaks of."""
        context.run = run

    def stop(self, serial: int, error: type[TaskStopped], text: str) -> None:
        """Raise the error in the task `serial`, if that runs here. Called by a signal handler, in the main thread."""
        if serial == self.serial:
            self.serial = 0  # once
            raise error(text)
        if serial == self.expected:
            self.early = error(text)

    def expect(self, serial: int) -> None:
        """The task `serial` is about to begin."""
        self.early = None
        self.expected = serial

    def arm(self, serial: int) -> None:
        """From here on the task can be stopped.

        Raises:
            TaskStopped: When that was asked for already.
        """
        self.serial = serial
        self.expected = 0
        if self.early is not None:
            self.serial = 0
            raise self.early

    def disarm(self) -> None:
        """From here on the task is not stopped any more.

        Raises:
            TaskStopped: When that was asked for a moment before.
        """

    def stack(self) -> str:
        """Where the task stood when it was asked to stop."""
        return read_stack(self.child.stack)

    def was_recalled(self) -> bool:
        """Whether the last task was recalled, and so is none that was done; said once."""
        recalled, self.recalled = self.recalled, False
        return recalled

    # -- a task ------------------------------------------------------------------------------------------------

    def run(self, frame: TaskFrame) -> None:
        """Run one task, note how it ended, tell the monitor, and call the handler."""
        error: BaseException | None = None
        task: Task | None = None
        run: context.Run | None = None
        hooks = self.child.hooks
        start = self.begin(frame)
        if start is None:
            return
        try:
            try:
                task = self.load(frame, start)
                run = self.run_of(frame, start)
                self.enter(run)
                self.arm(frame.serial)
                if hooks is not None:
                    hooks.label(task, frame)
                    hooks.before(task)
                self.result = task.run()
                self.serial = 0
            except BaseException as raised:
                self.serial = 0
                error = raised
            self.disarm()
        except TaskStopped as raised:  # the signal came a moment after the task had ended by itself
            self.serial = 0
            error = raised
        self.finish(frame, start, task, run, error)

    def finish(
        self, frame: TaskFrame, start: Start, task: Task | None, run: context.Run | None, error: BaseException | None
    ) -> None:
        """It has ended: note how, tell the monitor, and call the handlers."""
        hooks = self.child.hooks
        if error is not None and hooks is not None:
            task = task or self.known_of(frame, start.message, start.seen)
            call = self.failing(frame, start, task, error)
            if call is not None:
                error = self.call_handler(call, frame.serial, error)
        if error is not None:
            call = self.deciding(frame, start, error)
            if call is not None:
                self.call_handler(call, frame.serial)
        calls = self.end(frame, start, task, run, error)
        if calls:
            for call in calls:
                self.call_handler(call, frame.serial)
            self.rest()

    def begin(self, frame: TaskFrame) -> Start | None:
        """Note that a task begins, and look at its seal: before that is right, nothing that its header says counts.
        None if it was recalled, and does not begin.
        """
        message: Opened | None = None
        seen: Message | None = None
        error: Exception | None = None
        _, slot, queue, serial, id, _, _, _, header, payload, _ = frame
        codec = self.child.codecs[queue]
        self.expect(serial)
        begun = process.now()
        sealed = codec.seals is not None
        if sealed and not self.board.begin(self.seat, self.number, slot, serial, boards.CHECKING, begun):
            self.expected, self.recalled = 0, True
            return None
        try:
            seen = self.parse(id, header, payload)
            message = codec.open(seen, header)
        except (DecodeError, NotAllowed, NotReadable) as raised:
            error = raised
        except Exception as raised:  # no memory for it, for example
            error = DecodeError(f"the message can't be opened: {type(raised).__name__}: {raised}")
        timeout = (message.timeout or 0.0) if message is not None else boards.CHECKING
        if sealed:
            self.board.note_timeout(self.seat, slot, timeout)
        elif not self.board.begin(self.seat, self.number, slot, serial, timeout, begun):
            self.expected, self.recalled = 0, True
            return None
        start: Start = tuple.__new__(Start, (message, seen, error, begun, self.cpu))
        return start

    def load(self, frame: TaskFrame, start: Start) -> Task:
        """The task itself.

        Raises:
            DecodeError: When header or payload can't be decoded.
            NotAllowed: When its queue does not allow its function.
            FunctionNotFound: When the module that its payload may need can't be imported.
            LimitsRefused: When it has limits that this lane can't hold it to.
        """
        message = start.message
        if message is None:
            raise start.error or DecodeError("the header can't be read")
        if message.limits is not None:
            self.limits = self.hold(message.limits)
        if not message.func.startswith(BY_VALUE):
            self.stand_for_main(message)
        codec = self.child.codecs[frame.queue]
        task = Task.from_message(message, codec)
        if frame.detail:
            from delayed.worker import gifts  # few tasks are given results

            task.args = (gifts.unpack(frame.detail, codec), *task.args)
        if message.keep is not None:
            # Before it runs: it may leave no descriptor to load this with, and from its end until that is noted a death
            # repeats it.
            from delayed.worker import keeping  # noqa: F401
        return task

    def stand_for_main(self, message: Message) -> None:
        """Let the payload of a message find what was defined in the program's ``__main__``.

        Raises:
            FunctionNotFound: When the module of its function can't be imported.
        """
        stand_for_main(message.func)

    def hold(self, limits: Mapping[str, Any]) -> Limits:
        """Hold the process to the limits of the task that is about to run here."""
        from delayed.worker import limits as module  # few tasks have some

        return module.hold(limits, self.config.holds_limits, self.child.stack, self.on_cpu_used)

    def on_cpu_used(self) -> None:
        """The task has used the CPU time that it may. Called by a signal handler, in the main thread."""
        if self.serial and self.limits is not None:
            self.serial = 0  # once
            raise self.limits.over_cpu()

    def run_of(self, frame: TaskFrame, start: Start) -> context.Run:
        """What the task can know of its run."""
        assert start.message is not None
        return LaneRun(start.message, frame, self)

    def failing(self, frame: TaskFrame, start: Start, task: Task, error: BaseException) -> Call | None:
        """The hook that is to be called before the end of a failed run is noted, for it may decide otherwise."""
        hooks = self.child.hooks
        assert hooks is not None
        self.mind_copy()
        hooks.label(task, frame)
        if not hooks.mind_failures:
            return None
        if self.limits is not None:
            self.limits.release()  # the hook is not the task
        self.verdict = self.verdict_on(start, error, process.now(), self.clock() - start.cpu, self.limits)
        call = hooks.failing(task, self.verdict, error)
        if call is not None:
            self.board.handler(self.seat, self.number, frame.serial, process.now())
        return call

    def deciding(self, frame: TaskFrame, start: Start, error: BaseException) -> Call | None:
        """Look whether a failed run is repeated, by what it raised; the call of the function that is to be asked."""
        self.decision = None
        message = start.message
        if message is None or not message.retry:
            return None
        from delayed.worker.deciding import Decision

        self.decision = decision = Decision(message, error, frame.attempt)
        if decision.path is None:
            return None
        self.mind_copy()
        if self.limits is not None:
            self.limits.release()  # it is not the task
        self.board.handler(self.seat, self.number, frame.serial, process.now())
        return Call(decision.ask, (self.child.codecs[frame.queue],), f"retry policy {decision.path}")

    def end(
        self, frame: TaskFrame, start: Start, task: Task | None, run: context.Run | None, error: BaseException | None
    ) -> list[Call]:
        """Note how a task ended and tell the monitor.

        Returns:
            The handlers and hooks that are to be called now, and after them :meth:`rest`; none if nothing is left.
        """
        child, board, seat, slot = self.child, self.board, self.seat, frame.slot
        self.mind_copy()
        limits, self.limits = self.limits, None
        if limits is not None and not limits.release():
            child.limited = True
        if self.noted is None:
            flush()  # what it printed is not to wait for the next task, nor to be lost when the worker leaves after it
        ended = process.now()
        self.enter(None)
        result, self.result = self.result, None
        code = verdict.RETURNED if error is None else outcome.outcome_of(error)
        if code == verdict.RETURNED and run is not None and run.state == context.COMMITTED:
            code = verdict.COMMITTED
        message, seen, _, begun, cpu_before = start
        keeps = message is not None and message.keep is not None
        cpu = self.used(ended, cpu_before, exactly=error is not None or keeps or child.hooks is not None)
        calls: list[Call] = []
        if code in _RETURNS:
            if self.noted is not None:
                code = self.noted
            elif keeps:
                code = self.keep_result(frame, start, code, result, ended, cpu)
            else:
                board.end(seat, slot, code, ended, cpu)
            if self.config.success_handler:
                calls.append(Call.of_handler(self.config.success_handler, task))
            if child.hooks is not None:
                task = task or self.known_of(frame, message, seen)
                if isinstance(error, TaskControl):
                    result = error
                told = verdict.RETURNED if code == verdict.KEPT else code
                returned = Verdict(told, wall=ended - begun, cpu=cpu, timeout=task.timeout)
                calls += child.hooks.returned(task, result, returned)
            if calls:
                board.handler(seat, self.number, frame.serial, process.now())
            else:
                board.idle(seat, self.number)
            if code != verdict.COMMITTED and not calls:
                child.returned(slot, frame.serial, code, ended)
            else:
                child.report(channel.OUTCOME, slot, frame.serial, code)
            if error is not None:
                child.obey(error)
            return calls
        assert error is not None
        found, self.verdict = self.verdict, None
        if found is None:
            found = self.verdict_on(start, error, ended, cpu, limits)
        if self.decision is not None:
            found = self.decision.on(found)
        if self.config.log_arguments and task is not None:
            found = found._replace(arguments=task.arguments())
        if task is None:
            task = self.known_of(frame, message, seen)
        if outcome.no_more_files(error):
            child.limited = True  # what leaked stays open, and the next task would fail for it
        name = ""
        if child.hooks is not None:
            name, found = child.hooks.decided(frame, found, run.state if run is not None else context.NO_TRANSACTION)
        board.note_fate(seat, slot, found.decision, found.delay)
        words = found.text if found.by_wish else found._what()
        if keeps:
            from delayed.worker import keeping

            keeping.keep_error(child, frame, error)
        board.end(seat, slot, code, ended, cpu, words.encode(errors="replace"))
        if self.config.error_handler and code not in verdict.NO_FAILURES:
            task.verdict = found
            info = (type(error), error, error.__traceback__)
            calls.append(Call.of_handler(self.config.error_handler, task, None, info))
        if child.hooks is not None:
            calls += child.hooks.ended(name, task, found)
        if calls:
            board.handler(seat, self.number, frame.serial, process.now())
        else:
            board.idle(seat, self.number)
        child.report(channel.OUTCOME, slot, frame.serial, code, found.dump())
        return calls

    def keep_result(self, frame: TaskFrame, start: Start, code: int, result: Any, ended: float, cpu: float) -> int:
        """Leave the answer of a task that returned where the monitor finds it, then note that it ended.

        Returns:
            With which outcome.
        """
        from delayed.worker import keeping

        error = keeping.keep_result(self.child, frame, result)
        if error is not None:
            trace = start.message.trace if start.message is not None else None
            outcome.log_error(self.config, f"task {frame.id} has returned what can't be kept", error, trace)
        words = "" if error is None else str(error)
        code = verdict.KEPT if code == verdict.RETURNED else code
        self.board.end(self.seat, frame.slot, code, ended, cpu, words.encode(errors="replace"))
        return code

    def used(self, at: float, before: float, *, exactly: bool = False) -> float:
        """Seconds of CPU that the lane has used since it had used `before`."""
        if at > self.clocked + CLOCK_INTERVAL or exactly:
            self.clocked = at
            self.cpu = self.clock()
        return self.cpu - before

    def mind_copy(self) -> None:
        """If the task forked, and this is the copy, leave: the outcome is the original's to tell."""
        if not self.child.mark[0]:
            os._exit(0)

    def verdict_on(
        self, start: Start, error: BaseException, ended: float, cpu: float, limits: Limits | None
    ) -> Verdict:
        """The verdict on a run that raised."""
        code = outcome.outcome_of(error)
        stack = self.stack() if code == verdict.TIMED_OUT or isinstance(error, TaskStopped) else ""
        found = outcome.describe(code, error, stack)
        timeout = start.message.timeout if start.message is not None else None
        found = found._replace(wall=ended - start.begun, cpu=cpu, timeout=timeout)
        return found if limits is None else limits.explain(found, error)

    def rest(self) -> None:
        """The handler has ended too: nothing runs here."""
        self.cpu = self.clock()
        self.board.idle(self.seat, self.number)

    # -- handlers ----------------------------------------------------------------------------------------------

    def run_killed(self, frame: TaskFrame) -> None:
        """Call the error handler and the hooks for a task whose child was killed."""
        for call in self.begin_killed(frame):
            self.call_handler(call, frame.serial)
        self.end_killed(frame)

    def begin_killed(self, frame: TaskFrame) -> list[Call]:
        """The calls for a task whose child was killed."""
        found = Verdict.load(frame.detail)
        self.board.handler(self.seat, self.number, frame.serial, process.now())
        seen: Message | None = None
        message: Opened | None = None
        with contextlib.suppress(Exception):
            seen = Message.parse(frame.id, frame.header, frame.payload)
            if found.code != verdict.UNDECODABLE:  # what a child has died of is not tried again
                message = self.child.codecs[frame.queue].open(seen, frame.header)
        task = self.known_of(frame, message, seen)
        task.verdict = found
        if self.config.log_arguments:
            with contextlib.suppress(Exception):  # loads the function, so that it is known what it hides
                task.function()
            outcome.log(self.config, f"task {task.id} {task.func_path}{task.arguments()} is the one that was killed")
        timeout = TaskTimeout(f"{found}\n{found.stack}".strip()) if found.code == verdict.TIMED_OUT else None
        calls = []
        if self.config.error_handler and found.code not in verdict.NO_FAILURES:
            info = (TaskTimeout, timeout, None) if timeout is not None else None
            calls.append(Call.of_handler(self.config.error_handler, task, found.signal or None, info))
        hooks = self.child.hooks
        if hooks is not None:
            hooks.label(task, frame)
            name, found = hooks.decided(frame, found, context.NO_TRANSACTION)
            failing = hooks.failing(task, found, timeout)
            calls += [failing] if failing is not None else []
            calls += hooks.ended(name, task, found)
        return calls

    def end_killed(self, frame: TaskFrame) -> None:
        """All that was to be called for a task whose child was killed has ended."""
        self.child.report(channel.HANDLED, frame.slot, frame.serial)
        self.board.idle(self.seat, self.number)  # after it: what has not been reported, nor begun, is called again

    def known_of(self, frame: TaskFrame, message: Opened | None, seen: Message | None) -> Task:
        """As much of a task as can be had, for an error handler."""
        if message is not None:
            with contextlib.suppress(Exception):
                return Task.from_message(message, self.child.codecs[frame.queue])
        if seen is None:
            return Task(id=frame.id, func_path="?")
        return Task(id=seen.id, func_path=seen.func, timeout=seen.timeout)

    def call_handler(self, call: Call, serial: int, error: BaseException | None = None) -> BaseException | None:
        """Call a handler or a hook; nothing that it does harms the task's outcome.

        Args:
            error: what the task raised, if the call may still say something else of how it goes on.

        Returns:
            What the task shall be taken to have raised.
        """
        try:
            try:
                function = call.resolve()
                self.serial = serial | boards.OF_HANDLER
                finished(function(*call.args))
                self.serial = 0
            except BaseException as raised:  # also SystemExit: a handler can't stop the worker
                self.serial = 0
                error = self.handler_failed(call, raised, error)
            self.disarm()
        except TaskStopped as raised:
            self.serial = 0
            error = self.handler_failed(call, raised, error)
        return error

    def handler_failed(self, call: Call, raised: BaseException, error: BaseException | None) -> BaseException | None:
        """A handler or a hook has raised; see :meth:`call_handler`."""
        if isinstance(raised, (RetireChild, StopWorkers)):
            self.child.obey(raised)
        elif isinstance(raised, TaskControl) and error is not None:
            raised.__cause__ = raised.__cause__ or error
            self.verdict = None
            return raised
        else:
            how = "was stopped" if isinstance(raised, TaskStopped) else "failed"
            outcome.log_error(self.config, f"{call.name} {how}; the task's outcome stands", raised)
        return error


def flush() -> None:
    """Let go of what was printed."""
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105  # suppress() takes longer than the rest
            stream.flush()
        except Exception:  # closed by a task, replaced by something else, or its reader is gone
            pass
