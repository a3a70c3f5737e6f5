"""A child: the process that runs the user's code. It never talks to a broker.

It is forked by the fork server into a seat, and reads tasks from its channel, one at a time, each only when it is
ready to begin it. For each:

1. note on the board that it begins, so that its guardians can keep the deadline;
2. decode, resolve and call;
3. note on the board how it ended, then say so to the monitor: from then on its own death harms nothing;
4. call the handler.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from delayed import context
from delayed.codec import BY_VALUE, Codec
from delayed.errors import DecodeError, FunctionNotFound, SignatureMismatch, TaskLost, TaskStopped, TaskTimeout
from delayed.functions import resolve, stand_for_main
from delayed.message import Message, Ref
from delayed.task import Task
from delayed.worker import board as boards
from delayed.worker import channel, process, verdict
from delayed.worker.board import Board
from delayed.worker.channel import TaskFrame
from delayed.worker.ladder import read_stack
from delayed.worker.verdict import Verdict

if TYPE_CHECKING:
    from delayed.worker.config import Config

TEXT_MAX = 4096  # characters of an exception's text that are kept
TRACEBACK_MAX = 24000  # characters of a traceback that are kept: its end, which is nearest to the fault
inside = False  # whether this process is a child
REHEARSALS = 30
REPORT_MAX = 64  # tasks that have returned before the monitor is told
REPORT_DELAY = 0.002  # seconds after which it is told at the end of the next task
CHANNEL_LOST = 87  # exit code of a child that can't reach its monitor any more
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Child:
    """One child in its seat.

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
        self.unreported = 0  # tasks that have returned, as the board says, and that the monitor was not told of
        self.report_by = 0.0
        self.codecs = [Codec.from_spec(spec) for spec in config.codecs]
        self.buffer = bytearray(channel.PACKET_MAX + 256)
        self.serial = 0  # of the task that may be stopped; 0 while no user code runs
        self.channel_inode = os.fstat(sock.fileno()).st_ino
        self.baseline = 0
        self.folder = -1  # descriptor of the working folder, to which each task is taken back
        self.cpu = 0.0  # seconds of CPU used before the task that runs now
        self.sigterm_handler: Any = None

    def prepare(self) -> None:
        """Turn a fresh fork into a child: its own session, stack dumps, and an end with its guardians.

        As little as possible happens here: each page of memory that a fresh fork writes to has to be copied.
        """
        self.pid = os.getpid()
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
            self.sigterm_handler = signal.getsignal(signal.SIGTERM)
            if self.config.max_memory:
                self.baseline = _resident()

    def serve(self) -> None:
        """Run tasks until told to leave, or until retirement."""
        done = 0
        while True:
            frame = self.next_frame()
            if frame is None or frame.kind == channel.LEAVE:
                return
            if frame.kind == channel.RUN:
                self.run(frame)
            else:
                self.handle_killed(frame)
            done += 1
            if self.config.one_shot or (self.config.max_tasks and done >= self.config.max_tasks):
                return
            if self.spoiled() or (self.config.max_memory and _resident() - self.baseline > self.config.max_memory):
                return

    def next_frame(self) -> TaskFrame | None:
        """Wait for something to do. Before this child falls asleep, the monitor knows all that it has done."""
        if self.unreported:
            try:
                return channel.receive_task(self.sock, self.buffer, channel.NO_WAIT)
            except BlockingIOError:
                self.report_returned()
        return channel.receive_task(self.sock, self.buffer)

    def run(self, frame: TaskFrame) -> None:
        """Run one task, note how it ended, tell the monitor, and call the handler."""
        board, seat, slot = self.board, self.seat, frame.slot
        message: Message | None = None
        task: Task | None = None
        error: BaseException | None = None
        run: context.Run | None = None
        try:
            message = Message.parse(frame.id, frame.header, frame.payload)
        except DecodeError as raised:
            error = raised
        begun = process.now()
        cpu_before = self.cpu
        board.begin(seat, slot, frame.serial, (message.timeout or 0.0) if message is not None else 0.0, begun)
        try:
            try:
                if message is None:
                    raise error or DecodeError("the header can't be read")
                if not message.func.startswith(BY_VALUE):
                    stand_for_main(message.func)
                task = Task.from_message(message, self.codecs[frame.queue])
                context.run = run = self.run_of(frame, message)
                self.serial = frame.serial
                task.run()
                self.serial = 0
            except BaseException as raised:
                self.serial = 0
                error = raised
        except TaskStopped as raised:  # the signal came a moment after the task had ended by itself
            self.serial = 0
            error = raised
        if os.getpid() != self.pid:
            os._exit(0)  # the task forked, and this is the copy: the outcome is the original's to tell
        _flush()  # what it printed is not to wait for the next task, nor to be lost when the worker leaves after it
        ended = process.now()
        self.cpu = time.process_time()
        cpu = self.cpu - cpu_before
        context.run = None
        code = verdict.RETURNED if error is None else outcome_of(error)
        if code == verdict.RETURNED and run is not None and run.state == context.COMMITTED:
            code = verdict.COMMITTED
        ok = code in (verdict.RETURNED, verdict.COMMITTED)
        if ok:
            board.end(seat, slot, code, ended, cpu)
            found, detail = None, b""
        else:
            assert error is not None
            found = describe(code, error, self.stack)
            detail = found.dump()
            board.end(seat, slot, code, ended, cpu, str(found._what()).encode(errors="replace"))
        if self.config.success_handler and ok:
            board.phase(seat, boards.HANDLER, process.now())
            self.report(channel.OUTCOME, slot, frame.serial, code, detail)
            self.call_handler(self.config.success_handler, frame.serial, task)
        elif self.config.error_handler and not ok and code not in (verdict.STOPPED, verdict.LOST):
            board.phase(seat, boards.HANDLER, process.now())
            self.report(channel.OUTCOME, slot, frame.serial, code, detail)
            info = (type(error), error, error.__traceback__ if error else None)
            if task is None:
                task = self.known_of(frame, message)
            _attach(task, found, begun, ended, cpu)
            self.call_handler(self.config.error_handler, frame.serial, task, None, info)
        elif code == verdict.RETURNED and not self.config.one_shot:
            board.phase(seat, boards.IDLE, ended)
            self.unreported += 1
            if self.unreported == 1:
                self.report_by = ended + REPORT_DELAY
            if self.unreported >= REPORT_MAX or ended > self.report_by:
                self.report_returned()
            return
        else:
            board.phase(seat, boards.IDLE, ended)
            self.report(channel.OUTCOME, slot, frame.serial, code, detail)
            return
        self.cpu = time.process_time()
        board.phase(seat, boards.IDLE, process.now())

    def run_of(self, frame: TaskFrame, message: Message) -> context.Run:
        """What the task can know of its run."""
        board, seat, slot = self.board, self.seat, frame.slot
        return context.Run(
            message,
            Ref(self.config.queues[frame.queue], frame.id, frame.delivery, frame.nonce),
            frame.attempt,
            time.monotonic(),
            self.config.url,
            lambda state: board.note_transaction(seat, slot, state),
        )

    def handle_killed(self, frame: TaskFrame) -> None:
        """Call the error handler for a task whose child was killed."""
        found = Verdict.load(frame.detail)
        self.board.phase(self.seat, boards.HANDLER, process.now())
        message: Message | None = None
        with contextlib.suppress(DecodeError):
            message = Message.parse(frame.id, frame.header, frame.payload)
        task = self.known_of(frame, message)
        task.verdict = found
        if self.config.error_handler:
            info = None
            if found.code == verdict.TIMED_OUT:
                timeout = TaskTimeout(f"{found}\n{found.stack}".strip())
                info = (TaskTimeout, timeout, None)
            self.call_handler(self.config.error_handler, frame.serial, task, found.signal or None, info)
        self.board.phase(self.seat, boards.IDLE, process.now())
        self.report(channel.HANDLED, frame.slot, frame.serial)

    def known_of(self, frame: TaskFrame, message: Message | None) -> Task:
        """As much of a task as can be had, for an error handler."""
        if message is None:
            return Task(id=frame.id, func_path="?")
        with contextlib.suppress(Exception):
            return Task.from_message(message, self.codecs[frame.queue])
        return Task(id=message.id, func_path=message.func, timeout=message.timeout)

    def report_returned(self) -> None:
        """Tell the monitor to look at the board."""
        self.unreported = 0
        self.report(channel.RETURNED, 0, 0)

    def call_handler(self, path: str, serial: int, *args: Any) -> None:
        try:
            try:
                handler: Callable[..., Any] = resolve(path)
                self.serial = serial
                handler(*args)
                self.serial = 0
            except BaseException as error:  # also SystemExit: a handler can't stop the worker
                self.serial = 0
                log_error(self.config, f"handler {path} failed; the task's outcome stands", error)
        except TaskStopped as error:
            self.serial = 0
            log_error(self.config, f"handler {path} was stopped; the task's outcome stands", error)

    def report(self, kind: int, slot: int, serial: int, code: int = 0, detail: bytes = b"") -> None:
        try:
            # A task may have closed every descriptor, and another file may have taken the number.
            if os.fstat(self.sock.fileno()).st_ino != self.channel_inode:
                raise OSError("the channel's descriptor was replaced")
            channel.send_report(self.sock, kind, slot, serial, code, detail)
        except OSError:
            os._exit(CHANNEL_LOST)  # the outcome stands on the board

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
        if threading is not None and threading.active_count() > 1:
            main, ours = threading.main_thread(), context.threads()
            if not all(thread is main or thread.name.startswith(ours) for thread in threading.enumerate()):
                return True
        return signal.getsignal(signal.SIGTERM) is not self.sigterm_handler

    def on_signal(self, number: int) -> None:
        """SIGTERM stops the task if its guardians asked for that; everything else does what it does to any process."""
        if number == signal.SIGTERM:
            reason, serial = self.board.stop_asked(self.seat)
            if reason and serial and serial == self.serial:
                self.serial = 0  # once
                if reason == boards.STOP_TIMEOUT:
                    raise TaskTimeout("the task's time is up")
                if reason == boards.STOP_LOST:
                    raise TaskLost("its claim was lost")
                raise TaskStopped("the worker shuts down")
            if reason and not self.serial:
                return  # too late: the task it was meant for has ended
        if number == signal.SIGINT and self.serial:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def nothing() -> None:
    """What is run in a rehearsal."""


def rehearse(config: Config) -> None:
    """Run a task a few times as a child does, in the fork server.

    Python then has the code ready for it; a child that has to do that itself copies every page of memory that it
    touches for it, which takes longer than the rest.
    """
    mine, theirs = channel.pair()
    file = process.anonymous_file("delayed-rehearsal")
    main_module = sys.modules["__main__"]
    with mine, theirs:
        board = Board(file, 1)
        plain = config._replace(success_handler=None, error_handler=None)
        child = Child(0, board, theirs, file, file, file, plain)
        child.pid = os.getpid()
        message = Message(id=1, func=f"{__name__}:nothing", payload=child.codecs[0].encode((), {}), timeout=1.0)
        frame = TaskFrame(channel.RUN, 0, 0, 1, 1, 1, 1, 1, message.header(), message.payload)
        buffer = bytearray(channel.PACKET_MAX)
        for _ in range(REHEARSALS):
            channel.send_task(mine, frame)
            received = child.next_frame()
            assert received is not None
            child.run(received)
            child.report(channel.OUTCOME, 0, 1)
            while channel.receive_report(mine, buffer):
                pass
        board.close()
    os.close(file)
    sys.modules["__main__"] = main_module


def main(child: Child) -> NoReturn:
    """The whole life of a child."""
    global inside
    inside = True
    code = 1
    try:
        child.prepare()
        child.serve()
        code = 0
        if not child.config.one_shot:
            import atexit

            atexit._run_exitfuncs()
    except BaseException as error:
        log_error(child.config, f"the child in seat {child.seat} fails", error)
    finally:
        _flush()
        os._exit(code)  # not sys.exit: the fork server's own end is not ours, and threads are not waited for


def outcome_of(error: BaseException) -> int:
    """Which outcome an exception means."""
    if isinstance(error, TaskTimeout):
        return verdict.TIMED_OUT
    if isinstance(error, TaskLost):
        return verdict.LOST
    if isinstance(error, TaskStopped):
        return verdict.STOPPED
    if isinstance(error, DecodeError):
        return verdict.UNDECODABLE
    if isinstance(error, FunctionNotFound):
        return verdict.UNKNOWN_FUNCTION
    if isinstance(error, SignatureMismatch):
        return verdict.BAD_ARGUMENTS
    if isinstance(error, SystemExit):
        return verdict.RETURNED if error.code in (None, 0) else verdict.EXITED
    return verdict.RAISED


def describe(code: int, error: BaseException, stack: int) -> Verdict:
    """The verdict of an exception, in words: the object itself never leaves the child.

    Args:
        stack: descriptor of the file with the stacks that were dumped before the task was asked to stop.
    """
    import resource
    import traceback

    kind = type(error)
    try:
        text = str(error)
    except BaseException:
        text = "(its text can't be had: __str__ failed)"
    try:
        trace = "".join(traceback.format_exception(error))
    except BaseException:
        trace = "(its traceback can't be formatted)"
    exit_code = 0
    if isinstance(error, SystemExit):
        exit_code = error.code if isinstance(error.code, int) else 1
    return Verdict(
        code,
        type=f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."),
        text=text[:TEXT_MAX],
        traceback=trace[-TRACEBACK_MAX:],
        exit_code=exit_code,
        stack=read_stack(stack) if isinstance(error, TaskStopped) else "",
        rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105  # suppress() takes longer than the rest
            stream.flush()
        except Exception:  # closed by a task, replaced by something else, or its reader is gone
            pass


def log_error(config: Config, text: str, error: BaseException) -> None:
    """Log an error of a child. Logging is loaded only then: it makes each fork slower."""
    from delayed.logger import logger, setup_logger

    if not any(handler.__class__.__name__ != "NullHandler" for handler in logger.handlers):
        setup_logger(config.log_level, as_json=config.log_json)
    try:
        logger.error("%s", text, exc_info=error)
    except BaseException:  # its own __str__ may raise
        logger.error("%s: %s", text, type(error).__qualname__)


def _attach(task: Task, found: Verdict | None, begun: float, ended: float, cpu: float) -> None:
    if found is not None:
        task.verdict = found._replace(wall=ended - begun, cpu=cpu, timeout=task.timeout)


def _resident() -> int:
    """Bytes of memory that this process has now; 0 where that isn't told."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return 0
