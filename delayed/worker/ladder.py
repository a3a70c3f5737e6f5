"""The kill ladder: what happens to a task that has to stop.

1. The child is made to write its Python stacks (faulthandler works while C code holds the GIL).
2. SIGTERM raises TaskTimeout (TaskCancelled, TaskStopped) in the task, if its code lets signals in.
3. `kill_timeout` seconds after the deadline, SIGKILL to the child's whole process group.

In a child that several tasks share the first step comes last: faulthandler looks at other threads while they run, which
may crash them. There the signal handler, which holds the GIL, tells where a task stood when it was stopped, and, before
the kill, where all of them stand; only one that does not answer is made to.

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
_SECTION = re.compile(r"^(Current thread|Thread|Task|Loop) (0x[0-9a-f]+)", re.MULTILINE)
HANDLER_TIMEOUT = 30.0  # seconds that a success or error handler may take
STACK_PATIENCE = 0.2  # seconds to wait for a child to write its stacks
SHOW_TIME = 0.3  # seconds before its kill in which a child that tasks share is to write where they stand
WRITE_TIME = 0.15  # seconds that one gets beyond that if it is in the middle of it
STACK_MAX = 32768  # bytes of stacks that are kept
DUMP_MAX = 2**20  # bytes that are read of the stacks of a child with many lanes


class _Climb:
    """How far a task, or the handler for it, has been taken."""

    __slots__ = ("asked", "deadline", "killed", "phase", "reason", "serial", "shown", "stack", "warned", "written")

    def __init__(self, activity: Activity, reason: int, deadline: float) -> None:
        self.serial = activity.serial
        self.phase = activity.phase
        self.reason = reason
        self.deadline = deadline
        self.asked = 0.0  # when the stacks were asked for
        self.warned = False  # whether SIGTERM was sent
        self.shown = 0.0  # when it was asked where it stands, before its kill
        self.killed = False
        self.written = ""  # what was found of its stack when that was looked for last
        self.stack = ""

    def is_of(self, activity: Activity) -> bool:
        # A task and its handler have one serial: what was begun against the one does not go on against the other.
        return self.serial == activity.serial and self.phase == activity.phase


class _Dump:
    """The stacks that a child which tasks share has written, one below the other.

    Attributes:
        loop: where its event loop stands; "" if there is none, or not yet.
    """

    def __init__(self, file: int) -> None:
        self._tasks: dict[int, str] = {}  # by serial
        self._threads: dict[int, str] = {}
        self.loop = current = ""
        try:
            text = os.pread(file, DUMP_MAX, 0).decode(errors="replace")
        except OSError:
            return
        heads = list(_SECTION.finditer(text))
        for head, after in zip_longest(heads, heads[1:]):
            kind, number = head[1], int(head[2], 16)
            stack = text[head.start() : after.start() if after else None][:STACK_MAX]
            if kind == "Loop":
                self.loop = self.loop or stack
            if kind == "Current thread":
                current = current or stack
            (self._tasks if kind == "Task" else self._threads).setdefault(number, stack)
        self.loop = self.loop or current

    def of(self, serial: int, thread: int) -> str:
        """The stack of a task, or else of the thread that runs it; "" if there is none yet."""
        return self._tasks.get(serial) or self._threads.get(thread, "")


class Ladder:
    """Deadlines of all lanes.

    Args:
        stacks: the descriptor of each seat's stack file.
        send: sends a signal to the child of a seat: send(seat, number).
        shared: whether several tasks may be in one child.
    """

    def __init__(
        self,
        board: Board,
        stacks: list[int],
        kill_timeout: float,
        send: Callable[[int, int], None],
        *,
        shared: bool = False,
    ) -> None:
        self.board = board
        self.stacks = stacks
        self.kill_timeout = kill_timeout
        self.send = send
        self.shared = shared
        self.climbs: dict[tuple[int, int], _Climb] = {}  # by (seat, lane)
        self.dumped = [0.0 for _ in stacks]  # by seat: when its stacks were asked for last
        self.urged = [0.0 for _ in stacks]  # by seat: for which of these askings it was made to write them
        self.read: _Dump | None = None  # of the seat whose tick it is, if somebody has asked
        self.blamed: dict[int, int] = {}  # by seat: the serial of the task for which it was killed, if it was not due

    def tick(self, seat: int, now: float) -> None:
        """Take the next step against each task in this seat, if one is due."""
        signals = set()
        for lane, activity in self.board.activities(seat):
            climb = self.climbs.get((seat, lane))
            if climb is None or not climb.is_of(activity):
                limit = self._limit(seat, activity)
                if not limit or now < activity.since + limit:
                    continue
                again = self.board.activity(seat, lane)
                if not activity.serial or (again, self._limit(seat, again)) != (activity, limit):
                    continue  # it is just beginning: what was read is of two tasks, or of none
                climb = self.climbs[seat, lane] = _Climb(activity, boards.STOP_TIMEOUT, activity.since + limit)
            signals.add(self._step(seat, lane, climb, now))
        self.read = None
        self._send(seat, signals)

    def _limit(self, seat: int, activity: Activity) -> float:
        """Seconds that this may take; 0 if there is no limit."""
        return HANDLER_TIMEOUT if activity.phase == boards.HANDLER else self.board.timeout(seat, activity.slot)

    def stop(self, seat: int, reason: int, now: float, serial: int | None = None) -> None:
        """Begin to stop now what runs in this seat: the task `serial`, or all."""
        signals = set()
        for lane, activity in self.board.activities(seat):
            if not activity.serial or (serial is not None and activity.serial != serial):
                continue  # 0: it is just being written
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
        if self.shared:
            return self._step_shared(seat, lane, climb, now)
        if now >= climb.deadline + self.kill_timeout and climb.asked:
            climb.stack = self.read_stack(seat) or climb.stack
            climb.killed = True
            return signal.SIGKILL
        if not climb.asked:
            climb.asked = now
            self.dump(seat, now)
        elif not climb.warned:
            climb.stack = self.read_stack(seat)
            if climb.stack or now >= climb.asked + STACK_PATIENCE:
                climb.warned = True
                self._ask_stop(seat, lane, climb)
                return signal.SIGTERM
        return 0

    def _step_shared(self, seat: int, lane: int, climb: _Climb, now: float) -> int:
        kill_at = climb.deadline + self.kill_timeout
        if not climb.warned:
            climb.asked, climb.warned = now, True
            self._ask_stop(seat, lane, climb)
            return signal.SIGTERM
        if not climb.shown:
            if now >= kill_at - SHOW_TIME:
                climb.shown = now
                if now > self.dumped[seat] + SHOW_TIME:
                    self.look(seat, now)
            return 0
        self.urge(seat, now)
        before, climb.written = climb.written, self._dump(seat).of(climb.serial, self.board.thread(seat, lane))
        if now < kill_at:
            return 0
        if climb.written:
            is_whole = climb.written == before and climb.written.endswith("\n")
            until = kill_at if is_whole else climb.shown + SHOW_TIME + WRITE_TIME
        else:
            until = climb.shown + SHOW_TIME
        if now < until:
            return 0
        climb.stack = without_own(climb.written)
        climb.killed = True
        blocker = self.board.blocker(seat)
        if climb.reason == boards.STOP_TIMEOUT and blocker and blocker != climb.serial:
            self.blamed[seat] = blocker  # this one could not end
        return signal.SIGKILL

    def _ask_stop(self, seat: int, lane: int, climb: _Climb) -> None:
        of = boards.OF_HANDLER if climb.phase == boards.HANDLER else 0
        self.board.ask_stop(seat, lane, climb.reason, climb.serial | of)

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
        self.blamed.pop(seat, None)
        for lane in range(self.board.lanes):
            self.climbs.pop((seat, lane), None)

    def dump(self, seat: int, now: float) -> None:
        """Make the child write its stacks."""
        self.dumped[seat] = now
        self.clear_stack(seat)
        self.send(seat, process.STACK_SIGNAL)

    def look(self, seat: int, now: float) -> None:
        """Let the child write where its tasks stand, and leave them alone."""
        if not self.shared:
            self.dump(seat, now)
            return
        self.dumped[seat] = now
        self.clear_stack(seat)
        self.board.ask_show(seat)
        self.send(seat, signal.SIGTERM)

    def urge(self, seat: int, now: float) -> None:
        """Make the child write its stacks that was asked for them by :meth:`look` a while ago, and did not."""
        asked = self.dumped[seat]
        if self.shared and self.urged[seat] != asked and now >= asked + SHOW_TIME / 2 and not self.read_stack(seat):
            self.urged[seat] = asked
            self.send(seat, process.STACK_SIGNAL)

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
        if not self.shared:
            return self.read_stack(seat)
        return without_own(_Dump(self.stacks[seat]).of(serial, self.board.thread(seat, lane)))

    def loop_stack(self, seat: int) -> str:
        """What the child of a seat has written of where its event loop stands; "" if it has not yet."""
        return without_own(_Dump(self.stacks[seat]).loop)

    def _dump(self, seat: int) -> _Dump:
        """What a child that tasks share has written, read once for all of its lanes in a tick."""
        if self.read is None:
            self.read = _Dump(self.stacks[seat])
        return self.read


def read_stack(fd: int) -> str:
    """What faulthandler wrote, without the frames of the worker itself."""
    return without_own(os.pread(fd, STACK_MAX, 0).decode(errors="replace"))


def without_own(text: str) -> str:
    """A stack without the frames of the worker itself."""
    return "\n".join(line for line in text.strip().splitlines() if not _OWN_FRAME.search(line))
