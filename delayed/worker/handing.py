"""Which claimed task goes to which child, and back if it has not begun there."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

from delayed import context
from delayed.message import EXCLUSIVE
from delayed.worker import board as boards
from delayed.worker import channel, verdict
from delayed.worker.channel import TaskFrame
from delayed.worker.courier import PACED, TRUST, Held
from delayed.worker.process import now
from delayed.worker.seat import Seat
from delayed.worker.verdict import Verdict

if TYPE_CHECKING:
    from delayed.worker.monitor import Monitor

BATCH_TIME = 0.002  # seconds of work to hand over in one packet
AHEAD = 0.02  # seconds of work to hand to a child ahead of need
DEPTH_MAX = 192  # tasks to hand to a child ahead of need at most
QUICKEST = 1e-5  # seconds that a task takes at least, with what it costs to hand it over
STOCK_TIME = 0.05  # seconds that a store may take for what is held ahead of need, ...
STOCK_MIN = 2 * PACED  # ... and tasks of which that is more anyway: from fewer its pace could not be told any more
AWAY_MAX = 256  # tasks for each child that are held beside those, at most, for a store that is far away
SUSPECTS_MAX = 10_000  # tasks that are remembered because they may have ended their child


class Handing:
    """The handing over of one worker's tasks.

    Attributes:
        average: seconds that a task takes, moving average.
        jobs: error handlers for tasks whose child was killed.
        suspects: (queue, id) of tasks that may have ended their child: with how many others each may share the next.
        alone: those of them that are to be run apart from the others.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.config = monitor.config
        self.processes = monitor.processes
        self.lanes = monitor.lanes
        self.capacity = monitor.capacity
        self.board = monitor.board
        self.seats = monitor.seats
        self.regular = monitor.regular
        self.courier = monitor.courier
        self.average = AHEAD
        self.jobs: deque[TaskFrame] = deque()
        self.suspects: dict[tuple[str, int], int] = {}
        self.alone: deque[Held] = deque()
        self.serial = 0  # of the last handing over

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
                ahead = max(room, min(ahead, max(int(STOCK_TIME / self.courier.pace), STOCK_MIN)))
        self.courier.aim(ahead, max(room, ahead // 2))
        inbox = self.courier.inbox
        while inbox:
            seat = self.choose_seat(depth)
            if seat is None:
                return
            batch = self.next_batch(at, self.batch_size(seat, depth))
            if not (batch and self.hand(seat, batch)):
                return

    def room(self) -> int:
        """How many tasks can run at once, as things are."""
        closed = [seat for seat in self.regular if seat.retiring or seat.blocked]
        inside = sum(len(self.board.activities(seat.index)) for seat in closed)
        return self.capacity - len(closed) * self.lanes + inside

    def batch_size(self, seat: Seat, depth: int) -> int:
        """How many tasks to hand to a child in one packet: as many as can begin at once there, or more if they are as
        quick as those before them. Where each lane reads its own, who finds no packet sleeps on, whatever another has
        found: there each has to get its share.
        """
        if self.config.one_shot:
            return 1
        quick = int(BATCH_TIME / max(self.average, BATCH_TIME / channel.BATCH_MAX))
        if self.config.one_reader:
            fair = len(self.courier.inbox) // self.processes
            quick = max(quick, min(self.lanes - len(seat.tasks), channel.BATCH_MAX))
        else:
            fair = len(self.courier.inbox) // self.capacity
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
        best: Seat | None = None
        if self.config.one_shot:
            running = 0
            for seat in self.seats:
                if seat.busy or self.board.busy(seat.index):  # with a task, or its handler
                    running += 1
                if seat.busy or seat.orphan or seat.retiring or (best is not None and best.pid):
                    continue
                if not self.spent(seat) if seat.pid else seat.forking and best is None:
                    best = seat
            return best if running < self.processes else None
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
        last: bytes | None = None
        may_be_exclusive = False
        for held in batch:
            _, id, delivery, nonce, attempt, header, payload = held.claim
            queue, gift = held.queue, held.gift
            self.serial = serial = self.serial + 1
            slot = seat.slots.pop()  # the one that was freed last: it may still be in the cache of the CPU
            held.seat, held.slot, held.serial = index, slot, serial
            board.hand(index, slot, queue, serial, id, delivery, attempt)
            if header is not last:
                may_be_exclusive = EXCLUSIVE in header
            if may_be_exclusive and held.claim.is_exclusive:
                board.note_exclusive(index, slot, serial)
            tasks[slot] = held
            parts += channel.pack_task(
                channel.RUN, slot, queue, serial, id, delivery, attempt, nonce, header, payload, gift, last
            )
            last = header
        try:
            channel.send_tasks(seat.mine, parts)
        except (BlockingIOError, BrokenPipeError) as error:
            for held in batch:
                self.withdraw(seat, held)
            self.put_back(batch)
            if isinstance(error, BrokenPipeError):
                self.monitor.ending.cut(seat)
            else:
                self.monitor.listen_to(seat, full=True)
            return False
        seat.handed_at = now()
        return True

    def hand_suspects(self, at: float) -> None:
        """Hand suspects to the children in spare seats, no more to one than may be; send away who has none."""
        seats = [seat for seat in self.monitor.spare if seat.open(self.lanes) or self.is_starting(seat)]
        # How many may be in each, with those who are there: asked once, for there may be thousands who wait.
        most = [min((self.together(each) for each in seat.tasks.values()), default=inf) for seat in seats]
        for _ in range(len(self.alone)):
            held = self.alone.popleft()
            if held.lost:
                self.courier.forget(held)
                continue
            together = self.together(held)
            free = [i for i, seat in enumerate(seats) if seat.slots and len(seat.tasks) < min(together, most[i])]
            if not free:
                self.alone.append(held)
            elif held.begin_by < at:
                self.expire(held)
            elif held.confirmed < at - self.config.lease * TRUST:
                self.courier.renew_now()
                self.alone.append(held)
            else:
                fewest = min(free, key=lambda i: len(seats[i].tasks))
                if not self.hand(seats[fewest], [held]):
                    break
                most[fewest] = min(most[fewest], together)
        if self.alone:
            return
        for seat in self.monitor.spare:
            if seat.pid and not (seat.busy or seat.orphan or seat.retiring):
                seat.retiring = True
                with contextlib.suppress(BlockingIOError, BrokenPipeError):
                    channel.send_task(seat.mine, channel.LEAVE_NOW)

    def is_starting(self, seat: Seat) -> bool:
        """Whether its child has only just come: it does not begin anything yet, and need not be held up by anybody."""
        return bool(seat.pid and seat.slots) and not (seat.orphan or seat.retiring or self.board.began(seat.index))

    def together(self, held: Held) -> int:
        """How many suspects may be in one child with this one, itself included."""
        return self.suspects.get((held.claim.queue, held.claim.id), 1)

    def suspect(self, held: Held, together: int) -> None:
        """This task may have ended its child: it is to run apart next time, with no more than so many suspects."""
        self.suspects[held.claim.queue, held.claim.id] = max(together, 1)
        if len(self.suspects) > SUSPECTS_MAX:
            del self.suspects[next(iter(self.suspects))]

    def expire(self, held: Held) -> None:
        """End a task that may not begin any more, or can't."""
        found = Verdict(verdict.BLOCKED, text=held.blocked) if held.blocked else Verdict(verdict.EXPIRED)
        self.monitor.ending.judge(held, found, context.NO_TRANSACTION, handler=True)

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
                        self.monitor.ending.cut(seat)

    def withdraw(self, seat: Seat, held: Held) -> None:
        """This task is not in the seat any more, and has not begun."""
        del seat.tasks[held.slot]
        self.board.free(seat.index, held.slot)
        seat.slots.append(held.slot)
        held.seat = held.slot = -1

    def put_back(self, back: Sequence[Held]) -> None:
        """These are the next ones again; suspects of those that run apart, for which no other seat has to be free."""
        for held in reversed(back):
            is_suspect = (held.claim.queue, held.claim.id) in self.suspects
            (self.alone if is_suspect else self.courier.inbox).appendleft(held)

    def take_back(self, seat: Seat) -> int:
        """Take what has not begun out of a seat, to the front of what is to be handed out; what its child has read
        already is recalled, and follows soon.

        Returns:
            How many tasks its child had not read.
        """
        back: list[Held] = []
        for frame in channel.drain(seat.theirs, self.monitor.buffer):
            if frame.kind == channel.RUN:
                held = seat.tasks[frame.slot]
                self.withdraw(seat, held)
                back.append(held)
            elif frame.kind == channel.RUN_ERROR_HANDLER:
                seat.handling = None
                self.jobs.appendleft(frame)
        self.put_back(back)
        last = max((held.serial for held in self.waiting(seat)), default=0)
        if last > seat.recalled:
            self.board.recall(seat.index, last)
            seat.recalled, seat.recalled_at = last, now()
        return len(back)

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
        self.put_back(back)
