"""How several queues share a worker."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from delayed import ConfigError, PreforkedWorker, Queue
from delayed.message import Claim
from delayed.task import Task
from delayed.worker.turns import Turns
from tests.workers import tasks
from tests.workers.conftest import Bench

only_sqlite = pytest.mark.parametrize("bench", ["sqlite"], indirect=True)


class Store:
    """Queues with so many tasks, which are claimed from as a courier does."""

    def __init__(self, weights: Mapping[str, float], **sizes: int) -> None:
        self.turns = Turns(weights)
        self.sizes = sizes
        self.claims = 0

    def claim(self, room: int, target: int = 384) -> list[str]:
        """The queues of what is claimed, in this order."""
        asked = self.turns.order()
        limit = min(room, self.turns.share(asked[0], target))
        assert 1 <= limit <= room
        got: list[str] = []
        for queue in asked:
            count = min(self.sizes[queue], limit - len(got))
            self.sizes[queue] -= count
            got += [queue] * count
        self.claims += 1
        self.turns.took(asked, limit, [Claim(queue, 1, 1, 1, 1, b"", b"") for queue in got])
        assert len(got) == limit or not any(self.sizes.values()), "no room is left empty while one has something"
        return got

    def take(self, n: int, target: int = 384) -> list[str]:
        found: list[str] = []
        while len(found) < n:
            got = self.claim(n - len(found), target)
            assert got
            found += got
        return found


@pytest.mark.parametrize("target", [1, 3, 8, 384])
@pytest.mark.parametrize(
    "weights",
    [
        {"a": 1, "b": 1},
        {"a": 3, "b": 1},
        {"a": 0.1, "b": 0.2},
        {"a": 1, "b": 2, "c": 5},
        dict.fromkeys("abcdefghij", 1),
    ],
)
def test_full_queues_are_mixed_in_proportion(weights: dict[str, float], target: int) -> None:
    store = Store(weights, **dict.fromkeys(weights, 10_000))

    for _ in range(3):  # at any time, not only in the end
        found = Counter(store.take(1000, target))

        for queue, weight in weights.items():
            expected = 1000 * weight / sum(weights.values())
            assert found[queue] == pytest.approx(expected, rel=0.1)


def test_the_room_of_long_tasks_is_shared_at_once() -> None:
    store = Store({"a": 3, "b": 1}, a=100, b=100)

    assert Counter(store.take(8, 8)) == {"a": 6, "b": 2}
    assert store.claims == 2


def test_an_empty_queue_leaves_its_share_and_saves_nothing() -> None:
    store = Store({"a": 1, "b": 1}, a=5000, b=0)
    assert store.take(2000) == ["a"] * 2000
    store.sizes["b"] = 5000

    found = Counter(store.take(1000))

    assert found["b"] == pytest.approx(500, rel=0.1)


def test_a_queue_with_less_than_its_share_waits_for_nobody() -> None:
    store = Store({"a": 1, "b": 1}, a=100_000, b=0)
    for _ in range(50):
        store.sizes["b"] += 1
        store.claim(100)

        assert store.sizes["b"] <= 1, "it is asked at every second claim at least"


def test_after_everything_was_empty_all_begin_anew() -> None:
    store = Store({"a": 1, "b": 1}, a=10, b=0)
    assert store.claim(100) == ["a"] * 10
    store.sizes |= {"a": 1000, "b": 1000}

    assert Counter(store.take(200)) == {"a": pytest.approx(100, abs=32), "b": pytest.approx(100, abs=32)}


def test_whatever_comes_no_room_is_left_empty() -> None:
    dice = random.Random(1)
    store = Store({"a": 1, "b": 7, "c": 0.5}, a=0, b=0, c=0)
    for _ in range(2000):
        store.sizes[dice.choice("abc")] += dice.randrange(60)
        store.claim(dice.randrange(1, 200), dice.randrange(1, 400))
        assert all(0 <= each < 1000 for each in store.turns._passes.values())


# -- a worker --------------------------------------------------------------------------------------------------------


@only_sqlite
@pytest.mark.parametrize(("order", "share"), [("strict", 1.0), ("turns", 0.5), (3.0, 0.75)])
def test_a_worker_mixes_its_queues(bench: Bench, order: Any, share: float) -> None:
    other = Queue("other", bench.url)
    for queue in (bench.queue, other):
        queue.enqueue_many([Task.create(tasks.mark, (str(bench.ledger.path), queue.name)) for _ in range(1000)])
    weights = {bench.queue.name: order, other.name: 1}

    bench.burst(queues={other.name: {}}, order=order if isinstance(order, str) else weights)

    assert len(bench.ledger.lines) == 2000
    first = Counter(bench.ledger.lines[:1000])
    assert first[bench.queue.name] == pytest.approx(1000 * share, rel=0.1)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("random", "'strict', 'turns', or a weight"),
        (["a", "b"], "'strict', 'turns', or a weight"),
        ({"a": 3}, "no weight for queue 'b'"),
        ({"a": 3, "b": 1, "c": 1}, "weight for 'c', and the worker has no such queue"),
        ({"a": 3, "b": 0}, "weight of queue 'b' must be a number above 0, not 0"),
        ({"a": 3, "b": float("nan")}, "weight of queue 'b'"),
        ({"a": 3, "b": "1"}, "weight of queue 'b'"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(order: Any, words: str) -> None:
    queues = [Queue(name, "sqlite:////tmp/never-opened.db") for name in "ab"]

    with pytest.raises(ConfigError, match=words):
        PreforkedWorker(queues=queues, order=order)


def test_the_order_goes_to_the_workers_of_a_supervisor() -> None:
    queues = [Queue(name, "sqlite:////tmp/never-opened.db") for name in "ab"]

    settings = PreforkedWorker(queues=queues, order={"a": 3, "b": 1}).settings()

    assert settings["options"]["order"] == {"a": 3, "b": 1}
    assert PreforkedWorker.from_settings(settings).order == {"a": 3, "b": 1}
