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
from dataclasses import replace
from typing import TYPE_CHECKING

from delayed.brokers.base import RENEW_INTERVAL
from delayed.errors import BrokerError
from delayed.logger import logger
from delayed.message import Claim, Ref, Settlement
from delayed.worker import board as boards
from delayed.worker import channel, judge, process, verdict
from delayed.worker.board import Slot
from delayed.worker.ladder import Ladder
from delayed.worker.process import now
from delayed.worker.verdict import Verdict

if TYPE_CHECKING:
    from delayed.worker.forkserver import ForkServer

TICK = 0.05  # seconds between looks at the deadlines
PATIENCE = (0.1, 2.0)  # seconds: first and longest pause while the store can't be reached


class StandIn:
    """One stand-in, in the fork server's process."""

    def __init__(self, server: ForkServer) -> None:
        self.server = server
        self.config = server.config
        self.board = server.board
        self.buffer = bytearray(channel.PACKET_MAX + 256)
        stacks = [stack for _, _, stack in self.config.seats]
        self.ladder = Ladder(self.board, stacks, self.config.kill_timeout, self.signal)
        self.claims: dict[tuple[int, int, int], Claim] = {}  # (queue, id, delivery) -> what is not settled
        self.settlements: list[Settlement] = []
        self.details: dict[int, bytes] = {}  # serial -> the child's own words
        self.oom_kills = process.oom_kills()

    def run(self) -> None:
        """Stand in until every claim of the worker is ended, then let the children end."""
        for monitor_end, child_end in self.server.channels:
            monitor_end.setblocking(False)
            for frame in channel.drain(child_end, self.buffer):
                if frame.kind == channel.RUN:
                    self.board.free(self.index_of(child_end), frame.slot)
        if self.config.url is None:
            logger.error("the store can't be opened by another process: the tasks run again when their lease ends")
            self.server.leave()
            return
        from delayed.brokers import broker_for

        broker = broker_for(self.config.url)
        poller = select.poll()
        poller.register(self.server.wake_read, select.POLLIN)
        for monitor_end, _ in self.server.channels:
            poller.register(monitor_end, select.POLLIN)
        known = False
        renew_at = broker_at = 0.0
        pause = PATIENCE[0]
        while True:
            at = now()
            for seat in range(self.board.seats):
                self.ladder.tick(seat, at)
            self.read_reports()
            self.bury()
            try:
                if at >= broker_at:
                    if not known:
                        self.take_over(broker.held(self.config.worker, self.config.queues))
                        known = True
                        renew_at = at + self.config.lease / 3
                    self.collect()
                    if self.settlements:
                        broker.settle(self.config.worker, self.settlements)
                        self.settlements = []
                    if at >= renew_at:
                        refs = [claim.ref for claim in self.claims.values()]
                        renewal = broker.renew(self.config.worker, self.config.queues, refs, self.config.lease)
                        self.renewed(renewal.lost)
                        renew_at = at + min(RENEW_INTERVAL, self.config.lease / 3)
                    pause = PATIENCE[0]
            except BrokerError as error:
                logger.error("the stand-in of worker %s: %s; it goes on trying", self.config.worker, error)
                broker_at = now() + pause
                pause = min(pause * 2, PATIENCE[1])
            if known and not self.claims and not self.settlements and not self.handlers_run():
                break
            poller.poll(TICK * 1000)
        with contextlib.suppress(BrokerError):
            broker.announce(self.config.worker, self.config.queues, None, 0.0)
        broker.close()
        self.server.leave()
        logger.info("the stand-in of worker %s has settled everything and leaves", self.config.worker)

    def index_of(self, child_end: object) -> int:
        return next(index for index, (_, end) in enumerate(self.server.channels) if end is child_end)

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
        """(seat, slot number, slot) of every task that has begun, or ended without being known as settled."""
        found = []
        for seat in range(self.board.seats):
            for number in range(boards.SLOTS):
                if self.board.state(seat, number) != boards.FREE:
                    slot = self.board.slot(seat, number)
                    # HANDED and not in the channel any more: its child has just read it, and begins.
                    if slot.state != boards.HANDED or seat in self.server.pids:
                        found.append((seat, number, slot))
        return found

    def collect(self) -> None:
        """Settle what has ended."""
        if not self.claims:
            return
        for seat, number, slot in self.tasks():
            claim = self.claims.get((slot.queue, slot.id, slot.delivery))
            if claim is None or slot.state != boards.ENDED:
                continue
            detail = self.details.pop(slot.serial, b"")
            found = Verdict.load(detail) if detail else Verdict(slot.code, text=slot.text)
            stack = self.ladder.outcome(seat, slot.serial)[2]
            found = replace(
                found,
                wall=slot.ended - slot.begun,
                cpu=slot.cpu,
                timeout=slot.timeout or None,
                stack=stack or found.stack,
            )
            self.end(seat, number, claim, slot, found)

    def end(self, seat: int, number: int, claim: Claim, slot: Slot, found: Verdict) -> None:
        del self.claims[slot.queue, slot.id, slot.delivery]
        self.board.free(seat, number)
        self.settlements.append(judge.settle(claim, found))
        if found.code != verdict.RETURNED:
            judge.log_verdict(claim, found, self.settlements[-1])

    def read_reports(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.server.wake_read, 4096)
        for monitor_end, _ in self.server.channels:
            while report := channel.receive_report(monitor_end, self.buffer):
                kind, _, _, serial, detail = report
                if kind == channel.OUTCOME and detail:
                    self.details[serial] = detail

    def bury(self) -> None:
        """Reap children; a task that was running in one of them has its verdict now."""
        for ended in self.server.reap():
            seat = ended.seat
            self.read_reports()
            self.collect()
            at = now()
            for number in range(boards.SLOTS):
                slot = self.board.slot(seat, number)
                claim = self.claims.get((slot.queue, slot.id, slot.delivery))
                if claim is None:
                    continue
                if slot.state == boards.BEGUN:
                    reason, killed, stack = self.ladder.outcome(seat, slot.serial)
                    crash = stack or self.ladder.read_stack(seat)
                    oom = process.oom_kills()
                    found = judge.verdict_of_death(
                        ended.value, killed, oom > self.oom_kills, crash, at - slot.begun, ended.cpu, ended.rss
                    )
                    self.oom_kills = oom
                    if reason == boards.STOP_TIMEOUT:
                        found = replace(found, code=verdict.TIMED_OUT, timeout=slot.timeout)
                    self.end(seat, number, claim, slot, found)
                elif slot.state == boards.HANDED:
                    self.end(seat, number, claim, slot, Verdict(verdict.STOPPED, text="it had not begun"))

    def renewed(self, lost: list[Ref]) -> None:
        """Claims that were lost run elsewhere by now, or will: stop them here."""
        gone = set(lost)
        for seat, _, slot in self.tasks():
            key = (slot.queue, slot.id, slot.delivery)
            if key in self.claims and self.claims[key].ref in gone:
                del self.claims[key]
                self.ladder.stop(seat, boards.STOP_LOST, now())

    def handlers_run(self) -> bool:
        return any(
            self.board.activity(seat).phase == boards.HANDLER for seat in self.server.pids if seat < self.board.seats
        )

    def signal(self, seat: int, number: int) -> None:
        if seat in self.server.pids:
            with contextlib.suppress(ProcessLookupError):
                self.server.signal(seat, number)


