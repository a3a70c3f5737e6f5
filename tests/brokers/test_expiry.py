"""What tells whether a task has expired: the store's clock, and ids that are made of it. On every broker."""

from __future__ import annotations

import time

import pytest

from delayed.brokers import Broker
from delayed.message import LIFE
from tests.brokers.test_conformance import Bench


@pytest.fixture
def bench(broker: Broker, queue: str) -> Bench:
    return Bench(broker, queue)


def test_the_clock_goes_on_and_uses_up_no_ids(bench: Bench) -> None:
    first = bench.broker.reserve_ids(bench.queue, 1)
    begun, before = time.monotonic(), bench.broker.clock(bench.queue)
    time.sleep(0.05)
    after = bench.broker.clock(bench.queue)
    taken = time.monotonic() - begun

    assert 0 <= before - (first >> 11) / 1000 < 10
    assert 0.045 <= after - before <= taken + 0.01
    assert bench.broker.reserve_ids(bench.queue, 1) > first


def test_the_clock_of_a_queue_that_was_never_used(bench: Bench) -> None:
    assert abs(bench.broker.clock(bench.queue) - time.time()) < 60


def test_ids_that_run_ahead_take_the_clock_with_them(bench: Bench) -> None:
    first = bench.broker.reserve_ids(bench.queue, 60_000 << 11)

    assert bench.broker.clock(bench.queue) >= (first >> 11) / 1000 + 59.9


def test_a_claim_says_until_when_its_first_run_has_to_begin(bench: Bench) -> None:
    before = bench.broker.clock(bench.queue)
    (id,) = bench.put(expires=30.0)
    bench.put()
    after = bench.broker.clock(bench.queue)

    first, other = bench.claim()

    assert (first.id, other.begin_by) == (id, float("inf"))
    assert before + 30 <= first.begin_by <= after + 30


def test_what_has_begun_does_not_expire_and_what_was_given_back_does(bench: Bench) -> None:
    bench.put(expires=30.0)
    (claim,) = bench.claim()
    deadline = claim.begin_by
    assert bench.end(claim, "back")
    (again,) = bench.claim()
    assert again.begin_by == deadline, "it had not begun"
    assert bench.end(again, "retry")
    (retried,) = bench.claim()
    assert retried.begin_by == float("inf")


def test_a_dead_letter_that_somebody_wants_again_does_not_expire(bench: Bench) -> None:
    (id,) = bench.put(expires=30.0)
    assert bench.end(bench.claim()[0], "dead")

    assert bench.broker.revive(bench.queue, [id]) == [id]

    (claim,) = bench.claim()
    assert claim.attempt == 1 and claim.delivery > LIFE
    assert claim.begin_by == float("inf")
