"""Silence: how one guardian of a worker notices that the other is frozen, and not dead.

Who is stopped, paged out or stuck in the kernel closes no socket. So each notes on the board that it is awake, and the
other looks. Who finds the other silent for too long kills it: then what follows a death follows, and no process that
wakes up later has to be told that others have its tasks now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from delayed.worker.board import Board


class Silence:
    """For how long another guardian has been silent, as far as this one was awake to see it.

    Args:
        who: the other's number on the board.
        step: seconds between two looks that count at most: who was frozen too has seen nothing.
    """

    def __init__(self, board: Board, who: int, step: float) -> None:
        self._board = board
        self._who = who
        self._step = step
        self._pulse = 0.0
        self._looked = 0.0
        self._seconds = 0.0

    def seconds(self, at: float, *, counts: bool) -> float:
        """The seconds; 0 for as long as it does not count."""
        pulse = self._board.pulse(self._who)
        if pulse != self._pulse or not counts:
            self._pulse = pulse
            self._seconds = 0.0
        else:
            self._seconds += min(at - self._looked, self._step)
        self._looked = at
        return self._seconds
