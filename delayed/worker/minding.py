"""What takes too long: tasks that others wait behind, or that must not go on; children that stand still, or do not go.

The deadlines of the tasks themselves are the ladder's, their limits the watch's.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from delayed import context, tracing
from delayed.logger import logger
from delayed.message import Settlement
from delayed.sizes import size_text
from delayed.worker import board as boards
from delayed.worker import judge
from delayed.worker.courier import TRUST, Held
from delayed.worker.ladder import HANDLER_TIMEOUT, STACK_PATIENCE
from delayed.worker.memory import Gauge
from delayed.worker.seat import Seat

if TYPE_CHECKING:
    from delayed.worker.monitor import Monitor

TICK = 0.05  # seconds between looks at the deadlines while something runs
LONG = 0.1  # seconds after which what waits behind a running task is taken back
COMMIT_PATIENCE = 1.0  # seconds that a task in a transaction goes on after its claim is gone: it may have committed
LEAVE_PATIENCE = 5.0  # seconds that a child with nothing to do may take to leave
LOOP_BLOCKED = 1.0  # seconds without a turn after which an event loop is reported
STILL_MAX = 5.0  # seconds for which a child may begin nothing of what it has
BLOCKED_PAUSE = 1.0  # seconds for which nothing is handed to a child that began nothing of what it had


class Minder:
    """The looks at one worker's deadlines.

    Args:
        gauge: measures the whole worker, which leaves when it is too large; None: it may be of any size.
    """

    def __init__(self, monitor: Monitor, gauge: Gauge | None) -> None:
        self.monitor = monitor
        self.handing = monitor.handing
        self.ending = monitor.ending
        self.config = monitor.config
        self.processes = monitor.processes
        self.lanes = monitor.lanes
        self.board = monitor.board
        self.seats = monitor.seats
        self.regular = monitor.regular
        self.courier = monitor.courier
        self.ladder = monitor.ladder
        self.watch = monitor.watch
        self.server = monitor.server
        self.gauge = gauge

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
            self.ending.collect(seat)
            if seat.recalled:
                self.handing.collect_recalled(seat, at)
            activities = self.board.activities(seat.index)
            self.mind_stillness(seat, bool(activities))
            began = max((activity.since for _, activity in activities), default=at if self.lanes == 1 else 0.0)
            since = began if self.lanes == 1 else max(began, seat.handed_at)  # when it moved last
            waiting = len(seat.tasks) > (1 if self.lanes == 1 else len(activities))
            # Suspects are not taken from a child that is still coming: they would be handed to it again, or, if it
            # reads them just then, to one more.
            coming = seat not in self.regular and self.handing.is_starting(seat)
            if at - since > LONG and waiting and not coming:
                self.handing.average = max(self.handing.average, LONG)
                unread = self.handing.take_back(seat)
                # With lanes to spare it would have begun: the interpreter, or the event loop, is in somebody's hands.
                # Only threads may sleep while another has read what it can't begin.
                told = unread > 0 or seat.blocked or self.config.one_reader
                seat.blocked = told and len(activities) < self.lanes
            if at - since > 2 * LONG and (len(activities) >= self.lanes or seat.blocked or seat.retiring):
                stuck += seat in self.regular
        inbox = self.courier.inbox
        if inbox and stuck >= self.processes and not self.monitor.stopping:
            # Every child that could take these is at a long task: another worker may be idle.
            self.handing.average = max(self.handing.average, LONG)
            surplus = self.courier.held - self.handing.room()
            while inbox and surplus > 0:
                held = inbox.pop()
                self.courier.settle((held, Settlement(held.claim.ref, "back")))
                surplus -= 1
        self.server.mind(at, counts=any(seat.pid or seat.forking for seat in self.seats))
        if at > self.courier.renewed + self.config.lease * TRUST and self.courier.held:
            self.end_exclusives(at)
        if self.gauge is not None and not self.monitor.stopping:
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
                self.handing.take_back(seat)
                self.ladder.kill(seat.index, boards.STOP_LOST)
                judge.log_doubt([held.claim.id for held in doubtful], self.config.lease * TRUST)

    def mind_leaving(self, seat: Seat, at: float) -> None:
        """Kill a child that was to leave, has nothing more to do, and does not go: its seat is needed."""
        if not seat.pid or not (seat.retiring or seat.orphan or self.handing.spent(seat)):
            return
        patience = (HANDLER_TIMEOUT if self.config.hooks else LEAVE_PATIENCE) + self.config.kill_timeout
        if not seat.idle_since:
            seat.idle_since = at
        elif at > seat.idle_since + patience:
            seat.idle_since = at
            logger.warning("child %d was to leave %.3g s ago, and is killed", seat.pid, patience)
            self.monitor.signal(seat.index, signal.SIGKILL)

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
                self.monitor.signal(seat.index, signal.SIGKILL)

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
            self.monitor.outgrown = True
            logger.warning(
                "worker %s uses %s of memory, limit %s: it finishes what runs, and leaves",
                self.config.worker,
                size_text(used),
                size_text(gauge.limit),
                extra={"action": "outgrown"},
            )
            self.monitor.ask_stop(gently=True)

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
                    self.handing.take_back(seat)

    def ends_itself(self, held: Held, at: float) -> bool:
        """Whether a claim that is gone was ended by the task's own transaction, or may be just now."""
        state = self.board.transaction(held.seat, held.slot)
        return state == context.COMMITTED or (state == context.OPEN and at < held.lost_at + COMMIT_PATIENCE)
