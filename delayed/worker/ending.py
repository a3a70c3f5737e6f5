"""How tasks end: learnt from their children, or from the board where these are dead, and passed on to be settled."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from math import ceil
from typing import TYPE_CHECKING

from delayed import context
from delayed.attempts import noted
from delayed.logger import logger
from delayed.message import Answer, Settlement, done
from delayed.worker import board as boards
from delayed.worker import channel, fate, judge, process, verdict
from delayed.worker.channel import TaskFrame
from delayed.worker.courier import Held
from delayed.worker.process import now
from delayed.worker.seat import Seat
from delayed.worker.verdict import Verdict

if TYPE_CHECKING:
    from delayed.worker.monitor import Monitor

REPORTS_MAX = 1000  # reports of a child that are read in one go: more than a channel holds
FORK_BACKOFF = (0.1, 5.0)  # seconds: first and longest pause after a child that did nothing
_RETURNED = Verdict(verdict.RETURNED)
_RETURNS = (verdict.RETURNED, verdict.KEPT)


class Ending:
    """The ends of one worker's tasks and children."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.handing = monitor.handing
        self.config = monitor.config
        self.lanes = monitor.lanes
        self.board = monitor.board
        self.courier = monitor.courier
        self.keeper = monitor.keeper
        self.ladder = monitor.ladder
        self.watch = monitor.watch
        self.server = monitor.server
        self.oom_kills = process.oom_kills()

    def read_reports(self, seat: Seat) -> None:
        for _ in range(REPORTS_MAX):
            try:
                report = channel.receive_report(seat.mine, self.monitor.buffer)
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
                self.handing.take_back(seat)
                continue
            if kind == channel.STOP:
                self.monitor.stopped_by_task = True
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
        if self.monitor.by_fd.pop(seat.mine.fileno(), None) is None:
            return
        self.monitor.poller.unregister(seat.mine)
        seat.retiring = True
        self.handing.take_back(seat)
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
        index, average, debug = seat.index, self.handing.average, logger.isEnabledFor(10)
        tasks, ended, suspects = seat.tasks, self.board.ended, self.handing.suspects
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
            ends.append((held, done(held.claim) if code == verdict.RETURNED else self.kept(held)))
            if suspects:
                suspects.pop((held.claim.queue, held.claim.id), None)
            if debug:
                judge.log_returned(held.claim, wall)
        if ends:
            for held, _ in ends:
                del seat.tasks[held.slot]
            self.handing.average = average
            seat.failures = 0
            self.courier.settle(*ends)

    def ended(self, seat: Seat, held: Held, code: int, detail: bytes) -> None:
        """A child has said, or the board shows, how a task ended."""
        del seat.tasks[held.slot]
        seat.failures = 0
        slot = self.board.slot(seat.index, held.slot)
        wall = slot.ended - slot.begun
        self.handing.average += (wall - self.handing.average) * 0.2
        if code in (verdict.RETURNED, verdict.COMMITTED, verdict.KEPT):
            if slot.transaction == context.COMMITTED:
                self.put(held, self.keeper.answer(held.claim, _RETURNED, seat.index, held.slot))
                self.courier.forget(held)
            elif slot.code == verdict.KEPT:
                self.courier.settle((held, self.kept(held)))
            else:
                self.courier.settle((held, done(held.claim)))
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
        return self.keeper.settled(held.claim, done(held.claim), _RETURNED, held.seat, held.slot)

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
            found = self.monitor.orders.ended(held, found)
        settlement = fate.settle(held.claim, found, transaction, keep=self.config.keeps[held.queue])
        wanted = self.config.hooks or (
            (self.config.error_handler or self.config.log_arguments) and found.code not in verdict.NO_FAILURES
        )
        if handler and wanted and found.code not in (verdict.STOPPED, verdict.LOST):
            claim = held.claim
            if settlement is not None and settlement.action == "retry":
                found = found._replace(delay=settlement.delay)  # which hooks are told
            self.handing.jobs.append(
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
        judge.log_verdict(held.claim, found, settlement)  # before: whoever sees that it has ended finds in the log why
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
        self.handing.take_back(seat)
        if seat.handling is not None:  # read, but not begun
            self.handing.jobs.appendleft(seat.handling)
            seat.handling = None
        for held in reversed(list(seat.tasks.values())):  # read by the child, which died before it began them
            self.handing.withdraw(seat, held)
            self.handing.put_back((held,))
        if status != 0 and not self.board.began(seat.index):
            seat.failures += 1
            seat.fork_at = at + min(FORK_BACKOFF[0] * 2.0 ** min(seat.failures, 30), FORK_BACKOFF[1])
        if status != 0:
            self.ladder.clear_stack(seat.index)
        self.ladder.forget(seat.index)
        self.watch.forget(seat.index)
        if seat.pidfd >= 0 and seat.orphan:
            self.monitor.poller.unregister(seat.pidfd)
            del self.monitor.by_fd[seat.pidfd]
        seat.vacated()
        self.board.vacate(seat.index)
        if seat.mine.fileno() not in self.monitor.by_fd:  # its channel was cut; only a new fork server inherits another
            seat.renew_channel()
            self.monitor.listen_to(seat)
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
                    self.handing.suspect(held, ceil(len(begun) / boards.SPARES))
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

    def orphan_ended(self, seat: Seat) -> None:
        """A child whose fork server is dead has ended; being the subreaper, the monitor may know how."""
        status = None
        self.monitor.mind_orphans()  # while what it has left can be told from other children
        if self.monitor.orphans.come_here:
            with contextlib.suppress(ChildProcessError):
                _, status = os.waitpid(seat.pid, os.WNOHANG)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(seat.pid, signal.SIGKILL)
        self.child_ended(seat, status, 0.0, 0)
