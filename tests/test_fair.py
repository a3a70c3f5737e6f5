"""`fair_by`, as users write it."""

from __future__ import annotations

from typing import Any

import pytest

from delayed import ConfigError, Queue, Task, delayed
from delayed.delay import delay_with_params
from delayed.testing import capture


def load(customer: Any, row: int = 0, **rest: Any) -> None:
    """What is to be fair."""


def tidy(row: int, customer: Any = "small") -> None:
    """The same, with its arguments in another order."""


def tenant(queue: Queue, func: Any, *args: Any, fair_by: str = "customer", **kwargs: Any) -> str | None:
    task = queue.task(func, *args, **kwargs)
    task.fair_by = fair_by
    return task.unsealed(queue.codec, 1, None).tenant


def test_whose_a_task_is_is_told_by_its_argument(queue: Queue) -> None:
    small = tenant(queue, load, "small")

    assert small is not None and len(small) == 32
    assert tenant(queue, load, row=7, customer="small") == small
    assert tenant(queue, tidy, 7) == small, "by its default, and whatever function it is"
    assert tenant(queue, load, 1, shop="small", fair_by="shop") == small
    assert tenant(queue, load, "big") != small
    assert tenant(queue, load, 7) == tenant(queue, load, "7")
    assert queue.task(load, "small").unsealed(queue.codec, 1, None).tenant is None


def test_it_is_no_part_of_the_header(queue: Queue) -> None:
    task = queue.task(load, "small")
    plain = task.unsealed(queue.codec, 1, None)
    task.fair_by = "customer"

    fair = task.unsealed(queue.codec, 1, None)._replace(enqueued_at=plain.enqueued_at)

    assert fair.header() == plain.header()


def test_who_encrypts_tells_nobody_whose_they_are(queue: Queue) -> None:
    hidden = Queue("q", "memory://", secret="a secret of sixteen", encrypt=True)

    assert tenant(hidden, load, "small") == tenant(hidden, load, "small") != tenant(queue, load, "small")


@pytest.mark.parametrize("value", [7, "", "a b", "{customer}"])
def test_what_names_no_argument_is_told_at_decoration(queue: Queue, value: Any) -> None:
    with pytest.raises(ConfigError, match="the name of an argument"):
        delayed(queue, fair_by=value)


def test_what_is_no_argument_is_told_by_delay(queue: Queue) -> None:
    with pytest.raises(
        ConfigError, match=r"fair_by='shop' does not go with .*no argument 'shop'; its .*: row, customer"
    ):
        delay_with_params(queue)(fair_by="shop")(tidy)(1)
    with pytest.raises(ConfigError, match="its arguments: none"):
        queue.enqueue(Task(None, "nowhere", "to_be_found", (1,), fair_by="shop"))

    assert queue.len() == 0


def test_a_schedule_keeps_whose_it_is(queue: Queue) -> None:
    func = delayed(queue, fair_by="customer")(load)
    try:
        queue.schedule("each hour", func, "small", every="1h")
    finally:
        vars(load).clear()

    (schedule,) = queue.schedules()

    assert schedule.message(1, 0.0, queue.codec, 5.0).tenant == tenant(queue, load, "small")


def test_calls_take_their_turns(queue: Queue) -> None:
    enqueue = delay_with_params(queue)(fair_by="customer")(load)
    with capture() as tasks:
        for row in range(5):
            enqueue("big", row)
        for row in range(2):
            enqueue("small", row)
        runs = tasks.run_all()

    assert [run.task.args for run in runs] == [
        ("big", 0), ("small", 0), ("big", 1), ("small", 1), ("big", 2), ("big", 3), ("big", 4),
    ]  # fmt: skip
