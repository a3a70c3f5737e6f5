"""The kill ladder: what happens to a task that has to stop.

1. The child is made to write its Python stacks (faulthandler works while C code holds the GIL).
2. SIGTERM raises TaskTimeout (or TaskStopped) in the task, if its code lets signals in.
3. `kill_timeout` seconds after the deadline, SIGKILL to the child's whole process group.

Every step names the serial of the task, so that a child that has gone on to the next task is left alone.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable

from delayed.worker import board as boards
from delayed.worker import process
from delayed.worker.board import Activity, Board

_OWN_FRAME = re.compile(r'^  File "([^"]*/delayed/(worker/\w+|task)\.py|<string>)", line \d+ in ')
HANDLER_TIMEOUT = 30.0  # seconds that a success or error handler may take
STACK_PATIENCE = 0.2  # seconds to wait for a child to write its stacks
STACK_MAX = 32768  # bytes of stacks that are kept


class _Climb:
    """How far the task `serial` in a seat has been taken."""

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
    """Deadlines of all seats.

    Args:
        stacks: the descriptor of each seat's stack file.
        send: sends a signal to the child of a seat: send(seat, number).
    """

    def __init__(self, board: Board, stacks: list[int], kill_timeout: float, send: Callable[[int, int], None]) -> None:
        self.board = board
        self.stacks = stacks
        self.kill_timeout = kill_timeout
        self.send = send
        self.climbs: dict[int, _Climb] = {}

    def tick(self, seat: int, now: float) -> None:
        """Take the next step in this seat, if one is due."""
        activity = self.board.activity(seat)
        climb = self.climbs.get(seat)
        if activity.phase == boards.IDLE:
            return
        if climb is None or not climb.is_of(activity):
            if activity.phase == boards.HANDLER:
                limit = HANDLER_TIMEOUT
            else:
                limit = self.board.slot(seat, activity.slot).timeout
            if not limit or now < activity.since + limit:
                return
            climb = self.climbs[seat] = _Climb(activity, boards.STOP_TIMEOUT, activity.since + limit)
        self._step(seat, climb, now)

    def stop(self, seat: int, reason: int, now: float) -> None:
        """Begin to stop what runs in this seat now."""
        activity = self.board.activity(seat)
        if activity.phase == boards.IDLE:
            return
        climb = self.climbs.get(seat)
        if climb is None or not climb.is_of(activity):
            climb = self.climbs[seat] = _Climb(activity, reason, now)
            self._step(seat, climb, now)

    def kill(self, seat: int, reason: int) -> None:
        """SIGKILL, at once."""
        activity = self.board.activity(seat)
        climb = self.climbs.get(seat)
        if climb is None or not climb.is_of(activity):
            climb = self.climbs[seat] = _Climb(activity, reason, 0.0)
        climb.killed = True
        self.send(seat, signal.SIGKILL)

    def _step(self, seat: int, climb: _Climb, now: float) -> None:
        if climb.killed:
            return
        if now >= climb.deadline + self.kill_timeout and climb.asked:
            climb.stack = climb.stack or self.read_stack(seat)
            climb.killed = True
            self.send(seat, signal.SIGKILL)
        elif not climb.asked:
            climb.asked = now
            self.clear_stack(seat)
            self.send(seat, process.STACK_SIGNAL)
        elif not climb.warned:
            climb.stack = self.read_stack(seat)
            if climb.stack or now >= climb.asked + STACK_PATIENCE:
                climb.warned = True
                self.board.ask_stop(seat, climb.reason, climb.serial)
                self.send(seat, signal.SIGTERM)

    def outcome(self, seat: int, serial: int) -> tuple[int, bool, str]:
        """(reason, killed, stack) of the stop of this task; (STOP_NOTHING, False, "") if it was left alone."""
        climb = self.climbs.get(seat)
        if climb is None or climb.serial != serial:
            return boards.STOP_NOTHING, False, ""
        return climb.reason, climb.killed, climb.stack

    def forget(self, seat: int) -> None:
        self.climbs.pop(seat, None)

    def clear_stack(self, seat: int) -> None:
        # The child's descriptor is a copy of ours: rewinding ours rewinds its too.
        os.lseek(self.stacks[seat], 0, os.SEEK_SET)
        os.ftruncate(self.stacks[seat], 0)

    def read_stack(self, seat: int) -> str:
        try:
            return read_stack(self.stacks[seat])
        except OSError:
            return ""


def read_stack(fd: int) -> str:
    """What faulthandler wrote, without the frames of the worker itself."""
    text = os.pread(fd, STACK_MAX, 0).decode(errors="replace").strip()
    return "\n".join(line for line in text.splitlines() if not _OWN_FRAME.search(line))
