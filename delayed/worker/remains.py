"""What a worker that is gone has left: its board and its spool, in which its children had noted what ended before the
store was told. Its supervisor holds both files too, so that they outlive the death of all who could settle from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from delayed.attempts import noted
from delayed.message import Claim, Settlement
from delayed.worker import board as boards
from delayed.worker import fate, judge
from delayed.worker.board import Board
from delayed.worker.keeping import Keeper
from delayed.worker.spool import Spool


class Remains:
    """The files of one worker, of which no process is left.

    Args:
        board, spool: their descriptors.
        lanes: of each of its children.
        queues: their names, in its order.
        keeps: for each of them, whether its tasks that failed for good are kept as dead letters.
        worker: its id.
    """

    def __init__(
        self, board: int, spool: int, lanes: int, queues: Sequence[str], keeps: Sequence[bool], worker: str
    ) -> None:
        self._board = Board.found(board, lanes)
        self._keeper = Keeper(self._board, Spool(spool, self._board.slots))
        self._queues = {name: index for index, name in enumerate(queues)}
        self._keeps = keeps
        self._worker = worker

    def settled(self, claims: Sequence[Claim]) -> Iterator[tuple[Claim, Settlement]]:
        """Those of the claims that its children had ended, and how they are to be settled."""
        board = self._board
        ended = {}
        for seat in range(board.seats):
            for number in range(board.slots):
                if board.state(seat, number) == boards.ENDED:
                    slot = board.slot(seat, number)
                    ended[slot.queue, slot.id, slot.delivery] = seat, number, slot
        for claim in claims:
            found = ended.get((self._queues[claim.queue], claim.id, claim.delivery))
            if found is None:
                continue
            seat, number, slot = found
            verdict = judge.verdict_told(slot, b"")._replace(
                wall=slot.ended - slot.begun, cpu=slot.cpu, timeout=slot.timeout or None
            )
            settlement = fate.settle(claim, verdict, slot.transaction, keep=self._keeps[slot.queue])
            if settlement is None:
                continue
            settlement = noted(claim, settlement, verdict, self._worker)
            if not verdict.ok:
                judge.log_verdict(claim, verdict, settlement)
            yield claim, self._keeper.settled(claim, settlement, verdict, seat, number)
