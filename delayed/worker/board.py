"""The board: shared memory in which monitor, fork server and children note how each task stands.

Whoever dies, the others can read what it had in hand. A worker has a fixed number of seats; a seat holds one child
at a time, and has slots, one for each task that was handed to it and is not settled yet. Only the child writes
progress into its seat; only the monitor (or the fork server, when it stands in) fills and frees slots and asks for a
stop. The byte `state` is written last, so that it never promises what is not there yet.

Times are seconds of :func:`delayed.worker.process.now`.
"""

from __future__ import annotations

import mmap
import os
from struct import Struct
from typing import NamedTuple

SLOTS = 512  # per seat; what is handed over and not settled yet
SLOT_SIZE = 512
SEAT_HEAD = 64
SEAT_SIZE = SEAT_HEAD + SLOTS * SLOT_SIZE

# States of a slot.
FREE, HANDED, BEGUN, ENDED = range(4)
# Phases of a child.
IDLE, TASK, HANDLER = range(3)
# Why a child is asked to stop its task.
STOP_NOTHING, STOP_TIMEOUT, STOP_SHUTDOWN, STOP_LOST = range(4)

_SEAT = Struct("<BxHIdQ")  # phase, slot, -, since, serial
_STOP = Struct("<BQ")  # reason, serial
_STOP_AT = 32
_PID = Struct("<I")
_PID_AT = 48
# state, code, len(text), queue, transaction, serial, id, delivery, attempt, timeout, begun, ended, cpu
_SLOT = Struct("<BBHHHQQIIdddd")
_HANDED = Struct("<BBHHHQQII")
_TEXT_AT = _SLOT.size
TEXT_MAX = SLOT_SIZE - _TEXT_AT
_TRANSACTION = Struct("<H")
_TRANSACTION_AT = 6
_BEGUN = Struct("<dd")  # timeout, begun
_BEGUN_AT = 32
_TIMES = Struct("<dd")  # begun, ended
_TIMES_AT = 40
_END = Struct("<dd")
_END_AT = 48
_CODE = Struct("<BH")


class Activity(NamedTuple):
    """What a child is doing: its phase, in which slot, since when, and the serial of the task."""

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
    text: str
    transaction: int


class Board:
    """The whole board, mapped from the file `fd`, which is grown to hold `seats` seats."""

    def __init__(self, fd: int, seats: int) -> None:
        self.seats = seats
        os.ftruncate(fd, seats * SEAT_SIZE)
        self.map = mmap.mmap(fd, seats * SEAT_SIZE)

    def close(self) -> None:
        self.map.close()

    # -- by the child ------------------------------------------------------------------------------------------

    def take_seat(self, seat: int, pid: int) -> None:
        """A child has come."""
        _PID.pack_into(self.map, seat * SEAT_SIZE + _PID_AT, pid)

    def begin(self, seat: int, slot: int, serial: int, timeout: float, at: float) -> None:
        """A task begins; `timeout` 0 means no limit."""
        base = seat * SEAT_SIZE
        offset = base + SEAT_HEAD + slot * SLOT_SIZE
        _BEGUN.pack_into(self.map, offset + _BEGUN_AT, timeout, at)
        self.map[offset] = BEGUN
        _SEAT.pack_into(self.map, base, TASK, slot, 0, at, serial)

    def note_transaction(self, seat: int, slot: int, state: int) -> None:
        """How far the task's own transaction is, see :mod:`delayed.context`."""
        offset = seat * SEAT_SIZE + SEAT_HEAD + slot * SLOT_SIZE
        _TRANSACTION.pack_into(self.map, offset + _TRANSACTION_AT, state)

    def end(self, seat: int, slot: int, code: int, at: float, cpu: float, text: bytes = b"") -> None:
        """A task has ended with outcome `code`; `text` says more, cut to what fits."""
        offset = seat * SEAT_SIZE + SEAT_HEAD + slot * SLOT_SIZE
        text = text[:TEXT_MAX]
        if text:
            self.map[offset + _TEXT_AT : offset + _TEXT_AT + len(text)] = text
        _CODE.pack_into(self.map, offset + 1, code, len(text))
        _END.pack_into(self.map, offset + _END_AT, at, cpu)
        self.map[offset] = ENDED

    def phase(self, seat: int, phase: int, at: float) -> None:
        """The child turns to something else; slot and serial stay those of its last task."""
        base = seat * SEAT_SIZE
        if phase == IDLE:
            self.map[base] = IDLE
            return
        _, slot, _, _, serial = _SEAT.unpack_from(self.map, base)
        _SEAT.pack_into(self.map, base, phase, slot, 0, at, serial)

    def stop_asked(self, seat: int) -> tuple[int, int]:
        """(reason, serial) of the task that is asked to stop."""
        reason, serial = _STOP.unpack_from(self.map, seat * SEAT_SIZE + _STOP_AT)
        return reason, serial

    # -- by the guardians --------------------------------------------------------------------------------------

    def hand(self, seat: int, slot: int, queue: int, serial: int, id: int, delivery: int, attempt: int) -> None:
        """A task is about to be handed over."""
        offset = seat * SEAT_SIZE + SEAT_HEAD + slot * SLOT_SIZE
        _HANDED.pack_into(self.map, offset, HANDED, 0, 0, queue, 0, serial, id, delivery, attempt)

    def free(self, seat: int, slot: int) -> None:
        """The task of this slot is settled, or was taken back."""
        self.map[seat * SEAT_SIZE + SEAT_HEAD + slot * SLOT_SIZE] = FREE

    def ask_stop(self, seat: int, reason: int, serial: int) -> None:
        """Note why the child will get SIGTERM, and for which task, so that the next task is never hit by it."""
        _STOP.pack_into(self.map, seat * SEAT_SIZE + _STOP_AT, reason, serial)

    def vacate(self, seat: int) -> None:
        """The child of this seat is gone."""
        self.map[seat * SEAT_SIZE : seat * SEAT_SIZE + SEAT_HEAD] = bytes(SEAT_HEAD)

    def pid(self, seat: int) -> int:
        """The pid of the child in this seat; 0 if there is none."""
        (pid,) = _PID.unpack_from(self.map, seat * SEAT_SIZE + _PID_AT)
        return int(pid)

    def activity(self, seat: int) -> Activity:
        phase, slot, _, since, serial = _SEAT.unpack_from(self.map, seat * SEAT_SIZE)
        return Activity(phase, slot, since, serial)

    def state(self, seat: int, slot: int) -> int:
        return self.map[seat * SEAT_SIZE + SEAT_HEAD + slot * SLOT_SIZE]

    def transaction(self, seat: int, slot: int) -> int:
        """What :meth:`note_transaction` noted last."""
        (state,) = _TRANSACTION.unpack_from(self.map, seat * SEAT_SIZE + SEAT_HEAD + slot * SLOT_SIZE + _TRANSACTION_AT)
        return int(state)

    def ended_with(self, seat: int, slot: int) -> int:
        """The outcome of a task that has ended, 0 if it has not."""
        offset = seat * SEAT_SIZE + SEAT_HEAD + slot * SLOT_SIZE
        return self.map[offset + 1] if self.map[offset] == ENDED else 0

    def wall(self, seat: int, slot: int) -> float:
        """Seconds that a task which has ended took."""
        begun, ended = _TIMES.unpack_from(self.map, seat * SEAT_SIZE + SEAT_HEAD + slot * SLOT_SIZE + _TIMES_AT)
        return float(ended - begun)

    def slot(self, seat: int, slot: int) -> Slot:
        offset = seat * SEAT_SIZE + SEAT_HEAD + slot * SLOT_SIZE
        state, code, length, queue, transaction, serial, id, delivery, attempt, timeout, begun, ended, cpu = (
            _SLOT.unpack_from(self.map, offset)
        )
        text = bytes(self.map[offset + _TEXT_AT : offset + _TEXT_AT + min(length, TEXT_MAX)])
        words = text.decode(errors="replace")
        return Slot(state, code, queue, serial, id, delivery, attempt, timeout, begun, ended, cpu, words, transaction)
