"""The child of an asynchronous worker: each lane is a coroutine of its event loop.

The loop itself reads tasks from the channel, as many as lanes are free. A task that is no coroutine runs in a thread.
Signals come in the loop's thread, which is why a task that blocks the loop can still be stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from delayed import context
from delayed.errors import TaskStopped
from delayed.functions import is_at_hand
from delayed.task import Task
from delayed.worker import board as boards
from delayed.worker import channel, process, verdict
from delayed.worker.channel import TaskFrame
from delayed.worker.child import getsignal
from delayed.worker.lane import Call, Start, flush
from delayed.worker.threads import SharedChild, ThreadLane, stack_text, throw

if TYPE_CHECKING:
    from delayed.worker.hooking import Hooking

BLOCKED = 0.5  # seconds without a turn after which the loop is in somebody's hands
BEAT = 0.1  # seconds between two signs that the loop turns, while anything runs
LAST_MOMENT = 0.1  # seconds in which a task may end before its process goes
FAREWELL = 1.0  # seconds that what tasks left behind on the loop gets to end


class CoroutineLane(ThreadLane):
    """A lane whose tasks run on the event loop, or, if they are no coroutines, in a thread."""

    child: AsyncChild

    def __init__(self, child: AsyncChild, number: int) -> None:
        super().__init__(child, number)
        self.task: asyncio.Task[BaseException | None] | None = None
        self.current = 0  # serial of the task whose coroutine runs
        self.current_run: context.Run | None = None
        self.in_thread = False
        self.stopped: TaskStopped | None = None  # what its cancellation means
        self.spent = 0.0  # seconds of CPU; what coroutines use can't be told

    def clock(self) -> float:
        return self.spent

    def enter(self, run: context.Run | None) -> None:
        self.current_run = run

    # -- from the channel to the end of a task -------------------------------------------------------------------

    def take(self, frame: TaskFrame) -> None:
        """Begin what a frame asks for."""
        if frame.kind != channel.RUN:
            self.child.spawn(self.go_on_with(frame, self.call_killed(frame)))
            return
        self.note(self.child.thread)
        start = self.begin(frame)
        if start is None:
            self.child.free(self)
        elif self.of_main or (start.message is not None and not is_at_hand(start.message.func)):
            # By an import, or by waiting for another that is loaded, which is not to hold up the loop.
            done = self.child.in_thread(self._load, frame, start)
            done.add_done_callback(lambda loaded: self.go_on(frame, lambda: self.launch(frame, start, loaded.result())))
        else:
            self.launch(frame, start, self._load(frame, start))

    def go_on(self, frame: TaskFrame, step: Callable[[], object]) -> None:
        """Take a step; what nobody foresaw in it ends the task, not the lane."""
        try:
            step()
        except BaseException as error:
            self.give_up(frame, error)

    def give_up(self, frame: TaskFrame, error: BaseException) -> None:
        """What nobody foresaw has ended the task."""
        self.rescue(frame, error)
        self.child.free(self)

    async def go_on_with(self, frame: TaskFrame, steps: Coroutine[Any, Any, None]) -> None:
        """As :meth:`go_on`, with the lane free at the end."""
        try:
            await steps
        except BaseException as error:  # for example by a task that cancelled all that runs on the loop
            self.rescue(frame, error)
        self.child.free(self)

    def _load(self, frame: TaskFrame, start: Start) -> tuple[Task, Callable[..., Any]] | BaseException:
        try:
            task = self.load(frame, start)
            return task, task.function()
        except BaseException as error:
            return error

    def launch(self, frame: TaskFrame, start: Start, loaded: tuple[Task, Callable[..., Any]] | BaseException) -> None:
        """Let it run, with its function; or end it, if it could not be loaded."""
        self.stopped = self.noted = None
        if isinstance(loaded, BaseException):
            self.finish(frame, start, None, None, loaded)
            return
        task, func = loaded
        run = self.current_run = self.run_of(frame, start)
        within = contextvars.Context()
        within.run(_own, run, (self, frame.serial))
        hooks = self.child.hooks
        if hooks is not None:
            hooks.label(task, frame)
        awaited = func if inspect.iscoroutinefunction(func) else None
        if awaited is not None or (hooks is not None and hooks.awaits_before):
            self.in_thread = False
            # Not by the loop's method: a task may have given that a factory of its own.
            attempt = self.attempt(frame, start, task, run, awaited)
            ready = self.child.ready
            before = len(ready)
            self.task = asyncio.Task(attempt, loop=self.child.loop, context=within)
            self.current = self.serial = frame.serial
            self.expected = 0
            if self.early is not None:
                self.stopped, self.serial = self.early, 0
                self.task.cancel()
            # Its time counts already, so it takes its first step now and not after others, who may hold up the loop.
            if len(ready) == before + 1:  # else another thread has asked for something in that very moment
                first = ready[before]
                del ready[before]
                first._run()
                self.mind_copy()  # which has no business here, if the step has left one
            if self.task.done():
                self.finish(frame, start, task, run, self.error_of(self.task))
                return
            self.task.add_done_callback(
                lambda done: self.go_on(frame, lambda: self.finish(frame, start, task, run, self.error_of(done)))
            )
        else:
            self.in_thread = True
            done = self.child.in_thread(within.run, self.attempt_here, frame, start, task, run)
            done.add_done_callback(
                lambda done: self.go_on(frame, lambda: self.finish(frame, start, task, run, done.result()))
            )

    async def attempt(
        self, frame: TaskFrame, start: Start, task: Task, run: context.Run, awaited: Callable[..., Any] | None
    ) -> BaseException | None:
        """Call the hook that goes before, and run the task. What is raised is returned: SystemExit would end the loop.

        Args:
            awaited: the task's function, if it is a coroutine; None: it runs in a thread.
        """
        hooks = self.child.hooks
        try:
            if hooks is not None and "before" in hooks.methods:
                await self.call_before(hooks, frame, task)
            if awaited is not None:
                try:
                    self.result = await task.call(awaited)
                finally:
                    self.mind_copy()  # before it runs what else is ready on the loop
                self.serial = 0
                self.note_return(frame, start, run)
                return None
        except BaseException as error:
            return error
        self.serial, self.expected = 0, frame.serial
        self.in_thread = True
        within = contextvars.copy_context()
        found: BaseException | None = await self.child.in_thread(within.run, self.attempt_here, frame, start, task, run)
        return found

    async def call_before(self, hooks: Hooking, frame: TaskFrame, task: Task) -> None:
        """As :meth:`Hooking.before`; the loop goes on meanwhile."""
        if hooks.awaits_before:
            try:
                await hooks.methods["before"](task)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                hooks.before_failed(error)
            return
        self.serial, self.expected = 0, frame.serial
        self.in_thread = True
        found = await self.child.in_thread(contextvars.copy_context().run, self.before_here, hooks, frame, task)
        if found is not None:
            raise found
        self.in_thread = False
        self.note(self.child.thread)
        self.arm(frame.serial)

    def before_here(self, hooks: Hooking, frame: TaskFrame, task: Task) -> BaseException | None:
        """Call the hook that goes before a coroutine in this thread."""
        error: BaseException | None = None
        try:
            try:
                self.settle_in()
                self.arm(frame.serial)
                hooks.before(task)
            except BaseException as raised:
                error = raised
            with self.turn:
                self.serial, self.expected = 0, frame.serial  # who is to be stopped now, is so when it is armed again
                throw(self.thread, None)
        except TaskStopped as raised:
            error = raised
        return error

    def attempt_here(self, frame: TaskFrame, start: Start, task: Task, run: context.Run) -> BaseException | None:
        """Call the task in this thread."""
        error: BaseException | None = None
        before = ThreadLane.clock()
        try:
            try:
                self.settle_in()
                self.arm(frame.serial)
                if self.child.hooks is not None and not self.child.hooks.awaits_before:
                    self.child.hooks.before(task)
                self.result = task.run()
            except BaseException as raised:
                error = raised
            self.mind_copy()  # which has no loop any more that would
            self.disarm()
        except TaskStopped as raised:
            error = raised
        self.spent += ThreadLane.clock() - before
        if error is None:
            self.note_return(frame, start, run)
        return error

    def note_return(self, frame: TaskFrame, start: Start, run: context.Run) -> None:
        """Note at once that a task has returned. The loop comes to the rest later, and may be in the hands of a
        neighbour until then, for which this child is killed.
        """
        flush()
        ended = process.now()
        code = verdict.COMMITTED if run.state == context.COMMITTED else verdict.RETURNED
        if start.message is not None and start.message.keep is not None:
            self.noted = self.keep_result(frame, start, code, self.result, ended, self.spent - start.cpu)
        else:
            self.board.end(self.seat, frame.slot, code, ended, self.spent - start.cpu)
            self.noted = code
        if self.config.success_handler or self.child.hooks is not None:
            self.board.handler(self.seat, self.number, frame.serial, ended)
        else:
            self.board.idle(self.seat, self.number)

    def error_of(self, done: asyncio.Task[BaseException | None]) -> BaseException | None:
        """What a coroutine ended with."""
        error: BaseException | None
        try:
            error = done.result()
        except BaseException as raised:
            error = raised
        if isinstance(error, asyncio.CancelledError) and self.stopped is not None:
            self.stopped.__cause__ = error
            return self.stopped
        return error

    def finish(
        self, frame: TaskFrame, start: Start, task: Task | None, run: context.Run | None, error: BaseException | None
    ) -> None:
        """It has ended."""
        self.serial = 0
        if error is not None:
            call = asks = None
            if self.child.hooks is not None:
                task = task or self.known_of(frame, start.message, start.seen)
                call = self.failing(frame, start, task, error)
            if call is None:
                asks = self.deciding(frame, start, error)
            if call is not None or asks is not None:
                self.child.spawn(self.conclude_failed(call, asks, frame, start, task, run, error))
                return
        self.conclude(frame, start, task, run, error)

    async def conclude_failed(
        self,
        call: Call | None,
        asks: Call | None,
        frame: TaskFrame,
        start: Start,
        task: Task | None,
        run: context.Run | None,
        error: BaseException,
    ) -> None:
        """Call the hook for a failure, and ask the retry policy, which is None if it is not known yet."""
        try:
            if call is not None:
                error = await self.handle(call, frame, error) or error
                asks = self.deciding(frame, start, error)
            if asks is not None:
                await self.handle(asks, frame)
        finally:
            decided = error
            self.go_on(frame, lambda: self.conclude(frame, start, task, run, decided))

    def conclude(
        self, frame: TaskFrame, start: Start, task: Task | None, run: context.Run | None, error: BaseException | None
    ) -> None:
        """Note how it ended."""
        calls: list[Call] = []
        plain = not self.config.success_handler and self.child.hooks is None
        if plain and error is None and self.noted == verdict.RETURNED:  # all else was done when it did
            self.mind_copy()  # which may have been left by a neighbour
            self.current_run = self.result = None
            self.cpu = self.spent
            self.child.returned(frame.slot, frame.serial, verdict.RETURNED, 0.0)
        else:
            calls = self.end(frame, start, task, run, error)
        self.current = 0
        self.task = self.stopped = None
        if calls:
            self.child.spawn(self.go_on_with(frame, self.call_after(calls, frame)))
        else:
            self.child.free(self)

    # -- handlers ----------------------------------------------------------------------------------------------

    async def call_after(self, calls: list[Call], frame: TaskFrame) -> None:
        for call in calls:
            await self.handle(call, frame)
        self.rest()

    async def call_killed(self, frame: TaskFrame) -> None:
        for call in self.begin_killed(frame):
            await self.handle(call, frame)
        self.end_killed(frame)

    async def handle(self, call: Call, frame: TaskFrame, error: BaseException | None = None) -> BaseException | None:
        """As :meth:`call_handler`: on the loop if it is a coroutine, else in a thread."""
        try:
            handler = call.resolve()
        except BaseException as raised:
            return self.handler_failed(call, raised, error)
        within = contextvars.Context()
        within.run(_own, self.current_run, (self, frame.serial))
        if inspect.iscoroutinefunction(handler):
            self.in_thread = False
            self.serial = frame.serial | boards.OF_HANDLER
            self.current = frame.serial
            self.task = asyncio.Task(self.handle_here(handler, call, error), loop=self.child.loop, context=within)
            with contextlib.suppress(asyncio.CancelledError):
                error = await self.task
            self.serial = self.current = 0
            return error
        self.in_thread = True
        error = await self.child.in_thread(within.run, self.call_in_thread, call, frame.serial, error)
        return error

    async def handle_here(self, handler: Any, call: Call, error: BaseException | None) -> BaseException | None:
        try:
            await handler(*call.args)
        except BaseException as raised:
            return self.handler_failed(call, raised, error)
        return error

    def call_in_thread(self, call: Call, serial: int, error: BaseException | None) -> BaseException | None:
        self.settle_in()
        return self.call_handler(call, serial, error)

    # -- stopping ----------------------------------------------------------------------------------------------

    def stop(self, serial: int, error: type[TaskStopped], text: str) -> None:
        if self.in_thread or serial == self.expected:
            super().stop(serial, error, text)
            return
        if serial != self.serial or self.task is None:
            return
        self.serial = 0
        self.stopped = error(text)
        self.where = self.stands(sys._current_frames())
        loop, task = self.child.loop, self.task
        running = asyncio.current_task(loop)
        # What the loop calls for it outside of any task, such as the end of a sleep, is not to be interrupted.
        if _owner.get() != (self, self.current) or running is None:
            loop.call_soon_threadsafe(self.cancel, task)
            return
        # The signal came in the middle of its own code, which may never come back to the loop.
        if running is not self.task:  # in something that it has started, and may not wait for
            patience = self.config.kill_timeout / 2
            loop.call_soon_threadsafe(lambda: loop.call_later(patience, self.cancel, task))
        raise self.stopped

    def cancel(self, task: asyncio.Task[Any]) -> None:
        if self.task is task:
            task.cancel(str(self.stopped))

    def stands(self, frames: Mapping[int, FrameType]) -> str:
        if self.in_thread or self.task is None or _owner.get() == (self, self.current):
            return super().stands(frames)
        lines = []
        waits: Any = self.task.get_coro()
        while waits is not None:
            frame = next((getattr(waits, name) for name in _FRAMES if hasattr(waits, name)), None)
            if frame is not None:
                lines.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
            waits = next((getattr(waits, name) for name in _AWAITS if hasattr(waits, name)), None)
        return "\n".join([f"Task {self.running:#x} (most recent call first):", *reversed(lines), ""])


_FRAMES = ("cr_frame", "gi_frame", "ag_frame")
_AWAITS = ("cr_await", "gi_yieldfrom", "ag_await")
# Whose code runs in this context: a lane, and the serial of its task.
_owner: contextvars.ContextVar[tuple[CoroutineLane, int] | None] = contextvars.ContextVar("delayed_owner", default=None)


def _own(run: context.Run | None, owner: tuple[CoroutineLane, int]) -> None:
    """Let this be the run that ``current`` speaks of in this context, and this whose code runs there."""
    context.here.set(run)
    _owner.set(owner)


class AsyncChild(SharedChild):
    """A child with an event loop."""

    loop: asyncio.AbstractEventLoop
    ready: Any  # what is to be called in the next turn of the loop, in its order; empty if the loop is not asyncio's

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        lanes = [CoroutineLane(self, number) for number in range(self.config.lanes)]
        self.lanes = self.shared = lanes
        self.idle = lanes[::-1]
        self.reading = False
        self.reads_soon = False
        self.telling = False
        self.thread = 0
        self.beating = False
        self.others: set[asyncio.Task[None]] = set()
        if self.config.uvloop:
            self.new_loop: Any = importlib.import_module("uvloop").new_event_loop  # before the fork: once for all
        else:
            self.new_loop = asyncio.new_event_loop

    def prepare(self) -> None:
        super().prepare()
        self.loop = self.new_loop()
        # Python 3.11 has no eager tasks, and those of later ones begin before it is known here whose they are.
        self.ready = getattr(self.loop, "_ready", ()) if isinstance(self.loop, asyncio.BaseEventLoop) else ()
        asyncio.set_event_loop(self.loop)

    def finish(self, result: Any) -> Any:
        return self.loop.run_until_complete(_ended(result)) if hasattr(result, "__await__") else result

    def awaits(self, function: Callable[..., Any] | None) -> bool:
        return inspect.iscoroutinefunction(function)

    def serve(self) -> None:
        import threading

        self.thread = threading.get_ident()
        self.pool = ThreadPoolExecutor(self.config.lanes, thread_name_prefix="delayed")
        self.home = self.loop.create_future()
        self.read_on()
        if self.hooks is not None and self.hooks.mind_idleness:
            self.spawn(self.watch(self.hooks))
        try:
            self.loop.run_until_complete(self.home)
        except OSError:  # a task has closed what the loop waits on; those that are left here are innocent
            self.leave_cut_off()
        self.report_returned()
        if self.hooks is not None:
            self.hooks.stop()  # before what it began on the loop is cancelled
        self.loop.run_until_complete(self.farewell())

    def leave_cut_off(self) -> NoReturn:
        """A task has closed the channel, or what the loop waits on. In its thread it may be about to end."""
        until = process.now() + LAST_MOMENT
        while self.board.busy(self.seat) and process.now() < until:
            time.sleep(0.001)
        os._exit(channel.CHANNEL_LOST)

    def read_on(self) -> None:
        if not self.reading and not self.leaving:
            self.reading = True
            self.loop.add_reader(self.sock.fileno(), self.read)
            if self.frames:
                self.read_soon()

    def read_no_more(self) -> None:
        if self.reading:
            self.reading = False
            self.loop.remove_reader(self.sock.fileno())

    def read_soon(self) -> None:
        """Read in the next turn of the loop."""
        if not self.reads_soon:
            self.reads_soon = True
            self.loop.call_soon(self.read_now)

    def read_now(self) -> None:
        self.reads_soon = False
        self.read()

    def read(self) -> None:
        """Take as many tasks as can begin; many may have ended then."""
        if not self.mark[0]:  # the copy that a task has left, which came back to the loop
            os._exit(0)
        turns = len(self.idle)
        while self.idle and not self.leaving:
            if not turns:  # the others on the loop are to have theirs
                if self.frames:
                    self.read_soon()
                return
            turns -= 1
            if not self.frames:
                try:
                    self.frames += channel.receive_tasks(self.sock, self.buffer, channel.NO_WAIT)
                except BlockingIOError:
                    return
                except OSError:  # a task closed it
                    self.leave_cut_off()
            frame = self.frames.popleft() if self.frames else channel.LEAVE_NOW
            if frame.kind == channel.LEAVE:
                self.leaving = True
                self.leave_when_done()
                break
            lane = self.idle.pop()
            if not self.beating:
                self.beating = True
                self.beat()
            lane.running = frame.serial
            try:
                lane.take(frame)
            except BaseException as error:
                lane.give_up(frame, error)
        self.read_no_more()

    def free(self, lane: CoroutineLane) -> None:
        """A lane has ended what it did."""
        if not lane.running:
            return
        lane.running = lane.current = 0
        lane.task = None
        self.idle.append(lane)
        self.done += not lane.was_recalled()
        if self.ends and not self.telling:
            self.telling = True
            self.loop.call_soon(self.tell)
        if not self.leaving and (self.has_done_enough(self.done) or self.spoiled()):
            self.retire()
        if self.leaving:
            self.leave_when_done()
        else:
            self.read_on()

    def spoiled(self) -> bool:
        """Whether a coroutine has taken the signal by which tasks are stopped."""
        return getsignal(signal.SIGTERM) is not self.sigterm_handler

    def leave_when_done(self) -> None:
        self.read_no_more()
        if len(self.idle) == len(self.lanes) and not self.home.done():
            self.home.set_result(None)

    def tell(self) -> None:
        """Tell the monitor of all that have returned in this turn of the loop."""
        self.telling = False
        self.report_returned()

    def beat(self) -> None:
        """Show that the loop turns."""
        if len(self.idle) == len(self.lanes) and not self.leftovers():
            self.beating = False
            self.board.note_beat(self.seat, 0.0)
        else:
            self.board.note_beat(self.seat, process.now())
            self.loop.call_later(BEAT, self.beat)

    def leftovers(self) -> bool:
        """Whether tasks that have ended left something on the loop, which may hold up the next ones."""
        return bool(asyncio.all_tasks(self.loop) - self.others)

    def mind_blocker(self, frames: Mapping[int, FrameType]) -> TaskStopped | None:
        beat = self.board.beat(self.seat)
        owner = _owner.get()
        if not beat or process.now() < beat + BLOCKED or owner is None:
            return None
        lane, serial = owner
        if lane.running == serial:
            self.board.note_blocker(self.seat, serial)
            return None
        return TaskStopped("it was left on the event loop by a task that has ended, and holds up all others")

    def loop_stands(self, frames: Mapping[int, FrameType]) -> str:
        return stack_text(f"Loop {self.thread:#x}", frames.get(self.thread))

    def in_thread(self, func: Any, *args: Any) -> asyncio.Future[Any]:
        """Call a function in a thread."""
        return self.loop.run_in_executor(self.pool, func, *args)

    def spawn(self, coroutine: Any) -> None:
        """Run a coroutine of our own."""
        task = asyncio.Task(coroutine, loop=self.loop)
        self.others.add(task)
        task.add_done_callback(self.others.discard)

    async def watch(self, hooks: Hooking) -> None:
        """Tell of idleness."""
        from delayed.worker.hooking import Idleness

        method = hooks.methods["idle"]
        idleness = Idleness(hooks.hooks.idle_after)
        while not self.leaving:
            await asyncio.sleep(idleness.tick)
            seconds = idleness.look(self.done, len(self.idle) < len(self.lanes))
            if seconds and not self.leaving:
                try:
                    if inspect.iscoroutinefunction(method):
                        await method(seconds)
                    else:
                        await self.in_thread(method, seconds)
                except asyncio.CancelledError:
                    raise
                except BaseException as error:
                    hooks.failed("idle", error)
        self.leave_when_done()

    async def farewell(self) -> None:
        """End what tasks left behind on the loop, as :func:`asyncio.run` does."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=FAREWELL)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.loop.shutdown_asyncgens(), FAREWELL)


async def _ended(awaitable: Any) -> Any:
    return await awaitable
