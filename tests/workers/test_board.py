"""The board: what a child and its guardians find on it, whichever of them stands still in between."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from delayed.worker import board as boards
from delayed.worker import process
from delayed.worker.board import Board
from delayed.worker.ladder import Ladder


class Halting(Board):
    """A board whose child stands still whenever it has looked for a recall, while `meanwhile` is done."""

    meanwhile: Callable[[], None] | None = None

    def recalled(self, seat: int) -> int:
        found = super().recalled(seat)
        if self.meanwhile is not None:
            self.meanwhile()
        return found


@pytest.fixture
def board() -> Iterator[Halting]:
    file = process.anonymous_file("board")
    board = Halting(file, 1)
    yield board
    board.close()
    os.close(file)


def test_the_next_task_in_a_slot_has_words_of_its_own(board: Halting) -> None:
    for serial, words in enumerate(["it failed", "", "again"], 1):
        board.hand(0, 3, 0, serial, 100, 1, 1)
        board.begin(0, 0, 3, serial, 1.0, 50.0)
        board.end(0, 3, 1, 51.0, 0.5, words.encode())
        assert board.slot(0, 3).text == words
        board.free(0, 3)


def take_back(board: Board, slot: int, serial: int) -> bool:
    """What a guardian does that does not wait; whether the task had not begun."""
    board.recall(0, serial)
    if serial in board.in_lanes(0) or board.state(0, slot) != boards.HANDED:
        return False
    board.free(0, slot)
    return True


def test_a_task_that_is_recalled_while_its_child_begins_it_is_run_by_one_of_them(board: Halting) -> None:
    board.hand(0, 3, 0, 7, 100, 1, 1)
    board.recall(0, 6)
    taken = []
    board.meanwhile = lambda: taken.append(take_back(board, 3, 7))
    begins = board.begin(0, 0, 3, 7, 1.0, 50.0)

    assert taken
    assert begins is not any(taken)
    assert board.state(0, 3) == (boards.BEGUN if begins else boards.FREE)


def test_a_child_that_was_late_leaves_the_slot_to_the_next_task(board: Halting) -> None:
    board.hand(0, 3, 0, 7, 100, 1, 1)
    assert take_back(board, 3, 7)

    assert not board.begin(0, 0, 3, 7, 1.0, 50.0)
    assert board.state(0, 3) == boards.FREE
    assert not board.busy(0)
    board.hand(0, 3, 0, 8, 101, 1, 1)
    assert not board.begin(0, 0, 3, 7, 1.0, 50.0)
    assert board.slot(0, 3)[:4] == (boards.HANDED, 0, 0, 8)
    assert board.begin(0, 0, 3, 8, 2.0, 51.0)


def test_a_task_that_has_just_been_handed_over_has_no_timeout_of_an_earlier_one(board: Halting) -> None:
    board.hand(0, 3, 0, 7, 100, 1, 1)
    assert board.begin(0, 0, 3, 7, 1.0, 50.0)
    board.note_timeout(0, 3, 4.0)
    assert board.timeout(0, 3) == 4.0
    assert board.slot(0, 3).begun == 50.0

    board.free(0, 3)
    board.hand(0, 3, 0, 8, 101, 1, 1)
    assert board.timeout(0, 3) == 0.0


def test_a_guardian_that_looks_while_tasks_begin_finds_none_overdue() -> None:
    file, stack = process.anonymous_file("board"), process.anonymous_file("stack")
    board = Board(file, 1)
    child = os.fork()
    if not child:
        for serial in count(1):
            board.begin(0, 0, 3, serial, 60.0, process.now())
    sent: list[int] = []
    ladder = Ladder(board, [stack], 1.0, lambda seat, number: sent.append(number))
    try:
        end = process.now() + 3.0
        while (now := process.now()) < end:
            for _ in range(1000):
                ladder.tick(0, now)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        board.close()
        os.close(file)
        os.close(stack)

    assert not sent and not ladder.climbs


def test_a_child_that_is_still_writing_its_stacks_is_given_the_time() -> None:
    """With much else to do it may be stopped in the middle of a line."""
    file, stack = process.anonymous_file("board"), process.anonymous_file("stack")
    board = Board(file, 1, 2)
    board.note_thread(0, 0, 0xABC)
    board.hand(0, 3, 0, 7, 100, 1, 1)
    board.begin(0, 0, 3, 7, 1.0, 50.0)
    sent: list[int] = []
    ladder = Ladder(board, [stack], 1.0, lambda seat, number: sent.append(number), shared=True)
    head = b'Thread 0x0000000000000abc (most recent call first):\n  File "/app/tasks.py", line'
    try:
        for step in range(13):  # the times are given: nobody waits
            ladder.tick(0, 51.0 + step * 0.1)
            if process.STACK_SIGNAL in sent:
                break
        os.write(stack, head)
        for step in (0.99, 1.04, 1.09):
            ladder.tick(0, 51.0 + step)
        assert signal.SIGKILL not in sent
        os.write(stack, b" 9 in stuck\n")
        ladder.tick(0, 52.14)
        ladder.tick(0, 52.19)
        assert sent[-1] == signal.SIGKILL
        _, killed, text = ladder.outcome(0, 0, 7)
        assert killed
        assert text.endswith("line 9 in stuck")
    finally:
        board.close()
        os.close(file)
        os.close(stack)
