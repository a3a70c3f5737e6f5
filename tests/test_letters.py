"""Dead letters from Python, and what else a queue tells of its tasks."""

from __future__ import annotations

import secrets

import pytest

from delayed import Queue
from delayed.errors import ConfigError
from delayed.message import Bounds, Settlement
from delayed.task import Task
from tests import functions


def bury(queue: Queue, *reasons: str, func: object = functions.add) -> list[int]:
    """Dead letters, the oldest first."""
    ids = queue.enqueue_many([Task.create(func, (1, 2)) for _ in reasons])  # type: ignore[arg-type]
    worker = secrets.token_hex(4)
    claims = queue.broker.claim([queue.name], worker, 1, 1, len(reasons), 15.0)
    ends = [Settlement(claim.ref, "dead", reason=reason) for claim, reason in zip(claims, reasons, strict=True)]
    assert all(queue.broker.settle(worker, ends))
    return ids


# -- the setting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "bounds"),
    [
        (None, None),
        (False, None),
        (True, Bounds(10_000, 30 * 86400.0)),
        (5000, Bounds(5000, 30 * 86400.0)),
        ((5000, "7d"), Bounds(5000, 7 * 86400.0)),
        ([20, 90.5], Bounds(20, 90.5)),
    ],
)
def test_a_queue_says_what_it_keeps_of_failed_tasks(given: object, bounds: Bounds | None) -> None:
    queue = Queue("mails", "sqlite:///never-opened.db", dead_letters=given)  # type: ignore[arg-type]

    assert queue.dead_letters == bounds
    assert Queue.from_spec(queue.spec()).dead_letters == bounds


@pytest.mark.parametrize("given", [0, -1, 1.5, "7d", (), (1, 2, 3), (True, "7d"), (10, "soon"), (10, 0.5), 2**31])
def test_what_makes_no_sense_is_refused(given: object) -> None:
    with pytest.raises(ConfigError, match=r"dead_letters is|the age of dead letters"):
        Queue("mails", "memory://", dead_letters=given)  # type: ignore[arg-type]


# -- the letters ---------------------------------------------------------------------------------------------------


def test_letters_are_listed_newest_first_and_can_be_searched(queue: Queue) -> None:
    first, second = bury(queue, "raised KeyError: 'name'", "timed out")
    (third,) = bury(queue, "raised KEYERROR", func=functions.Shop.total)

    assert len(queue.dead) == 3
    assert [entry.message.id for entry in queue.dead] == [third, second, first]
    assert [entry.message.id for entry in queue.dead.list(2)] == [third, second]
    assert [entry.message.id for entry in queue.dead.list(reason="keyerror")] == [third, first]
    assert [entry.message.id for entry in queue.dead.list(function="tests.functions.add")] == [second, first]
    assert [entry.message.id for entry in queue.dead.list(function="tests.functions:a*")] == [second, first]
    assert [entry.message.id for entry in queue.dead.list(1, function="*.add", reason="name")] == [first]
    assert queue.dead.list(0) == queue.dead.list(function="tests") == []


def test_a_letter_has_its_payload_and_nothing_else_is_a_letter(queue: Queue) -> None:
    (letter,) = bury(queue, "why")
    waiting = queue.enqueue(Task.create(functions.add, (1, 2)))

    entry = queue.dead.get(letter)
    assert entry is not None and queue.codec.decode(entry.message.payload)[0] == (1, 2)
    assert queue.dead.get(waiting) is None
    assert queue.dead.get(letter + 1000) is None


def test_letters_run_again_or_go(queue: Queue) -> None:
    one, two, three = bury(queue, "a", "b", "c")

    assert queue.dead.requeue(two, 12345) == [two]
    assert queue.dead.drop(one, two) == [one]

    assert [entry.message.id for entry in queue.dead] == [three]
    task = queue.dequeue()
    assert task is not None and (task.id, task.run()) == (two, 3)
    assert queue.dequeue() is None


def test_more_letters_than_a_page_are_walked_through(queue: Queue) -> None:
    ids = bury(queue, *["why"] * 1203)

    assert [entry.message.id for entry in queue.dead] == ids[::-1]
    assert len(queue.dead.list(1100)) == 1100


# -- where a task is -----------------------------------------------------------------------------------------------


def test_a_queue_tells_where_a_task_is(queue: Queue) -> None:
    ids = queue.enqueue_many([Task.create(functions.add, (1, 2)) for _ in range(4)])
    later = queue.enqueue(Task.create(functions.add, (1, 2), delay=1000))
    taken = queue.dequeue()
    assert taken is not None

    assert (queue.len(), queue.dequeued_len()) == (4, 1)
    assert [queue.index(id) for id in ids] == [0, 1, 2, 3]
    assert [queue.index(id, 2) for id in ids] == [0, 1, 2, -1]
    assert queue.index(later) == queue.index(12345) == -1
    urgent = queue.enqueue(Task.create(functions.add, (1, 2), priority=1))
    assert [queue.index(id) for id in (urgent, *ids)] == [1, 0, 2, 3, 4]

    queue.release(taken)
    assert queue.dequeued_len() == 0
    assert queue.index(ids[0]) == -1


def test_letters_in_a_queue_of_another_store(tmp_path: object) -> None:
    queue = Queue("mails", f"sqlite:///{tmp_path}/tasks.db")
    (id,) = bury(queue, "why")
    assert repr(queue.dead).startswith("<dead letters of 'mails' on SQLiteBroker(")
    assert queue.dead and not len(Queue("other", f"sqlite:///{tmp_path}/tasks.db").dead)
    assert queue.dead.drop(id) == [id]
    queue.broker.close()
