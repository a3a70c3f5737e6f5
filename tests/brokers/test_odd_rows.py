"""What lies in a store and is no task: it is put aside, and nothing else comes of it."""

from __future__ import annotations

import logging
import secrets
import sqlite3
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from delayed import Queue
from delayed.brokers import Broker
from delayed.message import STATES, Message
from tests.brokers.test_conformance import LEASE, Bench, ids

LARGE = 1 << 70
MOST = (1 << 63) - 1

# For each kind of store: what is changed of the middle one of three tasks, and whether a dead letter is left of it.
# What has no id that anybody could name it by is removed.
SQLITE = {
    "id = -5": True,
    "id = 0": True,
    f"id = {1 << 53}": True,
    f"id = {MOST}": True,
    "id = 'abc'": False,
    "id = 1.5": False,
    "id = x'ff'": False,
    "id = CAST(x'ff' AS TEXT)": False,
    "header = CAST(header AS TEXT)": True,
    "header = CAST(x'ff' AS TEXT)": True,
    "header = 5": True,
    "payload = 'abc'": True,
    "payload = 1.5": True,
    "delivery = -3": True,
    "delivery = 1 << 40": True,
    f"delivery = {MOST}": True,
    "delivery = 1.5": True,
    "attempt = -3": True,
    "attempt = 1 << 40": True,
    "id = -5, place = 'x', priority = 'x'": True,
}
POSTGRES = {
    "id = -5": True,
    "id = 0": True,
    f"id = {1 << 53}": True,
    f"id = {MOST}": True,
    "delivery = -3": True,
    "attempt = -3": True,
}
REDIS_IDS = {"-5": False, "abc": False, "1.5": False, "": False, "0": False, "007": False, "a b": False, "\n": False}
REDIS_IDS |= {str(1 << 53): True, str(MOST): True, str(LARGE): True}
REDIS_RECORDS = {f"{1 << 40}||0|0|0|": True, f"0||{1 << 40}|0|0|": True, f"{10**400}||0|0|0|": True}
MONGO: list[tuple[dict[str, Any], bool]] = [
    ({"id": -5}, True),
    ({"id": 0}, True),
    ({"id": 1 << 53}, True),
    ({"id": "abc"}, False),
    ({"id": 1.5}, False),
    ({"id": None}, False),
    ({"h": "text"}, True),
    ({"h": None}, True),
    ({"b": 5}, True),
    ({"d": -3}, True),
    ({"d": 1 << 40}, True),
    ({"d": "x"}, False),
    ({"d": 1.5}, False),
    ({"a": -3}, True),
    ({"a": 1 << 40}, True),
    ({"a": "x"}, True),
    ({"m": "x"}, True),
    ({"o": "x"}, True),
    ({"q": "other"}, False),
]


def _in_sqlite(url: str, queue: str, id: int, change: str) -> None:
    db = sqlite3.connect(url.removeprefix("sqlite:///"))
    with db:
        assert db.execute(f"UPDATE delayed_task SET {change} WHERE id = ?", (id,)).rowcount == 1
    db.close()


def _in_postgres(url: str, queue: str, id: int, change: str) -> None:
    import psycopg

    base, _, _ = url.rpartition("schema=")
    (schema,) = parse_qs(urlsplit(url).query)["schema"]
    with psycopg.connect(base.rstrip("?&")) as conn:
        done = conn.execute(f'UPDATE "{schema}".delayed_task SET {change} WHERE id = %s'.encode(), (id,))
        assert done.rowcount == 1


def _id_in_redis(url: str, queue: str, id: int, change: str) -> None:
    import redis

    with redis.Redis.from_url(url) as client:
        client.hset(f"{queue}_msg", change, client.hget(f"{queue}_msg", str(id)))
        client.hdel(f"{queue}_msg", str(id))
        client.lset(queue, client.lpos(queue, str(id)), change)


def _record_in_redis(url: str, queue: str, id: int, change: str) -> None:
    import redis

    with redis.Redis.from_url(url) as client:
        client.hset(f"{queue}_claim", str(id), change)


def _in_mongo(url: str, queue: str, id: int, change: dict[str, Any]) -> None:
    import pymongo

    with pymongo.MongoClient(url) as client:
        tasks = client.get_default_database()["delayed_tasks"]
        assert tasks.update_one({"q": queue, "id": id}, {"$set": change}).matched_count == 1


CASES = [
    *[pytest.param("sqlite", _in_sqlite, *case, id=f"sqlite-{case[0]}") for case in SQLITE.items()],
    *[pytest.param("postgres", _in_postgres, *case, id=f"postgres-{case[0]}") for case in POSTGRES.items()],
    *[pytest.param("redis", _id_in_redis, *case, id=f"redis-id-{case[0]!r}") for case in REDIS_IDS.items()],
    *[pytest.param("redis", _record_in_redis, *case, id=f"redis-{case[0][:20]}") for case in REDIS_RECORDS.items()],
    *[pytest.param("mongodb", _in_mongo, *case, id=f"mongodb-{case[0]}") for case in MONGO],
]


@pytest.fixture
def bench(broker: Broker, queue: str) -> Bench:
    return Bench(broker, queue)


@pytest.mark.parametrize(("store", "spoil", "change", "dies"), CASES, indirect=["store"])
def test_what_is_no_task_is_put_aside_and_its_neighbours_are_claimed(
    bench: Bench, store: str, spoil: Any, change: Any, dies: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first, odd, last = bench.put(3)
    spoil(store, bench.queue, odd, change)
    _look(bench)
    nonce = secrets.randbits(64)

    with caplog.at_level(logging.ERROR, "delayed"):
        claims = bench.broker.claim([bench.queue], "w", 1, nonce, 100, LEASE)

    assert ids(claims) == [first, last]
    assert bench.counts() == (0, 0, 2, int(dies))
    assert len([record for record in caplog.records if "no task" in record.message]) == 1
    assert bench.broker.claim([bench.queue], "w", 1, nonce, 100, LEASE) == claims
    assert bench.broker.renew("w", [bench.queue], [claim.ref for claim in claims], LEASE).unknown == []
    assert all(bench.end(claim) for claim in claims)
    assert [entry.reason[:8] for entry in _look(bench)["dead"]] == ["no task:"] * dies
    assert bench.put()  # nothing keeps what comes later from being claimed
    assert len(bench.broker.claim([bench.queue], "w", 2, secrets.randbits(64), 100, LEASE)) == 1


def _look(bench: Bench) -> dict[str, Any]:
    """All that anybody can see of a queue."""
    found: dict[str, Any] = {state: bench.broker.peek(bench.queue, state, payloads=False) for state in STATES}
    for state in STATES:
        assert len(bench.broker.peek(bench.queue, state)) == len(found[state])
    return found


@pytest.mark.parametrize(("store", "spoil", "change", "dies"), CASES, indirect=["store"])
def test_a_queue_of_nothing_else_is_emptied(bench: Bench, store: str, spoil: Any, change: Any, dies: bool) -> None:
    (odd,) = bench.put()
    spoil(store, bench.queue, odd, change)

    assert bench.claim(limit=1) == []

    assert bench.counts() == (0, 0, 0, int(dies))


@pytest.mark.parametrize("id", [-5, 0, 1 << 53, MOST, 3 << 62])
def test_an_id_that_is_none_is_put_aside_in_memory(id: int) -> None:
    queue = Queue("default", f"memory://{secrets.token_hex(8)}")
    bench = Bench(queue.broker, queue.name)
    (good,) = bench.put()
    bench.broker.enqueue(queue.name, [Message(id=id, func="m:f", payload=b"")], "b" * 32, 1)

    assert ids(bench.claim()) == [good]

    assert bench.counts() == (0, 0, 1, 1)


@pytest.mark.parametrize("store", ["sqlite", "postgres", "redis", "mongodb", "memory"], indirect=True)
def test_taking_by_hand_passes_over_what_is_no_task(broker: Broker, queue: str) -> None:
    taker = Queue(queue, broker)
    for seq, id in enumerate((1 << 53, (1 << 53) + 1, (1 << 53) + 2), 1):
        broker.enqueue(queue, [Message(id=id, func="m:f", payload=b"")], "b" * 32, seq)
    taker.enqueue(good := taker.task(len, ()))

    taken = taker.dequeue()

    assert taken is not None
    assert taken.id == good.id
    assert broker.counts(queue) == (0, 0, 1, 3)


@pytest.mark.parametrize("store", ["redis"], indirect=True)
@pytest.mark.parametrize(
    "message",
    [b"", b"\0\0\1", b"\xff\xff\xff\xff{}", b"\0\0\0\0abc", b"\x7f\xff\xff\xd0{}", b"\x80\0\0\0", b"\x80\0\0\2{}"],
)
def test_a_message_that_says_wrong_of_itself_shows_none_of_its_neighbours(
    bench: Bench, store: str, message: bytes
) -> None:
    import redis

    first, odd, last = bench.put(3, payload=b"of others")
    with redis.Redis.from_url(store) as client:
        client.hset(f"{bench.queue}_msg", str(odd), message)
    _look(bench)

    claims = bench.claim()

    assert ids(claims) == [first, odd, last]
    assert [claim.payload for claim in claims][::2] == [b"of others"] * 2
    assert b"of others" not in claims[1].header + claims[1].payload
    assert bench.end(claims[1], "dead")
    _look(bench)


def _held_in_redis(url: str, queue: str, id: int, change: str) -> None:
    import redis

    with redis.Redis.from_url(url) as client:
        record = client.hget(f"{queue}_claim", str(id))
        assert isinstance(record, bytes)
        parts = record.split(b"|", 5)
        name, _, value = change.partition("=")
        if name == "id":
            client.hset(f"{queue}_claim", value, record)
            client.hset(f"{queue}_msg", value, client.hget(f"{queue}_msg", str(id)))
            client.zadd(f"{queue}_dequeued", {value: client.zscore(f"{queue}_dequeued", str(id))})
            client.hdel(f"{queue}_claim", str(id))
            client.zrem(f"{queue}_dequeued", str(id))
        else:
            parts[("delivery", "nonce", "attempt").index(name)] = value.encode()
            client.hset(f"{queue}_claim", str(id), b"|".join(parts))


HELD: list[tuple[str, Any, list[Any]]] = [
    ("sqlite", _in_sqlite, ["id = -5", "id = 'abc'", "header = 5", "delivery = 'x'", "attempt = -3"]),
    ("postgres", _in_postgres, ["id = -5", "delivery = -3", "attempt = -3"]),
    ("redis", _held_in_redis, ["id=-5", "id=a b", f"delivery={1 << 40}", f"attempt={10**400}", "nonce="]),
    ("mongodb", _in_mongo, [{"id": -5}, {"id": "abc"}, {"h": "text"}, {"d": "x"}, {"a": 1.5}, {"o": 5}]),
]
HELD_CASES = [
    pytest.param(store, spoil, change, id=f"{store}-{str(change)[:20]}")
    for store, spoil, changes in HELD
    for change in changes
]


@pytest.mark.parametrize(("store", "spoil", "change"), HELD_CASES, indirect=["store"])
def test_a_claim_whose_answer_was_lost_is_not_told_of_what_is_no_task(
    bench: Bench, store: str, spoil: Any, change: Any
) -> None:
    first, odd, last = bench.put(3)
    claims = bench.claim()
    spoil(store, bench.queue, odd, change)

    unknown = bench.broker.renew("w", [bench.queue], [claims[0].ref], LEASE).unknown

    assert ids(unknown) == [last]
    assert sorted(ids(bench.broker.held("w", [bench.queue]))) == [first, last]
    assert sorted(bench.broker.renew("w", [bench.queue], [], LEASE).unknown) == [claims[0], claims[2]]
