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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from delayed import context
from delayed.errors import TaskStopped
from delayed.functions import is_loaded
from delayed.task import Task
from delayed.worker import channel, process
from delayed.worker.channel import TaskFrame
from delayed.worker.ladder import pick_stack
from delayed.worker.lane import Call, Start
from delayed.worker.threads import SharedChild, ThreadLane, throw

if TYPE_CHECKING:
    from delayed.worker.hooking import Hooking

BEAT = 0.1  # seconds between two signs that the loop turns, while anything runs
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
            self.child.spawn(self.call_killed(frame))
            return
        self.note(self.child.thread)
        start = self.begin(frame)
        if start.message is not None and not is_loaded(start.message.func.rpartition(":")[0]):
            # To import a module may take long, and would hold up all the others.
            done = self.child.in_thread(self._load, frame, start)
            done.add_done_callback(lambda loaded: self.launch(frame, start, *loaded.result()))
        else:
            self.launch(frame, start, *self._load(frame, start))

    def _load(self, frame: TaskFrame, start: Start) -> tuple[Task | None, BaseException | None]:
        try:
            task = self.load(frame, start)
            task.function()
        except BaseException as error:
            return None, error
        return task, None

    def launch(self, frame: TaskFrame, start: Start, task: Task | None, error: BaseException | None) -> None:
        """Let it run."""
        self.stopped = None
        if task is None:
            self.finish(frame, start, None, None, error)
            return
        run = self.current_run = self.run_of(frame, start)
        within = contextvars.Context()
        within.run(context.here.set, run)
        hooks = self.child.hooks
        if hooks is not None:
            hooks.label(task, frame)
        if inspect.iscoroutinefunction(task.function()) or (hooks is not None and hooks.awaits_before):
            self.in_thread = False
            self.task = self.child.loop.create_task(self.attempt(frame, task), context=within)
            self.task.add_done_callback(lambda done: self.finish(frame, start, task, run, self.error_of(done)))
            self.current = self.serial = frame.serial
            self.expected = 0
            if self.early is not None:
                self.stopped, self.serial = self.early, 0
                self.task.cancel()
        else:
            self.in_thread = True
            done = self.child.in_thread(within.run, self.attempt_here, frame, task)
            done.add_done_callback(lambda done: self.finish(frame, start, task, run, done.result()))

    async def attempt(self, frame: TaskFrame, task: Task) -> BaseException | None:
        """Await the task; whatever it raises is returned, for SystemExit would end the loop."""
        hooks = self.child.hooks
        try:
            if hooks is not None and "before" in hooks.methods:
                await self.call_before(hooks, frame, task)
            if inspect.iscoroutinefunction(task.function()):
                self.result = await task.call()
                return None
        except BaseException as error:
            return error
        self.serial, self.expected = 0, frame.serial
        self.in_thread = True
        within = contextvars.copy_context()
        found: BaseException | None = await self.child.in_thread(within.run, self.attempt_here, frame, task)
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

    def attempt_here(self, frame: TaskFrame, task: Task) -> BaseException | None:
        """Call the task in this thread."""
        error: BaseException | None = None
        try:
            try:
                self.settle_in()
                before = ThreadLane.clock()
                self.arm(frame.serial)
                if self.child.hooks is not None and not self.child.hooks.awaits_before:
                    self.child.hooks.before(task)
                self.result = task.run()
            except BaseException as raised:
                error = raised
            self.disarm()
        except TaskStopped as raised:
            error = raised
        self.spent += ThreadLane.clock() - before
        return error

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
        if error is not None and self.child.hooks is not None:
            task = task or self.known_of(frame, start.message)
            call = self.failing(frame, start, task, error)
            if call is not None:
                self.child.spawn(self.conclude_failed(call, frame, start, task, run, error))
                return
        self.conclude(frame, start, task, run, error)

    async def conclude_failed(
        self, call: Call, frame: TaskFrame, start: Start, task: Task, run: context.Run | None, error: BaseException
    ) -> None:
        self.conclude(frame, start, task, run, await self.handle(call, frame, error))

    def conclude(
        self, frame: TaskFrame, start: Start, task: Task | None, run: context.Run | None, error: BaseException | None
    ) -> None:
        """Note how it ended."""
        calls = self.end(frame, start, task, run, error)
        self.current = 0
        self.task = self.stopped = None
        if calls:
            self.child.spawn(self.call_after(calls, frame))
        else:
            self.child.free(self)

    # -- handlers ----------------------------------------------------------------------------------------------

    async def call_after(self, calls: list[Call], frame: TaskFrame) -> None:
        for call in calls:
            await self.handle(call, frame)
        self.rest()
        self.child.free(self)

    async def call_killed(self, frame: TaskFrame) -> None:
        for call in self.begin_killed(frame):
            await self.handle(call, frame)
        self.end_killed(frame)
        self.child.free(self)

    async def handle(self, call: Call, frame: TaskFrame, error: BaseException | None = None) -> BaseException | None:
        """As :meth:`call_handler`: on the loop if it is a coroutine, else in a thread."""
        try:
            handler = call.resolve()
        except BaseException as raised:
            return self.handler_failed(call, raised, error)
        within = contextvars.Context()
        within.run(context.here.set, self.current_run)
        if inspect.iscoroutinefunction(handler):
            self.in_thread = False
            self.current = self.serial = frame.serial
            self.task = self.child.loop.create_task(self.handle_here(handler, call, error), context=within)
            with self.heeding_again(), contextlib.suppress(asyncio.CancelledError):
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
        blocks = self.current_run is not None and context.here.get() is self.current_run
        if not blocks:
            self.dump_stack()
        self.child.loop.call_soon_threadsafe(self.cancel, serial)
        if blocks:  # the signal came in the middle of its own code, which may never come back to the loop
            raise self.stopped

    def cancel(self, serial: int) -> None:
        if self.current == serial and self.task is not None:
            self.task.cancel(str(self.stopped))

    def dump_stack(self) -> None:
        """Write where the coroutine waits to where the guardians look for it."""
        assert self.task is not None
        lines = []
        waits: Any = self.task.get_coro()
        while waits is not None:
            frame = next((getattr(waits, name) for name in _FRAMES if hasattr(waits, name)), None)
            if frame is not None:
                lines.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
            waits = next((getattr(waits, name) for name in _AWAITS if hasattr(waits, name)), None)
        text = "\n".join([f"Coroutine {self.current:#x} (most recent call first):", *reversed(lines), ""])
        with contextlib.suppress(OSError):
            os.write(self.child.stack, text.encode(errors="replace"))

    def stack(self) -> str:
        return pick_stack(self.child.stack, self.thread, self.current)


_FRAMES = ("cr_frame", "gi_frame", "ag_frame")
_AWAITS = ("cr_await", "gi_yieldfrom", "ag_await")


class AsyncChild(SharedChild):
    """A child with an event loop."""

    loop: asyncio.AbstractEventLoop

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.lanes: list[CoroutineLane] = [CoroutineLane(self, number) for number in range(self.config.lanes)]
        self.idle: list[CoroutineLane] = self.lanes[::-1]
        self.reading = False
        self.telling = False
        self.thread = 0
        self.beating = False
        self.shown = 0  # how often it was asked to show its coroutines, and did
        self.others: set[asyncio.Task[None]] = set()
        if self.config.uvloop:
            self.new_loop: Any = importlib.import_module("uvloop").new_event_loop  # before the fork: once for all
        else:
            self.new_loop = asyncio.new_event_loop

    def prepare(self) -> None:
        super().prepare()
        self.loop = self.new_loop()
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
        self.loop.run_until_complete(self.home)
        self.report_returned()
        if self.hooks is not None:
            self.hooks.stop()  # before what it began on the loop is cancelled
        self.loop.run_until_complete(self.farewell())

    def read_on(self) -> None:
        if not self.reading and not self.leaving:
            self.reading = True
            self.loop.add_reader(self.sock.fileno(), self.read)

    def read_no_more(self) -> None:
        if self.reading:
            self.reading = False
            self.loop.remove_reader(self.sock.fileno())

    def read(self) -> None:
        """Take as many tasks as can begin."""
        while self.idle and not self.leaving:
            try:
                frame = channel.receive_task(self.sock, self.buffer, channel.NO_WAIT)
            except BlockingIOError:
                return
            if frame is None or frame.kind == channel.LEAVE:
                self.leaving = True
                self.leave_when_done()
                break
            lane = self.idle.pop()
            if not self.beating:
                self.beating = True
                self.beat()
            lane.take(frame)
        self.read_no_more()

    def free(self, lane: CoroutineLane) -> None:
        """A lane has ended what it did."""
        self.idle.append(lane)
        self.done += 1
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
        return signal.getsignal(signal.SIGTERM) is not self.sigterm_handler

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
        if len(self.idle) == len(self.lanes):
            self.beating = False
            self.board.note_beat(self.seat, 0.0)
        else:
            self.board.note_beat(self.seat, process.now())
            self.loop.call_later(BEAT, self.beat)
            if self.board.shows(self.seat) != self.shown:
                self.show()

    def show(self) -> None:
        """Write where all coroutines wait: somebody wants to know it of one."""
        self.shown = self.board.shows(self.seat)
        for lane in self.lanes:
            if lane.serial and lane.task is not None and not lane.in_thread:
                lane.dump_stack()

    def in_thread(self, func: Any, *args: Any) -> asyncio.Future[Any]:
        """Call a function in a thread."""
        return self.loop.run_in_executor(self.pool, func, *args)

    def spawn(self, coroutine: Any) -> None:
        """Run a coroutine of our own."""
        task = self.loop.create_task(coroutine)
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
