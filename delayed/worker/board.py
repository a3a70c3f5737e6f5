"""The board: shared memory in which monitor, fork server and children note how each task stands.

Whoever dies, the others can read what it had in hand. A worker has a fixed number of seats; a seat holds one child
at a time. It has lanes, one for each task that the child can run at once, which say what runs there and since when;
and slots, one for each task that was handed to it and is not settled yet. Only the child writes progress into its
seat; only the monitor (or the fork server, when it stands in) fills and frees slots and asks for a stop. The byte
`state` is written last, so that it never promises what is not there yet.

Times are seconds of :func:`delayed.worker.process.now`.
"""

from __future__ import annotations

import mmap
import os
from struct import Struct
from typing import NamedTuple

SPARES = 4  # seats beside the others, in which tasks that may have ended a child run apart, if children have lanes
SLOTS_SPARE = 1022  # slots per seat beside two for each lane; what is handed over and not settled yet
SLOT_SIZE = 512
LANE_SIZE = 64
SEAT_HEAD = 64
RECALL_DELAY = 0.02  # seconds, in which what a child noted before it could see a recall has long become visible

HOOK_SERIALS = 2**63  # from here on serials are of the hooks that a child calls for no task
OF_HANDLER = 2**62  # in the serial of a request to stop: it is meant for what is called after the task

# States of a slot.
FREE, HANDED, BEGUN, ENDED = range(4)
# Phases of a lane.
IDLE, TASK, HANDLER = range(3)
MONITOR, FORK_SERVER, LEASES = range(3)  # whose pulse it is: awake, awake, and renewed
PULSES = 3
# Why a child is asked to stop its task.
STOP_NOTHING, STOP_TIMEOUT, STOP_SHUTDOWN, STOP_LOST, STOP_CANCELLED = range(5)

_PULSE = Struct("<d")  # behind the seats
_PID = Struct("<I")  # at the beginning of a seat
_BEAT = Struct("<d")
_BEAT_AT = 8
_SHOWS = Struct("<Q")
_SHOWS_AT = 16
_BLOCKER = Struct("<Q")
_BLOCKER_AT = 24
_REPORTS = Struct("<Q")
_REPORTS_AT = 32
_RECALLED = Struct("@Q")  # written and read in one piece
_RECALLED_AT = 40
_RECALLS_AT = 48  # whether there was ever one in this child's life: one byte is quicker to look at
_LANE = Struct("<BxHIdQ")  # phase, slot, -, since, serial
_LANES = Struct(f"<BxHIdQ{LANE_SIZE - _LANE.size}x")
_STOP = Struct("<BQ")  # reason, serial
_STOP_SERIAL = Struct("<Q")
_STOP_AT = 32
_THREAD = Struct("<Q")
_THREAD_AT = 48
# state, code, len(text), queue, transaction, serial, id, delivery, attempt, timeout, begun, ended, cpu, lane, decision,
# whether there is a delay, -, delay
_SLOT = Struct("<BBHHHQQIIddddHB?4xd")
_HANDED = Struct("<BBHHHQQIId")  # up to the timeout
_TEXT_AT = _SLOT.size
_ANSWER = Struct("<QQ")  # serial, length of its answer in the spool
_ANSWER_AT = SLOT_SIZE - _ANSWER.size
_EXCLUSIVE = Struct("<Q")  # serial
_EXCLUSIVE_AT = _ANSWER_AT - _EXCLUSIVE.size
TEXT_MAX = _EXCLUSIVE_AT - _TEXT_AT
# How far a task is lies where later the words about its end do: serial, part that is done, length of the text.
_PROGRESS = Struct("<QdH")
PROGRESS_MAX = TEXT_MAX - _PROGRESS.size
_TRANSACTION = Struct("<H")
_TRANSACTION_AT = 6
CHECKING = 61.03125  # seconds, and the mark of a task whose seal is being looked at: its own timeout does not count yet
_BEGUN = Struct("<dd")  # timeout, begun
_TIMEOUT = Struct("@d")  # written and read in one piece
_BEGUN_AT = 32
_TIMES_AT = 40
_OUTCOME = Struct(f"<B{_TIMES_AT - 2}xdd")  # behind the state: code, begun, ended
_END = Struct("<dd")
_END_AT = 48
_LENGTH = Struct("<H")
_LENGTH_AT = 2
_LANE_OF = Struct("<H")
_LANE_OF_AT = 64
_FATE = Struct("<B?4xd")
_FATE_AT = 66


class Activity(NamedTuple):
    """What a child does in a lane: the phase, in which slot, since when, and the serial of the task."""

    phase: int
    slot: int
    since: float
    serial: int


class Slot(NamedTuple):
    """One handed-over task as the board shows it."""

    state: int
    code: int
    queue: int
    serial: int
    id: int
    delivery: int
    attempt: int
    timeout: float
    begun: float
    ended: float
    cpu: float
    lane: int
    text: str
    transaction: int
    decision: int
    delay: float | None


class Board:
    """The whole board, mapped from the file `fd`, which is grown to hold `seats` seats of `lanes` lanes each."""

    def __init__(self, fd: int, seats: int, lanes: int = 1) -> None:
        self.seats = seats
        self.lanes = lanes
        self.slots = SLOTS_SPARE + 2 * lanes
        self.slots_at = SEAT_HEAD + lanes * LANE_SIZE
        self.seat_size = self._seat_size(lanes)
        self.pulses_at = seats * self.seat_size
        size = self.pulses_at + PULSES * _PULSE.size
        os.ftruncate(fd, size)
        self.map = mmap.mmap(fd, size)

    @classmethod
    def found(cls, fd: int, lanes: int) -> Board:
        """The board that a worker, with so many lanes in each child, has made of a file; it may have no seats yet."""
        size = os.fstat(fd).st_size - PULSES * _PULSE.size
        return cls(fd, max(size, 0) // cls._seat_size(lanes), lanes)

    @staticmethod
    def _seat_size(lanes: int) -> int:
        return SEAT_HEAD + lanes * LANE_SIZE + (SLOTS_SPARE + 2 * lanes) * SLOT_SIZE

    def close(self) -> None:
        self.map.close()

    # -- by the guardians --------------------------------------------------------------------------------------

    def note_pulse(self, who: int, at: float) -> None:
        """A guardian is awake; or the request was sent that renewed what was held for longer."""
        _PULSE.pack_into(self.map, self.pulses_at + who * _PULSE.size, at)

    def pulse(self, who: int) -> float:
        """When it last was."""
        (at,) = _PULSE.unpack_from(self.map, self.pulses_at + who * _PULSE.size)
        return float(at)

    # -- by the child ------------------------------------------------------------------------------------------

    def take_seat(self, seat: int, pid: int) -> None:
        """A child has come."""
        _PID.pack_into(self.map, seat * self.seat_size, pid)

    def begin(self, seat: int, lane: int, slot: int, serial: int, timeout: float, at: float) -> bool:
        """A task begins; `timeout` 0 means no limit. False if it was recalled: then it does not."""
        base = seat * self.seat_size
        _LANE.pack_into(self.map, base + SEAT_HEAD + lane * LANE_SIZE, TASK, slot, 0, at, serial)
        # After the lane says so, for a child may stand still anywhere. Whoever recalls looks at the lane long after
        # having said so: either it finds the task there, and leaves it, or here it is found that it may not begin. Then
        # its slot is not touched: it may be another's by now.
        if self.map[base + _RECALLS_AT] and serial <= self.recalled(seat):
            self.idle(seat, lane)
            return False
        offset = base + self.slots_at + slot * SLOT_SIZE
        _BEGUN.pack_into(self.map, offset + _BEGUN_AT, timeout, at)
        if self.lanes > 1:
            _LANE_OF.pack_into(self.map, offset + _LANE_OF_AT, lane)
        self.map[offset] = BEGUN
        return True

    def note_timeout(self, seat: int, slot: int, timeout: float) -> None:
        """What is found later of a task that has begun: how long it may take, from its beginning; 0 means no limit."""
        _TIMEOUT.pack_into(self.map, self._slot_at(seat, slot) + _BEGUN_AT, timeout)

    def note_transaction(self, seat: int, slot: int, state: int) -> None:
        """How far the task's own transaction is, see :mod:`delayed.context`."""
        _TRANSACTION.pack_into(self.map, self._slot_at(seat, slot) + _TRANSACTION_AT, state)

    def note_fate(self, seat: int, slot: int, decision: int = 0, delay: float | None = None) -> None:
        """What is decided of a run that did not return, see :class:`Verdict`; noted before its end is."""
        _FATE.pack_into(self.map, self._slot_at(seat, slot) + _FATE_AT, decision, delay is not None, delay or 0.0)

    def note_progress(self, seat: int, slot: int, serial: int, done: float, text: bytes) -> None:
        """How far the task says that it is; `text` is cut to what fits."""
        offset = self._slot_at(seat, slot) + _TEXT_AT
        text = text[:PROGRESS_MAX]
        self.map[offset + _PROGRESS.size : offset + _PROGRESS.size + len(text)] = text
        _PROGRESS.pack_into(self.map, offset, serial, done, len(text))
        _REPORTS.pack_into(self.map, seat * self.seat_size + _REPORTS_AT, (self.reports(seat) + 1) % (1 << 64))

    def note_answer(self, seat: int, slot: int, serial: int, size: int) -> None:
        """How many bytes of an answer the task has in the spool; noted before its end is."""
        _ANSWER.pack_into(self.map, self._slot_at(seat, slot) + _ANSWER_AT, serial, size)

    def end(self, seat: int, slot: int, code: int, at: float, cpu: float, text: bytes = b"") -> None:
        """A task that was handed over has ended, once, with outcome `code`; `text` says more, cut to what fits."""
        offset = seat * self.seat_size + self.slots_at + slot * SLOT_SIZE
        if text:
            text = text[:TEXT_MAX]
            self.map[offset + _TEXT_AT : offset + _TEXT_AT + len(text)] = text
            _LENGTH.pack_into(self.map, offset + _LENGTH_AT, len(text))  # it is 0 since the task was handed over
        self.map[offset + 1] = code
        _END.pack_into(self.map, offset + _END_AT, at, cpu)
        self.map[offset] = ENDED

    def idle(self, seat: int, lane: int) -> None:
        """Nothing runs in this lane; slot and serial stay those of its last task."""
        self.map[seat * self.seat_size + SEAT_HEAD + lane * LANE_SIZE] = IDLE

    def handler(self, seat: int, lane: int, serial: int, at: float) -> None:
        """The handler for the task `serial` is called."""
        base = seat * self.seat_size + SEAT_HEAD + lane * LANE_SIZE
        slot = _LANE.unpack_from(self.map, base)[1]
        _LANE.pack_into(self.map, base, HANDLER, slot, 0, at, serial)

    def note_thread(self, seat: int, lane: int, ident: int) -> None:
        """By which thread the lane's tasks are run (:func:`threading.get_ident`)."""
        _THREAD.pack_into(self.map, seat * self.seat_size + SEAT_HEAD + lane * LANE_SIZE + _THREAD_AT, ident)

    def note_beat(self, seat: int, at: float) -> None:
        """The child's event loop turns."""
        _BEAT.pack_into(self.map, seat * self.seat_size + _BEAT_AT, at)

    def stop_asked(self, seat: int, lane: int) -> tuple[int, int]:
        """(reason, serial) of the task in this lane that is asked to stop."""
        at = seat * self.seat_size + SEAT_HEAD + lane * LANE_SIZE + _STOP_AT
        reason, serial = _STOP.unpack_from(self.map, at)
        return reason, serial

    def answer_stop(self, seat: int, lane: int) -> None:
        """What was asked of the task in this lane is done, or too late: it is not to hit another one."""
        self.map[seat * self.seat_size + SEAT_HEAD + lane * LANE_SIZE + _STOP_AT] = STOP_NOTHING

    def note_blocker(self, seat: int, serial: int) -> None:
        """Which task's code the child's event loop has been in for too long; 0: in nobody's that runs."""
        _BLOCKER.pack_into(self.map, seat * self.seat_size + _BLOCKER_AT, serial)

    def shows(self, seat: int) -> int:
        """How often this child was asked to write where its tasks stand."""
        (number,) = _SHOWS.unpack_from(self.map, seat * self.seat_size + _SHOWS_AT)
        return int(number)

    # -- by the guardians --------------------------------------------------------------------------------------

    def hand(self, seat: int, slot: int, queue: int, serial: int, id: int, delivery: int, attempt: int) -> None:
        """A task is about to be handed over."""
        offset = seat * self.seat_size + self.slots_at + slot * SLOT_SIZE
        _HANDED.pack_into(self.map, offset, HANDED, 0, 0, queue, 0, serial, id, delivery, attempt, 0.0)

    def note_exclusive(self, seat: int, slot: int, serial: int) -> None:
        """The task that was handed over may not run in two places at once."""
        _EXCLUSIVE.pack_into(self.map, self._slot_at(seat, slot) + _EXCLUSIVE_AT, serial)

    def exclusives(self, seat: int) -> list[int]:
        """The slots of a seat in which such a task has begun, and not ended."""
        begun = (slot for slot in range(self.slots) if self.state(seat, slot) == BEGUN)
        return [slot for slot in begun if self._is_exclusive(seat, slot)]

    def _is_exclusive(self, seat: int, slot: int) -> bool:
        (serial,) = _EXCLUSIVE.unpack_from(self.map, self._slot_at(seat, slot) + _EXCLUSIVE_AT)
        return bool(serial == self.slot(seat, slot).serial)

    def recall(self, seat: int, serial: int) -> None:
        """The tasks of this seat up to `serial` that have not begun shall not. Those which a little later,
        :data:`RECALL_DELAY`, are in no lane, and of which the state shows then that they have not, never will.
        """
        base = seat * self.seat_size
        _RECALLED.pack_into(self.map, base + _RECALLED_AT, serial)
        self.map[base + _RECALLS_AT] = 1

    def recalled(self, seat: int) -> int:
        """The last task that was recalled from this child; 0 if none was."""
        (serial,) = _RECALLED.unpack_from(self.map, seat * self.seat_size + _RECALLED_AT)
        return int(serial)

    def in_lanes(self, seat: int) -> set[int]:
        """The serials of the tasks that run in this seat, or are just about to. To be looked at before their state is:
        it shows what has left its lane meanwhile.
        """
        return {activity.serial for _, activity in self.activities(seat) if activity.phase == TASK}

    def free(self, seat: int, slot: int) -> None:
        """The task of this slot is settled, or was taken back."""
        self.map[seat * self.seat_size + self.slots_at + slot * SLOT_SIZE] = FREE

    def ask_stop(self, seat: int, lane: int, reason: int, serial: int) -> None:
        """Note why the child will get SIGTERM, and for which task, so that the next one is never hit by it; with
        ``OF_HANDLER`` for the handler of that task, and else not for that.
        """
        at = seat * self.seat_size + SEAT_HEAD + lane * LANE_SIZE + _STOP_AT
        _STOP_SERIAL.pack_into(self.map, at + 1, serial)
        self.map[at] = reason  # last: the child may be looking, for another lane

    def ask_show(self, seat: int) -> None:
        """Ask the child to write where its tasks stand, once more."""
        self.note_blocker(seat, 0)
        _SHOWS.pack_into(self.map, seat * self.seat_size + _SHOWS_AT, self.shows(seat) + 1)

    def vacate(self, seat: int) -> None:
        """The child of this seat is gone."""
        base = seat * self.seat_size
        self.map[base : base + self.slots_at] = bytes(self.slots_at)

    def reports(self, seat: int) -> int:
        """A number that changes whenever a task in this seat says how far it is."""
        (number,) = _REPORTS.unpack_from(self.map, seat * self.seat_size + _REPORTS_AT)
        return int(number)

    def progress(self, seat: int, slot: int, serial: int) -> tuple[float, str] | None:
        """How far a task that has not ended says that it is; None if it has said nothing."""
        offset = self._slot_at(seat, slot) + _TEXT_AT
        whose, done, length = _PROGRESS.unpack_from(self.map, offset)
        text = bytes(self.map[offset + _PROGRESS.size : offset + _PROGRESS.size + min(length, PROGRESS_MAX)])
        if whose != serial or self.state(seat, slot) != BEGUN or not 0 <= done <= 1:
            return None
        return float(done), text.decode(errors="ignore")

    def pid(self, seat: int) -> int:
        """The pid of the child in this seat; 0 if there is none."""
        (pid,) = _PID.unpack_from(self.map, seat * self.seat_size)
        return int(pid)

    def beat(self, seat: int) -> float:
        """When the child's event loop last turned, as far as it noted that; 0 if it never did."""
        (at,) = _BEAT.unpack_from(self.map, seat * self.seat_size + _BEAT_AT)
        return float(at)

    def blocker(self, seat: int) -> int:
        """What :meth:`note_blocker` noted last."""
        (serial,) = _BLOCKER.unpack_from(self.map, seat * self.seat_size + _BLOCKER_AT)
        return int(serial)

    def thread(self, seat: int, lane: int) -> int:
        """What :meth:`note_thread` noted last; 0 if nothing."""
        at = seat * self.seat_size + SEAT_HEAD + lane * LANE_SIZE + _THREAD_AT
        (ident,) = _THREAD.unpack_from(self.map, at)
        return int(ident)

    def activity(self, seat: int, lane: int) -> Activity:
        phase, slot, _, since, serial = _LANE.unpack_from(
            self.map, seat * self.seat_size + SEAT_HEAD + lane * LANE_SIZE
        )
        return Activity(phase, slot, since, serial)

    def activities(self, seat: int) -> list[tuple[int, Activity]]:
        """(lane, activity) of the lanes in which something runs."""
        base = seat * self.seat_size + SEAT_HEAD
        if self.lanes == 1:
            return [(0, self.activity(seat, 0))] if self.map[base] != IDLE else []
        return [
            (lane, Activity(phase, slot, since, serial))
            for lane, (phase, slot, _, since, serial) in enumerate(
                _LANES.iter_unpack(self.map[base : base + self.lanes * LANE_SIZE])
            )
            if phase != IDLE
        ]

    def busy(self, seat: int) -> bool:
        """Whether something runs in this seat."""
        base = seat * self.seat_size + SEAT_HEAD
        if self.lanes == 1:
            return self.map[base] != IDLE
        return any(self.map[base : base + self.lanes * LANE_SIZE : LANE_SIZE])

    def holds_any(self) -> bool:
        """Whether any task was handed to a child, or has ended and is not settled yet."""
        bases = (seat * self.seat_size + self.slots_at for seat in range(self.seats))
        return any(any(self.map[base : base + self.slots * SLOT_SIZE : SLOT_SIZE]) for base in bases)

    def began(self, seat: int) -> bool:
        """Whether the child in this seat has ever begun a task, or a handler for one."""
        return any(0 < self.activity(seat, lane).serial < HOOK_SERIALS for lane in range(self.lanes))

    def state(self, seat: int, slot: int) -> int:
        return self.map[seat * self.seat_size + self.slots_at + slot * SLOT_SIZE]

    def timeout(self, seat: int, slot: int) -> float:
        """Seconds that the task may take; 0 if there is no limit."""
        limit, _ = _BEGUN.unpack_from(self.map, self._slot_at(seat, slot) + _BEGUN_AT)
        return float(limit)

    def transaction(self, seat: int, slot: int) -> int:
        """What :meth:`note_transaction` noted last."""
        (state,) = _TRANSACTION.unpack_from(self.map, self._slot_at(seat, slot) + _TRANSACTION_AT)
        return int(state)

    def ended(self, seat: int, slot: int) -> tuple[int, float]:
        """The outcome of a task that has ended, 0 if it has not; and how many seconds it took."""
        offset = seat * self.seat_size + self.slots_at + slot * SLOT_SIZE
        if self.map[offset] != ENDED:
            return 0, 0.0
        code, begun, ended = _OUTCOME.unpack_from(self.map, offset + 1)
        return code, ended - begun

    def answer(self, seat: int, slot: int, serial: int) -> int:
        """What :meth:`note_answer` noted for this task; 0 if nothing."""
        whose, size = _ANSWER.unpack_from(self.map, self._slot_at(seat, slot) + _ANSWER_AT)
        return int(size) if whose == serial else 0

    def slot(self, seat: int, slot: int) -> Slot:
        offset = self._slot_at(seat, slot)
        found = _SLOT.unpack_from(self.map, offset)
        state, code, length, queue, transaction, serial, id, delivery, attempt = found[:9]
        timeout, begun, ended, cpu, lane, decision, has_delay, delay = found[9:]
        text = bytes(self.map[offset + _TEXT_AT : offset + _TEXT_AT + min(length, TEXT_MAX)])
        words = text.decode(errors="replace")
        times = timeout, begun, ended, cpu
        return Slot(
            state, code, queue, serial, id, delivery, attempt, *times, lane, words, transaction, decision,
            delay if has_delay else None,
        )  # fmt: skip

    def _slot_at(self, seat: int, slot: int) -> int:
        return seat * self.seat_size + self.slots_at + slot * SLOT_SIZE
