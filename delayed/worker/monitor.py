"""The monitor: the process of a worker that holds the broker and hands out tasks. It runs no user code.

Its duties:

1. hand claimed tasks to children, ahead of need when they are short, and take back what has not begun, when the running
   task takes long or the worker stops (:mod:`.handing`);
2. learn how they end, from the channel, or from the board when the child is dead, and pass on the settlement
   (:mod:`.ending`);
3. keep deadlines and limits (:mod:`.minding`);
4. obey what people ask of the worker (:mod:`.orders`);
5. keep every seat taken, and a fork server alive.

What is here is the loop, how it stops, and the last of these. The talking to the store is the courier's, in a thread of
its own.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

from delayed.errors import ConfigError, DecodeError
from delayed.logger import logger
from delayed.message import Claim, Settlement
from delayed.worker import board as boards
from delayed.worker import channel, process
from delayed.worker.board import Board
from delayed.worker.channel import Control
from delayed.worker.config import Config
from delayed.worker.courier import Courier, Held
from delayed.worker.ending import FORK_BACKOFF, Ending
from delayed.worker.garbage import seldom_sought
from delayed.worker.handing import Handing
from delayed.worker.keeping import Keeper
from delayed.worker.ladder import Ladder
from delayed.worker.memory import Gauge
from delayed.worker.minding import TICK, Minder
from delayed.worker.orders import Orders
from delayed.worker.orphans import Orphans
from delayed.worker.process import now
from delayed.worker.seat import Seat
from delayed.worker.server import Server
from delayed.worker.silence import Silence
from delayed.worker.spool import Spool
from delayed.worker.watch import Watch

FAREWELL = 0.5  # seconds that the daemons of tasks get to be gone, once they are killed
LAST_MOMENT = 2.0  # seconds that the thread which talks to the store gets to end, when this process fails
IDLE_TICK = 1.0  # seconds between looks at the deadlines while nothing runs
RUNNING_MAX = 100  # running tasks that a worker names when it says what it does


class Monitor:
    """One run of a worker, from start to stop.

    Args:
        config: what the fork server is told; the monitor adds the descriptors.
        processes: how many children may run tasks at once.
        make_courier: makes the courier, given notify, freed and info.
        gauge: measures the whole worker, which leaves when it is too large; None: it may be of any size.

    Attributes:
        outgrown: whether it left because it was too large.
    """

    def __init__(
        self,
        config: Config,
        processes: int,
        shutdown_timeout: float,
        make_courier: Callable[
            [Callable[[], None], Callable[[Iterable[Held]], None], Callable[[], Mapping[str, Any]]], Courier
        ],
        about: Mapping[str, Any],
        gauge: Gauge | None = None,
    ) -> None:
        self.config = config
        self.processes = processes
        self.lanes = config.lanes
        self.capacity = processes * config.lanes  # tasks that can run at once
        self.shutdown_timeout = shutdown_timeout
        self.about = about
        # A spare one keeps the next one-shot child warm, which needs a moment to be forked and to go; where children
        # have lanes, spare ones are for tasks that have to run apart.
        seats = processes + (boards.SPARES if config.lanes > 1 else int(config.one_shot))
        self.board_file = config.board if config.board >= 0 else process.anonymous_file("delayed-board")
        self.board = Board(self.board_file, seats, config.lanes)
        self.poller = select.poll()
        self.server = Server(self.poller, Silence(self.board, boards.FORK_SERVER, 2 * IDLE_TICK))
        self.spool_file = config.spool if config.spool >= 0 else process.anonymous_file("delayed-spool")
        self.spool = Spool(self.spool_file, self.board.slots)
        self.keeper = Keeper(self.board, self.spool)
        self.seats = [Seat(index, self.board.slots) for index in range(seats)]
        self.regular = self.seats if config.lanes == 1 else self.seats[:processes]
        self.spare = self.seats[len(self.regular) :]
        self.life_read, self.life_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.wake_read, self.wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stacks = [seat.stack for seat in self.seats]
        self.ladder = Ladder(self.board, stacks, config.kill_timeout, self.signal, shared=config.shared)
        self.watch = Watch(self.board, config, self.ladder, self.signal, self.claim_in)
        self.outgrown = False
        self.turn = threading.Lock()  # held while seats are looked at or changed
        self.courier = make_courier(self.deliver, self.freed, self.info)
        self.courier.beat = self.beat
        self.courier.vouched = partial(self.board.note_pulse, boards.LEASES)
        self.handing = Handing(self)
        self.ending = Ending(self)
        self.minder = Minder(self, gauge)
        self.orders = Orders(self)
        self.buffer = bytearray(channel.BUFFER_SIZE)
        self.by_fd: dict[int, Seat] = {}
        self.orphans = Orphans(config.worker, first=process.alone and os.getpid() == 1)
        self.stopping = False
        self.stop_by: float | None = None
        self.stopped_by_task = False  # a task has asked for it, and means all workers of a supervisor
        self.stop_asked = False  # set by other threads and signal handlers, read by the loop
        self.stop_gently = False
        self.stop_now = False
        self.dismissed = False  # whether somebody asked it to stop, so that nobody shall start it again
        self.start_error = ""

    # -- called from other threads and signal handlers ---------------------------------------------------------

    def notify(self) -> None:
        """Wake the loop."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self.wake_write, b"\0")

    def deliver(self) -> None:
        """The courier has something. An idle child gets it here and now, without a switch to the monitor's thread."""
        if self.turn.acquire(blocking=False):
            try:
                if not self.stopping:
                    self.handing.hand_out(now())
            finally:
                self.turn.release()
        self.notify()

    def freed(self, some: Iterable[Held]) -> None:
        """Claims have ended in the store: their slots may be used again."""
        free, seats = self.board.free, self.seats
        for held in some:
            slot = held.slot
            if slot >= 0:
                if held.answer:
                    self.spool.clear(held.seat, slot, held.answer)
                free(held.seat, slot)
                seats[held.seat].slots.append(slot)

    def ask_stop(self, *, gently: bool = False) -> None:
        """Stop: `gently` leaves what runs all the time it needs. Asked a second time: at once."""
        if self.stop_asked and not gently:
            self.stop_now = True
        if gently and not self.stop_asked:
            self.stop_gently = True
        elif not gently:
            self.stop_asked = True
        self.notify()

    def info(self) -> dict[str, Any]:
        """What the worker says of itself."""
        return {**self.about, "stopping": self.stopping, "running": list(islice(self.running(), RUNNING_MAX))}

    def running(self) -> Iterator[dict[str, Any]]:
        """What is to be said of each running task."""
        at = now()
        for seat in self.seats:
            for _, activity in self.board.activities(seat.index):
                held = seat.tasks.get(activity.slot)
                if activity.phase != boards.TASK or held is None or held.serial != activity.serial:
                    continue
                try:
                    func = held.claim.message().func
                except DecodeError:
                    func = "?"
                seconds = round(at - activity.since, 3)
                told = {"id": held.claim.id, "queue": held.claim.queue, "func": func, "for": seconds}
                progress = self.board.progress(seat.index, activity.slot, activity.serial)
                yield told if progress is None else {**told, "progress": progress}

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until stopped (or, in burst mode, until nothing is left)."""
        self.orphans.come_here = process.set_subreaper(True)
        try:
            with seldom_sought() if self.config.sole else contextlib.nullcontext():
                self.work()
        except BaseException:
            self.abandon()
            raise
        self.close()
        if self.start_error:
            raise ConfigError(self.start_error)

    def work(self) -> None:
        """Work until there is nothing left to do."""
        self.poller.register(self.wake_read, select.POLLIN)
        for seat in self.seats:
            self.listen_to(seat)
        self.start_server()
        self.courier.start()
        self.loop()
        self.courier.stop(5.0)
        while self.courier.is_alive():
            self.courier.join(TICK)
            self.beat()

    def loop(self) -> None:
        next_tick = 0.0
        while True:
            events = self.poller.poll(self.poll_timeout() * 1000)
            at = now()
            self.beat()
            with self.turn:
                for fd, event in events:
                    self.read(fd, event)
                if at >= next_tick:
                    next_tick = at + TICK
                    self.minder.tick(at)
                    self.mind_orphans()
                self.minder.mind_lost(at)
                self.orders.mind(at)
                asked = self.stop_asked or self.stop_gently or self.stop_now or self.stopped_by_task
                if asked or self.courier.empty:
                    self.mind_stop(at)
                if not self.stopping:
                    self.handing.hand_out(at)
                if self.start_error or (self.stopping and self.stopped()):
                    self.stopping = True
                    return
                if self.handing.jobs:
                    self.handing.hand_jobs()
                if self.lanes > 1:
                    self.handing.hand_suspects(at)
                self.keep_seats_taken(at)

    def beat(self) -> None:
        """Show the fork server that this process is awake: the monitor's thread does, and the courier's."""
        self.board.note_pulse(boards.MONITOR, now())

    def listen_to(self, seat: Seat, *, full: bool = False) -> None:
        """Read what comes from a seat's channel; if it is full, also wake up as soon as there is room again."""
        self.poller.register(seat.mine, select.POLLIN | channel.SHUT | (select.POLLOUT if full else 0))
        self.by_fd[seat.mine.fileno()] = seat

    def read(self, fd: int, event: int) -> None:
        """Read what has come on a descriptor."""
        if fd == self.wake_read:
            with contextlib.suppress(BlockingIOError):
                os.read(self.wake_read, 4096)
        elif fd == self.server.fd:
            self.read_server()
        elif fd in self.by_fd:
            seat = self.by_fd[fd]
            if fd == seat.pidfd:
                self.ending.orphan_ended(seat)
            else:
                if event & select.POLLOUT:
                    self.listen_to(seat)
                self.ending.read_reports(seat)
                if event & channel.SHUT:
                    self.ending.cut(seat)

    def poll_timeout(self) -> float:
        if self.stopping or self.handing.jobs or not self.server.ready or any(seat.busy for seat in self.seats):
            return TICK
        if any(not seat.pid and not seat.forking for seat in self.regular) or self.handing.alone:
            return TICK
        if self.orphans.minded or self.orphans.strays:
            return TICK
        return IDLE_TICK

    # -- stopping ----------------------------------------------------------------------------------------------

    def mind_stop(self, at: float) -> None:
        if not self.stopping:
            self.stopping = True
            self.courier.aim(0, 0)
            logger.info("worker %s stops: nothing more is taken", self.config.worker, extra={"action": "stopping"})
        if (self.stop_asked or self.stopped_by_task) and self.stop_by is None:
            self.stop_by = at + self.shutdown_timeout
            running = sum(len(self.board.activities(seat.index)) for seat in self.seats)
            if running:
                logger.info("%d running tasks have %.3g s to finish", running, self.shutdown_timeout)
        for seat in self.seats:
            if seat.tasks:
                self.handing.take_back(seat)
        for waiting in (self.courier.inbox, self.handing.alone):
            while waiting:
                held = waiting.popleft()
                self.courier.settle((held, Settlement(held.claim.ref, "back")))
        if self.stop_now:
            for seat in self.seats:
                if seat.pid and (seat.busy or self.board.busy(seat.index)):
                    self.ladder.kill(seat.index, boards.STOP_SHUTDOWN)
        elif self.stop_by is not None and at >= self.stop_by:
            for seat in self.seats:
                self.ladder.stop(seat.index, boards.STOP_SHUTDOWN, at)

    def stopped(self) -> bool:
        # A child that has told its outcome may still be in its handler, which may take its time.
        busy = any(seat.busy or (seat.pid and self.board.busy(seat.index)) for seat in self.seats)
        return not self.handing.jobs and not busy

    def abandon(self) -> None:
        """Leave after an error of our own as if killed: the fork server stands in."""
        self.courier.stop(0.0)
        self.server.leave()
        os.close(self.life_write)
        # An interpreter that ends takes away what a thread may be using in C: SQLite crashes then.
        self.courier.join(LAST_MOMENT)

    def close(self) -> None:
        """Send everybody home."""
        self.server.close()
        for seat in self.seats:
            if seat.orphan and seat.pid:
                self.signal(seat.index, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(seat.pid, 0)
        self.orphans.minded = not self.server.wait() or self.orphans.minded
        deadline = now() + FAREWELL
        while (self.orphans.minded or self.orphans.strays) and now() < deadline:
            self.orphans.mind((), ())
            time.sleep(TICK / 5)
        for seat in self.seats:
            seat.close()
        for fd in (
            self.life_read,
            self.life_write,
            self.wake_read,
            self.wake_write,
            self.board_file,
            self.spool_file,
        ):
            os.close(fd)
        self.board.close()
        if self.orphans.come_here:
            process.set_subreaper(False)

    # -- children and fork server ------------------------------------------------------------------------------

    def claim_in(self, seat: int, slot: int) -> Claim | None:
        """The claim of the task in a slot."""
        held = self.seats[seat].tasks.get(slot)
        return held.claim if held is not None else None

    def signal(self, seat_index: int, number: int) -> None:
        """Send a signal to the child of a seat."""
        seat = self.seats[seat_index]
        if not seat.pid:
            return
        if not seat.orphan and self.server.fd >= 0:
            self.server.send(Control(channel.SIGNAL, seat.index, seat.pid, number))
        elif seat.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(seat.pidfd, 0)  # still the same process, so its group is still its
                if number == signal.SIGKILL:
                    process.kill_group(seat.pid, number)
                else:
                    signal.pidfd_send_signal(seat.pidfd, number)

    def keep_seats_taken(self, at: float) -> None:
        if self.server.fd < 0:
            if self.server.may_start(at):
                self.start_server()
            return
        if not self.server.ready:
            return
        if not self.stopping or self.handing.jobs:
            for seat in self.regular:
                self.keep_taken(seat, at)
        if self.handing.alone:
            free = [seat for seat in self.spare if not seat.pid and (seat.forking or at >= seat.fork_at)]
            for seat in free[: len(self.handing.alone)]:
                self.keep_taken(seat, at)

    def keep_taken(self, seat: Seat, at: float) -> None:
        """Have a child forked for a seat, if there is none."""
        if not seat.pid and not seat.forking and at >= seat.fork_at:
            self.mind_stray(seat)
            seat.forking = self.server.send(Control(channel.FORK, seat.index))

    def mind_stray(self, seat: Seat) -> None:
        """Note who was in a seat that is free: its fork server died before it could tell of it, which it has seen."""
        pid = self.board.pid(seat.index)
        if pid:
            self.board.vacate(seat.index)
            self.orphans.strays.add(pid)

    def mind_orphans(self) -> None:
        """Kill the daemons that a dead fork server has left, and bury who became a child of this process."""
        known = {self.server.pid, *(seat.pid for seat in self.seats)}
        self.orphans.mind(known, [seat.pid for seat in self.seats if seat.orphan])

    def start_server(self) -> None:
        self.server.start(
            self.config._replace(
                board=self.board_file,
                spool=self.spool_file,
                life=self.life_read,
                life_write=self.life_write,
                seats=[seat.descriptors() for seat in self.seats],
            )
        )

    def read_server(self) -> None:
        for control in self.server.receive():
            if control is None:
                self.server_gone()
            elif control.kind == channel.FORKED:
                self.seats[control.seat].seated(control.pid)
            elif control.kind == channel.EXITED:
                self.ending.child_ended(self.seats[control.seat], control.value, control.cpu, control.rss)
            elif control.kind == channel.FAILED and control.seat < 0:
                self.start_error = control.text
            elif control.kind == channel.FAILED:
                logger.error("%s; trying again in %.3g s", control.text, FORK_BACKOFF[1])
                self.seats[control.seat].forking = False
                self.seats[control.seat].fork_at = now() + FORK_BACKOFF[1]

    def server_gone(self) -> None:
        """The fork server is dead: its children are served on, and a new one is started."""
        code = self.server.bury()
        self.orphans.minded = True
        logger.error(
            "the fork server of worker %s ended with %d; its children are served on, and a new one is started",
            self.config.worker,
            code,
            extra={"action": "fork_server_gone"},
        )
        for seat in self.seats:
            if seat.forking:
                seat.forking = False
                # It may have died between forking a child and saying so. That child notes its pid before it looks who
                # its parent is, and goes if that has changed: so by now whoever stays stands on the board.
                seat.pid = self.board.pid(seat.index)
            if not seat.pid or seat.orphan:
                continue
            self.handing.take_back(seat)
            if not seat.orphaned():
                self.ending.child_ended(seat, None, 0.0, 0)
                continue
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                channel.send_task(seat.mine, channel.LEAVE_NOW)
            if seat.pidfd >= 0:
                self.poller.register(seat.pidfd, select.POLLIN)
                self.by_fd[seat.pidfd] = seat
        self.mind_orphans()  # at once: one that has ended can't be told from other children any more
        if self.server.failed:
            self.start_error = f"the fork server does not start: {sys.executable} ended with {code} each time"
        if self.server.ready:  # at once: until there is another, nobody would stand in for the monitor
            self.start_server()
