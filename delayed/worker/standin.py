"""The stand-in: what a fork server does when its monitor has died.

It takes over the dead monitor's claims, by name of the same worker, and goes when they are all ended:

1. what no child has begun goes back to the queue, uncharged;
2. what has ended, but may not have been settled, is settled (the store refuses what it knows already);
3. what runs goes on, with leases renewed and deadlines kept, and is settled when it ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING, NamedTuple

from delayed import context
from delayed.attempts import noted
from delayed.brokers.base import RENEW_INTERVAL
from delayed.errors import BrokerError
from delayed.logger import logger
from delayed.message import Answer, Claim, Ref, Settlement
from delayed.worker import board as boards
from delayed.worker import channel, fate, judge, process, refusal, verdict
from delayed.worker.board import Slot
from delayed.worker.channel import Control
from delayed.worker.keeping import Keeper
from delayed.worker.ladder import Ladder
from delayed.worker.process import now
from delayed.worker.spool import Spool
from delayed.worker.verdict import Verdict
from delayed.worker.watch import Watch

if TYPE_CHECKING:
    from delayed.worker.forkserver import ForkServer

TICK = 0.05  # seconds between looks at the deadlines
SETTLE_MAX = 256  # claims that are ended in one call
SETTLE_BYTES = 4 << 20  # bytes of answers that are stored in one, if they are several
TRUST = 0.8  # part of a lease after which what is exclusive is ended, if it was not renewed
GIVE_UP = 3600.0  # seconds without an answer from the store; other workers run the tasks again
REPORTS_MAX = 1000  # reports of a child that are read in one go: more than a channel holds
PATIENCE = (0.1, 2.0)  # seconds: first and longest pause while the store can't be reached


class Orphan(NamedTuple):
    """A child whose own fork server died before: not ours to wait for, but to watch."""

    pid: int
    pidfd: int


class StandIn:
    """One stand-in, in the fork server's process."""

    def __init__(self, server: ForkServer) -> None:
        self.server = server
        self.config = server.config
        self.board = server.board
        self.keeper = Keeper(self.board, Spool(self.config.spool, self.board.slots))
        self.answers: list[tuple[str, int, Answer]] = []  # of tasks that have ended their claims themselves
        self.buffer = bytearray(channel.BUFFER_SIZE)
        stacks = [stack for _, _, stack in self.config.seats]
        self.ladder = Ladder(self.board, stacks, self.config.kill_timeout, self.signal, shared=self.config.shared)
        self.watch = Watch(self.board, self.config, self.ladder, self.signal, self.claim_in)
        self.poller = select.poll()
        self.orphans: dict[int, Orphan] = {}  # by seat
        self.claims: dict[tuple[int, int, int], Claim] = {}  # (queue, id, delivery) -> what is not settled
        self.settlements: list[Settlement] = []
        self.details: dict[int, bytes] = {}  # serial -> the child's own words
        self.deaths: dict[int, Verdict] = {}  # serial -> the verdict on the task whose child died in it
        self.oom_kills = process.oom_kills()
        self.recalled_at = 0.0  # when all that had not begun was recalled

    def run(self) -> None:
        """Stand in until every claim of the worker is ended, then let the children end."""
        if self.config.url is None:
            logger.error("the store can't be opened by another process: the tasks run again when their lease ends")
            self.server.leave()
            return
        from delayed.brokers import broker_for
        from delayed.worker.gates import Gates

        self.take_charge()
        broker = broker_for(self.config.url)
        gates = Gates(broker)
        ends = {monitor_end.fileno() for monitor_end, _ in self.server.channels}
        known = False
        renew_at = broker_at = 0.0
        renewed = self.board.pulse(boards.LEASES)
        answered = now()
        pause = PATIENCE[0]
        failing = False
        while True:
            at = now()
            for seat in range(self.board.seats):
                self.ladder.tick(seat, at)
                if self.lives(seat) and self.board.busy(seat):
                    self.watch.tick(seat, self.board.pid(seat), at)
            if at > renewed + self.config.lease * TRUST:
                self.end_exclusives()
            self.bury()
            try:
                if at >= broker_at:
                    if not known:
                        held = broker.held(self.config.worker, self.config.queues)
                        for claim in held:
                            gates.take_over(claim)
                        self.take_over(held)
                        known = True  # and renewed at once: the monitor may have been frozen for long before
                        renew_at = at
                    if at >= renew_at:
                        # What is not settled yet too: that may be so much that its leases would end meanwhile.
                        refs = [claim.ref for claim in self.claims.values()]
                        refs += [settlement.ref for settlement in self.settlements]
                        renewal = broker.renew(self.config.worker, self.config.queues, refs, self.config.lease)
                        self.renewed(renewal.lost)
                        renewed = at
                        renew_at = at + min(RENEW_INTERVAL, self.config.lease / 3)
                    self.collect()
                    while self.settlements and now() < renew_at:
                        batch = self.settlements[: fate.fitting(self.settlements[:SETTLE_MAX], SETTLE_BYTES)]
                        refusal.settle(broker, self.config.worker, batch)
                        gates.ended(batch)
                        del self.settlements[: len(batch)]
                    while self.answers:
                        broker.put_result(*self.answers[-1])
                        gates.answered(self.answers[-1][:2])
                        self.answers.pop()
                    if gates.busy:
                        gates.work()
                    pause = PATIENCE[0]
                    failing = False
                    answered = at
            except BrokerError as error:
                if not failing:
                    logger.error("the stand-in of worker %s: %s; it goes on trying", self.config.worker, error)
                if now() > answered + GIVE_UP:
                    logger.error("the stand-in of worker %s gives up: %s", self.config.worker, error)
                    break
                failing = True
                broker_at = now() + pause
                pause = min(pause * 2, PATIENCE[1], self.config.lease / 10)  # see Courier._fail
            if known and not (self.claims or self.settlements or self.answers or self.handlers_run()):
                break
            for fd, event in self.poller.poll(TICK * 1000):
                if event & channel.SHUT and fd in ends:
                    self.read_reports()  # all that will ever come
                    self.poller.unregister(fd)
                    ends.remove(fd)
        with contextlib.suppress(BrokerError):
            broker.announce(self.config.worker, self.config.queues, None, 0.0)
        broker.close()
        self.server.leave()
        logger.info("the stand-in of worker %s has settled everything and leaves", self.config.worker)

    def take_charge(self) -> None:
        """Take out of the channels what has not begun, tell the children to go when they are done, and find those
        that another fork server had forked.
        """
        self.poller.register(self.server.wake_read, select.POLLIN)
        for seat, _, slot in self.tasks():
            self.board.recall(seat, max(slot.serial, self.board.recalled(seat)))
        self.recalled_at = now()
        for seat, (monitor_end, child_end) in enumerate(self.server.channels):
            monitor_end.setblocking(False)
            handlers = []
            for frame in channel.drain(child_end, self.buffer):
                if frame.kind == channel.RUN:
                    self.board.free(seat, frame.slot)
                elif frame.kind == channel.RUN_ERROR_HANDLER:
                    handlers.append(frame)
            # A child that goes shows that what still stands on the board as handed over never reached it.
            for frame in [*handlers, channel.LEAVE_NOW]:
                with contextlib.suppress(BrokenPipeError):  # a task has shut it down: its child leaves by itself
                    channel.send_task(monitor_end, frame)
            self.poller.register(monitor_end, select.POLLIN | channel.SHUT)
            pid = self.board.pid(seat)
            if not pid or seat in self.server.pids:
                continue
            last = self.server.last_ended.get(seat)
            if last is not None and last.pid == pid:
                self.died(seat, last)  # reaped already, but the monitor may not have noted it
                continue
            with contextlib.suppress(OSError):
                # Children lead a session: so a stranger who was given the number is not taken for one.
                if os.getsid(pid) == pid:
                    orphan = self.orphans[seat] = Orphan(pid, os.pidfd_open(pid))
                    self.poller.register(orphan.pidfd, select.POLLIN)
                    continue
            self.died(seat, None)

    def claim_in(self, seat: int, slot: int) -> Claim | None:
        """The claim of the task in a slot, once the store has told it."""
        found = self.board.slot(seat, slot)
        return self.claims.get((found.queue, found.id, found.delivery))

    def lives(self, seat: int) -> bool:
        """Whether a child is in this seat."""
        return seat in self.server.pids or seat in self.orphans

    def take_over(self, claims: list[Claim]) -> None:
        """Sort the worker's claims: those without a task begun on the board go back."""
        names = {name: index for index, name in enumerate(self.config.queues)}
        on_board = {(slot.queue, slot.id, slot.delivery) for _, _, slot in self.tasks()}
        for claim in claims:
            key = (names[claim.queue], claim.id, claim.delivery)
            if key in on_board:
                self.claims[key] = claim
            else:
                self.settlements.append(Settlement(claim.ref, "back"))

    def tasks(self) -> list[tuple[int, int, Slot]]:
        """(seat, slot number, slot) of every task on the board."""
        return [
            (seat, number, self.board.slot(seat, number))
            for seat in range(self.board.seats)
            for number in range(self.board.slots)
            if self.board.state(seat, number) != boards.FREE
        ]

    def collect(self) -> None:
        """Settle what has ended."""
        if not self.claims:
            return
        self.read_reports()
        recalled = now() >= self.recalled_at + boards.RECALL_DELAY
        begin = [self.board.in_lanes(seat) for seat in range(self.board.seats)]
        for seat, number, slot in self.tasks():
            key = (slot.queue, slot.id, slot.delivery)
            if key not in self.claims:
                continue
            if slot.state == boards.ENDED:
                found = self.ended(seat, slot)
            elif self.lives(seat) and (slot.state == boards.BEGUN or not recalled or slot.serial in begin[seat]):
                continue
            elif slot.state == boards.BEGUN:
                found = self.deaths.get(slot.serial) or Verdict(verdict.KILLED, text="its end was not seen")
            else:
                found = Verdict(verdict.STOPPED, text="it had not begun")
            claim = self.claims.pop(key)
            self.board.free(seat, number)
            settlement = fate.settle(claim, found, slot.transaction, keep=self.config.keeps[slot.queue])
            told = (seat, number) if slot.state == boards.ENDED else (-1, -1)
            if settlement is None:
                answer = self.keeper.answer(claim, found, *told) if slot.transaction == context.COMMITTED else None
                if answer is not None:
                    self.answers.append((claim.queue, claim.id, answer))
            else:
                settlement = noted(claim, settlement, found, self.config.worker)
                self.settlements.append(self.keeper.settled(claim, settlement, found, *told))
            if not found.ok and found.code != verdict.STOPPED:
                judge.log_verdict(claim, found, settlement)

    def ended(self, seat: int, slot: Slot) -> Verdict:
        """The verdict on a task whose end its child has noted."""
        detail = self.details.pop(slot.serial, b"")
        found = judge.verdict_told(slot, detail)
        stack = self.ladder.outcome(seat, slot.lane, slot.serial)[2]
        found = found._replace(
            wall=slot.ended - slot.begun,
            cpu=slot.cpu,
            timeout=slot.timeout or None,
            stack=found.stack or stack,
        )
        return self.watch.explain(seat, found, slot.serial)

    def read_reports(self) -> None:
        for monitor_end, _ in self.server.channels:
            for _ in range(REPORTS_MAX):
                try:
                    report = channel.receive_report(monitor_end, self.buffer)
                except channel.BadFrame:  # a task wrote it; the board knows better
                    continue
                if report is None:
                    break
                kind, _, _, serial, detail = report
                if kind == channel.OUTCOME and detail:
                    self.details[serial] = detail

    def bury(self) -> None:
        """Find the children that have ended."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.server.wake_read, 4096)
        for ended in self.server.reap():
            self.died(ended.seat, ended)
        for seat, orphan in list(self.orphans.items()):
            if process.is_readable(orphan.pidfd):
                self.poller.unregister(orphan.pidfd)
                os.close(orphan.pidfd)
                del self.orphans[seat]
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(orphan.pid, signal.SIGKILL)  # what it left behind
                self.died(seat, None)

    def died(self, seat: int, ended: Control | None) -> None:
        """The child of a seat is gone; note the verdict on the task that it was in, if it was in one."""
        begun = [
            self.board.slot(seat, number)
            for number in range(self.board.slots)
            if self.board.state(seat, number) == boards.BEGUN
        ]
        oom = process.oom_kills()
        out_of_memory, self.oom_kills = oom > self.oom_kills, oom
        status, cpu, rss = (ended.value, ended.cpu, ended.rss) if ended is not None else (None, 0.0, 0)
        guilty = judge.guilty(seat, begun, status, self.ladder)
        for slot in begun:
            if slot.serial not in guilty:
                self.deaths[slot.serial] = Verdict(verdict.STOPPED, text="its process ended for another task")
                continue
            reason, killed, stack = self.ladder.outcome(seat, slot.lane, slot.serial)
            crash = stack or self.ladder.read_stack(seat)
            found = judge.verdict_of_death(status, killed, out_of_memory, crash, now() - slot.begun, cpu, rss)
            if reason == boards.STOP_TIMEOUT:
                found = found._replace(code=verdict.TIMED_OUT, timeout=slot.timeout)
            elif reason == boards.STOP_LOST:
                found = found._replace(code=verdict.STOPPED)
            claim = self.claims.get((slot.queue, slot.id, slot.delivery))
            found = judge.checked(slot, self.watch.explain(seat, found, slot.serial, claim))
            self.deaths[slot.serial] = found
        self.watch.forget(seat)
        self.board.vacate(seat)

    def renewed(self, lost: list[Ref]) -> None:
        """Claims that were lost run elsewhere by now, or will: stop them here."""
        gone = set(lost)
        for seat, number, slot in self.tasks():
            key = (slot.queue, slot.id, slot.delivery)
            if key in self.claims and self.claims[key].ref in gone:
                del self.claims[key]
                if slot.state == boards.BEGUN and slot.transaction == context.NO_TRANSACTION:
                    self.ladder.stop(seat, boards.STOP_LOST, now(), slot.serial)  # in a transaction it finds out itself
                elif slot.state == boards.ENDED:
                    self.board.free(seat, number)

    def end_exclusives(self) -> None:
        """See :meth:`Minder.end_exclusives`."""
        for seat in range(self.board.seats):
            doubtful = self.board.exclusives(seat)
            if doubtful and self.lives(seat) and not self.ladder.has_killed(seat):
                self.ladder.kill(seat, boards.STOP_LOST)
                judge.log_doubt([self.board.slot(seat, slot).id for slot in doubtful], self.config.lease * TRUST)

    def handlers_run(self) -> bool:
        """Whether a child is still busy: with a handler, or with a task that was lost and is being stopped."""
        return any(self.lives(seat) and self.board.busy(seat) for seat in range(self.board.seats))

    def signal(self, seat: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if seat in self.server.pids:
                self.server.signal(seat, number)
            elif seat in self.orphans:
                orphan = self.orphans[seat]
                signal.pidfd_send_signal(orphan.pidfd, 0)  # still the same process, so its group is still its
                if number == signal.SIGKILL:
                    process.kill_group(orphan.pid, number)
                else:
                    signal.pidfd_send_signal(orphan.pidfd, number)
