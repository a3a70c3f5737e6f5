"""The child of a threaded worker: each lane is a thread.

Every thread reads tasks from the channel by itself, when it is ready to begin one; if several quick ones come in a
packet, the others begin with whoever is ready next. The main thread runs no task: it is there for signals, which Python
delivers to it alone, so that it can stop what runs in the others.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import mmap
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from delayed import codec, context
from delayed.codec import BY_VALUE
from delayed.errors import TaskStopped
from delayed.functions import resolve
from delayed.message import Message
from delayed.task import Task, finished
from delayed.worker import board as boards
from delayed.worker import channel, outcome, process, verdict
from delayed.worker.channel import TaskFrame
from delayed.worker.child import REPORT_MAX, Child
from delayed.worker.ladder import without_own
from delayed.worker.lane import Call, Start
from delayed.worker.plain import PlainLane, Plan

if TYPE_CHECKING:
    from delayed.worker.board import Board
    from delayed.worker.config import Config
    from delayed.worker.hooking import Hooking

PATIENCE = 1.0  # seconds
FRAMES_MAX = 100  # of a stack
_MAIN = b"__main__"  # in the payload of what refers to something in the program
_loading = threading.Lock()  # what stands for __main__ while a payload is decoded is one for the whole process


class ThreadLane(PlainLane):
    """A lane whose tasks run in a thread of its own."""

    child: SharedChild

    def __init__(self, child: SharedChild, number: int) -> None:
        super().__init__(child, number)
        self.thread = 0
        # Held while it is decided whether the task that is to be stopped still runs.
        self.turn = threading.Lock()
        self.running = 0  # serial of the task, or handler, that this lane is busy with
        self.of_main = False  # whether its task may need what was defined in the program's __main__
        self.where = ""  # its stack when it was asked to stop

    clock = staticmethod(time.thread_time)

    def enter(self, run: context.Run | None) -> None:
        context.here.set(run)

    def settle_in(self) -> None:
        """Be run by this thread from now on."""
        self.note(threading.get_ident())
        self.cpu = self.clock()

    def note(self, thread: int) -> None:
        """Note whose stack is that of the lane's task."""
        if thread != self.thread:
            self.thread = thread
            self.board.note_thread(self.seat, self.number, thread)

    def expect(self, serial: int) -> None:
        self.running = serial
        self.where = ""
        super().expect(serial)

    def begin(self, frame: TaskFrame) -> Start | None:
        start = super().begin(frame)
        self.of_main = start is not None and start.message is not None and refers_to_main(start.message)
        return start

    def begin_killed(self, frame: TaskFrame) -> list[Call]:
        self.running = frame.serial
        self.where = ""
        return super().begin_killed(frame)

    def stop(self, serial: int, error: type[TaskStopped], text: str) -> None:
        if not self.turn.acquire(timeout=PATIENCE):
            return  # then it will be killed
        try:
            if serial == self.serial:
                self.serial = 0
                self.where = self.stands(sys._current_frames())
                throw(self.thread, error)
            elif serial == self.expected:
                self.early = error(text)
        finally:
            self.turn.release()

    def disarm(self) -> None:
        with self.turn:
            self.serial = 0
            throw(self.thread, None)

    def stack(self) -> str:
        return without_own(self.where)

    def stands(self, frames: Mapping[int, FrameType]) -> str:
        """Where the lane's task stands, as faulthandler would write it.

        Args:
            frames: of all threads, from :func:`sys._current_frames`.
        """
        return stack_text(f"Task {self.running:#x}", frames.get(self.thread))

    def decode(self, plan: Plan, payload: bytes) -> codec.Call:
        if _MAIN in payload:
            with _loading:
                return super().decode(plan, payload)
        return plan.codec.decode(payload)

    def load(self, frame: TaskFrame, start: Start) -> Task:
        if start.message is None or not self.of_main:
            return super().load(frame, start)
        resolve(start.message.func)  # to import its module may take long, which is not to hold up others
        with _loading:
            return super().load(frame, start)

    def stand_for_main(self, message: Message) -> None:
        if self.of_main:
            super().stand_for_main(message)
        else:
            resolve(message.func)

    def run_frame(self, frame: TaskFrame) -> None:
        """Do what a frame says, in a context of its own: what a task sets in context variables ends with it."""
        try:
            contextvars.Context().run(self.run if frame.kind == channel.RUN else self.run_killed, frame)
        except BaseException as error:
            self.rescue(frame, error)
        self.running = 0

    def rescue(self, frame: TaskFrame, error: BaseException) -> None:
        """What nobody foresaw ends the task, not the lane."""
        outcome.log_error(self.config, f"task {frame.id} could not be run as it should", error)
        self.serial = self.expected = 0
        seat, slot = self.seat, frame.slot
        if frame.kind != channel.RUN:
            self.end_killed(frame)
            return
        if self.board.state(seat, slot) == boards.BEGUN:
            found = outcome.describe(verdict.RAISED, error, "")
            self.board.note_fate(seat, slot)
            self.board.end(seat, slot, verdict.RAISED, process.now(), 0.0, found._what().encode(errors="replace"))
            self.child.report(channel.OUTCOME, slot, frame.serial, verdict.RAISED, found.dump())
        self.rest()


def refers_to_main(message: Message) -> bool:
    """Whether something in the payload may have been defined in the program's ``__main__``."""
    payload = message.payload
    hidden = payload[2:4] not in (b"\0\0", b"\0\1")  # compressed or encrypted
    return not message.func.startswith(BY_VALUE) and (hidden or _MAIN in payload)


def stack_text(head: str, frame: FrameType | None) -> str:
    """A stack as faulthandler writes it."""
    lines = [f"{head} (most recent call first):"]
    while frame is not None and len(lines) <= FRAMES_MAX:
        lines.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
        frame = frame.f_back
    return "\n".join([*lines, ""])


def throw(thread: int, error: type[BaseException] | None) -> None:
    """Raise the error in a thread, as soon as that runs Python code; None: nothing any more."""
    what = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)


class SharedChild(Child):
    """A child that runs several tasks at once."""

    def __init__(
        self, seat: int, board: Board, sock: socket.socket, stack: int, dump: int, line: int, config: Config
    ) -> None:
        super().__init__(seat, board, sock, stack, dump, line, config)
        self.shown = 0  # how often it was asked to write where its tasks stand, and did
        self.shared: Sequence[ThreadLane] = ()  # its lanes
        self.done = 0  # tasks, or handlers for killed ones, that have ended
        self.ends: deque[int] = deque()  # slots of tasks that have returned, and that the monitor was not told of

    def returned(self, slot: int, serial: int, code: int, at: float) -> None:
        self.ends.append(slot)
        if len(self.ends) >= REPORT_MAX:
            self.report_returned()

    def report_returned(self) -> None:
        slots = []
        while self.ends:
            try:
                slots.append(self.ends.popleft())
            except IndexError:  # another thread was quicker
                break
        if slots:
            self.report(channel.RETURNED, 0, 0, detail=channel.pack_slots(slots))

    def next_frame_into(self, buffer: mmap.mmap) -> TaskFrame | None:
        """As :meth:`next_frame`, from any thread."""
        try:
            return self.frames.popleft()  # of what another has read, before anything else
        except IndexError:
            pass
        try:
            try:
                frames = channel.receive_tasks(self.sock, buffer, channel.NO_WAIT)
            except BlockingIOError:
                self.report_returned()
                frames = channel.receive_tasks(self.sock, buffer)
        except OSError:  # a task closed it
            os._exit(channel.CHANNEL_LOST)
        self.frames += frames[1:]
        return frames[0] if frames else None

    def show_if_asked(self) -> tuple[bool, TaskStopped | None]:
        shows = self.board.shows(self.seat)
        if shows == self.shown:
            return False, None
        self.expect(max(shows - self.shown, 1))
        self.shown = shows
        frames = sys._current_frames()
        text = "".join(lane.stands(frames) for lane in self.shared if lane.running)
        to_raise = self.mind_blocker(frames)
        with contextlib.suppress(OSError):
            os.write(self.stack, (text + self.loop_stands(frames)).encode(errors="replace"))
        return True, to_raise

    def mind_blocker(self, frames: Mapping[int, FrameType]) -> TaskStopped | None:
        """Note in whose code the event loop is, if there is one; what is to be raised there."""
        return None

    def loop_stands(self, frames: Mapping[int, FrameType]) -> str:
        """Where the event loop stands, if there is one."""
        return ""

    def spoiled(self) -> bool:
        return False  # threads are its business, and whose folder or handler it is can't be told


class ThreadedChild(SharedChild):
    """A child with a thread for each lane."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.lanes = self.shared = [ThreadLane(self, number) for number in range(self.config.lanes)]
        self.gate = threading.Lock()
        self.running = 0
        self.gone = False  # nothing begins any more
        self.home = threading.Lock()  # held until the child may go; no descriptor, for a task may close them all
        self.home.acquire()

    def serve(self) -> None:
        for lane in self.shared:
            threading.Thread(target=self.work, args=(lane,), name=f"delayed-{lane.number}", daemon=True).start()
        if self.hooks is not None and self.hooks.mind_idleness:
            threading.Thread(target=self.watch, args=(self.hooks,), name="delayed-idle", daemon=True).start()
        self.home.acquire()
        self.report_returned()

    def watch(self, hooks: Hooking) -> None:
        """The life of the thread that tells of idleness."""
        from delayed.worker.hooking import Idleness

        idleness = Idleness(hooks.hooks.idle_after)
        while not self.leaving:
            time.sleep(idleness.tick)
            seconds = idleness.look(self.done, self.running > 0)
            if seconds and not self.leaving:
                try:
                    finished(hooks.methods["idle"](seconds))
                except BaseException as error:
                    hooks.failed("idle", error)
        self.leave_when_done()

    def work(self, lane: ThreadLane) -> None:
        """The life of a thread."""
        lane.settle_in()
        # What of it is not used takes no memory, and there may be many threads. Private: a task may fork.
        buffer = mmap.mmap(-1, channel.BUFFER_SIZE, mmap.MAP_PRIVATE)
        while not self.leaving:
            frame = self.next_frame_into(buffer)
            if frame is None or frame.kind == channel.LEAVE:
                self.leaving = True
                break
            with self.gate:
                if self.gone:
                    break  # it has not begun, so it is run by another
                self.running += 1
            lane.run_frame(frame)
            with self.gate:
                self.running -= 1
                self.done += not lane.was_recalled()
                enough = not self.leaving and self.has_done_enough(self.done)
            if enough:
                self.retire()
        self.leave_when_done()

    def leave_when_done(self) -> None:
        """Leave, unless something runs."""
        with self.gate:
            if not self.running and not self.gone:
                self.gone = True
                self.home.release()
