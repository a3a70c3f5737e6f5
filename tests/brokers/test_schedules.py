"""Schedules that are made at run time, on every store."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest

from delayed import Queue, Scheduler, scheduler
from delayed.brokers import Broker
from delayed.message import Message
from tests import functions
from tests.brokers.patience import eventually


def enqueued(queue: Queue) -> list[Message]:
    return [entry.message for entry in queue.broker.peek(queue.name, "ready", 1000)]


@contextlib.contextmanager
def running(*schedulers: Scheduler) -> Iterator[None]:
    """Schedulers at work during the block."""
    threads = [threading.Thread(target=each.run) for each in schedulers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for each in schedulers:
            each.stop()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


def test_workers_follow_what_is_scheduled_replaced_and_unscheduled(
    open_broker: Callable[[], Broker], queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "LOOK", 0.05)
    mine = Queue(queue, open_broker())
    others = [Queue(queue, open_broker()) for _ in range(2)]

    def seen(path: str) -> list[Message]:
        return [message for message in enqueued(mine) if message.func == path]

    with running(*map(Scheduler, others)):
        mine.schedule("tenant:5", functions.only_names, every=0.1, name="Ada")
        eventually(lambda: len(seen("tests.functions:only_names")) >= 3)
        mine.schedule("tenant:5", functions.echo, 1, "two", every=0.1)
        eventually(lambda: len(seen("tests.functions:echo")) >= 2)
        (schedule,) = others[0].schedules()
        assert others[1].unschedule("tenant:5")

    assert not mine.unschedule("tenant:5") and mine.schedules() == []
    assert (schedule.name, schedule.rule, schedule.stored) == ("tenant:5", {"every": 0.1}, True)
    messages = enqueued(mine)
    keys = [message.key or "" for message in messages]
    assert len(keys) == len(set(keys)), "each tick comes once, whoever enqueues it"
    assert all(key.startswith("tenant:5@") for key in keys)
    assert mine.codec.decode(messages[0].payload)[:2] == ((), {"name": "Ada"})
    assert mine.codec.decode(messages[-1].payload)[:2] == ((1, "two"), {})
    (first, last) = (len(seen("tests.functions:only_names")), len(seen("tests.functions:echo")))
    assert [message.func for message in messages[: first - 1]] == ["tests.functions:only_names"] * (first - 1)
    assert [message.func for message in messages[-last + 1 :]] == ["tests.functions:echo"] * (last - 1)
