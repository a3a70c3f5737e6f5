"""Unique tasks: who holds a key, and for how long, on every broker."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import pytest

from delayed.brokers import Broker
from delayed.message import Message, Once
from tests.brokers.test_conformance import BOUND, Bench, ids, in_threads

KEY = "0123456789abcdef" * 2
DONE, BEGUN, REPLACE = Once(KEY), Once(KEY, begun=True), Once(KEY, replace=True)


class Unique(Bench):
    """A queue in which tasks are put under a key."""

    def put_once(self, once: Once = DONE, **options: object) -> tuple[int, int]:
        """The id of a new message, and that of the one that holds the key."""
        (message,) = self.messages(**options)
        self.seq += 1
        return message.id, self.broker.enqueue_once(self.queue, message, once, self.session, self.seq)

    def stored(self, once: Once = DONE, **options: object) -> int:
        """Put one, which has to be stored."""
        id, holder = self.put_once(once, **options)
        assert holder == id
        return id

    def send(self, message: Message, once: Once, session: str, seq: int = 1) -> int:
        return self.broker.enqueue_once(self.queue, message, once, session, seq)

    def waiting(self) -> list[int]:
        return [
            entry.message.id
            for state in ("ready", "scheduled")
            for entry in self.broker.peek(self.queue, state)  # type: ignore[arg-type]
        ]


@pytest.fixture
def bench(broker: Broker, queue: str) -> Unique:
    return Unique(broker, queue)


# -- until it is done ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"delay": 60.0}, {"priority": 5}, {"delay": 60.0, "priority": -5}])
def test_a_second_task_of_a_key_is_not_stored_while_the_first_waits(bench: Unique, options: dict[str, float]) -> None:
    first = bench.stored(payload=b"first", **options)

    _, holder = bench.put_once(payload=b"second", **options)

    assert holder == first
    assert bench.waiting() == [first]
    assert bench.stored(Once("f" * 32)) in bench.waiting(), "another key is another matter"


def test_a_message_comes_out_as_it_went_in(bench: Unique) -> None:
    (message,) = bench.messages(payload=bytes(range(256)), priority=3, timeout=2.5, max_deliveries=4, key="käse")

    assert bench.send(message, DONE, secrets.token_hex(16)) == message.id

    (claim,) = bench.claim()
    assert claim.message() == message
    assert (claim.delivery, claim.attempt) == (1, 1)
    assert bench.end(claim)
    assert bench.counts() == (0, 0, 0, 0)
    assert bench.broker.queues().count(bench.queue) == 1


def test_a_task_that_runs_or_waits_for_its_retry_holds_its_key_until_it_is_done(bench: Unique) -> None:
    first = bench.stored()
    (claim,) = bench.claim()
    assert bench.put_once()[1] == first
    assert bench.end(claim, "retry", delay=60.0)
    assert bench.put_once()[1] == first
    assert bench.broker.reschedule(bench.queue, first, 0.0)
    (claim,) = bench.claim()
    assert bench.end(claim)

    second = bench.stored()

    assert ids(bench.claim()) == [second]
    assert bench.put_once()[1] == second


@pytest.mark.parametrize("how", ["dead", "removed"])
def test_a_task_that_will_not_run_frees_its_key(bench: Unique, how: str) -> None:
    first = bench.stored()
    if how == "dead":
        assert bench.end(bench.claim()[0], "dead")
    else:
        assert bench.broker.remove(bench.queue, first)

    bench.stored()

    assert bench.counts().ready == 1


def test_a_key_belongs_to_its_queue(bench: Unique) -> None:
    bench.stored()

    Unique(bench.broker, bench.queue + "/2").stored()


# -- until it has begun --------------------------------------------------------------------------------------------


def test_a_key_until_the_begin_is_free_once_its_task_runs(bench: Unique) -> None:
    first = bench.stored(BEGUN)
    assert bench.put_once(BEGUN)[1] == first
    (claim,) = bench.claim()

    second = bench.stored(BEGUN)

    assert bench.end(claim, "retry")
    assert bench.put_once(BEGUN)[1] == second, "a task that is tried again does not take it back"


def test_a_task_that_was_given_back_has_not_begun(bench: Unique) -> None:
    first = bench.stored(BEGUN)
    (claim,) = bench.claim()
    assert bench.end(claim, "back")

    assert bench.put_once(BEGUN)[1] == first


def test_the_rule_is_that_of_the_task_which_holds_the_key(bench: Unique) -> None:
    bench.stored(BEGUN)
    bench.claim()
    second = bench.stored(DONE)
    bench.claim()

    assert bench.put_once(BEGUN)[1] == second


# -- for a period --------------------------------------------------------------------------------------------------


def test_a_key_for_a_period_is_held_whatever_becomes_of_its_task(bench: Unique) -> None:
    first = bench.stored(Once(KEY, period=1.0))
    begun = time.monotonic()
    assert bench.end(bench.claim()[0])

    assert bench.put_once()[1] == first

    deadline = time.monotonic() + BOUND
    while (put := bench.put_once())[0] != put[1]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert time.monotonic() - begun > 0.9


def test_a_period_ends_though_its_task_waits(bench: Unique) -> None:
    first = bench.stored(Once(KEY, period=0.001), delay=60.0)
    time.sleep(0.05)

    second = bench.stored()

    assert sorted(bench.waiting()) == [first, second]


# -- replacing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("priority", [0, 7])
@pytest.mark.parametrize("delay", [0.0, 60.0])
def test_a_task_that_waits_is_replaced(bench: Unique, delay: float, priority: int) -> None:
    other = bench.put(priority=priority)
    bench.stored(REPLACE, delay=delay, priority=priority)

    second = bench.stored(REPLACE, payload=b"second", delay=delay, priority=priority)
    third = bench.stored(Once(KEY, replace=True, begun=True), payload=b"third", priority=priority)

    assert second != third
    claims = bench.claim()
    assert ids(claims) == [*other, third]
    assert claims[1].payload == b"third"
    assert bench.counts() == (0, 0, 2, 0)


def test_a_task_that_waits_for_its_retry_is_replaced(bench: Unique) -> None:
    bench.stored(priority=2)
    assert bench.end(bench.claim()[0], "retry")

    second = bench.stored(REPLACE)

    assert bench.waiting() == [second]


def test_a_task_that_runs_is_left_alone_and_its_key_goes_to_the_new_one(bench: Unique) -> None:
    first = bench.stored(REPLACE)
    (claim,) = bench.claim()

    second = bench.stored(REPLACE)

    assert bench.waiting() == [second]
    assert bench.put_once(DONE)[1] == second
    assert bench.end(claim, "retry")
    assert sorted(bench.waiting()) == [first, second]
    third = bench.stored(REPLACE)
    assert sorted(bench.waiting()) == [first, third], "the first one has no key any more"


# -- resends -------------------------------------------------------------------------------------------------------


def test_what_was_stored_is_not_stored_again(bench: Unique) -> None:
    first, other = bench.messages(2)
    session = secrets.token_hex(16)

    assert bench.send(first, DONE, session) == first.id
    assert bench.send(first, DONE, session) == first.id
    assert bench.send(first, REPLACE, session) == first.id
    assert bench.end(bench.claim()[0])
    assert bench.send(first, DONE, session) == first.id, "not even when it is gone"
    assert bench.counts() == (0, 0, 0, 0)
    assert bench.send(other, DONE, session, 2) == other.id
    assert bench.send(first, DONE, session) == first.id, "nor when another has the key"
    assert bench.waiting() == [other.id]


def test_what_was_not_stored_is_decided_anew_when_it_is_sent_again(bench: Unique) -> None:
    first = bench.stored()
    (message,) = bench.messages()
    session = secrets.token_hex(16)
    assert bench.send(message, DONE, session) == first
    assert bench.end(bench.claim()[0])

    assert bench.send(message, DONE, session) == message.id

    assert bench.waiting() == [message.id]


def test_numbers_are_shared_with_other_enqueues_of_the_session(bench: Unique) -> None:
    for _ in range(3):
        bench.put()
        bench.put_once()

    assert bench.counts().ready == 4
    assert len(bench.claim()) == 4


# -- many at once --------------------------------------------------------------------------------------------------


def test_of_many_at_once_one_is_stored(bench: Unique, open_broker: Callable[[], Broker]) -> None:
    holders: dict[str, set[int]] = {}
    own: set[int] = set()
    keys = [secrets.token_hex(16) for _ in range(3)]
    benches = [Unique(open_broker(), bench.queue) for _ in range(8)]

    def put(number: int) -> None:
        mine = benches[number]
        mine.broker.counts(mine.queue)  # connects
        for key in keys:
            id, holder = mine.put_once(Once(key), key=key)
            own.add(id)
            holders.setdefault(key, set()).add(holder)

    in_threads(8, put)

    assert [len(holders[key]) for key in keys] == [1, 1, 1], "all are told the same"
    assert set().union(*holders.values()) <= own
    assert sorted(claim.message().key or "" for claim in bench.claim()) == sorted(keys)


def test_of_many_that_replace_each_other_one_is_left(bench: Unique, open_broker: Callable[[], Broker]) -> None:
    benches = [Unique(open_broker(), bench.queue) for _ in range(4)]

    def put(number: int) -> None:
        for _ in range(5):
            benches[number].stored(REPLACE, delay=60.0)

    in_threads(4, put)

    assert bench.counts() == (1, 0, 0, 0)
    assert bench.waiting() == [bench.put_once(DONE)[1]]


def test_the_same_request_twice_at_once_is_stored_once(bench: Unique, open_broker: Callable[[], Broker]) -> None:
    brokers = [open_broker() for _ in range(4)]
    messages = bench.messages(5)
    session = secrets.token_hex(16)

    def send(number: int) -> None:
        for seq, message in enumerate(messages, 1):
            once = Once(f"{seq:032x}")
            assert (
                brokers[number].enqueue_once(bench.queue, message, once, f"{seq:016x}{session[16:]}", 1) == message.id
            )

    in_threads(4, send)

    assert sorted(bench.waiting()) == [message.id for message in messages]


# -- tidying -------------------------------------------------------------------------------------------------------


def test_sweeping_keeps_the_keys_that_are_held(bench: Unique) -> None:
    waits = bench.stored()
    period = bench.stored(Once("a" * 32, period=60.0))
    assert bench.broker.remove(bench.queue, period)
    gone = bench.stored(Once("b" * 32))
    assert bench.broker.remove(bench.queue, gone)

    bench.broker.sweep(bench.queue)

    assert bench.put_once()[1] == waits
    assert bench.put_once(Once("a" * 32))[1] == period
    bench.stored(Once("b" * 32))


def keys_in(store: str, queue: str) -> int:
    """How many keys a store remembers, seen by its own driver."""
    if store.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as db:
            return int(db.execute("SELECT count(*) FROM delayed_once").fetchone()[0])
    if store.startswith("redis"):
        import redis

        with contextlib.closing(redis.Redis.from_url(store)) as client:
            return int(client.hlen(f"{queue}_once"))
    if store.startswith("mongodb"):
        import pymongo

        with pymongo.MongoClient[Any](store) as mongo:
            return mongo.get_default_database()["delayed_tasks"].count_documents({"_id": {"$regex": "^u/"}})
    import psycopg

    url, _, schema = store.rpartition("schema=")
    with psycopg.connect(url.rstrip("?&")) as conn:
        rows = conn.execute(f'SELECT count(*) FROM "{schema}".delayed_once'.encode()).fetchall()
        return int(rows[0][0])


@pytest.mark.parametrize("store", ["sqlite", "redis", "postgres", "mongodb"], indirect=True)
def test_keys_that_are_over_take_no_space_for_long(bench: Unique, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if store.startswith("mongodb"):
        monkeypatch.setattr("delayed.brokers.mongo_once.OFTEN", 1)  # else chance decides
    held = [bench.stored(Once(secrets.token_hex(16)), delay=60.0) for _ in range(5)]
    for _ in range(100):
        id = bench.stored(Once(secrets.token_hex(16)))
        assert bench.broker.remove(bench.queue, id)

    assert 5 < keys_in(store, bench.queue) < 90, "each new one looks at some others"
    bench.broker.sweep(bench.queue)
    assert keys_in(store, bench.queue) == 5
    assert bench.waiting() == held
