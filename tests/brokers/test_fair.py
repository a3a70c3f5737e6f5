"""Turns among tenants: the flood of one does not starve the others, on every broker."""

from __future__ import annotations

import time

import pytest

from delayed.brokers import Broker
from delayed.message import Once
from tests.brokers.conftest import STORES
from tests.brokers.test_conformance import BOUND, Bench

A, B, C = ("a" * 32, "b" * 32, "c" * 32)


class Fair(Bench):
    """A queue in which the tasks of tenants are put and claimed."""

    def put_for(self, *tenants: str | None, **options: object) -> None:
        """One task for each of them, in one batch; who it is for is its payload."""
        messages = [
            message._replace(tenant=tenant, payload=(tenant or "-")[:1].encode())
            for message, tenant in zip(self.messages(len(tenants), **options), tenants, strict=True)
        ]
        self.seq += 1
        self.broker.enqueue(self.queue, messages, self.session, self.seq)

    def served(self, n: int, at_once: int = 1) -> str:
        """For whom the next tasks are, which are then done."""
        found = ""
        while len(found) < n and (claims := self.claim(min(at_once, n - len(found)))):
            found += "".join(claim.payload.decode() for claim in claims)
            assert all(self.end(claim) for claim in claims)
        return found


@pytest.fixture
def bench(broker: Broker, queue: str) -> Fair:
    return Fair(broker, queue)


@pytest.mark.parametrize("priority", [0, 3])
@pytest.mark.parametrize("at_once", [1, 7])
def test_a_flood_does_not_starve_those_who_come_later(bench: Fair, priority: int, at_once: int) -> None:
    bench.put_for(*[A] * 1000, priority=priority)
    bench.put_for(*[B] * 5, priority=priority)
    for _ in range(5):
        bench.put_for(C, priority=priority)

    served = bench.served(21, at_once)

    assert served.count("b") == served.count("c") == 5
    assert bench.served(20, 20) == "a" * 20
    assert bench.counts().ready == 1010 - 41


def test_two_with_as_much_to_do_alternate(bench: Fair) -> None:
    bench.put_for(*[A] * 20)
    bench.put_for(*[B] * 20)

    served = bench.served(40)

    assert abs(served.count("ab") + served.count("ba") - 39) <= 2
    assert all(abs(served[:n].count("a") - served[:n].count("b")) <= 2 for n in range(41))


def test_what_comes_while_others_are_served_gets_its_turn(bench: Fair) -> None:
    bench.put_for(*[A] * 30)
    served = ""
    for _ in range(10):  # one who always comes back at once
        bench.put_for(B)
        served += bench.served(2)

    assert 8 <= served.count("b") <= 10
    assert 10 <= served.count("a") <= 12, "nor does he hold up the one who waits"


def test_who_was_served_much_is_not_punished_for_it(bench: Fair) -> None:
    bench.put_for(*[A] * 100)
    assert bench.served(100, 50) == "a" * 100
    bench.put_for(*[B] * 10)
    bench.put_for(*[A] * 10)

    served = bench.served(20)

    assert all(abs(served[:n].count("a") - served[:n].count("b")) <= 2 for n in range(21))


def test_a_priority_comes_before_all_turns(bench: Fair) -> None:
    bench.put_for(*[A] * 5)
    bench.put_for(*[B] * 2, priority=1)
    bench.put_for(C, priority=-1)

    assert bench.served(8) == "bb" + "a" * 5 + "c"


@pytest.mark.parametrize("store", [store for store in STORES if store != "mongodb"], indirect=True)
def test_neither_the_fair_nor_the_others_starve(bench: Fair) -> None:
    for many, few in ((A, None), (None, B)):
        bench.put_for(*[many] * 20)
        bench.put_for(*[few] * 3)
        served = ""
        for _ in range(40):  # the many are never fewer
            bench.put_for(many)
            served += bench.served(1)

        assert served.count((few or "-")[0]) == 3
        bench.served(100, 50)


@pytest.mark.parametrize("store", ["memory", "sqlite", "postgres"], indirect=True)
def test_what_is_not_fair_keeps_its_turn_among_the_fair(bench: Fair) -> None:
    bench.put_for(None)
    bench.put_for(*[A] * 20)
    bench.put_for(None)
    bench.put_for(A, A)

    assert bench.served(24) == "-" + "a" * 20 + "-aa"


@pytest.mark.parametrize("store", ["mongodb"], indirect=True)
def test_who_comes_in_a_later_second_is_not_behind(bench: Fair, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.put_for(*[A] * 20)
    monkeypatch.setattr("delayed.brokers.mongo_fair._end", lambda tasks: int(time.time() + 1000) << 32)
    bench.put_for(*[B] * 2)
    bench.put_for(A)

    assert bench.served(6).count("b") == 2
    assert bench.served(20, 20) == "a" * 17


@pytest.mark.parametrize("store", ["redis"], indirect=True)
@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_the_fair_and_the_others_get_half_each_on_redis(bench: Fair, at_once: int) -> None:
    bench.put_for(*[A] * 60)
    bench.put_for(*[None] * 50)

    served = bench.served(60, at_once)

    assert 28 <= served.count("-") <= 32
    assert bench.served(50, 7).count("-") == 50 - served.count("-"), "who has less leaves the rest to the other"


def test_beside_others_all_are_served(bench: Fair) -> None:
    bench.put_for(*[A, None] * 20)
    bench.put_for(B, None, priority=1)

    assert sorted(bench.served(100, 5)) == ["-"] * 21 + ["a"] * 20 + ["b"]
    assert bench.counts() == (0, 0, 0, 0)


def test_scheduled_tasks_take_their_turns_when_they_are_due(bench: Fair) -> None:
    bench.put_for(*[A] * 40, *[B] * 3, delay=0.05)
    bench.put_for(C, delay=60.0)
    deadline = time.monotonic() + BOUND
    while bench.counts().ready < 43:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    bench.put_for(*[C] * 3)

    served = bench.served(13)

    assert served.count("b") >= 3 and served.count("c") == 3
    assert bench.served(100, 50) == "a" * (46 - 13)


@pytest.mark.parametrize("action", ["retry", "back"])
def test_what_comes_back_is_served_in_the_end(bench: Fair, action: str) -> None:
    bench.put_for(*[A] * 10, *[B] * 3)
    (claim,) = bench.claim(1)
    assert bench.end(claim, action)

    assert sorted(bench.served(20)) == ["a"] * 10 + ["b"] * 3
    bench.put_for(*[B] * 2, *[A] * 2)
    assert sorted(bench.served(20)) == ["a"] * 2 + ["b"] * 2


@pytest.mark.parametrize("how", ["retry", "later", "reschedule", "revive"])
def test_who_has_a_task_at_the_end_gets_his_turn_for_the_others(bench: Fair, how: str) -> None:
    bench.put_for(B, delay=0.0 if how != "reschedule" else 60.0)
    if how == "reschedule":
        (entry,) = bench.broker.peek(bench.queue, "scheduled")
        bench.put_for(*[A] * 50)
        assert bench.broker.reschedule(bench.queue, entry.message.id, 0.0)
    else:
        (claim,) = bench.claim(1)
        bench.put_for(*[A] * 50)
        assert bench.end(claim, "dead" if how == "revive" else "retry", delay=0.01 if how == "later" else 0.0)
        if how == "revive":
            assert bench.broker.revive(bench.queue, [claim.id]) == [claim.id]
        while bench.counts().ready < 51:
            time.sleep(0.01)
        assert bench.served(1) in "ab"  # makes ready what is due
    bench.put_for(*[B] * 2)

    assert bench.served(10).count("b") >= 2
    assert bench.served(100, 50).count("a") > 30


def test_a_unique_task_takes_its_turn(bench: Fair) -> None:
    bench.put_for(*[A] * 100)
    for number in range(3):
        (message,) = bench.messages(payload=b"b")
        bench.seq += 1
        once = Once(f"{number:032x}")
        id = bench.broker.enqueue_once(bench.queue, message._replace(tenant=B), once, bench.session, bench.seq)
        assert id == message.id

    assert bench.served(8).count("b") == 3


def test_what_waits_can_be_seen_put_off_and_removed(bench: Fair) -> None:
    bench.put_for(A, B, A)
    entries = bench.broker.peek(bench.queue, "ready")

    assert sorted(entry.message.payload for entry in entries) == [b"a", b"a", b"b"]
    assert bench.broker.remove(bench.queue, entries[0].message.id)
    assert bench.broker.reschedule(bench.queue, entries[1].message.id, 60.0)
    assert bench.counts() == (1, 1, 0, 0)
    assert [claim.id for claim in bench.claim()] == [entries[2].message.id]
    assert bench.broker.reschedule(bench.queue, entries[1].message.id, 0.0)
    assert bench.broker.purge(bench.queue) == 1
