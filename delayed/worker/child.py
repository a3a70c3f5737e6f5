"""A child: the process that runs the user's code. It never talks to a broker.

It is forked by the fork server into a seat, and reads tasks from its channel, each only when it is ready to begin it.
Here is what all children share, and the kind that runs one task at a time; how a task is run is told in
:mod:`delayed.worker.lane`.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found, unused-ignore]
import contextlib
import gc
import os
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from delayed import context
from delayed.codec import Codec
from delayed.errors import (
    RetireChild,
    StopWorkers,
    TaskCancelled,
    TaskLost,
    TaskStopped,
    TaskTimeout,
)
from delayed.task import finished
from delayed.worker import board as boards
from delayed.worker import channel, outcome, process
from delayed.worker.board import Board
from delayed.worker.channel import TaskFrame
from delayed.worker.lane import Lane, flush

if TYPE_CHECKING:
    from delayed.worker.config import Config
    from delayed.worker.hooking import Hooking

inside = False  # whether this process is a child
_SIGTERM = int(signal.SIGTERM)
# signal.getsignal() looks for a name for what it finds, which takes longer than the rest.
getsignal: Callable[[int], Any] = _signal.getsignal
REPORT_MAX = 64  # tasks that have returned before the monitor is told
REPORT_DELAY = 0.002  # seconds after which it is told at the end of the next task
LATE = 1.0  # seconds by which a signal may come after another, which has found what both are for, ...
LATE_MAX = 4  # ... and how many may
IDLE = 0.005  # seconds without a task after which a child that has just been forked gets ready for one
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STOPS: dict[int, tuple[type[TaskStopped], str]] = {
    boards.STOP_TIMEOUT: (TaskTimeout, "the task's time is up"),
    boards.STOP_LOST: (TaskLost, "its claim was lost"),
    boards.STOP_CANCELLED: (TaskCancelled, "somebody cancelled it"),
    boards.STOP_SHUTDOWN: (TaskStopped, "the worker shuts down"),
}


class HookFailed(Exception):
    """Raised in a child whose first hook failed."""


class Child:
    """One child in its seat, with one lane.

    Args:
        seat: the seat's number.
        board: the worker's board.
        sock: the child's end of its channel.
        stack: descriptor of the file that stacks are dumped to.
        dump: the descriptor that faulthandler writes to, which becomes a copy of `stack`.
        line: what its life hangs on, see :func:`delayed.worker.process.die_with`.
        config: the worker's settings.
    """

    def __init__(
        self, seat: int, board: Board, sock: socket.socket, stack: int, dump: int, line: int, config: Config
    ) -> None:
        self.seat = seat
        self.board = board
        self.sock = sock
        self.stack = stack
        self.dump = dump
        self.line = line
        self.config = config
        self.server = os.getpid()
        self.pid = 0
        self.mark: process.Mark = (0,)  # set in this process, and not in its forks
        self.unreported = 0  # tasks that have returned, as the board says, and that the monitor was not told of
        self.report_by = 0.0
        self.codecs = [Codec.from_spec(spec) for spec in config.codecs]
        self.buffer = bytearray(channel.BUFFER_SIZE)
        self.frames: deque[TaskFrame] = deque()  # read, and not begun
        self.channel_inode = os.fstat(sock.fileno()).st_ino
        self.baseline = 0
        self.folder = -1  # descriptor of the working folder, to which each task is taken back
        self.sigterm_handler: Any = None
        self.limited = False  # for good, by what a task did
        self.hooks: Hooking | None = None
        self.leaving = False  # takes nothing more
        self.late = 0  # signals that may still come for what was found with others, ...
        self.late_until = 0.0  # ... and until when
        kind: type[Lane] = Lane
        if not config.one_shot:  # who runs one task needs no shorter way for the next ones
            from delayed.worker.plain import PlainLane as kind
        self.lane = kind(self, 0)
        self.lanes: Sequence[Lane] = (self.lane,)

    def prepare(self) -> None:
        """Turn a fresh fork into a child: its own session, stack dumps, and an end with its guardians.

        As little as possible happens here: each page of memory that a fresh fork writes to has to be copied.
        """
        self.pid = os.getpid()
        self.mark = process.Original() if self.config.one_shot else process.mark_original()
        self.board.take_seat(self.seat, self.pid)
        os.setsid()  # so that signals to the worker's terminal or group pass it by, and its own group can be killed
        os.dup2(self.stack, self.dump, inheritable=False)
        process.die_with(self.line, self.pid)
        if os.getppid() != self.server:  # the last guardian may have gone before we could notice
            os._exit(1)
        gc.enable()  # it was off only for the fork
        if "numpy" in sys.modules:  # preloaded: else every child would draw the same numbers; random reseeds itself
            sys.modules["numpy"].random.seed()
        if not self.config.one_shot:
            with contextlib.suppress(OSError):  # it may have been deleted, and then nothing can be taken back to it
                self.folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.sigterm_handler = getsignal(_SIGTERM)
            if self.config.max_memory:
                self.baseline = _resident()

    def get_ready(self) -> None:
        """Rehearse, unless a task comes at once: where there are many that is not worth it."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        if not poll.poll(IDLE * 1000):
            from delayed.worker.rehearsal import rehearse  # which needs this module, and is loaded

            with contextlib.suppress(OSError):  # no descriptor is left; the task may get by without
                rehearse(self.config)
            self.lane.cpu = self.lane.clock()  # not the task's

    def hook_up(self) -> None:
        """Make the hooks, and call the one for the beginning.

        Raises:
            HookFailed: When that fails: then this is no process for tasks.
        """
        from delayed.worker.hooking import Hooking

        self.hooks = Hooking(self)
        if not self.hooks.start():
            raise HookFailed

    def serve(self) -> None:
        """Run tasks until told to leave, or until retirement."""
        done = 0
        one_shot, wears = self.config.one_shot, self.config.max_tasks or self.config.max_memory
        while True:
            frame = self.next_frame()
            if frame is None or frame.kind == channel.LEAVE:
                return
            if frame.kind == channel.RUN:
                self.lane.run(frame)
            else:
                self.lane.run_killed(frame)
            done += not self.lane.was_recalled()
            if one_shot or self.leaving or self.limited or (wears and self.has_done_enough(done)) or self.spoiled():
                if self.hooks is not None:
                    self.retire()  # it may take a while to go
                return

    def next_frame(self) -> TaskFrame | None:
        """Wait for something to do. Before this child falls asleep, the monitor knows all that it has done."""
        frames = self.frames
        if frames:
            return frames.popleft()
        if self.unreported:
            try:
                frames += channel.receive_tasks(self.sock, self.buffer, channel.NO_WAIT)
            except BlockingIOError:
                self.report_returned()
            else:
                return frames.popleft() if frames else None
        if self.hooks is not None and self.hooks.mind_idleness:
            frames += self.hooks.next_frames()
        else:
            frames += channel.receive_tasks(self.sock, self.buffer)
        return frames.popleft() if frames else None

    def returned(self, slot: int, serial: int, code: int, at: float) -> None:
        """A task has returned, as the board says; tell the monitor now, or later with others."""
        if self.config.one_shot:
            self.report(channel.OUTCOME, slot, serial, code)
            return
        self.unreported += 1
        if self.unreported == 1:
            self.report_by = at + REPORT_DELAY
        if self.unreported >= REPORT_MAX or at > self.report_by:
            self.report_returned()

    def report_returned(self) -> None:
        """Tell the monitor to look at the board."""
        self.unreported = 0
        self.report(channel.RETURNED, 0, 0)

    def report(self, kind: int, slot: int, serial: int, code: int = 0, detail: bytes = b"") -> None:
        if os.getpid() != self.pid:
            os._exit(0)  # a copy that shares the memory, by vfork() for instance
        try:
            # A task may have closed every descriptor, and another file may have taken the number.
            if os.fstat(self.sock.fileno()).st_ino != self.channel_inode:
                raise OSError("the channel's descriptor was replaced")
            channel.send_report(self.sock, kind, slot, serial, code, detail)
        except OSError:
            os._exit(channel.CHANNEL_LOST)  # the outcome stands on the board

    def retire(self) -> None:
        """Take nothing more; go when what runs has ended."""
        if not self.leaving:
            self.leaving = True
            if self.unreported:
                self.report_returned()
            self.report(channel.RETIRING, 0, 0)

    def obey(self, control: BaseException) -> None:
        """Do what a task or a hook asked for, beside ending."""
        if isinstance(control, RetireChild):
            self.retire()
        elif isinstance(control, StopWorkers):
            self.report(channel.STOP, 0, 0)

    def finish(self, result: Any) -> Any:
        """What a hook that belongs to no task has returned, run to its end if it is to be awaited."""
        return finished(result)

    def awaits(self, function: Callable[..., Any] | None) -> bool:
        """Whether a function is to be awaited on the event loop of this child."""
        return False

    def has_done_enough(self, done: int) -> bool:
        """Whether this child is to be replaced after `done` tasks, for its memory, or for what it can't do any more."""
        config = self.config
        return bool(
            self.limited
            or (config.max_tasks and done >= config.max_tasks)
            or (config.max_memory and _resident() - self.baseline > config.max_memory)
        )

    def spoiled(self) -> bool:
        """Whether the last task left something behind that the next one should not meet. A task that went to another
        folder did not: the next one is taken back.
        """
        if self.folder >= 0:
            try:
                os.fchdir(self.folder)
            except OSError:
                return True
        threading = sys.modules.get("threading")
        if threading is not None and _threads(threading) > 1:
            main, ours = threading.main_thread(), context.threads()
            if not all(thread is main or thread.name.startswith(ours) for thread in threading.enumerate()):
                return True
        return getsignal(_SIGTERM) is not self.sigterm_handler

    def show_if_asked(self) -> tuple[bool, TaskStopped | None]:
        """Write where the tasks stand, if that was asked for: whether it was, and what is to be raised for it."""
        return False, None  # faulthandler does that

    def expect(self, signals: int) -> None:
        """So many come for what has been found; some may be under way still, and find nothing any more."""
        self.late = min(self.late + signals, LATE_MAX)
        self.late_until = process.now() + LATE

    def on_signal(self, number: int) -> None:
        """SIGTERM stops the tasks that its guardians asked for; everything else does what it does to any process."""
        if number == signal.SIGTERM:
            if process.now() > self.late_until:
                self.late = 0
            ours, to_raise = self.show_if_asked()
            for lane in self.lanes:
                reason, serial = self.board.stop_asked(self.seat, lane.number)
                if not (reason and serial):  # it is just being written, and another signal follows
                    continue
                ours = True
                self.expect(1)
                self.board.answer_stop(self.seat, lane.number)
                try:
                    lane.stop(serial, *_STOPS[reason])
                except TaskStopped as error:
                    to_raise = error  # when all have been told
            if self.late:
                ours = True
                self.late -= 1  # this one
            if to_raise is not None:
                raise to_raise
            if ours:
                return
        if number == signal.SIGINT and self.lane.serial:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def main(child: Child) -> NoReturn:
    """The whole life of a child."""
    global inside
    inside = True
    code = 1
    try:
        child.prepare()
        if child.config.hooks:
            child.hook_up()
        if child.config.one_shot:
            child.get_ready()
        child.serve()
        if child.hooks is not None:
            child.hooks.stop()
        code = 0
        if not child.config.one_shot:
            import atexit

            atexit._run_exitfuncs()
    except HookFailed:
        pass  # the log has it
    except BaseException as error:
        outcome.log_error(child.config, f"the child in seat {child.seat} fails", error)
    finally:
        flush()
        os._exit(code)  # not sys.exit: the fork server's own end is not ours, and threads are not waited for


def _threads(threading: Any) -> int:
    """How many threads there are; active_count() takes a lock for that, and four times as long."""
    try:
        # In this order: a thread that begins is in the second before it leaves the first.
        return len(threading._limbo) + len(threading._active)
    except AttributeError:
        return int(threading.active_count())


def _resident() -> int:
    """Bytes of memory that this process has now; 0 where that isn't told."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return 0
