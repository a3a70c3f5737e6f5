"""The watch: what a guardian looks at, about once a second, in children that are busy for longer.

1. A child that uses more memory than `kill_memory`, together with what it started, is killed. It writes its stacks
   before; it is not asked to stop, since tidying up takes memory too.
2. A task that goes on though its CPU time is used up is stopped as at a timeout. Its child stops it by itself where it
   can (:mod:`delayed.worker.limits`), but not in C code, which lets no signal in.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from delayed.errors import DecodeError
from delayed.logger import logger
from delayed.message import Claim
from delayed.sizes import size_text
from delayed.worker import board as boards
from delayed.worker import process, verdict
from delayed.worker.board import Board
from delayed.worker.config import Config
from delayed.worker.ladder import STACK_PATIENCE, Ladder
from delayed.worker.limits import cpu_words, memory_words
from delayed.worker.memory import Gauge
from delayed.worker.verdict import Verdict

LOOK = 1.0  # seconds between looks at a child


class _Post:
    """What is known of the child in one seat."""

    __slots__ = ("asked", "cpu_at_first", "cpu_limit", "gauge", "killed", "next_look", "over_cpu", "serial", "words")

    def __init__(self, config: Config) -> None:
        self.gauge = Gauge(config.kill_memory, LOOK) if config.kill_memory else None
        self.next_look = 0.0
        self.serial = 0  # the task that was seen last
        self.cpu_limit = 0.0  # its seconds of CPU; 0: any
        self.cpu_at_first = 0.0  # what its process had used when it was seen first
        self.over_cpu = False
        self.asked = 0.0  # when the stacks of a child that is to be killed were asked for
        self.killed = False
        self.words = ""  # why it is


class Watch:
    """The watch over all seats.

    Args:
        send: sends a signal to the child of a seat: send(seat, number).
        claim_of: the claim of the task in a slot of a seat; None if nobody knows it.
    """

    def __init__(
        self,
        board: Board,
        config: Config,
        ladder: Ladder,
        send: Callable[[int, int], None],
        claim_of: Callable[[int, int], Claim | None],
    ) -> None:
        self.board = board
        self.config = config
        self.ladder = ladder
        self.send = send
        self.claim_of = claim_of
        self.posts = [_Post(config) for _ in range(board.seats)]

    def tick(self, seat: int, pid: int, now: float) -> None:
        """Look at the busy child `pid` of this seat, if that is due, or finish what was begun against it."""
        post = self.posts[seat]
        if post.killed or not pid:
            return
        if post.asked:
            self._kill(seat, post, pid, now)
        elif now >= post.next_look:
            post.next_look = now + LOOK
            self._look_at_cpu(seat, post, pid, now)
            used = post.gauge.over(pid, now) if post.gauge is not None else 0
            if used:
                assert self.config.kill_memory is not None
                post.words = f"it used {size_text(used)} of memory, limit {size_text(self.config.kill_memory)}"
                post.serial = self._running(seat)
                post.asked = now
                self.ladder.clear_stack(seat)
                self.send(seat, process.STACK_SIGNAL)

    def _kill(self, seat: int, post: _Post, pid: int, now: float) -> None:
        activities = self.board.activities(seat)
        if not activities or self._running(seat) != post.serial or now > post.asked + LOOK:
            # The task has ended, and the next one is not to pay for it.
            self.ladder.clear_stack(seat)
            self.forget(seat)
        elif self.ladder.read_stack(seat) or now >= post.asked + STACK_PATIENCE:
            post.killed = True
            if all(activity.phase == boards.HANDLER for _, activity in activities):  # which has no verdict to say it
                logger.error("child %d is killed in a handler: %s", pid, post.words)
            self.send(seat, signal.SIGKILL)

    def _look_at_cpu(self, seat: int, post: _Post, pid: int, now: float) -> None:
        if not self.config.holds_limits:
            return
        activity = self.board.activity(seat, 0)
        if activity.phase != boards.TASK:
            return
        if activity.serial != post.serial:
            post.serial = activity.serial
            post.over_cpu = False
            post.cpu_limit = _limit_of(self.claim_of(seat, activity.slot), "cpu")
            if post.cpu_limit:
                post.cpu_at_first = _cpu_of(pid)
        elif post.cpu_limit and not post.over_cpu and _cpu_of(pid) - post.cpu_at_first > post.cpu_limit + LOOK:
            post.over_cpu = True
            self.ladder.stop(seat, boards.STOP_TIMEOUT, now, activity.serial)

    def _running(self, seat: int) -> int:
        """The serial of what runs in this seat; 0 where several may."""
        return self.board.activity(seat, 0).serial if self.config.lanes == 1 else 0

    def explain(self, seat: int, found: Verdict, serial: int = 0, claim: Claim | None = None) -> Verdict:
        """The verdict on a task, with the limit if it ended by one, or may have failed for one."""
        post = self.posts[seat]
        if found.limit or found.code not in (verdict.TIMED_OUT, verdict.KILLED, verdict.EXITED):
            return found
        if found.code == verdict.KILLED and post.killed:
            return found._replace(by_us=True, out_of_memory=False, limit=post.words)
        if found.code == verdict.TIMED_OUT:
            stopped = post.over_cpu and post.serial == serial
            return found._replace(limit=cpu_words(post.cpu_limit)) if stopped else found
        memory = _limit_of(claim, "memory")
        return found._replace(limit=memory_words(memory)) if memory and not found.by_us else found

    def forget(self, seat: int) -> None:
        """The child of this seat is gone."""
        self.posts[seat] = _Post(self.config)


def _limit_of(claim: Claim | None, name: str) -> float:
    """The task's limit; 0 if it has none."""
    if claim is None or b'"l":' not in claim.header:
        return 0
    try:
        limits = claim.message().limits or {}
    except DecodeError:
        return 0
    return float(limits.get(name, 0))


def _cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used; 0 if it is gone, or where that isn't told."""
    try:
        return time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3), as Linux does it
    except OSError:
        return 0.0
