"""What every broker does, through its public methods; see `delayed/brokers/base.py`."""

from __future__ import annotations

import os
import secrets
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from delayed.brokers import Broker
from delayed.message import Claim, Counts, Message, Series, Settlement

BOUND = 10.0  # seconds within which anything that is waited for has to happen
LEASE = 15.0


class Bench:
    """A queue on a broker, and a producer and workers for it."""

    def __init__(self, broker: Broker, queue: str) -> None:
        self.broker = broker
        self.queue = queue
        self.session = secrets.token_hex(16)
        self.seq = 0
        self.claims: dict[str, int] = {}

    def messages(self, n: int = 1, **options: Any) -> list[Message]:
        first = self.broker.reserve_ids(self.queue, n)
        options = {"func": "module:func", "payload": b"payload", **options}
        return [Message(id=first + i, **options) for i in range(n)]

    def put(self, n: int = 1, **options: Any) -> list[int]:
        messages = self.messages(n, **options)
        self.seq += 1
        self.broker.enqueue(self.queue, messages, self.session, self.seq)
        return [message.id for message in messages]

    def claim(self, limit: int = 100, lease: float = LEASE, worker: str = "w") -> list[Claim]:
        self.claims[worker] = self.claims.get(worker, 0) + 1
        return self.broker.claim([self.queue], worker, self.claims[worker], secrets.randbits(64), limit, lease)

    def end(self, claim: Claim, action: Any = "done", delay: float = 0.0, reason: str = "", worker: str = "w") -> bool:
        return self.broker.settle(worker, [Settlement(claim.ref, action, delay, reason)])[0]

    def counts(self) -> Counts:
        return self.broker.counts(self.queue)

    def sweep_until_returned(self, n: int, lease: float) -> None:
        """Sweep as sweepers do, several times in a lease, until `n` tasks are ready again or dead."""
        found = 0
        deadline = time.monotonic() + BOUND
        while found < n:
            swept = self.broker.sweep(self.queue, lease)
            found += swept.returned + swept.dead
            assert time.monotonic() < deadline, f"{found} of {n} returned"
            time.sleep(lease / 10)


@pytest.fixture
def bench(broker: Broker, queue: str) -> Bench:
    return Bench(broker, queue)


def ids(claims: list[Claim]) -> list[int]:
    return [claim.id for claim in claims]


def in_threads(n: int, body: Callable[[int], None]) -> None:
    """Run `body` in `n` threads that begin together; the first error of one is raised here."""
    errors: list[BaseException] = []
    gate = threading.Barrier(n)

    def run(number: int) -> None:
        try:
            gate.wait(BOUND)
            body(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND * 2)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


# -- producing -----------------------------------------------------------------------------------------------------


def test_ids_rise_and_are_never_given_twice(bench: Bench) -> None:
    blocks: list[range] = []

    def reserve(number: int) -> None:
        for size in (1, 7, 100):
            first = bench.broker.reserve_ids(bench.queue, size)
            blocks.append(range(first, first + size))

    in_threads(4, reserve)

    taken = [id for block in blocks for id in block]
    assert len(taken) == len(set(taken)) == 4 * 108
    assert max(taken) < bench.broker.reserve_ids(bench.queue, 1) < 2**53


def test_a_message_comes_out_as_it_went_in(bench: Bench) -> None:
    (message,) = bench.messages(
        func="package.module:Class.method",
        payload=bytes(range(256)),
        timeout=2.5,
        priority=-3,
        enqueued_at=1700000000.25,
        retry={"max": 3, "delay": 0.5},
        max_deliveries=4,
        key="käse",
        trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        extra={"later": [1, {"deep": None}]},
    )
    bench.broker.enqueue(bench.queue, [message], secrets.token_hex(16), 1)

    (claim,) = bench.claim()

    assert claim.message() == message
    assert (claim.queue, claim.id, claim.delivery, claim.attempt) == (bench.queue, message.id, 1, 1)


def test_an_enqueue_that_is_sent_again_stores_nothing(bench: Bench) -> None:
    first, second = bench.messages(3), bench.messages(2)
    session = secrets.token_hex(16)

    for _ in range(3):
        bench.broker.enqueue(bench.queue, first, session, 1)
    bench.broker.enqueue(bench.queue, second, session, 2)
    bench.broker.enqueue(bench.queue, first, session, 1)  # delayed on its way for long

    assert ids(bench.claim()) == [message.id for message in first + second]
    bench.broker.enqueue(bench.queue, first, session, 1)
    assert bench.claim() == [], "not even when it is running"


def test_two_producers_do_not_take_each_other_for_a_resend(bench: Bench) -> None:
    for _ in range(2):
        bench.broker.enqueue(bench.queue, bench.messages(), secrets.token_hex(16), 1)

    assert bench.counts() == (0, 2, 0, 0)


class Unwritable(Message):
    """A message that fails while a batch is being stored."""

    __slots__ = ()

    def header(self) -> bytes:
        raise ValueError("no header")


def test_a_batch_is_stored_whole_or_not_at_all(bench: Bench) -> None:
    first, second = bench.messages(2)
    bad = Unwritable(id=bench.broker.reserve_ids(bench.queue, 1), func="module:func", payload=b"")
    session = secrets.token_hex(16)

    with pytest.raises(ValueError, match="no header"):
        bench.broker.enqueue(bench.queue, [first, bad, second], session, 1)

    assert bench.counts() == (0, 0, 0, 0)
    bench.broker.enqueue(bench.queue, [first, second], session, 1)
    assert ids(bench.claim()) == [first.id, second.id], "the number was not used up"


def test_a_large_payload_and_a_large_batch(bench: Bench) -> None:
    large = secrets.token_bytes(3_000_000)
    bench.put(payload=large)
    bench.put(1000)

    claims = bench.claim(2000)

    assert len(claims) == 1001
    assert claims[0].payload == large


# -- claiming ------------------------------------------------------------------------------------------------------


def test_the_highest_priority_first_then_the_oldest(bench: Bench) -> None:
    low, middle, high = bench.put(2, priority=-5), bench.put(2), bench.put(2, priority=32767)
    late = bench.put(priority=0)

    assert ids(bench.claim(3)) == [*high, middle[0]]
    assert ids(bench.claim()) == [middle[1], *late, *low]


@pytest.mark.parametrize("options", [{}, {"priority": 2, "timeout": 5.0}, {"tenant": "0" * 32, "keep": 60.0}], ids=str)
@pytest.mark.parametrize("prepared", [True, False])
def test_what_has_much_in_common_is_stored_as_anything_else(
    bench: Bench, options: dict[str, Any], prepared: bool
) -> None:
    one, *others = bench.messages(5, enqueued_at=1.5, **options)
    payloads = [b"", b"a", b"\0" * 9, bytes(range(256))]
    series = Series(one, one.header(), range(others[0].id, others[-1].id + 1), payloads)
    messages = bench.broker.prepare(bench.queue, series) if prepared else series
    for _ in range(2):  # the second is a resend
        bench.broker.enqueue(bench.queue, messages, bench.session, 1)

    claims = bench.claim()
    assert [(claim.id, claim.header, claim.payload) for claim in claims] == [
        (message.id, one.header(), payload) for message, payload in zip(others, payloads, strict=True)
    ]
    assert list(messages) == list(series)


def test_queues_are_served_in_the_order_given(broker: Broker, queue: str) -> None:
    first, second = Bench(broker, queue), Bench(broker, queue + "-2")
    in_second = second.put(2, priority=9)
    in_first = first.put(2)

    claims = broker.claim([first.queue, second.queue], "w", 1, 1, 3, LEASE)

    assert ids(claims) == [*in_first, in_second[0]]
    assert [claim.queue for claim in claims] == [first.queue] * 2 + [second.queue]


def test_a_claim_that_is_sent_again_gets_the_same(bench: Bench) -> None:
    bench.put(5)
    nonce = secrets.randbits(64)
    claims = bench.broker.claim([bench.queue], "w", 1, nonce, 3, LEASE)
    bench.end(claims[0])

    again = bench.broker.claim([bench.queue], "w", 1, nonce, 3, LEASE)

    assert sorted(again) == sorted(claims[1:])
    assert bench.counts() == (0, 2, 2, 0)


def test_a_claim_that_is_sent_again_gets_nothing_of_an_earlier_one(bench: Bench) -> None:
    bench.put(2)
    bench.claim(1)
    nonce = secrets.randbits(64)
    second = bench.broker.claim([bench.queue], "w", 2, nonce, 1, LEASE)

    assert bench.broker.claim([bench.queue], "w", 2, nonce, 1, LEASE) == second
    assert len(second) == 1


def test_many_claimers_share_without_overlap(bench: Bench, open_broker: Callable[[], Broker]) -> None:
    expected = bench.put(200)
    got: list[int] = []

    def claim(number: int) -> None:
        mine = Bench(open_broker(), bench.queue)
        while claims := mine.claim(7, worker=f"w{number}"):
            got.extend(ids(claims))

    in_threads(4, claim)

    assert sorted(got) == expected


def test_a_late_resend_of_a_claim_takes_nothing_even_after_the_goodbye(bench: Bench) -> None:
    bench.put(2)
    nonce = secrets.randbits(64)
    claims = bench.broker.claim([bench.queue], "w", 1, nonce, 1, LEASE)
    bench.broker.announce("w", [bench.queue], None, 0.0)

    assert bench.broker.claim([bench.queue], "w", 1, nonce, 1, LEASE) == claims
    assert bench.counts() == (0, 1, 1, 0)


def test_a_queue_named_twice_gives_each_claim_once(bench: Bench) -> None:
    expected = bench.put(2)
    queues, nonce = [bench.queue] * 2, secrets.randbits(64)

    for _ in range(2):
        assert ids(bench.broker.claim(queues, "w", 1, nonce, 10, LEASE)) == expected


def test_one_object_serves_many_threads(bench: Bench) -> None:
    def work(number: int) -> None:
        mine = Bench(bench.broker, bench.queue)
        for _ in range(20):
            mine.put(2)
            for claim in mine.claim(2, worker=f"w{number}"):
                assert mine.end(claim)

    in_threads(4, work)

    while claims := bench.claim():
        for claim in claims:
            assert bench.end(claim)
    assert bench.counts() == (0, 0, 0, 0)


def test_a_scheduled_task_is_claimed_when_it_is_due_by_the_stores_clock(bench: Bench) -> None:
    start = time.monotonic()
    later, never = bench.put(delay=0.3), bench.put(delay=1000.0)
    assert bench.claim() == []
    assert bench.counts() == (2, 0, 0, 0)

    while not (claims := bench.claim()):
        assert time.monotonic() < start + BOUND
        time.sleep(0.01)

    assert ids(claims) == later
    assert time.monotonic() - start >= 0.29
    (entry,) = bench.broker.peek(bench.queue, "scheduled")
    assert entry.message.id == never[0] and 990 < entry.due <= 1000


def test_what_is_due_counts_as_ready_before_anybody_claims_it(bench: Bench) -> None:
    (id,) = bench.put(delay=0.1)
    deadline = time.monotonic() + BOUND
    while bench.counts() != (0, 1, 0, 0):
        assert time.monotonic() < deadline
        time.sleep(0.01)

    assert [entry.message.id for entry in bench.broker.peek(bench.queue, "ready")] == [id]
    assert bench.broker.peek(bench.queue, "scheduled") == []
    entry = bench.broker.get(bench.queue, id)
    assert entry is not None and entry.state == "ready"


# -- settling ------------------------------------------------------------------------------------------------------


def test_done_leaves_nothing(bench: Bench) -> None:
    (id,) = bench.put()
    (claim,) = bench.claim()

    assert bench.end(claim)

    assert bench.counts() == (0, 0, 0, 0)
    assert bench.broker.get(bench.queue, id) is None


def test_retry_charges_and_back_does_not(bench: Bench) -> None:
    bench.put()
    (claim,) = bench.claim()
    assert bench.end(claim, "back")
    (claim,) = bench.claim()
    assert (claim.attempt, claim.delivery) == (1, 2)
    assert bench.end(claim, "retry")
    (claim,) = bench.claim()
    assert (claim.attempt, claim.delivery) == (2, 3)


def test_back_goes_to_the_front_and_retry_to_the_end(bench: Bench) -> None:
    first, second, third = bench.put(3)
    claims = bench.claim(2)
    bench.end(claims[0], "back")
    bench.end(claims[1], "retry")

    assert ids(bench.claim()) == [first, third, second]


@pytest.mark.parametrize("action", ["retry", "back"])
def test_a_delay_is_waited_for(bench: Bench, action: str) -> None:
    (id,) = bench.put()
    (claim,) = bench.claim()

    assert bench.end(claim, action, 0.2)

    start = time.monotonic()
    assert bench.counts() == (1, 0, 0, 0)
    while not (claims := bench.claim()):
        assert time.monotonic() < start + BOUND
        time.sleep(0.01)
    assert ids(claims) == [id]
    assert time.monotonic() - start >= 0.15
    assert claims[0].attempt == (2 if action == "retry" else 1)


def test_a_dead_letter_keeps_its_message_and_the_reason(bench: Bench) -> None:
    first, second = bench.put(2, payload=b"evidence")
    for claim, reason in zip(bench.claim(), ("older", "newer: ünläsbar"), strict=True):
        assert bench.end(claim, "dead", reason=reason)

    newest, oldest = bench.broker.peek(bench.queue, "dead")

    assert (newest.message.id, newest.reason, newest.state) == (second, "newer: ünläsbar", "dead")
    assert (oldest.message.id, oldest.message.payload) == (first, b"evidence")
    assert bench.claim() == []


def test_a_reason_may_have_any_characters(bench: Bench) -> None:
    bench.put()
    (claim,) = bench.claim()
    assert bench.end(claim, "dead", reason="zero \0, half a character \udc80, end")
    (entry,) = bench.broker.peek(bench.queue, "dead")
    assert entry.reason.startswith("zero ")
    assert entry.reason.endswith(", end")


def test_dead_letters_of_one_batch_come_newest_first_too(bench: Bench) -> None:
    expected = bench.put(3)
    bench.broker.settle("w", [Settlement(claim.ref, "dead") for claim in bench.claim()])

    assert [entry.message.id for entry in bench.broker.peek(bench.queue, "dead")] == expected[::-1]


def test_a_settlement_that_is_sent_again_is_refused(bench: Bench) -> None:
    bench.put()
    (claim,) = bench.claim()

    assert bench.end(claim)
    assert not bench.end(claim)


@pytest.mark.parametrize("action", ["done", "retry", "back", "dead"])
def test_a_claim_that_was_lost_can_not_be_settled(bench: Bench, action: str) -> None:
    bench.put()
    (old,) = bench.claim(lease=0.1)
    bench.sweep_until_returned(1, 0.2)
    assert not bench.end(old, action), "it is ready again"
    (new,) = bench.claim(worker="other")

    assert not bench.end(old, action), "another holds it"

    assert (new.delivery, new.attempt) == (2, 2)
    assert bench.end(new, worker="other")
    assert not bench.end(old, action), "it is gone"


@pytest.mark.parametrize("action", ["done", "retry", "back", "dead"])
def test_no_part_of_a_token_may_be_wrong(bench: Bench, action: Any) -> None:
    bench.put()
    (claim,) = bench.claim()
    ref = claim.ref
    forged = [ref._replace(nonce=ref.nonce ^ 1), ref._replace(delivery=2), ref._replace(id=ref.id + 1)]

    assert bench.broker.settle("w", [Settlement(wrong, action) for wrong in forged]) == [False] * 3
    assert bench.broker.renew("w", [bench.queue], [*forged, ref], LEASE) == ([ref], forged, [])
    assert bench.end(claim)


def test_each_settlement_of_a_batch_is_answered_for_itself(bench: Bench) -> None:
    bench.put(3)
    claims = bench.claim()
    assert bench.end(claims[1])

    accepted = bench.broker.settle("w", [Settlement(claim.ref, "done") for claim in claims])

    assert accepted == [True, False, True]


def test_settle_and_claim_does_both(bench: Bench) -> None:
    bench.put(4)
    claims = bench.claim(2)

    accepted, fresh = bench.broker.settle_and_claim(
        "w", [Settlement(claim.ref, "done") for claim in claims], [bench.queue], 2, secrets.randbits(64), 10, LEASE
    )

    assert accepted == [True, True]
    assert len(fresh) == 2
    assert bench.counts() == (0, 0, 2, 0)


def test_one_claim_gets_new_tasks_and_some_that_were_claimed_before(bench: Bench) -> None:
    bench.put(3)
    (back, again, dead) = bench.claim(3)
    for claim, action in ((back, "back"), (again, "retry")):
        assert bench.end(claim, action)
    bench.put(3)

    claims = {claim.id: claim for claim in bench.claim()}

    assert len(claims) == 5
    assert {(claim.delivery, claim.attempt) for id, claim in claims.items() if id not in (back.id, again.id)} == {
        (1, 1)
    }
    assert [(claims[each.id].delivery, claims[each.id].attempt) for each in (back, again)] == [(2, 1), (2, 2)]
    assert all(bench.broker.settle("w", [Settlement(claim.ref, "done") for claim in (dead, *claims.values())]))
    assert bench.counts() == (0, 0, 0, 0)


def test_a_claim_that_is_named_twice_ends_once(bench: Bench) -> None:
    bench.put(3)
    one, two, three = (Settlement(claim.ref, "done") for claim in bench.claim())

    assert bench.broker.settle("w", [one, two, one, one, three, two]) == [True, True, False, False, True, False]
    assert bench.counts() == (0, 0, 0, 0)


def test_claims_of_several_queues_end_together(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    if bench.broker.scheme == "redis":
        monkeypatch.setattr("delayed.brokers.redis.SETTLE_MAX", 3)
    queues = [bench.queue, f"{bench.queue}_b", f"{bench.queue}_c"]
    claims = []
    for number, queue in enumerate(queues):
        first = bench.broker.reserve_ids(queue, 8)
        messages = [Message(first + i, "m:f", b"%d" % number) for i in range(8)]
        bench.broker.enqueue(queue, messages, secrets.token_hex(16), 1)
        claims.append(bench.broker.claim([queue], "w", number + 1, secrets.randbits(64), 4, LEASE))
    stale = claims[0][0]._replace(nonce=claims[0][0].nonce ^ 1)
    # One of each in turns.
    order = [claim for three in zip(*claims, strict=True) for claim in three]
    settlements = [Settlement(claim.ref, "done") for claim in (*order[:5], stale, *order[5:])]

    accepted, fresh = bench.broker.settle_and_claim("w", settlements, queues, 9, secrets.randbits(64), 100, LEASE)

    assert accepted == [True] * 5 + [False] + [True] * 7
    assert [claim.queue for claim in fresh] == [queue for queue in queues for _ in range(4)]
    assert [claim.payload for claim in fresh] == [b"%d" % number for number in range(3) for _ in range(4)]
    assert len({claim.id for claim in (*order, *fresh) if claim.queue == queues[1]}) == 8


def test_settle_and_claim_sent_again_claims_the_same_and_settles_no_more(bench: Bench) -> None:
    bench.put(4)
    (claim,) = bench.claim(1)
    nonce = secrets.randbits(64)

    accepted, fresh = bench.broker.settle_and_claim(
        "w", [Settlement(claim.ref, "done")], [bench.queue], 2, nonce, 2, LEASE
    )
    refused, again = bench.broker.settle_and_claim(
        "w", [Settlement(claim.ref, "done")], [bench.queue], 2, nonce, 2, LEASE
    )

    assert (accepted, refused) == ([True], [False])
    assert again == fresh and len(fresh) == 2
    assert bench.counts() == (0, 1, 2, 0)


def test_a_retry_can_be_claimed_in_the_same_exchange(bench: Bench) -> None:
    (id,) = bench.put()
    (claim,) = bench.claim()

    _, fresh = bench.broker.settle_and_claim(
        "w", [Settlement(claim.ref, "retry")], [bench.queue], 2, secrets.randbits(64), 10, LEASE
    )

    assert ids(fresh) == [id]
    assert fresh[0].ref != claim.ref


# -- leases --------------------------------------------------------------------------------------------------------


def test_a_renewed_lease_holds_and_the_other_is_lost(bench: Bench) -> None:
    bench.put(2)
    kept, lost = bench.claim(lease=0.4)
    deadline = time.monotonic() + BOUND
    returned = 0
    while not returned:
        assert bench.broker.renew("w", [bench.queue], [kept.ref], 0.4).held == [kept.ref]
        returned = bench.broker.sweep(bench.queue, 0.4).returned
        assert time.monotonic() < deadline
        time.sleep(0.02)

    renewal = bench.broker.renew("w", [bench.queue], [kept.ref, lost.ref], LEASE)

    assert (renewal.held, renewal.lost, renewal.unknown) == ([kept.ref], [lost.ref], [])
    assert ids(bench.claim(worker="other")) == [lost.id]


def test_a_renewal_tells_of_claims_whose_answer_was_lost(bench: Bench) -> None:
    bench.put(3)
    claims = bench.claim()

    renewal = bench.broker.renew("w", [bench.queue], [claims[0].ref], LEASE)

    assert sorted(renewal.unknown) == sorted(claims[1:])
    assert sorted(bench.broker.held("w", [bench.queue])) == sorted(claims)
    assert bench.broker.held("somebody", [bench.queue]) == []


def test_nobody_renews_the_claim_of_another(bench: Bench) -> None:
    bench.put()
    (claim,) = bench.claim()

    assert bench.broker.renew("other", [bench.queue], [claim.ref], 1000.0) == ([], [claim.ref], [])

    (entry,) = bench.broker.peek(bench.queue, "running")
    assert entry.due <= LEASE


def test_a_held_lease_is_not_swept(bench: Bench) -> None:
    bench.put()
    bench.claim()

    assert bench.broker.sweep(bench.queue)[:3] == (0, 0, False)

    assert bench.counts() == (0, 0, 1, 0)


def test_a_sweep_says_whether_anything_is_claimed(bench: Bench) -> None:
    looks = bench.broker.scheme != "sqlite"  # whose sweeps are never further apart
    assert bench.broker.sweep(bench.queue).idle is looks
    bench.put(2)
    assert bench.broker.sweep(bench.queue).idle is looks
    (claim,) = bench.claim(1)
    assert not bench.broker.sweep(bench.queue).idle
    assert bench.end(claim)
    assert bench.broker.sweep(bench.queue).idle is looks


def test_lost_tasks_are_returned_once_by_many_sweepers(bench: Bench, open_broker: Callable[[], Broker]) -> None:
    expected = bench.put(50)
    bench.claim(lease=0.1)
    returned: list[int] = []
    deadline = time.monotonic() + BOUND

    def sweep(number: int) -> None:
        broker = open_broker()
        while sum(returned) < 50 and time.monotonic() < deadline:
            returned.append(broker.sweep(bench.queue, 0.5).returned)
            time.sleep(0.01)

    in_threads(4, sweep)

    assert sum(returned) == 50
    assert ids(bench.claim()) == expected, "at the front, in their order"


def test_lost_once_to_the_front_lost_twice_to_the_end(bench: Bench) -> None:
    first, second = bench.put(2)
    bench.claim(1, lease=0.1)
    bench.sweep_until_returned(1, 0.3)
    (claim,) = bench.claim(1, lease=0.1)
    assert claim.id == first
    bench.sweep_until_returned(1, 0.3)

    assert ids(bench.claim()) == [second, first]


def test_what_always_loses_its_worker_is_dead_in_the_end(bench: Bench) -> None:
    bench.put(max_deliveries=2)
    for _ in range(2):
        assert len(bench.claim(lease=0.1)) == 1
        bench.sweep_until_returned(1, 0.3)

    (entry,) = bench.broker.peek(bench.queue, "dead")
    assert (entry.delivery, entry.attempt) == (2, 2)
    assert "deliver" in entry.reason


def test_what_was_given_back_does_not_count_when_a_worker_is_lost(bench: Bench) -> None:
    bench.put(max_deliveries=2)
    for _ in range(3):
        assert bench.end(bench.claim()[0], "back")

    bench.claim(lease=0.1)
    bench.sweep_until_returned(1, 0.3)

    assert bench.counts() == Counts(0, 1, 0, 0)


def test_after_a_gap_in_sweeping_workers_get_time_to_renew(bench: Bench) -> None:
    lease = 0.6
    bench.broker.sweep(bench.queue, lease)
    bench.put()
    bench.claim(lease=0.1)
    time.sleep(lease)  # nobody sweeps: an outage

    start = time.monotonic()
    assert bench.broker.sweep(bench.queue, lease)[:3] == (0, 0, True)
    while not bench.broker.sweep(bench.queue, lease).returned:
        assert time.monotonic() < start + BOUND
        time.sleep(0.05)

    assert time.monotonic() - start >= lease - 0.1


def test_the_first_sweep_gives_no_grace(bench: Bench) -> None:
    (id,) = bench.put()
    bench.claim(lease=0.1)
    deadline = time.monotonic() + BOUND
    while (entry := bench.broker.get(bench.queue, id)) is None or entry.due > 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.01)  # the lease has ended when its last millisecond is over

    assert bench.broker.sweep(bench.queue, LEASE)[:3] == (1, 0, False)


@pytest.mark.parametrize("leases", [0.75, 2.0])
def test_a_sweeper_that_is_slower_than_half_a_lease_returns_tasks_all_the_same(bench: Bench, leases: float) -> None:
    """One gap is an outage; gaps all the time are its habit."""
    lease = 0.2
    bench.put()
    bench.claim(lease=0.05)
    for _ in range(12):
        if bench.broker.sweep(bench.queue, lease).returned:
            break
        time.sleep(lease * leases)

    assert bench.counts() == Counts(0, 1, 0, 0)


def test_workers_get_time_to_renew_after_each_outage(bench: Bench) -> None:
    """However often the store goes away again before the time that they got is over."""
    lease = 0.1
    bench.broker.sweep(bench.queue, lease)
    bench.put()
    (claim,) = bench.claim(lease=lease)
    for leases in (3.0, 1.2, 1.2, 1.2):
        time.sleep(leases * lease)  # nobody sweeps: an outage, in which the lease ends
        assert bench.broker.sweep(bench.queue, lease).returned == 0

        assert bench.broker.renew("w", [bench.queue], [claim.ref], lease).held == [claim.ref]
        assert bench.broker.sweep(bench.queue, lease).returned == 0


def test_a_store_that_comes_and_goes_gives_back_what_nobody_renews(bench: Bench) -> None:
    lease = 0.1
    bench.broker.sweep(bench.queue, lease)
    bench.put(2)
    (lost,) = bench.claim(1, lease, "dead")
    (kept,) = bench.claim(1, lease)
    for _ in range(12):
        time.sleep(0.6 * lease)
        returned = bench.broker.sweep(bench.queue, lease).returned
        assert bench.broker.renew("w", [bench.queue], [kept.ref], lease).held == [kept.ref]
        if returned or bench.broker.sweep(bench.queue, lease).returned:
            break

    assert ids(bench.claim(worker="other")) == [lost.id]


# -- waiting -------------------------------------------------------------------------------------------------------


def wait_in_thread(broker: Broker, queue: str, timeout: float) -> tuple[threading.Thread, list[float]]:
    ended: list[float] = []

    def wait() -> None:
        broker.wait([queue], timeout)
        ended.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, ended


def ended_after(thread: threading.Thread, ended: list[float], moment: float) -> float:
    thread.join(BOUND)
    assert ended, "it still waits"
    return ended[0] - moment


def test_a_wait_ends_when_its_time_is_up(bench: Bench) -> None:
    start = time.monotonic()
    thread, ended = wait_in_thread(bench.broker, bench.queue, 0.3)
    assert 0.25 <= ended_after(thread, ended, start) < 2.0


@pytest.mark.parametrize("timeout", [0.0, 0.0001, 0.0015, 0.0019, 0.0025])
def test_a_wait_for_hardly_any_time_ends_too(bench: Bench, timeout: float) -> None:
    """Redis 6.2 takes 0.001 s for 0, for ever; and some time of each of these is gone when it is sent."""
    bench.broker.wait([bench.queue], timeout)
    start = time.monotonic()
    bench.broker.wait([bench.queue], timeout)
    assert time.monotonic() - start < 1.0


def test_a_wait_ends_at_once_when_something_is_there(bench: Bench) -> None:
    bench.put()
    start = time.monotonic()
    bench.broker.wait([bench.queue], 5.0)
    assert time.monotonic() - start < 1.0


def test_an_enqueue_elsewhere_ends_a_wait(bench: Bench, open_broker: Callable[[], Broker]) -> None:
    thread, ended = wait_in_thread(open_broker(), bench.queue, 5.0)
    thread.join(0.2)  # let it fall asleep; if it has not, the test is easier, not wrong
    start = time.monotonic()
    bench.put()
    assert ended_after(thread, ended, start) < 1.0


def test_a_task_that_comes_due_ends_a_wait(bench: Bench, open_broker: Callable[[], Broker]) -> None:
    bench.put(delay=0.4)
    start = time.monotonic()
    thread, ended = wait_in_thread(open_broker(), bench.queue, 5.0)
    assert ended_after(thread, ended, start) < 2.0
    assert ids(bench.claim()) or ended[0] - start < 0.4


def test_a_retry_that_goes_back_ends_a_wait(bench: Bench, open_broker: Callable[[], Broker]) -> None:
    bench.put()
    (claim,) = bench.claim()
    thread, ended = wait_in_thread(open_broker(), bench.queue, 5.0)
    thread.join(0.2)
    start = time.monotonic()
    bench.end(claim, "back")
    assert ended_after(thread, ended, start) < 1.0


@pytest.mark.parametrize("how", ["wake", "close"])
def test_a_wait_is_ended_from_another_thread(bench: Bench, how: str) -> None:
    bench.counts()  # connect
    thread, ended = wait_in_thread(bench.broker, bench.queue, 5.0)
    thread.join(0.2)
    start = time.monotonic()
    bench.broker.wake([bench.queue]) if how == "wake" else bench.broker.close()
    assert ended_after(thread, ended, start) < 1.0


def test_a_close_ends_every_wait_of_the_object(bench: Bench) -> None:
    bench.counts()
    waits = [wait_in_thread(bench.broker, bench.queue, 5.0) for _ in range(3)]
    waits[0][0].join(0.2)
    start = time.monotonic()
    bench.broker.close()
    assert max(ended_after(thread, ended, start) for thread, ended in waits) < 1.0


def test_a_wake_just_before_the_wait_is_not_lost(bench: Bench) -> None:
    bench.counts()
    start = time.monotonic()
    bench.broker.wake([bench.queue])
    bench.broker.wait([bench.queue], 5.0)
    assert time.monotonic() - start < 1.0


# -- looking and tidying -------------------------------------------------------------------------------------------


def test_counts_and_lists_agree(bench: Bench) -> None:
    ready = bench.put(3)
    scheduled = bench.put(2, delay=60.0)
    running, dead = bench.claim(2)
    bench.end(dead, "dead", reason="because")

    assert bench.broker.counts(bench.queue) == Counts(scheduled=2, ready=1, running=1, dead=1)
    peek = bench.broker.peek
    assert [entry.message.id for entry in peek(bench.queue, "ready")] == ready[2:]
    (first,) = peek(bench.queue, "scheduled", 1)
    assert [entry.message.id for entry in (first, *peek(bench.queue, "scheduled", 1, first))] == scheduled
    (entry,) = peek(bench.queue, "running")
    assert (entry.message.id, entry.worker, entry.attempt, entry.delivery) == (running.id, "w", 1, 1)
    assert 0 < entry.due <= LEASE
    found = bench.broker.get(bench.queue, dead.id)
    assert found is not None and (found.state, found.reason) == ("dead", "because")
    assert bench.queue in bench.broker.queues()


def test_no_task_is_missed_while_it_moves(bench: Bench, open_broker: Callable[[], Broker]) -> None:
    """Else who waits for the end of a queue would leave too early."""
    bench.put(3)
    over = threading.Event()
    mover = Bench(open_broker(), bench.queue)

    def move() -> None:
        while not over.is_set():
            for claim in mover.claim():
                mover.end(claim, "back")

    thread = threading.Thread(target=move)
    thread.start()
    try:
        found = {sum(bench.counts()) for _ in range(150)}
    finally:
        over.set()
        thread.join(BOUND)
    assert found == {3}


def test_a_queue_nobody_used_is_empty(bench: Bench) -> None:
    assert bench.counts() == (0, 0, 0, 0)
    assert bench.broker.peek(bench.queue, "ready") == []
    assert bench.broker.get(bench.queue, 1) is None
    assert bench.broker.workers(bench.queue) == []
    assert bench.broker.purge(bench.queue) == 0
    assert not bench.broker.remove(bench.queue, 1)
    assert bench.broker.sweep(bench.queue)[:3] == (0, 0, False)
    assert bench.queue not in bench.broker.queues()


def test_remove_spares_what_runs(bench: Bench) -> None:
    running, dead, ready = bench.put(3)
    (scheduled,) = bench.put(delay=60.0)
    _, claim = bench.claim(2)
    bench.end(claim, "dead")

    removed = [bench.broker.remove(bench.queue, id) for id in (running, dead, ready, scheduled, scheduled)]

    assert removed == [False, True, True, True, False]
    assert bench.counts() == (0, 0, 1, 0)


def test_purge_spares_what_runs_and_what_is_not_named(bench: Bench) -> None:
    bench.put(3)
    bench.put(2, delay=60.0)
    running, dead = bench.claim(2)
    bench.end(dead, "dead")

    assert bench.broker.purge(bench.queue, ["dead"]) == 1
    assert bench.counts() == (2, 1, 1, 0)
    assert bench.broker.purge(bench.queue) == 3
    assert bench.end(running)
    assert bench.counts() == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="running"):
        bench.broker.purge(bench.queue, ["running"])
    bench.put()
    assert len(bench.claim()) == 1, "the queue goes on"


def test_announcements_end_by_themselves_and_by_goodbye(bench: Bench) -> None:
    bench.broker.announce("w1", [bench.queue], {"pid": 1, "running": [{"id": 7}]}, 60.0)
    bench.broker.announce("w2", [bench.queue], {"pid": 2}, 0.05)
    bench.broker.announce("w3", [bench.queue, bench.queue + "-2"], {"pid": 3}, 60.0)
    deadline = time.monotonic() + BOUND
    while len(bench.broker.workers(bench.queue)) > 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)

    assert sorted(bench.broker.workers(bench.queue)) == [("w1", {"pid": 1, "running": [{"id": 7}]}), ("w3", {"pid": 3})]
    bench.broker.announce("w3", [bench.queue, bench.queue + "-2"], None, 0.0)
    assert [info.worker for info in bench.broker.workers(bench.queue)] == ["w1"]
    assert bench.broker.workers(bench.queue + "-2") == []


def test_an_announcement_is_a_copy(bench: Bench) -> None:
    info = {"running": [{"id": 7}]}
    bench.broker.announce("w", [bench.queue], info, 60.0)
    info["running"].clear()
    (first,) = bench.broker.workers(bench.queue)
    first.info["running"].clear()

    assert bench.broker.workers(bench.queue) == [("w", {"running": [{"id": 7}]})]


def test_orders_reach_their_worker_once(bench: Bench) -> None:
    def announce(worker: str) -> list[Any]:
        return [*bench.broker.announce(worker, [bench.queue, bench.queue + "-2"], {}, 60.0)]

    stop, stack = {"id": "a1", "do": "stop"}, {"id": "b2", "do": "stack", "task": 2**53 - 1, "text": "käse / |"}
    assert announce("host:1:a") == []
    bench.broker.ask("host:1:a", bench.queue, stop, 60.0)
    bench.broker.ask("host:1:a", bench.queue, stop, 60.0)
    bench.broker.ask("host:1:a", bench.queue + "-2", stack, 60.0)
    bench.broker.ask("host:1:ab", bench.queue, {"id": "c3"}, 60.0)

    assert announce("host:1") == []
    assert sorted(announce("host:1:a"), key=str) == sorted([stop, stack], key=str)
    assert announce("host:1:a") == []
    assert [*bench.broker.announce("host:1:ab", [bench.queue], None, 0.0)] == [{"id": "c3"}], "with the goodbye too"
    bench.broker.ask("host:1:a", bench.queue, stop, 60.0)
    assert announce("host:1:a") == [stop], "asked again: it may have been lost"


def test_orders_end_by_themselves(bench: Bench) -> None:
    bench.broker.ask("w", bench.queue, {"id": "a1"}, 0.05)
    bench.broker.ask("w", bench.queue, {"id": "b2"}, 60.0)
    time.sleep(0.1)  # the time that the first may wait

    assert [*bench.broker.announce("w", [bench.queue], {}, 60.0)] == [{"id": "b2"}]


class Garbage(Message):
    """A message whose header no version can read."""

    __slots__ = ()

    def header(self) -> bytes:
        return b"\x80garbage"


def test_a_header_that_can_not_be_read_stops_nobody(bench: Bench) -> None:
    (good,) = bench.messages()
    bad = Garbage(id=bench.broker.reserve_ids(bench.queue, 1), func="module:func", payload=b"payload")
    bench.broker.enqueue(bench.queue, [bad, good], secrets.token_hex(16), 1)

    assert [entry.message.func for entry in bench.broker.peek(bench.queue, "ready")] == ["?", "module:func"]
    entry = bench.broker.get(bench.queue, bad.id)
    assert entry is not None and (entry.message.func, entry.message.payload) == ("?", b"payload")
    assert ids(bench.claim()) == [bad.id, good.id]


# -- itself --------------------------------------------------------------------------------------------------------


def test_it_names_itself_and_can_be_checked(bench: Bench, store: str) -> None:
    assert all(isinstance(warning, str) for warning in bench.broker.check())
    assert store.partition("://")[2].split("/")[-1] in repr(bench.broker)


def test_a_closed_object_opens_again(bench: Bench) -> None:
    bench.put()
    bench.broker.close()
    assert len(bench.claim()) == 1


def test_a_fork_may_use_the_object(bench: Bench, store: str) -> None:
    bench.put(2)
    (claim,) = bench.claim(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        code = 1
        try:
            found = bench.claim(1, worker="forked")
            code = 0 if len(found) == 1 and bench.end(found[0], worker="forked") else 2
        except Exception as error:
            code = 3 if "fork of it" in str(error) else 4
        finally:
            os._exit(code)

    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    if store.startswith("memory:"):
        assert code == 3, "a fork has a copy only, and is told so"
    else:
        assert code == 0
        assert bench.counts() == (0, 0, 1, 0)
    assert bench.end(claim)


# -- pausing -------------------------------------------------------------------------------------------------------


def test_nothing_is_claimed_from_a_paused_queue_and_all_else_goes_on(bench: Bench) -> None:
    before = bench.put(3)
    first, second = bench.claim(2)
    bench.broker.pause(bench.queue)
    bench.broker.pause(bench.queue)
    assert bench.broker.paused(bench.queue)
    after = bench.put(2)
    (soon,) = bench.put(delay=0.05)
    time.sleep(0.1)  # until it is due

    assert bench.claim() == []
    assert bench.broker.renew("w", [bench.queue], [first.ref, second.ref], LEASE).held == [first.ref, second.ref]
    assert bench.end(first)
    assert bench.end(second, "back")
    assert bench.claim() == []
    assert bench.broker.sweep(bench.queue)[:3] == (0, 0, False)
    assert bench.counts() == (0, 5, 0, 0)
    assert [entry.message.id for entry in bench.broker.peek(bench.queue, "ready")][:2] == before[1:]
    assert bench.broker.remove(bench.queue, after[0])

    bench.broker.resume(bench.queue)
    bench.broker.resume(bench.queue)
    assert not bench.broker.paused(bench.queue)
    assert ids(bench.claim()) == [*before[1:], after[1], soon]


def test_the_other_queues_of_a_worker_are_served_while_one_is_paused(bench: Bench) -> None:
    other = Bench(bench.broker, bench.queue + "-2")
    bench.put()
    (wanted,) = other.put()
    bench.broker.pause(bench.queue)
    start = time.monotonic()

    bench.broker.wait([bench.queue, other.queue], 5.0)
    claims = bench.broker.claim([bench.queue, other.queue], "w", 1, 7, 10, LEASE)

    assert time.monotonic() - start < 2.0
    assert ids(claims) == [wanted]
    assert not bench.broker.paused(other.queue)


def test_a_claim_made_before_a_pause_is_answered_again_in_it(bench: Bench) -> None:
    expected = bench.put(2)
    assert ids(bench.broker.claim([bench.queue], "w", 1, 7, 1, LEASE)) == expected[:1]
    bench.broker.pause(bench.queue)

    assert ids(bench.broker.claim([bench.queue], "w", 1, 7, 1, LEASE)) == expected[:1]
    assert bench.broker.claim([bench.queue], "w", 2, 8, 1, LEASE) == []


def test_a_queue_that_was_never_used_can_be_paused(bench: Bench) -> None:
    assert not bench.broker.paused(bench.queue)
    bench.broker.pause(bench.queue)
    bench.put()

    assert bench.claim() == []
    bench.broker.resume(bench.queue)
    assert len(bench.claim()) == 1


@pytest.mark.parametrize("delay", [0.0, 0.01])
def test_who_waits_for_a_paused_queue_that_is_full_sleeps(bench: Bench, delay: float) -> None:
    bench.put(5, delay=delay)
    bench.broker.pause(bench.queue)
    assert bench.claim() == []
    waits = 0
    end = time.monotonic() + 1.5
    while (left := end - time.monotonic()) > 0:
        bench.broker.wait([bench.queue], left)
        waits += 1
        if not delay:  # what comes due must not end waits either, where nobody claims it
            assert bench.claim() == []

    assert waits <= 4  # a hint may come too early, but not again and again
    assert bench.claim() == []


@pytest.mark.parametrize("delay", [0.0, 0.5])
def test_a_resume_wakes_who_waits(bench: Bench, open_broker: Callable[[], Broker], delay: float) -> None:
    expected = bench.put(3, delay=delay)
    bench.broker.pause(bench.queue)
    got: list[Claim] = []
    waiting = Bench(open_broker(), bench.queue)

    def wait() -> None:
        seq = 0
        while not got:
            seq += 1
            got.extend(wait_and_claim(waiting, seq, seq, 2.0))

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.3)  # a part of the second after which some look by themselves
    assert got == []
    start = time.monotonic()
    bench.broker.resume(bench.queue)
    thread.join(BOUND)

    assert ids(got) == expected
    assert time.monotonic() - start < 0.6, "and not at the next look of its own"


# -- waiting and claiming at once ----------------------------------------------------------------------------------


def wait_and_claim(bench: Bench, seq: int, nonce: int, timeout: float, limit: int = 10) -> list[Claim]:
    """As a worker does it: claim with the same number if the wait did not."""
    claims = bench.broker.wait_and_claim([bench.queue], timeout, "w", seq, nonce, limit, LEASE)
    return bench.broker.claim([bench.queue], "w", seq, nonce, limit, LEASE) if claims is None else claims


def test_what_comes_during_a_wait_is_claimed_once(bench: Bench, open_broker: Callable[[], Broker]) -> None:
    got: list[Claim] = []
    waiting = Bench(open_broker(), bench.queue)
    thread = threading.Thread(target=lambda: got.extend(wait_and_claim(waiting, 1, 7, 5.0)))
    thread.start()
    thread.join(0.2)
    start = time.monotonic()
    expected = bench.put(3)

    thread.join(BOUND)

    assert time.monotonic() - start < 1.0
    assert ids(got) == expected
    assert all(claim.nonce == 7 and bench.broker.settle("w", [Settlement(claim.ref, "done")]) for claim in got)
    assert bench.counts() == (0, 0, 0, 0)


def test_what_is_there_before_a_wait_is_claimed_at_once(bench: Bench) -> None:
    expected = bench.put(3)
    start = time.monotonic()

    assert ids(wait_and_claim(bench, 1, 7, 5.0, limit=2)) == expected[:2]

    assert time.monotonic() - start < 1.0
    assert sorted(ids(bench.broker.claim([bench.queue], "w", 1, 7, 2, LEASE))) == expected[:2], "a resend gets the same"
    assert ids(wait_and_claim(bench, 2, 8, 5.0)) == expected[2:]


def test_what_comes_due_during_a_wait_is_claimed(bench: Bench) -> None:
    expected = bench.put(delay=0.3)
    start = time.monotonic()
    claims: list[Claim] = []
    seq = 0
    while not claims and time.monotonic() < start + BOUND:
        seq += 1
        claims = wait_and_claim(bench, seq, seq, 5.0)

    assert ids(claims) == expected
    assert 0.29 <= time.monotonic() - start < 2.0


def test_a_wait_that_ends_with_nothing_has_claimed_nothing(bench: Bench) -> None:
    assert wait_and_claim(bench, 1, 7, 0.2) == []
    bench.put()
    assert bench.counts() == (0, 1, 0, 0)


def test_a_wait_that_is_woken_may_claim_and_loses_nothing(bench: Bench) -> None:
    bench.counts()
    got: list[Claim] = []
    thread = threading.Thread(target=lambda: got.extend(wait_and_claim(bench, 1, 7, 5.0)))
    thread.start()
    thread.join(0.2)
    start = time.monotonic()
    bench.broker.wake([bench.queue])
    thread.join(BOUND)

    assert time.monotonic() - start < 1.0
    assert got == []
    bench.put()
    assert len(wait_and_claim(bench, 2, 8, 1.0)) == 1
