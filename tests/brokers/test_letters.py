"""Dead letters, which come back or go, on every broker."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from delayed.brokers import Broker
from delayed.message import Answer, Bounds, Claim, Message, Settlement
from tests.brokers.test_conformance import Bench, ids, in_threads

DAY = 86400.0


@pytest.fixture
def bench(broker: Broker, queue: str) -> Bench:
    return Bench(broker, queue)


def bury(bench: Bench, n: int = 1, reason: str = "why", **options: object) -> list[int]:
    """Dead letters, the oldest first."""
    put = bench.put(n, **options)
    claims = bench.claim(n)
    assert ids(claims) == put
    assert all(bench.broker.settle("w", [Settlement(claim.ref, "dead", reason=reason) for claim in claims]))
    return put


class Odd(Message):
    """A message whose header is none, or is written in another way than ours."""

    written = b""

    def header(self) -> bytes:
        return self.written


# -- reviving ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [b'{"v":1,\n "later":{"x":[1.50]}, "f":"m:f","m":3}', b"\xff no header \0", b""])
def test_a_revived_letter_is_byte_for_byte_what_it_was(bench: Bench, header: bytes) -> None:
    (message,) = bench.messages(payload=bytes(range(256)))
    odd = Odd(*message)
    odd.written = header
    bench.broker.enqueue(bench.queue, [odd], secrets.token_hex(16), 1)
    (claim,) = bench.claim()
    bench.end(claim, "dead", reason="why: ünläsbar | 7|")

    assert bench.broker.revive(bench.queue, [message.id]) == [message.id]

    assert bench.counts() == (0, 1, 0, 0)
    entry = bench.broker.get(bench.queue, message.id)
    assert entry is not None
    assert (entry.state, entry.attempt, entry.delivery, entry.reason, entry.worker) == ("ready", 0, 0, "", "")
    assert (entry.header, entry.message.payload) == (header, bytes(range(256)))
    (again,) = bench.claim()
    assert (again.id, again.header, again.payload) == (message.id, header, bytes(range(256)))
    assert (again.attempt, again.deliveries) == (1, 1)
    assert bench.end(again)
    assert bench.counts() == (0, 0, 0, 0)


def test_the_number_of_deliveries_is_never_lowered(bench: Bench) -> None:
    (id,) = bench.put()
    seen = []
    for _ in range(3):
        (claim,) = bench.claim()
        bench.end(claim, "retry")
        (claim,) = bench.claim()
        seen += [claim.delivery - 1, claim.delivery]
        assert (claim.attempt, claim.deliveries) == (2, 2)
        bench.end(claim, "dead")
        assert bench.broker.revive(bench.queue, [id]) == [id]

    assert seen == sorted(set(seen))


def test_a_token_of_a_former_life_is_refused(bench: Bench) -> None:
    (id,) = bench.put()
    (old,) = bench.claim()
    bench.end(old, "dead")
    bench.broker.revive(bench.queue, [id])

    assert not bench.end(old, "dead"), "it is ready"
    (new,) = bench.claim(worker="other")
    assert not bench.end(old, "done"), "another has it"
    assert bench.broker.renew("w", [bench.queue], [old.ref], 15.0).lost == [old.ref]

    assert bench.end(new, worker="other")


def test_revived_letters_come_last_and_in_the_order_given_but_by_their_priority(bench: Bench) -> None:
    plain = bury(bench, 3)
    (high,) = bury(bench, priority=5)
    (low,) = bury(bench, priority=-5)
    (waiting,) = bench.put()

    order = [plain[1], low, plain[0], high, plain[2]]
    assert bench.broker.revive(bench.queue, order) == order

    assert ids(bench.claim()) == [high, waiting, plain[1], plain[0], plain[2], low]


def test_only_dead_letters_are_revived_and_each_once(bench: Bench) -> None:
    (letter,) = bury(bench)
    running, ready = bench.put(2)
    assert ids(bench.claim(1)) == [running]
    (scheduled,) = bench.put(delay=DAY)

    assert bench.broker.revive(bench.queue, [running, ready, letter, letter, scheduled, 12345]) == [letter]
    assert bench.broker.revive(bench.queue, [letter]) == []
    assert bench.broker.revive(bench.queue, []) == []
    assert bench.broker.revive("never-seen-" + bench.queue, [letter]) == []

    assert bench.counts() == (1, 2, 1, 0)
    assert ids(bench.claim()) == [ready, letter]


def test_a_letter_that_was_delayed_is_ready_at_once(bench: Bench) -> None:
    (id,) = bench.put(delay=0.05)
    deadline = time.monotonic() + 10
    while not (claims := bench.claim()):
        assert time.monotonic() < deadline
    bench.end(claims[0], "dead")

    assert bench.broker.revive(bench.queue, [id]) == [id]

    assert ids(bench.claim()) == [id]


def test_a_revived_poison_may_be_delivered_as_often_as_before(bench: Bench) -> None:
    (id,) = bench.put(max_deliveries=2)
    for _ in range(2):
        for _ in range(2):
            assert len(bench.claim(lease=0.05)) == 1
            bench.sweep_until_returned(1, 0.3)
        (entry,) = bench.broker.peek(bench.queue, "dead")
        assert (entry.delivery, entry.attempt) == (2, 2)
        assert entry.reason == "poison: delivered 2 times, and its worker was lost again"
        assert bench.claim() == []
        assert bench.broker.revive(bench.queue, [id]) == [id]


def test_a_revived_letter_does_not_expire(bench: Bench) -> None:
    (id,) = bury(bench, expires=1.5)

    bench.broker.revive(bench.queue, [id])

    (claim,) = bench.claim()
    assert (claim.message().expires, claim.begin_by) == (1.5, math.inf)


def test_the_answer_of_a_revived_letter_is_forgotten(bench: Bench) -> None:
    both = bench.put(2)
    answer = Answer(b"dead", DAY)
    claims = bench.claim()
    bench.broker.settle("w", [Settlement(claim.ref, "dead", answer=answer) for claim in claims])
    assert bench.broker.get_results(bench.queue, both) == dict.fromkeys(both, b"dead")

    bench.broker.revive(bench.queue, both[:1])

    assert bench.broker.get_results(bench.queue, both) == {both[1]: b"dead"}
    (claim,) = bench.claim()
    assert bench.broker.settle("w", [Settlement(claim.ref, "done", answer=Answer(b"done", DAY))]) == [True]
    assert bench.broker.get_results(bench.queue, both) == {both[0]: b"done", both[1]: b"dead"}


def test_reviving_wakes_who_waits(bench: Bench, open_broker: Callable[[], Broker]) -> None:
    (id,) = bury(bench)
    sleeper = open_broker()
    took = []
    with ThreadPoolExecutor() as pool:
        for _ in range(3):
            asleep = pool.submit(_claim_when_woken, sleeper, bench.queue)
            time.sleep(0.3)  # it may be asleep by then; if not, it has less to wait for
            assert not asleep.done()
            start = time.monotonic()
            assert bench.broker.revive(bench.queue, [id]) == [id]
            (claim,) = asleep.result(20)
            took.append(time.monotonic() - start)
            assert sleeper.settle("sleeper", [Settlement(claim.ref, "dead")]) == [True]
    assert min(took) < 0.5, "who looks by himself takes longer"


def _claim_when_woken(broker: Broker, queue: str) -> list[Claim]:
    end = time.monotonic() + 10
    seq = time.monotonic_ns()
    while time.monotonic() < end:
        broker.wait([queue], 5.0)
        seq += 1
        claims = broker.claim([queue], "sleeper", seq, secrets.randbits(64), 1, 15.0)
        if claims:
            return claims
    return []


def test_many_who_revive_the_same_letters_do_it_once(bench: Bench, open_broker: Callable[[], Broker]) -> None:
    letters = bury(bench, 60)
    brokers = [open_broker() for _ in range(4)]

    def revive(number: int) -> None:
        for at in range(0, 60, 20):
            brokers[number].revive(bench.queue, letters[at : at + 20])

    in_threads(4, revive)

    assert bench.counts() == (0, 60, 0, 0)
    assert sorted(ids(bench.claim())) == letters
    assert bench.counts() == (0, 0, 60, 0)


# -- dropping ------------------------------------------------------------------------------------------------------


def test_only_dead_letters_are_dropped(bench: Bench) -> None:
    first, second = bury(bench, 2)
    running, ready = bench.put(2)
    assert ids(bench.claim(1)) == [running]

    assert bench.broker.drop(bench.queue, [ready, running, second, second, 12345]) == [second]
    assert bench.broker.drop(bench.queue, [second]) == []
    assert bench.broker.drop("never-seen-" + bench.queue, [first]) == []

    assert bench.counts() == (0, 1, 1, 1)
    assert [entry.message.id for entry in bench.broker.peek(bench.queue, "dead")] == [first]
    assert bench.broker.revive(bench.queue, [second]) == []


# -- looking -------------------------------------------------------------------------------------------------------


def test_a_letter_tells_for_how_long_it_has_been_dead(bench: Bench) -> None:
    (id,) = bury(bench)
    found = []
    for _ in range(2):
        time.sleep(0.05)
        (listed,) = bench.broker.peek(bench.queue, "dead")
        shown = bench.broker.get(bench.queue, id)
        assert shown is not None
        found += [listed.died, shown.died]
    assert 0.04 < found[0] <= found[1] < found[2] <= found[3] < 10
    assert [entry.died for entry in _ready(bench)] == [0.0]


def _ready(bench: Bench) -> list[object]:
    bench.put()
    return bench.broker.peek(bench.queue, "ready")  # type: ignore[return-value]


def test_messages_are_listed_without_their_payloads(bench: Bench) -> None:
    bury(bench, 2, payload=b"large", key="käse", reason="why|3|not")
    bench.put(3, payload=b"large", key="käse")
    bench.put(payload=b"large", key="käse", delay=DAY)
    bench.claim(1)

    for state, n in (("scheduled", 1), ("ready", 2), ("running", 1), ("dead", 2)):
        full = bench.broker.peek(bench.queue, state)  # type: ignore[arg-type]
        bare = bench.broker.peek(bench.queue, state, payloads=False)  # type: ignore[arg-type]
        assert len(full) == len(bare) == n
        assert {entry.message.payload for entry in full} == {b"large"}
        assert [entry.message._replace(payload=b"large") for entry in bare] == [entry.message for entry in full]
        assert [entry.message.payload for entry in bare] == [b""] * n
        assert [entry.reason for entry in bare] == [entry.reason for entry in full]
        assert [entry.header for entry in bare] == [entry.header for entry in full]


def test_a_reason_may_be_long(bench: Bench) -> None:
    reason = "first\n" + "\n".join(f"line {number}: ünläsbar" for number in range(800)) + "\nlast"
    assert 16_000 < len(reason.encode()) < 20_000
    (id,) = bury(bench, reason=reason)

    entry = bench.broker.get(bench.queue, id)

    assert entry is not None
    assert entry.reason == reason
    assert bench.broker.peek(bench.queue, "dead", payloads=False)[0].reason == reason


# -- bounds --------------------------------------------------------------------------------------------------------


def letters(bench: Bench) -> list[int]:
    """The oldest first."""
    return [entry.message.id for entry in bench.broker.peek(bench.queue, "dead", 1000)][::-1]


def test_a_queue_keeps_as_many_dead_letters_as_it_asks_for(bench: Bench) -> None:
    buried = [id for _ in range(3) for id in bury(bench, 2)]
    bench.broker.sweep(bench.queue)
    assert letters(bench) == buried, "by default it keeps thousands"

    for _ in range(2):
        bench.broker.bound(bench.queue, Bounds(4, DAY))
    bench.broker.sweep(bench.queue)
    assert _eventually(bench, buried[2:])

    bench.broker.bound(bench.queue, Bounds(2, DAY))
    bench.broker.sweep(bench.queue)
    assert _eventually(bench, buried[4:])


def test_letters_that_come_later_are_bounded_within_seconds(bench: Bench) -> None:
    bench.broker.bound(bench.queue, Bounds(2, DAY))
    bench.broker.sweep(bench.queue)
    for _ in range(2):
        buried = bury(bench, 2) + bury(bench, 2)
        began = time.monotonic()
        assert _eventually(bench, buried[2:])
        assert time.monotonic() - began < 5


def test_a_queue_keeps_dead_letters_for_as_long_as_it_asks_for(bench: Bench) -> None:
    age = 2.0
    old = bury(bench, 2)
    bench.broker.sweep(bench.queue)
    assert letters(bench) == old
    end = time.monotonic() + 10
    while bench.broker.peek(bench.queue, "dead")[0].died <= age:
        assert time.monotonic() < end
        time.sleep(0.05)
    new = bury(bench, 2)

    bench.broker.bound(bench.queue, Bounds(100, age))
    bench.broker.sweep(bench.queue)

    assert _eventually(bench, new)


def test_the_bounds_hold_for_who_did_not_ask_for_them(bench: Bench, open_broker: Callable[[], Broker]) -> None:
    bench.broker.bound(bench.queue, Bounds(1, DAY))
    buried = bury(bench, 3)
    other = Bench(open_broker(), "other-" + bench.queue)
    other.claims = bench.claims  # it is the same worker
    kept = bury(other, 3)

    open_broker().sweep(bench.queue)
    open_broker().sweep(other.queue)

    assert _eventually(bench, buried[2:])
    assert letters(other) == kept


def _eventually(bench: Bench, expected: list[int]) -> bool:
    """Sweep until these letters are left: a store may tidy up a little later, but never more than it should."""
    end = time.monotonic() + 10
    while (found := letters(bench)) != expected:
        assert set(found) > set(expected)
        assert time.monotonic() < end
        time.sleep(0.1)
        bench.broker.sweep(bench.queue)
    return True


def test_all_of_ten_thousand_letters_are_listed_in_a_few_seconds(bench: Bench) -> None:
    expected: list[int] = []
    for _ in range(10):
        expected += bury(bench, 1000, payload=b"x" * 1000)

    start = time.monotonic()
    found: list[int] = []
    last = None
    while page := bench.broker.peek(bench.queue, "dead", 500, last, payloads=False):
        found += [entry.message.id for entry in page]
        last = page[-1]
    took = time.monotonic() - start
    revived = bench.broker.revive(bench.queue, expected[:5000])
    dropped = bench.broker.drop(bench.queue, expected[5000:])

    assert sorted(found) == expected
    assert took < 5
    assert (revived, dropped) == (expected[:5000], expected[5000:])
    assert bench.counts() == (0, 5000, 0, 0)
