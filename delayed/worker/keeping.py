"""Keeping answers: what a child leaves in the spool, and what its guardians make of that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from delayed import answers
from delayed.answers import Raised
from delayed.errors import DecodeError, NotSerializable
from delayed.message import Answer, Claim, Settlement
from delayed.worker import verdict
from delayed.worker.spool import STRIDE, Spool
from delayed.worker.verdict import Verdict

if TYPE_CHECKING:
    from delayed.worker.board import Board
    from delayed.worker.channel import TaskFrame
    from delayed.worker.child import Child

ROOM = 1 << 16  # bytes of an answer that are kept for the verdict


# -- in a child ------------------------------------------------------------------------------------------------


def keep_result(child: Child, frame: TaskFrame, result: Any) -> NotSerializable | None:
    """Leave a result in the spool; why it can't be kept, or None if it is."""
    codec = child.codecs[frame.queue]
    try:
        body = codec.encode_result(frame.id, result)
    except NotSerializable as error:
        return error
    except Exception as error:  # of a plug of the user's
        return NotSerializable(f"can't be encoded: {type(error).__name__}: {error}")
    return _leave(child, frame, body)


def keep_error(child: Child, frame: TaskFrame, error: BaseException) -> None:
    """Leave an exception in the spool if it survives the way there and back; else its words have to do."""
    codec = child.codecs[frame.queue]
    if codec.plain or not isinstance(error, Exception):  # what is no Exception would end more than it should
        return
    try:
        body = codec.encode_result(frame.id, Raised(error))
        again = codec.decode_result(frame.id, body)
        survives = type(again) is Raised and type(again.error) is type(error)
    except Exception:
        return
    if survives:
        _leave(child, frame, body)


def _leave(child: Child, frame: TaskFrame, body: bytes) -> NotSerializable | None:
    config, board = child.config, child.board
    most = min(config.answer_max, STRIDE) - ROOM
    if len(body) > most:
        return NotSerializable(
            f"takes {len(body)} bytes, more than the {most} that this store keeps; store large data elsewhere and "
            "return its name"
        )
    try:
        Spool(config.spool, board.slots).write(child.seat, frame.slot, body)
    except OSError as error:
        return NotSerializable(f"can't be handed over: {error}")
    board.note_answer(child.seat, frame.slot, frame.serial, len(body))
    return None


# -- in its guardians ------------------------------------------------------------------------------------------


class Keeper:
    """Makes the answers that are settled together with the claims."""

    def __init__(self, board: Board, spool: Spool) -> None:
        self._board = board
        self._spool = spool

    def settled(
        self, claim: Claim, settlement: Settlement, found: Verdict, seat: int = -1, number: int = -1
    ) -> Settlement:
        """The settlement with an answer, if it is the last one of a task whose answer is kept.

        Args:
            seat, number: the slot in which the task's child has noted its end; -1: it did not.
        """
        if settlement.action not in ("done", "dead"):
            return settlement
        answer = self.answer(claim, found, seat, number)
        return settlement if answer is None else settlement._replace(answer=answer)

    def answer(self, claim: Claim, found: Verdict, seat: int = -1, number: int = -1) -> Answer | None:
        """What is kept of a task that has ended so, as above; None if nothing is to be kept."""
        try:
            keep = claim.message().keep
        except DecodeError:
            return None
        if keep is None:
            return None
        body = b""
        if seat >= 0 and found.code != verdict.CANCELLED:  # which counts, whatever the task made of it
            slot = self._board.slot(seat, number)
            size = self._board.answer(seat, number, slot.serial)
            body = self._spool.read(seat, number, size) if size else b""
            if found.ok:
                found = Verdict(
                    verdict.RETURNED,
                    type="" if body else "delayed.errors.NotSerializable",
                    text=slot.text,
                    wall=slot.ended - slot.begun,
                    cpu=slot.cpu,
                    timeout=slot.timeout or None,
                )
        return Answer(answers.pack(found, body), keep)
