"""What tells whether a task has expired: the store's clock. On every broker."""

from __future__ import annotations

import time

import pytest

from delayed.brokers import Broker
from delayed.message import LIFE
from tests.brokers.test_conformance import Bench


@pytest.fixture
def bench(broker: Broker, queue: str) -> Bench:
    return Bench(broker, queue)


def test_the_clock_goes_on_while_the_ids_are_ahead_of_it(bench: Bench) -> None:
    """As after an enqueue while it was ten minutes fast."""
    bench.broker.reserve_ids(bench.queue, 600_000 << 11)
    begun, before = time.monotonic(), bench.broker.clock(bench.queue)
    time.sleep(0.05)
    after = bench.broker.clock(bench.queue)
    taken = time.monotonic() - begun

    assert abs(before - time.time()) < 60
    assert 0.045 <= after - before <= taken + 0.01


def test_the_clock_of_a_queue_that_was_never_used(bench: Bench) -> None:
    assert abs(bench.broker.clock(bench.queue) - time.time()) < 60


def test_a_claim_says_until_when_its_first_run_has_to_begin(bench: Bench) -> None:
    (id,) = bench.put(expires=2e9)
    bench.put()

    first, other = bench.claim()

    assert (first.id, first.begin_by, other.begin_by) == (id, 2e9, float("inf"))


def test_what_has_begun_does_not_expire_and_what_was_given_back_does(bench: Bench) -> None:
    bench.put(expires=2e9)
    (claim,) = bench.claim()
    assert bench.end(claim, "back")
    (again,) = bench.claim()
    assert again.begin_by == 2e9, "it had not begun"
    assert bench.end(again, "retry")
    (retried,) = bench.claim()
    assert retried.begin_by == float("inf")


def test_a_dead_letter_that_somebody_wants_again_does_not_expire(bench: Bench) -> None:
    (id,) = bench.put(expires=2e9)
    assert bench.end(bench.claim()[0], "dead")

    assert bench.broker.revive(bench.queue, [id]) == [id]

    (claim,) = bench.claim()
    assert claim.attempt == 1 and claim.delivery > LIFE
    assert claim.begin_by == float("inf")
