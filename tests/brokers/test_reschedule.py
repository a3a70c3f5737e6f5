"""Tasks whose time is changed, or that are cancelled, before they run: on every broker."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

import pytest

from delayed.brokers import Broker
from delayed.message import Answer
from tests.brokers.test_conformance import Bench, ended_after, ids, wait_in_thread

BOUND = 10.0  # seconds


@pytest.fixture
def bench(broker: Broker, queue: str) -> Bench:
    return Bench(broker, queue)


def claim_in_time(bench: Bench) -> list[int]:
    """Claim until there is something."""
    deadline = time.monotonic() + BOUND
    while not (claims := bench.claim()):
        assert time.monotonic() < deadline
        bench.broker.wait([bench.queue], 0.5)
    return ids(claims)


def due(bench: Bench, id: int) -> float:
    entry = bench.broker.get(bench.queue, id)
    assert entry is not None and entry.state == "scheduled"
    return entry.due


@pytest.mark.parametrize("priority", [0, 5])
def test_a_scheduled_task_comes_sooner(bench: Bench, priority: int) -> None:
    (id,) = bench.put(delay=1000.0, priority=priority)

    assert bench.broker.reschedule(bench.queue, id, 0.2)
    assert bench.claim() == []
    assert claim_in_time(bench) == [id]


@pytest.mark.parametrize("priority", [0, 5])
def test_a_scheduled_task_comes_at_once(bench: Bench, priority: int) -> None:
    (id,) = bench.put(delay=1000.0, priority=priority)

    assert bench.broker.reschedule(bench.queue, id, 0.0)
    assert bench.counts() == (0, 1, 0, 0)
    (claim,) = bench.claim()
    assert (claim.id, claim.attempt, claim.delivery) == (id, 1, 1)
    assert bench.end(claim)
    assert bench.counts() == (0, 0, 0, 0)


@pytest.mark.parametrize("priority", [0, 5])
def test_a_ready_task_is_put_off(bench: Bench, priority: int) -> None:
    first, second = bench.put(2, priority=priority)

    assert bench.broker.reschedule(bench.queue, first, 500.0)

    assert 490 < due(bench, first) <= 500
    assert bench.counts() == (1, 1, 0, 0)
    assert ids(bench.claim()) == [second]


def test_a_scheduled_task_is_put_off_further_and_is_there_once(bench: Bench) -> None:
    (id,) = bench.put(delay=0.1)

    assert bench.broker.reschedule(bench.queue, id, 1000.0)
    assert bench.broker.reschedule(bench.queue, id, 2000.0)

    assert 1900 < due(bench, id) <= 2000
    assert bench.counts() == (1, 0, 0, 0)


def test_a_ready_task_that_is_to_come_at_once_is_behind_the_others(bench: Bench) -> None:
    first, second, third = bench.put(3)
    (urgent,) = bench.put(priority=1)

    assert bench.broker.reschedule(bench.queue, first, 0.0)

    assert ids(bench.claim()) == [urgent, second, third, first]


def test_what_is_due_and_was_not_looked_at_is_put_off(bench: Bench) -> None:
    (id,) = bench.put(delay=0.01)
    deadline = time.monotonic() + BOUND
    while (entry := bench.broker.get(bench.queue, id)) is None or entry.state != "ready":
        assert time.monotonic() < deadline

    assert bench.broker.reschedule(bench.queue, id, 1000.0)

    assert bench.claim() == []
    assert due(bench, id) > 900


def test_what_runs_is_dead_or_gone_keeps_its_time(bench: Bench) -> None:
    running, dead, done = bench.put(3)
    claims = bench.claim()
    assert bench.end(claims[1], "dead", reason="of old age")
    assert bench.end(claims[2])

    assert [bench.broker.reschedule(bench.queue, id, delay) for id in (running, dead, done, 7) for delay in (0, 9)] == (
        [False] * 8
    )

    assert bench.counts() == (0, 0, 1, 1)
    assert bench.end(claims[0])


def test_a_retry_that_waits_comes_sooner_and_stays_charged(bench: Bench) -> None:
    (id,) = bench.put()
    assert bench.end(bench.claim()[0], "retry", delay=1000.0)

    assert bench.broker.reschedule(bench.queue, id, 0.0)

    (claim,) = bench.claim()
    assert (claim.id, claim.attempt, claim.delivery) == (id, 2, 2)


@pytest.mark.parametrize(("before", "after"), [(1000.0, 0.0), (0.0, 0.3)])
def test_who_waits_hears_of_it(bench: Bench, open_broker: Callable[[], Broker], before: float, after: float) -> None:
    (id,) = bench.put(delay=before)
    if not before:
        assert bench.broker.reschedule(bench.queue, id, 1000.0)
    thread, ended = wait_in_thread(open_broker(), bench.queue, 5.0)
    thread.join(0.2)  # let it fall asleep; if it has not, the test is easier, not wrong
    start = time.monotonic()

    assert bench.broker.reschedule(bench.queue, id, after)

    assert ended_after(thread, ended, start) < after + 3.0
    assert claim_in_time(bench) == [id]


def test_a_task_is_either_taken_or_put_off(bench: Bench, open_broker: Callable[[], Broker]) -> None:
    """Claims and reschedules race for the same tasks; each task goes to one of them."""
    waiting = bench.put(60)
    other = open_broker()
    taken: list[int] = []

    def claim() -> None:
        for number in range(1, 31):
            claims = other.claim([bench.queue], "racer", number, secrets.randbits(64), 2, 60.0)
            taken.extend(claim.id for claim in claims)

    thread = threading.Thread(target=claim)
    thread.start()
    moved = [id for id in reversed(waiting) if bench.broker.reschedule(bench.queue, id, 1000.0)]
    thread.join(BOUND)

    assert sorted(taken + moved) == sorted({*taken, *moved}), "none of them is both"
    counts = bench.counts()
    assert (counts.scheduled, counts.running) == (len(moved), len(taken))
    assert counts.ready == len(waiting) - len(taken) - len(moved)


@pytest.mark.parametrize("answered", [False, True])
def test_a_dead_letter_is_spared_where_only_waiting_tasks_are_removed(bench: Bench, answered: bool) -> None:
    answer = Answer(b"cancelled", 60.0) if answered else None
    dead, ready = bench.put(2)
    (scheduled,) = bench.put(delay=60.0)
    (claim,) = bench.claim(1)
    assert bench.end(claim, "dead")

    removed = [bench.broker.remove(bench.queue, id, answer, dead=False) for id in (dead, ready, scheduled)]

    assert removed == [False, True, True]
    assert bench.counts() == (0, 0, 0, 1)
    assert set(bench.broker.get_results(bench.queue, [dead, ready, scheduled])) == (
        {ready, scheduled} if answered else set()
    )
