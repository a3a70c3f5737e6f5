"""The fork server: a small process, started by exec, that forks the children and reaps them.

Its duties:

1. fork a child into a seat when the monitor says so; being small and single-threaded it does that fast, and no
   lock, socket or thread of the application is ever inherited;
2. reap children, and tell the monitor how they ended and what they used;
3. when a child ends, kill what it left behind: its process group, and daemons that left the group;
4. pass on signals: being the parent, it can't hit a pid that was given to somebody else;
5. when the monitor dies, stand in for it (:mod:`delayed.worker.standin`).

It imports neither logging nor threading (nor whatever imports them) before it has to: with either of them loaded a
fork takes almost twice as long, because Python renews their locks in every child (`benchmarks/`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from delayed.functions import resolve
from delayed.worker import board as boards
from delayed.worker import channel, child, process
from delayed.worker.board import Board
from delayed.worker.channel import Control
from delayed.worker.config import Config
from delayed.worker.rehearsal import rehearse
from delayed.worker.silence import Silence

REHEARSALS = 30
LEAVE_PATIENCE = 1.0  # seconds that idle children get for their exit handlers
LOOK = 1.0  # seconds between looks whether the monitor is awake, at most, and ...
LOOKS = 15  # looks in a lease, at least
STOP_PATIENCE = 4.0  # ... and for the hook that ends a process
KILL_PATIENCE = 1.0  # seconds that a killed monitor gets to be gone


class ForkServer:
    """The loop of the fork server."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.board = Board(config.board, len(config.seats), config.lanes)
        self.control = socket.socket(fileno=config.control)
        self.channels = [
            (socket.socket(fileno=monitor_end), socket.socket(fileno=child_end))
            for monitor_end, child_end, _ in config.seats
        ]
        self.pids: dict[int, int] = {}  # seat -> pid of its child
        self.last_ended: dict[int, Control] = {}  # by seat: the monitor may die before it reads that
        self.monitor = os.getppid()
        self.look = min(LOOK, config.lease / LOOKS)
        self.silence = Silence(self.board, boards.MONITOR, 2 * self.look)
        self.silent = 0.0  # seconds that the monitor was
        self.deposed = 0.0  # when the monitor was killed, for it was frozen
        self.born: dict[int, float] = {}  # pid -> when it was forked
        self.daemons: dict[int, set[int]] = {}  # pid of an orphan -> the children that may be using it
        self.wake_read, self.wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.lines = [process.life_line(config.life) for _ in config.seats]
        # Children inherit faulthandler's signal handlers, and put their own file in the place of this one.
        self.dump = os.dup(config.seats[0][2])
        faulthandler.enable(file=self.dump, all_threads=True)
        if hasattr(faulthandler, "register"):
            faulthandler.register(process.STACK_SIGNAL, file=self.dump, all_threads=True, chain=False)
        # What a child has no business with, for each seat.
        own = self.own_descriptors()
        self.foreign = [
            own - {child_end, stack, self.dump, line, config.spool}
            for (_, child_end, stack), line in zip(config.seats, self.lines, strict=True)
        ]
        for fd in own:
            os.set_inheritable(fd, False)  # they were inherited once, by us; not by what tasks execute
        for fd in config.presence:  # which children keep
            os.set_inheritable(fd, False)
        process.prefer_for_oom()
        self.orphans_come_here = process.set_subreaper(True)
        self.child: child.Child | None = None  # set in a child, which inherits our signal handlers
        self.children: list[child.Child] = []  # made beforehand, so that a fork has little left to do

    def serve(self) -> bool:
        """Work until the monitor says goodbye (then True) or dies (False)."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, self.on_signal)
        signal.siginterrupt(signal.SIGCHLD, False)  # for the code that children run
        make = resolve(self.config.child)
        if self.config.hooks:
            importlib.import_module("delayed.worker.hooking")  # once, and not in every child
        self.children = [
            make(seat, self.board, self.channels[seat][1], stack, self.dump, self.lines[seat], self.config)
            for seat, (_, _, stack) in enumerate(self.config.seats)
        ]
        if self.config.lanes == 1:
            rehearse(self.config, REHEARSALS)
        gc.disable()
        gc.collect()
        gc.freeze()  # so that a child's first collection does not copy every page of the server
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        self.control.setblocking(True)
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        poller.register(self.wake_read, select.POLLIN)
        try:
            channel.send_control(self.control, Control(channel.READY))
            looked = at = 0.0
            while True:
                # Also when no child is left: what they have ended is not settled yet.
                minds = bool(self.pids) or self.board.holds_any()
                # What comes in between does not put off the next look.
                wait = max(looked + self.look - at, 0.0) * 1000 if minds else None
                ready = dict(poller.poll(wait))
                at = process.now()
                self.board.note_pulse(boards.FORK_SERVER, at)
                if minds and at >= looked + self.look:
                    looked = at
                    if self.monitor_is_frozen(at):
                        return False
                if self.wake_read in ready:
                    os.read(self.wake_read, 4096)
                    for ended in self.reap():
                        self.last_ended[ended.seat] = ended
                        channel.send_control(self.control, ended)
                if self.control.fileno() in ready:
                    order = channel.receive_control(self.control)
                    if order is None:
                        return False
                    if order.kind == channel.BYE:
                        return True
                    self.obey(order)
        except (BrokenPipeError, ConnectionResetError):
            return self.was_dismissed()

    def monitor_is_frozen(self, at: float) -> bool:
        """Whether the monitor was silent for half a lease while it had tasks; it is dead then."""
        if self.deposed:
            return at > self.deposed + KILL_PATIENCE  # its end of file should have come
        silent = self.silence.seconds(at, counts=self.config.sole and self.board.holds_any())
        if silent < self.config.lease / 2 - self.look or os.getppid() != self.monitor:
            return False
        self.deposed = at
        self.silent = silent
        os.kill(self.monitor, signal.SIGKILL)
        return False

    def was_dismissed(self) -> bool:
        """Whether the last words of a monitor that is gone were a goodbye."""
        with contextlib.suppress(OSError):
            while order := channel.receive_control(self.control):
                if order.kind == channel.BYE:
                    return True
        return False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        # SIGINT, SIGTERM and SIGHUP may go to the worker's whole group: the monitor decides, and we go on.
        if self.child is not None and number != signal.SIGCHLD:
            self.child.on_signal(number)

    def obey(self, order: Control) -> None:
        if order.kind == channel.FORK:
            self.fork(order.seat)
        elif order.kind == channel.SIGNAL and self.pids.get(order.seat) == order.pid:
            self.signal(order.seat, order.value)

    def signal(self, seat: int, number: int) -> None:
        """SIGKILL goes to the child's whole group, anything else to the child alone."""
        pid = self.pids[seat]
        if number == signal.SIGKILL:
            process.kill_group(pid, number)
        else:
            os.kill(pid, number)

    def fork(self, seat: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            channel.send_control(self.control, Control(channel.FAILED, seat, text=f"fork failed: {error}"))
            return
        if pid == 0:
            self.become_child(seat)
        self.pids[seat] = pid
        self.born[pid] = process.now()
        channel.send_control(self.control, Control(channel.FORKED, seat, pid))

    def become_child(self, seat: int) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            self.child = self.children[seat]
            for fd in self.foreign[seat]:
                os.close(fd)
            child.main(self.child)
        finally:
            os._exit(1)

    def own_descriptors(self) -> set[int]:
        fds = {self.config.board, self.config.spool, self.config.life, self.config.life_write, self.control.fileno()}
        fds |= {self.wake_read, self.wake_write, self.dump, *self.lines}
        return fds.union(*self.config.seats)

    def reap(self) -> list[Control]:
        """Bury the children that have ended, and kill what they leave behind."""
        ended = []
        for seat, pid in list(self.pids.items()):
            # Look first: while the child is a zombie its pid, which is its group's id too, can't be another's.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            try:  # noqa: SIM105  # each page that suppress() touches was shared with a child, and is copied
                os.killpg(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
            _, status, usage = os.wait4(pid, 0)
            del self.pids[seat]
            wall = process.now() - self.born.pop(pid)
            cpu = usage.ru_utime + usage.ru_stime
            ended.append(Control(channel.EXITED, seat, pid, status, wall, cpu, usage.ru_maxrss * 1024))
        self.kill_daemons()
        return ended

    def kill_daemons(self) -> None:
        """Kill the daemons of tasks: they left their child's group and came to us, the nearest subreaper.

        Whose a daemon was can't be told any more; it is left alone until every child is gone that may have made it.
        """
        if not self.orphans_come_here:
            return
        found = set(process.children_of_self()).difference(self.pids.values())
        if not found:
            self.daemons = {}
            return
        children = set(self.pids.values())
        makers = {pid for seat, pid in self.pids.items() if not self.config.one_shot or self.board.busy(seat)}
        self.daemons = {pid: self.daemons.get(pid, makers) & children for pid in found}
        for pid, users in self.daemons.items():
            if not users:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def leave(self) -> None:
        """Let the children end, kill those that take long, and bury them."""
        for seat in self.pids:
            with contextlib.suppress(OSError):
                channel.send_task(self.channels[seat][0], channel.LEAVE_NOW)
        deadline = process.now() + (STOP_PATIENCE if self.config.hooks else LEAVE_PATIENCE)
        while self.pids and process.now() < deadline:
            process.is_readable(self.wake_read, 0.05)
            with contextlib.suppress(BlockingIOError):
                os.read(self.wake_read, 4096)
            self.reap()
        for seat in list(self.pids):
            self.signal(seat, signal.SIGKILL)
        for pid in self.pids.values():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self.pids.clear()
        self.kill_daemons()


def preload(names: Sequence[str]) -> str:
    """Import the modules to preload; what went wrong, or "" if nothing did."""
    import traceback

    for name in names:
        try:
            importlib.import_module(name)
        except BaseException:
            return f"can't preload {name}:\n{traceback.format_exc()}"
        threading = sys.modules.get("threading")
        if threading is not None and threading.active_count() > 1:
            threads = ", ".join(thread.name for thread in threading.enumerate()[1:])
            return f"can't preload {name}: it starts threads ({threads}), and a process with threads can't fork safely"
    return ""


def main(config_fd: int) -> None:
    """The program of the fork server; its settings are in the file `config_fd`."""
    with open(config_fd, "rb") as file:
        file.seek(0)
        config = Config.load(file.read())
    server = ForkServer(config)
    problem = preload(config.preload)
    if problem:
        channel.send_control(server.control, Control(channel.FAILED, -1, text=problem))
        return
    if server.serve():
        server.leave()
        return
    from delayed.logger import logger, setup_logger
    from delayed.worker.standin import StandIn

    setup_logger(config.log_level, as_json=config.log_json)
    how = f"was frozen for {server.silent:.1f} s with tasks, and killed" if server.deposed else "is gone"
    logger.warning("the monitor of worker %s %s; its fork server stands in", config.worker, how)
    StandIn(server).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
