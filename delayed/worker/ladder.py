"""The kill ladder: what happens to a task that has to stop.

1. The child is made to write its Python stacks (faulthandler works while C code holds the GIL).
2. SIGTERM raises TaskTimeout (TaskCancelled, TaskStopped) in the task, if its code lets signals in.
3. `kill_timeout` seconds after the deadline, SIGKILL to the child's whole process group.

Every step names the serial of the task, so that a child that has gone on to the next task is left alone.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from itertools import zip_longest

from delayed.worker import board as boards
from delayed.worker import process
from delayed.worker.board import Activity, Board

_OWN_FRAME = re.compile(r'^  File "([^"]*/delayed/(worker/\w+|task)\.py|<string>)", line \d+ in ')
_SECTION = re.compile(r"^(?:Current thread|Thread|Coroutine) (0x[0-9a-f]+)", re.MULTILINE)
HANDLER_TIMEOUT = 30.0  # seconds that a success or error handler may take
STACK_PATIENCE = 0.2  # seconds to wait for a child to write its stacks
STACK_MAX = 32768  # bytes of stacks that are kept
DUMP_MAX = 2**20  # bytes that are read of the stacks of a child with many lanes


class _Climb:
    """How far a task, or the handler for it, has been taken."""

    __slots__ = ("asked", "deadline", "killed", "phase", "reason", "serial", "stack", "warned")

    def __init__(self, activity: Activity, reason: int, deadline: float) -> None:
        self.serial = activity.serial
        self.phase = activity.phase
        self.reason = reason
        self.deadline = deadline
        self.asked = 0.0  # when the stacks were asked for
        self.warned = False  # whether SIGTERM was sent
        self.killed = False
        self.stack = ""

    def is_of(self, activity: Activity) -> bool:
        # A task and its handler have one serial: what was begun against the one does not go on against the other.
        return self.serial == activity.serial and self.phase == activity.phase


class Ladder:
    """Deadlines of all lanes.

    Args:
        stacks: the descriptor of each seat's stack file.
        send: sends a signal to the child of a seat: send(seat, number).
    """

    def __init__(self, board: Board, stacks: list[int], kill_timeout: float, send: Callable[[int, int], None]) -> None:
        self.board = board
        self.stacks = stacks
        self.kill_timeout = kill_timeout
        self.send = send
        self.climbs: dict[tuple[int, int], _Climb] = {}  # by (seat, lane)
        self.dumped = [0.0 for _ in stacks]  # by seat: when its stacks were asked for last

    def tick(self, seat: int, now: float) -> None:
        """Take the next step against each task in this seat, if one is due."""
        signals = set()
        for lane, activity in self.board.activities(seat):
            climb = self.climbs.get((seat, lane))
            if climb is None or not climb.is_of(activity):
                is_handler = activity.phase == boards.HANDLER
                limit = HANDLER_TIMEOUT if is_handler else self.board.timeout(seat, activity.slot)
                if not limit or now < activity.since + limit:
                    continue
                climb = self.climbs[seat, lane] = _Climb(activity, boards.STOP_TIMEOUT, activity.since + limit)
            signals.add(self._step(seat, lane, climb, now))
        self._send(seat, signals)

    def stop(self, seat: int, reason: int, now: float, serial: int | None = None) -> None:
        """Begin to stop now what runs in this seat: the task `serial`, or all."""
        signals = set()
        for lane, activity in self.board.activities(seat):
            if serial is not None and activity.serial != serial:
                continue
            climb = self.climbs.get((seat, lane))
            if climb is None or not climb.is_of(activity):
                climb = self.climbs[seat, lane] = _Climb(activity, reason, now)
                signals.add(self._step(seat, lane, climb, now))
        self._send(seat, signals)

    def kill(self, seat: int, reason: int) -> None:
        """SIGKILL, at once."""
        for lane, activity in self.board.activities(seat):
            climb = self.climbs.get((seat, lane))
            if climb is None or not climb.is_of(activity):
                climb = self.climbs[seat, lane] = _Climb(activity, reason, 0.0)
            climb.killed = True
        self.send(seat, signal.SIGKILL)

    def _step(self, seat: int, lane: int, climb: _Climb, now: float) -> int:
        """Take the next step, if it is due; return the signal that the child has to be sent for it, or 0."""
        if climb.killed:
            return 0
        if now >= climb.deadline + self.kill_timeout and climb.asked:
            climb.stack = self.stack_of(seat, lane, climb.serial) or climb.stack
            climb.killed = True
            return signal.SIGKILL
        if not climb.asked:
            climb.asked = now
            # What a child with several lanes has just written shows them all.
            if self.board.lanes == 1 or now > self.dumped[seat] + STACK_PATIENCE:
                self.dump(seat, now)
        elif not climb.warned:
            climb.stack = self.stack_of(seat, lane, climb.serial)
            if climb.stack or now >= climb.asked + STACK_PATIENCE:
                climb.warned = True
                self.board.ask_stop(seat, lane, climb.reason, climb.serial)
                return signal.SIGTERM
        return 0

    def _send(self, seat: int, signals: set[int]) -> None:
        # Each once, however many lanes it is for.
        for number in signals - {0}:
            self.send(seat, number)

    def outcome(self, seat: int, lane: int, serial: int) -> tuple[int, bool, str]:
        """(reason, killed, stack) of the stop of this task; (STOP_NOTHING, False, "") if it was left alone."""
        climb = self.climbs.get((seat, lane))
        if climb is None or climb.serial != serial:
            return boards.STOP_NOTHING, False, ""
        return climb.reason, climb.killed, climb.stack

    def has_killed(self, seat: int) -> bool:
        """Whether the child of this seat was killed, for any of its tasks."""
        return any(climb.killed for (where, _), climb in self.climbs.items() if where == seat)

    def forget(self, seat: int) -> None:
        """The child of this seat is gone."""
        for lane in range(self.board.lanes):
            self.climbs.pop((seat, lane), None)

    def dump(self, seat: int, now: float) -> None:
        """Make the child write its stacks."""
        self.dumped[seat] = now
        self.clear_stack(seat)
        self.send(seat, process.STACK_SIGNAL)

    def look(self, seat: int, now: float) -> None:
        """Make the child write its stacks, those of its coroutines too, and leave its tasks alone."""
        self.dump(seat, now)
        self.board.ask_show(seat)

    def clear_stack(self, seat: int) -> None:
        # The child's descriptor is a copy of ours: rewinding ours rewinds its too.
        os.lseek(self.stacks[seat], 0, os.SEEK_SET)
        os.ftruncate(self.stacks[seat], 0)

    def read_stack(self, seat: int) -> str:
        """All that the child of a seat has written."""
        try:
            return read_stack(self.stacks[seat])
        except OSError:
            return ""

    def stack_of(self, seat: int, lane: int, serial: int) -> str:
        """What the child of a seat has written of the task `serial` in this lane; "" if it has not yet."""
        if self.board.lanes == 1 and not self.board.thread(seat, lane):
            return self.read_stack(seat)
        try:
            return pick_stack(self.stacks[seat], self.board.thread(seat, lane), serial)
        except OSError:
            return ""


def read_stack(fd: int) -> str:
    """What faulthandler wrote, without the frames of the worker itself."""
    return _without_own(os.pread(fd, STACK_MAX, 0).decode(errors="replace"))


def pick_stack(fd: int, thread: int, serial: int) -> str:
    """Of what a child with several lanes wrote, the part of one: what its coroutine `serial` said last, else its
    thread's stack.
    """
    text = os.pread(fd, DUMP_MAX, 0).decode(errors="replace")
    heads = list(_SECTION.finditer(text))
    found = ""
    for head, after in zip_longest(heads, heads[1:]):
        number = int(head[1], 16)
        is_coroutine = head[0].startswith("Coroutine")
        if number == (serial if is_coroutine else thread) and (is_coroutine or not found.startswith("Coroutine")):
            found = text[head.start() : after.start() if after else None]
    return _without_own(found[:STACK_MAX])


def _without_own(text: str) -> str:
    return "\n".join(line for line in text.strip().splitlines() if not _OWN_FRAME.search(line))
