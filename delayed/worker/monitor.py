"""The monitor: the process of a worker that holds the broker and hands out tasks. It runs no user code.

Its duties:

1. hand claimed tasks to children, ahead of need when they are short;
2. learn how they end, from the channel, or from the board when the child is dead, and pass on the settlement;
3. keep deadlines and limits;
4. take back what has not begun, when the running task takes long or the worker stops;
5. keep every seat taken, and a fork server alive.

The talking to the store is the courier's, in a thread of its own.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from delayed import context, tracing
from delayed.attempts import noted
from delayed.errors import ConfigError, DecodeError
from delayed.logger import logger
from delayed.message import EXCLUSIVE, Answer, Claim, Settlement
from delayed.sizes import size_text
from delayed.worker import board as boards
from delayed.worker import channel, fate, judge, process, verdict
from delayed.worker.board import Board
from delayed.worker.channel import Control, TaskFrame
from delayed.worker.config import Config
from delayed.worker.courier import TRUST, Courier, Held
from delayed.worker.keeping import Keeper
from delayed.worker.ladder import HANDLER_TIMEOUT, STACK_PATIENCE, Ladder
from delayed.worker.memory import Gauge
from delayed.worker.orders import Orders
from delayed.worker.process import now
from delayed.worker.seat import Seat
from delayed.worker.server import Server
from delayed.worker.silence import Silence
from delayed.worker.spool import Spool
from delayed.worker.verdict import Verdict
from delayed.worker.watch import Watch

TICK = 0.05  # seconds between looks at the deadlines while something runs
IDLE_TICK = 1.0  # ... and while nothing does
BATCH_TIME = 0.002  # seconds of work to hand over in one packet
AHEAD = 0.02  # seconds of work to hand to a child ahead of need
DEPTH_MAX = 192  # tasks to hand to a child ahead of need at most
QUICKEST = 1e-5  # seconds that a task takes at least, with what it costs to hand it over
STOCK_TIME = 0.05  # seconds that a store may take for what is held ahead of need
AWAY_MAX = 256  # tasks for each child that are held beside those, at most, for a store that is far away
LONG = 0.1  # seconds after which what waits behind a running task is taken back
COMMIT_PATIENCE = 1.0  # seconds that a task in a transaction goes on after its claim is gone: it may have committed
LEAVE_PATIENCE = 5.0  # seconds that a child with nothing to do may take to leave
LOOP_BLOCKED = 1.0  # seconds without a turn after which an event loop is reported
STILL_MAX = 5.0  # seconds for which a child may begin nothing of what it has
BLOCKED_PAUSE = 1.0  # seconds for which nothing is handed to a child that began nothing of what it had
SUSPECTS_MAX = 10_000  # tasks that are remembered because they may have ended their child
RUNNING_MAX = 100  # running tasks that a worker names when it says what it does
REPORTS_MAX = 1000  # reports of a child that are read in one go: more than a channel holds
FORK_BACKOFF = (0.1, 5.0)  # seconds: first and longest pause after a child that did nothing
_RETURNED = Verdict(verdict.RETURNED)
_RETURNS = (verdict.RETURNED, verdict.KEPT)


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
        # have lanes, it is for tasks that have to run alone.
        seats = processes + (1 if config.one_shot or config.lanes > 1 else 0)
        self.board_file = config.board if config.board >= 0 else process.anonymous_file("delayed-board")
        self.board = Board(self.board_file, seats, config.lanes)
        self.poller = select.poll()
        self.server = Server(self.poller, Silence(self.board, boards.FORK_SERVER, 2 * IDLE_TICK))
        self.spool_file = config.spool if config.spool >= 0 else process.anonymous_file("delayed-spool")
        self.spool = Spool(self.spool_file, self.board.slots)
        self.keeper = Keeper(self.board, self.spool)
        self.seats = [Seat(index, self.board.slots) for index in range(seats)]
        self.regular = self.seats if config.lanes == 1 else self.seats[:processes]
        self.life_read, self.life_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.wake_read, self.wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        stacks = [seat.stack for seat in self.seats]
        self.ladder = Ladder(self.board, stacks, config.kill_timeout, self.signal, shared=config.shared)
        self.watch = Watch(self.board, config, self.ladder, self.signal, self.claim_in)
        self.gauge = gauge
        self.outgrown = False
        self.turn = threading.Lock()  # held while seats are looked at or changed
        self.courier = make_courier(self.deliver, self.freed, self.info)
        self.courier.beat = self.beat
        self.courier.vouched = partial(self.board.note_pulse, boards.LEASES)
        self.jobs: deque[TaskFrame] = deque()  # error handlers for tasks whose child was killed
        self.orders = Orders(self)
        # (queue, id) of tasks that may have ended their child: with how many others each may share the next one.
        self.suspects: dict[tuple[str, int], int] = {}
        self.alone: deque[Held] = deque()  # suspects that are to be run apart from the others
        self.serial = 0
        self.average = AHEAD  # seconds that a task takes, moving average
        self.buffer = bytearray(channel.BUFFER_SIZE)
        self.by_fd: dict[int, Seat] = {}
        self.oom_kills = process.oom_kills()
        self.reaps_orphans = False
        self.stopping = False
        self.stop_by = float("inf")
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
                    self.hand_out(now())
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
        self.reaps_orphans = process.set_subreaper(True)
        try:
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
                    self.tick(at)
                self.mind_lost(at)
                self.orders.mind(at)
                asked = self.stop_asked or self.stop_gently or self.stop_now or self.stopped_by_task
                if asked or self.courier.empty:
                    self.mind_stop(at)
                if not self.stopping:
                    self.hand_out(at)
                if self.start_error or (self.stopping and self.stopped()):
                    self.stopping = True
                    return
                if self.jobs:
                    self.hand_jobs()
                if self.lanes > 1:
                    self.hand_suspects(at)
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
                self.orphan_ended(seat)
            else:
                if event & select.POLLOUT:
                    self.listen_to(seat)
                self.read_reports(seat)
                if event & channel.SHUT:
                    self.cut(seat)

    def poll_timeout(self) -> float:
        if self.stopping or self.jobs or not self.server.ready or any(seat.busy for seat in self.seats):
            return TICK
        if any(not seat.pid and not seat.forking for seat in self.regular) or self.alone:
            return TICK
        return IDLE_TICK

    # -- handing out -------------------------------------------------------------------------------------------

    def hand_out(self, at: float) -> None:
        """Hand claimed tasks to children."""
        lanes = self.lanes
        depth = int(lanes * AHEAD / self.average) if self.average > 0 else DEPTH_MAX
        depth = max(lanes, min(lanes - 1 + DEPTH_MAX, depth))
        room = self.capacity if lanes == 1 else self.room()
        ahead = room
        if depth > lanes:
            # ... and as much as they do while the store is asked for more, which may be far away.
            away = min(int(self.courier.trip * lanes / max(self.average, QUICKEST)), AWAY_MAX)
            ahead = self.processes * (depth + away) * 2
            if self.courier.pace > 0:  # what the store can't take back soon is too much for whoever has to stand in
                ahead = max(room, min(ahead, int(STOCK_TIME / self.courier.pace)))
        self.courier.aim(ahead, max(room, ahead // 2))
        inbox = self.courier.inbox
        while inbox:
            seat = self.choose_seat(depth)
            if seat is None:
                return
            batch = self.next_batch(at, self.batch_size(seat, depth))
            if not (batch and self.hand(seat, batch)):
                return

    def batch_size(self, seat: Seat, depth: int) -> int:
        """How many tasks to hand to a child in one packet, if they are as quick as those before them."""
        if self.lanes > 1 or self.config.one_shot or self.average * 2 > BATCH_TIME:
            return 1
        fair = len(self.courier.inbox) // self.processes
        quick = int(BATCH_TIME / max(self.average, BATCH_TIME / channel.BATCH_MAX))
        return max(1, min(fair, quick, depth - len(seat.tasks), len(seat.slots)))

    def next_batch(self, at: float, most: int) -> list[Held]:
        """The next tasks that are to be handed to one child, `most` at most."""
        inbox = self.courier.inbox
        trust = at - self.config.lease * TRUST
        batch: list[Held] = []
        size = 0
        while inbox and len(batch) < most:
            held = inbox[0]
            if held.lost:
                inbox.popleft()
                self.courier.forget(held)
                continue
            if held.begin_by < at:
                self.expire(inbox.popleft())
                continue
            if self.suspects and (held.claim.queue, held.claim.id) in self.suspects:
                self.alone.append(inbox.popleft())
                continue
            if held.confirmed < trust:
                self.courier.renew_now()
                break
            size += len(held.claim.header) + len(held.claim.payload) + len(held.gift)
            if batch and size > channel.PACKET_MAX:
                break
            batch.append(inbox.popleft())
        return batch

    def choose_seat(self, depth: int) -> Seat | None:
        """Where the next task goes: to the child with the least to do."""
        if self.config.one_shot:
            running = sum(seat.busy or self.board.busy(seat.index) for seat in self.seats)  # a task, or its handler
            if running >= self.processes:
                return None
            idle = [seat for seat in self.seats if not (seat.busy or seat.orphan or seat.retiring)]
            idle = [seat for seat in idle if seat.forking or (seat.pid and not self.spent(seat))]
            return min(idle, key=lambda seat: not seat.pid, default=None)
        best = None
        least = depth
        for seat in self.regular:
            if len(seat.tasks) < least and seat.open(self.lanes):
                best, least = seat, len(seat.tasks)
        return best

    def spent(self, seat: Seat) -> bool:
        """Whether its child reads nothing more: a one-shot child, once it has begun something."""
        return self.config.one_shot and self.board.began(seat.index)

    def hand(self, seat: Seat, batch: Sequence[Held]) -> bool:
        """Hand tasks to a child, in one packet; False if its channel is full: then they are the next ones again."""
        index, board, tasks = seat.index, self.board, seat.tasks
        parts: list[bytes] = []
        for held in batch:
            _, id, delivery, nonce, attempt, header, payload = held.claim
            queue, gift = held.queue, held.gift
            self.serial = serial = self.serial + 1
            slot = seat.slots.pop()  # the one that was freed last: it may still be in the cache of the CPU
            held.seat, held.slot, held.serial = index, slot, serial
            board.hand(index, slot, queue, serial, id, delivery, attempt)
            if EXCLUSIVE in header and held.claim.is_exclusive:
                board.note_exclusive(index, slot, serial)
            tasks[slot] = held
            parts += channel.pack_task(
                channel.RUN, slot, queue, serial, id, delivery, attempt, nonce, header, payload, gift
            )
        try:
            channel.send_tasks(seat.mine, parts)
        except (BlockingIOError, BrokenPipeError) as error:
            for held in batch:
                self.withdraw(seat, held)
            self.courier.inbox.extendleft(reversed(batch))
            if isinstance(error, BrokenPipeError):
                self.cut(seat)
            else:
                self.listen_to(seat, full=True)
            return False
        seat.handed_at = now()
        return True

    def hand_suspects(self, at: float) -> None:
        """Hand suspects to the child in the spare seat, no more at once than may be; send it away after the last."""
        seat = self.seats[-1]
        if not seat.pid or seat.orphan:
            return
        while self.alone:
            held = self.alone[0]
            if held.lost:
                self.courier.forget(self.alone.popleft())
                continue
            together = min(self.together(each) for each in (held, *seat.tasks.values()))
            if len(seat.tasks) >= together or not seat.slots:
                return
            if held.begin_by < at:
                self.expire(self.alone.popleft())
                continue
            if held.confirmed < at - self.config.lease * TRUST:
                self.courier.renew_now()
                return
            self.alone.popleft()
            if not self.hand(seat, [held]):
                return
        if not seat.busy and not seat.retiring:
            seat.retiring = True
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                channel.send_task(seat.mine, channel.LEAVE_NOW)

    def expire(self, held: Held) -> None:
        """End a task that may not begin any more, or can't."""
        found = Verdict(verdict.BLOCKED, text=held.blocked) if held.blocked else Verdict(verdict.EXPIRED)
        self.judge(held, found, context.NO_TRANSACTION, handler=True)

    def together(self, held: Held) -> int:
        """How many suspects may be in one child with this one, itself included."""
        return self.suspects.get((held.claim.queue, held.claim.id), 1)

    def hand_jobs(self) -> None:
        """Hand error handlers of killed tasks to idle children."""
        for seat in self.regular:
            if seat.handling is not None or len(seat.tasks) >= self.lanes or not seat.open(self.lanes):
                continue
            if self.jobs and not self.spent(seat):
                seat.handling = self.jobs.popleft()
                try:
                    channel.send_task(seat.mine, seat.handling)
                except (BlockingIOError, BrokenPipeError) as error:
                    self.jobs.appendleft(seat.handling)
                    seat.handling = None
                    if isinstance(error, BrokenPipeError):
                        self.cut(seat)

    def withdraw(self, seat: Seat, held: Held) -> None:
        """This task is not in the seat any more, and has not begun."""
        del seat.tasks[held.slot]
        self.board.free(seat.index, held.slot)
        seat.slots.append(held.slot)
        held.seat = held.slot = -1

    def take_back(self, seat: Seat) -> None:
        """Take what has not begun out of a seat, to the front of what is to be handed out; what its child has read
        already is recalled, and follows soon.
        """
        back = []
        for frame in channel.drain(seat.theirs, self.buffer):
            if frame.kind == channel.RUN:
                held = seat.tasks[frame.slot]
                self.withdraw(seat, held)
                back.append(held)
            elif frame.kind == channel.RUN_ERROR_HANDLER:
                seat.handling = None
                self.jobs.appendleft(frame)
        self.courier.inbox.extendleft(reversed(back))
        last = max((held.serial for held in self.waiting(seat)), default=0)
        if last > seat.recalled:
            self.board.recall(seat.index, last)
            seat.recalled, seat.recalled_at = last, now()

    def waiting(self, seat: Seat) -> list[Held]:
        """What was handed to a seat, and has not begun."""
        return [held for slot, held in seat.tasks.items() if self.board.state(seat.index, slot) == boards.HANDED]

    def collect_recalled(self, seat: Seat, at: float) -> None:
        """Take back what was recalled, and has not begun."""
        if at < seat.recalled_at + boards.RECALL_DELAY:
            return
        begin = self.board.in_lanes(seat.index)
        back = [held for held in self.waiting(seat) if held.serial <= seat.recalled and held.serial not in begin]
        for held in back:
            self.withdraw(seat, held)
        self.courier.inbox.extendleft(reversed(back))

    # -- ends --------------------------------------------------------------------------------------------------

    def read_reports(self, seat: Seat) -> None:
        for _ in range(REPORTS_MAX):
            try:
                report = channel.receive_report(seat.mine, self.buffer)
            except channel.BadFrame as error:
                self.garbled(seat, error)
                continue
            if report is None:
                return
            kind, code, slot, serial, detail = report
            seat.still = 0.0
            if kind == channel.HANDLED:
                if seat.handling is not None and seat.handling.serial == serial:
                    seat.handling = None
                continue
            if kind == channel.RETIRING:
                seat.retiring = True
                self.take_back(seat)
                continue
            if kind == channel.STOP:
                self.stopped_by_task = True
                continue
            if kind == channel.RETURNED and detail:
                try:
                    self.collect_some(seat, set(channel.unpack_slots(detail)))
                except channel.BadFrame as error:
                    self.garbled(seat, error)
                continue
            if self.lanes == 1:
                self.collect(seat)
            held = seat.tasks.get(slot)
            if kind == channel.OUTCOME and held is not None and held.serial == serial:
                if self.board.state(seat.index, slot) == boards.ENDED:
                    self.ended(seat, held, code, detail)
                else:
                    self.garbled(seat, f"task {held.claim.id} has not ended")

    def garbled(self, seat: Seat, why: object) -> None:
        """The child has sent what it should not, which only code of a task's does. The board goes on telling the
        truth, so that the child need not go; it is said once.
        """
        if not seat.garbled:
            seat.garbled = True
            logger.error(
                "child %d sends what is no report (%s): does a task write to a descriptor that is not its own?",
                seat.pid,
                why,
                extra={"action": "garbled"},
            )

    def cut(self, seat: Seat) -> None:
        """The channel of a seat was shut down, which only code of a task's does: its child can't be talked to, and ends
        when it finds that out. What it did stands on the board.
        """
        if self.by_fd.pop(seat.mine.fileno(), None) is None:
            return
        self.poller.unregister(seat.mine)
        seat.retiring = True
        self.take_back(seat)
        logger.error(
            "the channel of child %d was shut down; does a task close sockets that are not its own? The child leaves",
            seat.pid,
            extra={"action": "cut"},
        )

    def collect(self, seat: Seat) -> None:
        """Find on the board the tasks that have returned."""
        self.collect_some(seat, seat.tasks, in_order=self.lanes == 1)

    def collect_some(self, seat: Seat, slots: Iterable[int], *, in_order: bool = False) -> None:
        """Of the tasks in these slots, settle those that have returned."""
        ends = []
        index, average, debug = seat.index, self.average, logger.isEnabledFor(10)
        tasks, ended = seat.tasks, self.board.ended
        for slot in slots:
            held = tasks.get(slot)
            if held is None:
                continue
            code, wall = ended(index, slot)
            if code not in _RETURNS:  # or in another way: its report is on its way
                if in_order:
                    break  # a child with one lane takes them in the order of their handing over
                continue
            average += (wall - average) * 0.2
            ends.append((held, Settlement(held.claim.ref, "done") if code == verdict.RETURNED else self.kept(held)))
            if self.suspects:
                self.suspects.pop((held.claim.queue, held.claim.id), None)
            if debug:
                judge.log_returned(held.claim, wall)
        if ends:
            for held, _ in ends:
                del seat.tasks[held.slot]
            self.average = average
            seat.failures = 0
            self.courier.settle(*ends)

    def ended(self, seat: Seat, held: Held, code: int, detail: bytes) -> None:
        """A child has said, or the board shows, how a task ended."""
        del seat.tasks[held.slot]
        seat.failures = 0
        slot = self.board.slot(seat.index, held.slot)
        wall = slot.ended - slot.begun
        self.average += (wall - self.average) * 0.2
        if code in (verdict.RETURNED, verdict.COMMITTED, verdict.KEPT):
            if slot.transaction == context.COMMITTED:
                self.put(held, self.keeper.answer(held.claim, _RETURNED, seat.index, held.slot))
                self.courier.forget(held)
            elif slot.code == verdict.KEPT:
                self.courier.settle((held, self.kept(held)))
            else:
                self.courier.settle((held, Settlement(held.claim.ref, "done")))
            if logger.isEnabledFor(10):
                judge.log_returned(held.claim, wall)
            return
        found = judge.verdict_told(slot, detail)
        _, _, stack = self.ladder.outcome(seat.index, slot.lane, held.serial)
        found = found._replace(wall=wall, cpu=slot.cpu, timeout=slot.timeout or None, stack=found.stack or stack)
        found = self.watch.explain(seat.index, found, held.serial, held.claim)
        self.judge(held, found, slot.transaction, told=True)

    def kept(self, held: Held) -> Settlement:
        """The settlement of a task that returned, with its answer."""
        held.answer = self.board.answer(held.seat, held.slot, held.serial)
        self.courier.keeps = True
        done = Settlement(held.claim.ref, "done")
        return self.keeper.settled(held.claim, done, _RETURNED, held.seat, held.slot)

    def put(self, held: Held, answer: Answer | None) -> None:
        """Store the answer, if there is one, of a task that has ended its claim itself."""
        if answer is not None:
            held.answer = self.board.answer(held.seat, held.slot, held.serial)
            self.courier.put(held, answer)

    def judge(self, held: Held, found: Verdict, transaction: int, *, told: bool = False, handler: bool = False) -> None:
        """Settle a task that did not return; `told`: its child has noted how it ended; `handler`: its error handler is
        still to be called.
        """
        if held.lost and transaction != context.COMMITTED:
            self.courier.forget(held)
            return
        if held.cancel and transaction != context.COMMITTED:
            found = self.orders.ended(held, found)
        settlement = fate.settle(held.claim, found, transaction, keep=self.config.keeps[held.queue])
        wanted = self.config.hooks or (
            (self.config.error_handler or self.config.log_arguments) and found.code not in verdict.NO_FAILURES
        )
        if handler and wanted and found.code not in (verdict.STOPPED, verdict.LOST):
            claim = held.claim
            if settlement is not None and settlement.action == "retry":
                found = found._replace(delay=settlement.delay)  # which hooks are told
            self.jobs.append(
                TaskFrame(
                    channel.RUN_ERROR_HANDLER,
                    0,
                    held.queue,
                    held.serial,
                    claim.id,
                    claim.delivery,
                    claim.attempt,
                    claim.nonce,
                    claim.header,
                    claim.payload,
                    found.dump(),
                )
            )
        place = (held.seat, held.slot) if told else (-1, -1)
        if settlement is None:
            if transaction == context.COMMITTED:
                self.put(held, self.keeper.answer(held.claim, found, *place))
            self.courier.forget(held)
        else:
            settlement = noted(held.claim, settlement, found, self.config.worker)
            settlement = self.keeper.settled(held.claim, settlement, found, *place)
            if settlement.answer is not None:
                if held.seat >= 0:  # else it expired before it was handed to anybody
                    held.answer = self.board.answer(held.seat, held.slot, held.serial)
                self.courier.keeps = True
            held.in_doubt = transaction == context.OPEN  # its commit may have been under way
            self.courier.settle((held, settlement))
        judge.log_verdict(held.claim, found, settlement)

    def child_ended(self, seat: Seat, status: int | None, cpu: float, rss: int) -> None:
        """The child of a seat is gone: find out from the board what it had in hand."""
        self.read_reports(seat)
        self.collect(seat)
        in_handler = seat.handling is not None and any(
            activity.phase == boards.HANDLER and activity.serial == seat.handling.serial
            for _, activity in self.board.activities(seat.index)
        )
        at = now()
        begun = []
        for slot, held in list(seat.tasks.items()):
            state = self.board.state(seat.index, slot)
            if state == boards.ENDED:
                self.ended(seat, held, self.board.slot(seat.index, slot).code, b"")
            elif state == boards.BEGUN:
                begun.append(held)
        if begun:
            self.died(seat, begun, status, at, cpu, rss)
        if seat.handling is not None and in_handler:
            logger.error("the error handler of task %d ended its process; it is not called again", seat.handling.id)
            seat.handling = None
        self.take_back(seat)
        if seat.handling is not None:  # read, but not begun
            self.jobs.appendleft(seat.handling)
            seat.handling = None
        for held in reversed(list(seat.tasks.values())):  # read by the child, which died before it began them
            self.withdraw(seat, held)
            self.courier.inbox.appendleft(held)
        if status != 0 and not self.board.began(seat.index):
            seat.failures += 1
            seat.fork_at = at + min(FORK_BACKOFF[0] * 2**seat.failures, FORK_BACKOFF[1])
        if status != 0:
            self.ladder.clear_stack(seat.index)
        self.ladder.forget(seat.index)
        self.watch.forget(seat.index)
        if seat.pidfd >= 0 and seat.orphan:
            self.poller.unregister(seat.pidfd)
            del self.by_fd[seat.pidfd]
        seat.vacated()
        self.board.vacate(seat.index)
        if seat.mine.fileno() not in self.by_fd:  # its channel was cut, and only a new fork server can inherit another
            seat.renew_channel()
            self.listen_to(seat)
            self.server.kill()

    def died(self, seat: Seat, begun: list[Held], status: int | None, at: float, cpu: float, rss: int) -> None:
        """A child died in the middle of these tasks."""
        oom = process.oom_kills()
        out_of_memory, self.oom_kills = oom > self.oom_kills, oom
        slots = [self.board.slot(seat.index, held.slot) for held in begun]
        guilty = judge.guilty(seat.index, slots, status, self.ladder)
        by_us = self.ladder.has_killed(seat.index)
        if not guilty and not by_us:
            stack = self.ladder.read_stack(seat.index)
            found = judge.verdict_of_death(status, False, out_of_memory, stack, 0.0, cpu, rss)
            found = self.watch.explain(seat.index, found)
            logger.error(
                "a child %s while it ran %d tasks; they go back to the queue, and this worker runs them apart: %s\n%s",
                found._what(),
                len(begun),
                ", ".join(str(held.claim.id) for held in begun[:20]) + (" …" if len(begun) > 20 else ""),
                found.stack,
                extra={"action": "child_died"},
            )
        for held, slot in zip(begun, slots, strict=True):
            del seat.tasks[held.slot]
            if slot.serial not in guilty:
                if not by_us:
                    self.suspect(held, len(begun) // 4)
                self.judge(held, Verdict(verdict.STOPPED, text="its process ended for another task"), slot.transaction)
                continue
            reason, killed, stack = self.ladder.outcome(seat.index, slot.lane, held.serial)
            # What faulthandler wrote when the child crashed by itself, if it did.
            crash = stack or self.ladder.read_stack(seat.index)
            found = judge.verdict_of_death(status, killed, out_of_memory, crash, at - slot.begun, cpu, rss)
            if reason == boards.STOP_TIMEOUT:
                found = found._replace(code=verdict.TIMED_OUT, timeout=slot.timeout)
            elif reason != boards.STOP_NOTHING:
                found = found._replace(code=verdict.STOPPED)
            elif by_us:
                found = found._replace(by_us=True, limit="it held up the event loop when the time of others was up")
            found = judge.checked(slot, self.watch.explain(seat.index, found, held.serial, held.claim))
            self.judge(held, found, slot.transaction, handler=True)

    def suspect(self, held: Held, together: int) -> None:
        """This task may have ended its child: it is to run apart next time, with no more than so many suspects."""
        self.suspects[held.claim.queue, held.claim.id] = max(together, 1)
        if len(self.suspects) > SUSPECTS_MAX:
            del self.suspects[next(iter(self.suspects))]

    def orphan_ended(self, seat: Seat) -> None:
        """A child whose fork server is dead has ended; being the subreaper, the monitor may know how."""
        status = None
        if self.reaps_orphans:
            with contextlib.suppress(ChildProcessError):
                _, status = os.waitpid(seat.pid, os.WNOHANG)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(seat.pid, signal.SIGKILL)
        self.child_ended(seat, status, 0.0, 0)

    # -- deadlines ---------------------------------------------------------------------------------------------

    def tick(self, at: float) -> None:
        stuck = 0  # children that take nothing more for now
        for seat in self.seats:
            if at > seat.handed_at + BLOCKED_PAUSE:
                seat.blocked = False
            self.mind_loop(seat, at)
            if not seat.busy and not self.board.busy(seat.index):
                self.mind_leaving(seat, at)
                continue
            seat.idle_since = 0.0
            reports = self.board.reports(seat.index)
            if reports != seat.reports:
                seat.reports = reports
                self.courier.announce_soon()
            self.ladder.tick(seat.index, at)
            self.watch.tick(seat.index, seat.pid, at)
            self.collect(seat)
            if seat.recalled:
                self.collect_recalled(seat, at)
            activities = self.board.activities(seat.index)
            self.mind_stillness(seat, bool(activities))
            began = max((activity.since for _, activity in activities), default=at if self.lanes == 1 else 0.0)
            since = began if self.lanes == 1 else max(began, seat.handed_at)  # when it moved last
            waiting = len(seat.tasks) > (1 if self.lanes == 1 else len(activities))
            if at - since > LONG and waiting:
                # With lanes to spare it would have begun: the interpreter, or the event loop, is in somebody's hands.
                seat.blocked = len(activities) < self.lanes
                self.average = max(self.average, LONG)
                self.take_back(seat)
            if at - since > 2 * LONG and (len(activities) >= self.lanes or seat.blocked or seat.retiring):
                stuck += seat in self.regular
        inbox = self.courier.inbox
        if inbox and stuck >= self.processes and not self.stopping:
            # Every child that could take these is at a long task: another worker may be idle.
            self.average = max(self.average, LONG)
            surplus = self.courier.held - self.room()
            while inbox and surplus > 0:
                held = inbox.pop()
                self.courier.settle((held, Settlement(held.claim.ref, "back")))
                surplus -= 1
        self.server.mind(at, counts=any(seat.pid or seat.forking for seat in self.seats))
        if at > self.courier.renewed + self.config.lease * TRUST and self.courier.held:
            self.end_exclusives(at)
        if self.gauge is not None and not self.stopping:
            self.mind_size(self.gauge, at)

    def end_exclusives(self, at: float) -> None:
        """Kill what may not run in two places at once, and for whose claims the store has not vouched for so long that
        they may soon be another's.
        """
        for seat in self.seats:
            doubtful = [
                seat.tasks[slot]
                for slot in self.board.exclusives(seat.index)
                if slot in seat.tasks and at > seat.tasks[slot].confirmed + self.config.lease * TRUST
            ]
            if doubtful and not self.ladder.has_killed(seat.index):
                self.take_back(seat)
                self.ladder.kill(seat.index, boards.STOP_LOST)
                judge.log_doubt([held.claim.id for held in doubtful], self.config.lease * TRUST)

    def mind_leaving(self, seat: Seat, at: float) -> None:
        """Kill a child that was to leave, has nothing more to do, and does not go: its seat is needed."""
        if not seat.pid or not (seat.retiring or seat.orphan or self.spent(seat)):
            return
        patience = (HANDLER_TIMEOUT if self.config.hooks else LEAVE_PATIENCE) + self.config.kill_timeout
        if not seat.idle_since:
            seat.idle_since = at
        elif at > seat.idle_since + patience:
            seat.idle_since = at
            logger.warning("child %d was to leave %.3g s ago, and is killed", seat.pid, patience)
            self.signal(seat.index, signal.SIGKILL)

    def mind_stillness(self, seat: Seat, runs: bool) -> None:
        """Kill a child that begins nothing of what it was handed: it is frozen, or in the hands of what a task left."""
        if runs or not seat.pid:
            seat.still = 0.0
        elif seat.tasks and (self.board.began(seat.index) or not self.config.hooks):  # which may take long to load
            seat.still += TICK  # not what has passed: who was frozen too has seen nothing
            if seat.still > STILL_MAX:
                seat.still = 0.0
                logger.error(
                    "child %d has begun nothing for %.3g s of what it was handed, and is killed", seat.pid, STILL_MAX
                )
                self.signal(seat.index, signal.SIGKILL)

    def room(self) -> int:
        """How many tasks can run at once, as things are."""
        closed = [seat for seat in self.regular if seat.retiring or seat.blocked]
        inside = sum(len(self.board.activities(seat.index)) for seat in closed)
        return self.capacity - len(closed) * self.lanes + inside

    def mind_loop(self, seat: Seat, at: float) -> None:
        """Report an event loop that does not turn, once, with what blocks it."""
        beat = self.board.beat(seat.index)
        if not beat or at - beat < LOOP_BLOCKED or seat.reported == beat:
            return
        if seat.asked != beat:
            seat.asked = beat
            self.ladder.look(seat.index, at)
            return
        self.ladder.urge(seat.index, at)
        stack = self.ladder.loop_stack(seat.index)
        if stack or at > self.ladder.dumped[seat.index] + 2 * STACK_PATIENCE:
            seat.reported = beat
            logger.warning(
                "the event loop of child %d has not turned for %.3g s, and holds up all of its tasks; it is here:\n%s",
                seat.pid,
                at - beat,
                stack,
                extra={"action": "loop_blocked"},
            )

    def mind_size(self, gauge: Gauge, at: float) -> None:
        """Leave if the worker has grown too large: whoever started it gets another one."""
        used = gauge.over(os.getpid(), at)
        if used:
            self.outgrown = True
            logger.warning(
                "worker %s uses %s of memory, limit %s: it finishes what runs, and leaves",
                self.config.worker,
                size_text(used),
                size_text(gauge.limit),
                extra={"action": "outgrown"},
            )
            self.ask_stop(gently=True)

    def claim_in(self, seat: int, slot: int) -> Claim | None:
        """The claim of the task in a slot."""
        held = self.seats[seat].tasks.get(slot)
        return held.claim if held is not None else None

    def mind_lost(self, at: float) -> None:
        """Stop the tasks whose claims were lost: another worker may run them by now."""
        lost = self.courier.lost
        for _ in range(len(lost)):
            held = lost.popleft()
            seat = self.seats[held.seat] if held.seat >= 0 else None
            runs = seat is not None and seat.tasks.get(held.slot) is held
            if runs and self.ends_itself(held, at):
                if self.board.transaction(held.seat, held.slot) == context.OPEN:
                    lost.append(held)  # looked at again
                continue
            logger.warning(
                "task %d: its claim was lost (the lease ended, or it was removed); it is stopped here",
                held.claim.id,
                extra={"action": "lost", "task_id": held.claim.id, **tracing.extra_of(held.claim)},
            )
            if runs:
                assert seat is not None
                if self.board.state(seat.index, held.slot) == boards.BEGUN:
                    self.ladder.stop(seat.index, boards.STOP_LOST, at, held.serial)
                else:
                    self.take_back(seat)

    def ends_itself(self, held: Held, at: float) -> bool:
        """Whether a claim that is gone was ended by the task's own transaction, or may be just now."""
        state = self.board.transaction(held.seat, held.slot)
        return state == context.COMMITTED or (state == context.OPEN and at < held.lost_at + COMMIT_PATIENCE)

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

    # -- stopping ----------------------------------------------------------------------------------------------

    def mind_stop(self, at: float) -> None:
        if not self.stopping:
            self.stopping = True
            self.courier.aim(0, 0)
            logger.info("worker %s stops: nothing more is taken", self.config.worker, extra={"action": "stopping"})
        if (self.stop_asked or self.stopped_by_task) and self.stop_by == float("inf"):
            self.stop_by = at + self.shutdown_timeout
            running = sum(len(self.board.activities(seat.index)) for seat in self.seats)
            if running:
                logger.info("%d running tasks have %.3g s to finish", running, self.shutdown_timeout)
        for seat in self.seats:
            if seat.tasks:
                self.take_back(seat)
        for waiting in (self.courier.inbox, self.alone):
            while waiting:
                held = waiting.popleft()
                self.courier.settle((held, Settlement(held.claim.ref, "back")))
        if self.stop_now:
            for seat in self.seats:
                if seat.pid and (seat.busy or self.board.busy(seat.index)):
                    self.ladder.kill(seat.index, boards.STOP_SHUTDOWN)
        elif at >= self.stop_by:
            for seat in self.seats:
                self.ladder.stop(seat.index, boards.STOP_SHUTDOWN, at)

    def stopped(self) -> bool:
        # A child that has told its outcome may still be in its handler, which may take its time.
        return not self.jobs and not any(seat.busy or (seat.pid and self.board.busy(seat.index)) for seat in self.seats)

    def abandon(self) -> None:
        """Leave after an error of our own as if killed: the fork server stands in."""
        self.courier.stop(0.0)
        self.server.leave()
        os.close(self.life_write)

    def close(self) -> None:
        """Send everybody home."""
        self.server.close()
        for seat in self.seats:
            if seat.orphan and seat.pid:
                self.signal(seat.index, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(seat.pid, 0)
        self.server.wait()
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
        if self.reaps_orphans:
            process.set_subreaper(False)

    # -- children and fork server ------------------------------------------------------------------------------

    def keep_seats_taken(self, at: float) -> None:
        if self.server.fd < 0:
            if self.server.may_start(at):
                self.start_server()
            return
        if not self.server.ready:
            return
        for seat in self.seats:
            wanted = not self.stopping or bool(self.jobs)
            if seat.index >= len(self.regular):
                wanted = bool(self.alone)
            if not seat.pid and not seat.forking and wanted and at >= seat.fork_at:
                seat.forking = self.server.send(Control(channel.FORK, seat.index))

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
                self.child_ended(self.seats[control.seat], control.value, control.cpu, control.rss)
            elif control.kind == channel.FAILED and control.seat < 0:
                self.start_error = control.text
            elif control.kind == channel.FAILED:
                logger.error("%s; trying again in %.3g s", control.text, FORK_BACKOFF[1])
                self.seats[control.seat].forking = False
                self.seats[control.seat].fork_at = now() + FORK_BACKOFF[1]

    def server_gone(self) -> None:
        """The fork server is dead: its children are served on, and a new one is started."""
        code = self.server.bury()
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
            self.take_back(seat)
            if not seat.orphaned():
                self.child_ended(seat, None, 0.0, 0)
                continue
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                channel.send_task(seat.mine, channel.LEAVE_NOW)
            if seat.pidfd >= 0:
                self.poller.register(seat.pidfd, select.POLLIN)
                self.by_fd[seat.pidfd] = seat
        if self.server.failed:
            self.start_error = f"the fork server does not start: {sys.executable} ended with {code} each time"
        if self.server.ready:  # at once: until there is another, nobody would stand in for the monitor
            self.start_server()
