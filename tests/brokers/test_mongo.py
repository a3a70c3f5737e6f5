"""What is special to MongoDB: its documents, its ways to fail, its kinds of clients and servers."""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pymongo
import pytest
from bson import Decimal128, Timestamp
from pymongo.errors import PyMongoError
from pymongo.server_api import ServerApi

from delayed.brokers import broker_for
from delayed.brokers.mongo import MongoBroker
from delayed.errors import BrokerError, BrokerFull, BrokerUnavailable, ConfigError, TaskLost, Unsupported
from delayed.message import Claim, Message, Settlement
from tests.brokers.patience import eventually, insist
from tests.servers.mongo import MongoServer, mongo_server

QUEUE = "default"
TEST_COMMANDS = ("--setParameter", "enableTestCommands=1")


@pytest.fixture
def broker(mongo_database: str) -> Iterator[MongoBroker]:
    broker = MongoBroker(mongo_database)
    yield broker
    broker.close()


@pytest.fixture
def store(mongo_database: str) -> Iterator[Any]:
    """The database by a plain client, to look behind the broker's back and to spoil things there."""
    with pymongo.MongoClient(mongo_database) as client:
        yield client.get_default_database()


@pytest.fixture
def server() -> Iterator[MongoServer]:
    """One that may be killed."""
    with mongo_server(*TEST_COMMANDS) as server:
        yield server


@pytest.fixture
def own(server: MongoServer) -> Iterator[MongoBroker]:
    """A broker on the server that may be killed."""
    broker = MongoBroker(server.url)
    broker.check()
    yield broker
    broker.close()


@pytest.fixture(scope="module")
def standalone() -> Iterator[MongoServer]:
    with mongo_server(replica_set="") as server:
        yield server


class Producer:
    """Enqueues as a producer does: ids reserved, one session, sequence numbers that rise."""

    def __init__(self, broker: MongoBroker) -> None:
        self.broker = broker
        self.session = secrets.token_hex(16)
        self.seq = 0
        self.sent: list[Message] = []

    def __call__(self, n: int = 1, payload: bytes = b"x", **options: Any) -> list[int]:
        first = insist(lambda: self.broker.reserve_ids(QUEUE, n))
        self.sent = [Message(id=first + i, func="mod:f", payload=payload, **options) for i in range(n)]
        self.seq += 1
        self.again()
        return [message.id for message in self.sent]

    def again(self) -> None:
        insist(lambda: self.broker.enqueue(QUEUE, self.sent, self.session, self.seq))


class Worker:
    """Claims as a worker does: one id, sequence numbers that rise, a new nonce each."""

    def __init__(self, broker: MongoBroker, name: str = "worker") -> None:
        self.broker = broker
        self.name = name
        self.seq = 0

    def claim(self, limit: int = 10, lease: float = 15.0) -> list[Claim]:
        self.seq += 1
        nonce = secrets.randbits(64)
        return list(insist(lambda: self.broker.claim([QUEUE], self.name, self.seq, nonce, limit, lease)))

    def done(self, claims: list[Claim]) -> list[bool]:
        return self.broker.settle(self.name, [Settlement(claim.ref, "done") for claim in claims])


def ids(claims: list[Claim]) -> list[int]:
    return [claim.id for claim in claims]


def in_threads(n: int, body: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=body, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- enqueueing --------------------------------------------------------------------------------------------------


def unpublish(store: Any, *, committed: bool) -> None:
    """Bring the last enqueue to where it is when its command is cut short before it publishes, or before it commits."""
    (session,) = store.delayed_tasks.find({"_id": {"$regex": "^s/"}})
    staged = {"s": session["batch"], "at": datetime.datetime(1970, 1, 1)}
    origin = {"t": session["_id"].removeprefix("s/"), "c": session["seq"], "g": 0}
    store.delayed_tasks.update_many({"q": QUEUE, "s": f"r/{QUEUE}"}, {"$set": {**staged, **origin}})
    store.delayed_tasks.update_one({"_id": session["_id"]}, {"$unset": {"seen": ""}})
    if not committed:
        store.delayed_tasks.delete_one({"_id": session["_id"]})


@pytest.mark.parametrize("repair", ["resend", "sweep"])
def test_an_enqueue_that_was_cut_short_after_its_commit_is_finished(
    broker: MongoBroker, store: Any, repair: str
) -> None:
    put, worker = Producer(broker), Worker(broker)
    expected = put(3)
    unpublish(store, committed=True)
    assert broker.counts(QUEUE) == (0, 0, 0, 0)
    assert worker.claim() == []

    put.again() if repair == "resend" else broker.sweep(QUEUE)

    claims = worker.claim()
    assert ids(claims) == expected
    assert all(worker.done(claims))
    put.again()
    broker.sweep(QUEUE)
    assert broker.counts(QUEUE) == (0, 0, 0, 0)


def test_an_enqueue_that_was_cut_short_before_its_commit_has_not_happened(broker: MongoBroker, store: Any) -> None:
    put, worker = Producer(broker), Worker(broker)
    expected = put(3)
    unpublish(store, committed=False)
    broker.sweep(QUEUE)
    assert broker.counts(QUEUE) == (0, 0, 0, 0)
    assert broker.get(QUEUE, expected[0]) is None

    put.again()

    assert ids(worker.claim()) == expected
    store.delayed_tasks.update_many({"s": {"$regex": "^p/"}}, {"$set": {"o": Timestamp(1, 1)}})
    broker.sweep(QUEUE)
    assert store.delayed_tasks.count_documents({"s": {"$regex": "^p/"}}) == 0, "it is thrown away after an hour"
    assert broker.counts(QUEUE) == (0, 0, 3, 0)


def test_what_lost_resends_have_staged_is_thrown_away_by_the_next_sweep(broker: MongoBroker, store: Any) -> None:
    put, worker = Producer(broker), Worker(broker)
    expected = put(2)
    leave_staged(store, put, 3)
    assert staged(store) == 6

    broker.sweep(QUEUE)

    assert staged(store) == 0
    expected += put()
    assert ids(worker.claim()) == expected


def test_what_was_staged_under_a_number_that_is_not_used_yet_is_left_alone(broker: MongoBroker, store: Any) -> None:
    put = Producer(broker)
    put()
    put.seq += 1
    leave_staged(store, put, 1)

    broker.sweep(QUEUE)

    assert staged(store) == 1, "its command may be under way"


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize(
    ("whose", "change"),
    [
        ("s/", {"seq": None}),
        ("s/", {"seq": "7"}),
        ("p/", {"c": Decimal128("1")}),
        ("p/", {"c": None}),
        ("p/", {"o": None}),
        ("p/", {"o": datetime.datetime(2026, 1, 1)}),
    ],
)
def test_odd_documents_of_enqueues_keep_nobody_from_sweeping(
    broker: MongoBroker, store: Any, whose: str, change: dict[str, Any], committed: bool
) -> None:
    put = Producer(broker)
    put(2)
    if committed:
        unpublish(store, committed=True)
    else:
        leave_staged(store, put, 1)
    odd = {"_id": {"$regex": "^s/"}} if whose == "s/" else {"s": {"$regex": "^p/"}}
    store.delayed_tasks.update_many(odd, {"$set": change})

    broker.sweep(QUEUE)

    assert broker.counts(QUEUE).ready == 2


def leave_staged(store: Any, put: Producer, times: int) -> None:
    """As attempts do whose connections are cut before they are heard of: they are not there to tidy up."""
    for _ in range(times):
        batch = {"s": "p/" + secrets.token_hex(12), "at": datetime.datetime(1970, 1, 1), "t": put.session, "c": put.seq}
        now = Timestamp(int(time.time()), 1)
        rows = [{"q": QUEUE, "id": message.id, "g": 0, "o": now, **batch} for message in put.sent]
        store.delayed_tasks.insert_many(rows)


def staged(store: Any) -> int:
    return int(store.delayed_tasks.count_documents({"s": {"$regex": "^p/"}}))


@pytest.mark.parametrize("repair", ["resend", "sweep"])
@pytest.mark.parametrize("n", [2, 40])
def test_a_session_is_not_forgotten_before_its_tasks_are_published(
    broker: MongoBroker, store: Any, n: int, repair: str
) -> None:
    put = Producer(broker)
    put()
    refused = {"s": {"$ne": f"r/{QUEUE}"}}
    store.command("collMod", "delayed_tasks", validator=refused)
    put.seq += 1
    messages = [Message(broker.reserve_ids(QUEUE, 1), "mod:f", b"") for _ in range(n)]
    with pytest.raises(BrokerUnavailable, match="not published yet"):
        broker.enqueue(QUEUE, messages, put.session, put.seq)
    broker.sweep(QUEUE)
    session = {"_id": "s/" + put.session}
    assert "seen" not in store.delayed_tasks.find_one(session), "what the server forgets sessions by"
    store.command("collMod", "delayed_tasks", validator={})

    broker.enqueue(QUEUE, messages, put.session, put.seq) if repair == "resend" else broker.sweep(QUEUE)

    assert broker.counts(QUEUE).ready == 1 + n
    assert "seen" in store.delayed_tasks.find_one(session)


@pytest.mark.parametrize("n", [2, 40])
def test_a_resend_is_not_refused_for_want_of_room(own: MongoBroker, server: MongoServer, n: int) -> None:
    own.enqueue(QUEUE, [Message(1, "mod:f", b"")], "other", 1)
    messages = [Message(2 + i, "mod:f", b"") for i in range(n)]
    with pymongo.MongoClient(server.url) as client:

        def fill(times: int) -> None:
            full = {"failCommands": ["update", "insert"], "errorCode": 14031}
            client.admin.command({"configureFailPoint": "failCommand", "mode": {"times": times}, "data": full})

        fill(1)
        with pytest.raises(BrokerFull):
            own.enqueue(QUEUE, messages, "session", 1)
        client.delayed.command("collMod", "delayed_tasks", validator={"s": {"$ne": f"r/{QUEUE}"}})
        with pytest.raises(BrokerUnavailable, match="not published yet"):
            own.enqueue(QUEUE, messages, "session", 1)
        client.delayed.command("collMod", "delayed_tasks", validator={})
        fill(2)
        with pytest.raises(BrokerUnavailable, match="not published yet") as caught:
            own.enqueue(QUEUE, messages, "session", 1)
        assert not isinstance(caught.value, BrokerFull)
        fill(1)
        own.enqueue(QUEUE, messages, "session", 1)
    assert own.counts(QUEUE).ready == 1 + n


def test_a_session_is_forgotten_even_if_it_was_cut_short_after_it_had_published(
    broker: MongoBroker, store: Any
) -> None:
    Producer(broker)()
    store.delayed_tasks.update_many({}, {"$unset": {"seen": ""}})
    broker.sweep(QUEUE)
    assert store.delayed_tasks.count_documents({"seen": {"$exists": True}}) == 1


@pytest.mark.parametrize("n", [3, 40])
def test_nothing_is_committed_before_its_tasks_are_replicated(own: MongoBroker, server: MongoServer, n: int) -> None:
    first = own.reserve_ids(QUEUE, n)
    own.enqueue(QUEUE, [Message(first, "mod:f", b"")], "other", 1)  # the queue is noted
    messages = [Message(first + i, "mod:f", b"x" * (n == 3 and 4 << 20)) for i in range(n)]
    with pymongo.MongoClient(server.url) as client:
        answer = {"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}}
        failing = {"failCommands": ["insert"], **answer}
        client.admin.command({"configureFailPoint": "failCommand", "mode": {"times": 1}, "data": failing})
        with pytest.raises(BrokerUnavailable):
            own.enqueue(QUEUE, messages, "session", 1)
        assert client.delayed.delayed_tasks.count_documents({"_id": "s/session"}) == 0
        client.delayed.delayed_tasks.delete_many({"s": {"$regex": "^p/"}})  # as a new primary does that has not them
    own.enqueue(QUEUE, messages, "session", 1)
    assert own.counts(QUEUE).ready == 1 + n


@pytest.mark.parametrize("n", [1, 40])
def test_attempts_at_the_same_time_store_once(broker: MongoBroker, store: Any, n: int) -> None:
    put, worker = Producer(broker), Worker(broker)
    for _ in range(5):
        first = broker.reserve_ids(QUEUE, n)
        messages = [Message(first + i, "mod:f", b"") for i in range(n)]
        put.seq += 1
        in_threads(4, lambda _: insist(lambda: broker.enqueue(QUEUE, messages, put.session, put.seq)))  # noqa: B023
        claims = worker.claim(1000)
        assert ids(claims) == list(range(first, first + n))
        assert all(worker.done(claims))

    assert store.delayed_tasks.count_documents({"q": QUEUE}) == 0


@pytest.mark.parametrize("delay", [float(sys.maxsize // 1000), 1e16, 1e12])
def test_a_delay_beyond_all_dates_is_a_long_one(broker: MongoBroker, delay: float) -> None:
    put, worker = Producer(broker), Worker(broker)
    (now,) = put()
    (later,) = put(delay=delay)
    (claim,) = worker.claim()
    assert broker.settle("worker", [Settlement(claim.ref, "retry", delay)]) == [True]
    for entry in [*broker.peek(QUEUE, "scheduled"), broker.get(QUEUE, now), broker.get(QUEUE, later)]:
        assert entry is not None
        assert entry.due > 99 * 365 * 86400
    assert broker.counts(QUEUE) == (2, 0, 0, 0)
    broker.wait([QUEUE], 0.01)


def test_a_batch_that_the_server_refuses_keeps_no_sweeper_from_the_others(broker: MongoBroker, store: Any) -> None:
    put, worker = Producer(broker), Worker(broker)
    expected = put(2)
    assert broker.sweep(QUEUE, 3600.0)[:3] == (0, 0, False)
    worker.claim(1, lease=0.01)
    unpublish(store, committed=True)
    broken = {"q": 5, "s": "p/0", "at": datetime.datetime(1970, 1, 1), "t": "x", "c": 1, "g": 0, "o": Timestamp(1, 1)}
    store.delayed_tasks.insert_many([broken, {"_id": "s/x", "seq": 1, "batch": "p/0"}])
    assert eventually(lambda: broker.sweep(QUEUE, 3600.0).returned) == 1
    assert ids(worker.claim()) == expected


def test_what_is_too_large_is_refused_and_nothing_is_stored(broker: MongoBroker) -> None:
    put = Producer(broker)
    first = broker.reserve_ids(QUEUE, 2)
    messages = [Message(first, "mod:f", b""), Message(first + 1, "mod:large", b"x" * (16 << 20))]

    with pytest.raises(BrokerError, match=r"mod:large with id \d+ takes 16777\d+ bytes.*nothing of this call"):
        broker.enqueue(QUEUE, messages, put.session, 1)

    assert broker.counts(QUEUE) == (0, 0, 0, 0)
    broker.enqueue(QUEUE, [messages[0], messages[1]._replace(payload=b"x" * (16_700_000))], put.session, 1)
    assert [len(claim.payload) for claim in Worker(broker).claim()] == [0, 16_700_000]


def test_a_claim_of_large_tasks_stays_below_what_a_process_can_hold(broker: MongoBroker) -> None:
    put, worker = Producer(broker), Worker(broker)
    for _ in range(6):
        put(payload=b"x" * 15_000_000)

    assert len(worker.claim(6)) == 3
    assert len(worker.claim(6)) == 3


def test_a_reason_is_stored_whatever_is_in_it(broker: MongoBroker) -> None:
    Producer(broker)(2)
    strange, long = Worker(broker).claim()
    ends = [
        Settlement(strange.ref, "dead", 0, "no file \udcff"),
        Settlement(long.ref, "dead", 0, "\U0001f40c" * 30_000),
    ]
    assert broker.settle("worker", ends) == [True, True]
    assert {entry.message.id: entry.reason for entry in broker.peek(QUEUE, "dead")} == {
        strange.id: "no file ?",
        long.id: "\U0001f40c" * 20_000,
    }


def test_what_no_document_can_hold_is_an_error_of_ours(broker: MongoBroker, store: Any) -> None:
    with pytest.raises(BrokerError):
        broker.enqueue("\udcff", [Message(1, "mod:f", b"")], "session", 1)
    with pytest.raises(BrokerError):
        broker.enqueue(QUEUE, [Message(1 << 64, "mod:f", b"")], "session", 1)
    with store.client.start_session() as session, session.start_transaction(), pytest.raises(BrokerError):
        broker.join(session).enqueue(QUEUE, [Message(1 << 64, "mod:f", b"")])


def test_numbers_beyond_all_integers_of_the_server(broker: MongoBroker) -> None:
    (only,) = Producer(broker)()
    assert broker.get(QUEUE, 1 << 63) is None
    assert not broker.remove(QUEUE, 1 << 63)
    assert [entry.message.id for entry in broker.peek(QUEUE, "ready", limit=1 << 63)] == [only]
    assert ids(Worker(broker).claim(1 << 64)) == [only]


def test_the_priority_counts_among_many_due_tasks(broker: MongoBroker, store: Any) -> None:
    put, worker = Producer(broker), Worker(broker)
    put(600, delay=0.001)
    (urgent,) = put(priority=100, delay=0.002)
    eventually(lambda: broker.counts(QUEUE).ready == 601)
    assert ids(worker.claim(1)) == [urgent]


def test_finished_tasks_leave_nothing(broker: MongoBroker, store: Any) -> None:
    put, worker = Producer(broker), Worker(broker)
    for _ in range(3):
        put(20)
        assert all(worker.done(worker.claim(20)))

    assert sorted(row["_id"][:2] for row in store.delayed_tasks.find()) == ["c/", "s/"]
    assert store.delayed_leases.count_documents({}) == 0


# -- claiming and leases -----------------------------------------------------------------------------------------


def test_a_claim_looks_at_no_more_than_it_takes(broker: MongoBroker, store: Any) -> None:
    put, worker = Producer(broker), Worker(broker)
    put(3000, delay=1000.0)
    put(3000)
    assert len(worker.claim(1000)) == 1000
    broker.settle("worker", [Settlement(claim.ref, "dead") for claim in worker.claim(1000)])
    broker.sweep(QUEUE)  # it counts the dead letters, and not again for a minute
    store.command("profile", 2)

    assert len(worker.claim(5)) == 5
    broker.wait([QUEUE], 0.1)
    broker.sweep(QUEUE)

    store.command("profile", 0)
    looked = [(row.get("keysExamined", 0), row["command"]) for row in store.system.profile.find()]
    assert looked
    assert max(keys for keys, _ in looked) <= 20, max(looked, key=lambda row: row[0])


def test_a_claim_of_many_queues_asks_the_empty_ones_together(broker: MongoBroker, store: Any) -> None:
    put = Producer(broker)
    (now,), (later,) = put(), put(delay=0.01)
    put(3000, delay=1000.0)
    names = [*(f"empty{number}" for number in range(50)), QUEUE]
    store.command("profile", 2)

    assert ids(broker.claim(names, "worker", 1, 1, 10, 15.0)) == [now, later]

    store.command("profile", 0)
    asked = [row.get("keysExamined", 0) for row in store.system.profile.find({"ns": {"$regex": "delayed_tasks"}})]
    assert 1 < len(asked) < 12, "a few commands for one queue, and not for 51"
    assert max(asked) <= 120, "two of each queue"


@pytest.mark.parametrize("at", ["then", 5, datetime.datetime(1, 1, 1)])
def test_a_task_that_is_due_when_no_clock_tells_is_found_in_any_of_many_queues(
    broker: MongoBroker, store: Any, at: object
) -> None:
    (id,) = Producer(broker)(delay=1000.0)
    store.delayed_tasks.update_one({"s": f"l/{QUEUE}"}, {"$set": {"at": at}})
    store.delayed_tasks.insert_one({"s": ["r/empty1", 5]})

    claims = broker.claim([*(f"empty{number}" for number in range(9)), QUEUE], "worker", 1, 1, 10, 15.0)

    assert ids(claims) == [id]


def test_a_client_that_is_held_to_the_stable_api_serves_many_queues(mongo_database: str, broker: MongoBroker) -> None:
    (id,) = Producer(broker)()
    with pymongo.MongoClient(mongo_database, server_api=ServerApi("1", strict=True)) as client:
        held = MongoBroker(client.get_default_database())

        claims = held.claim([*(f"empty{number}" for number in range(9)), QUEUE], "worker", 1, 1, 10, 15.0)

        assert ids(claims) == [id]
        held.close()


def test_a_renewal_does_not_touch_the_task(broker: MongoBroker, store: Any) -> None:
    Producer(broker)(2)
    claims = Worker(broker).claim()
    before = list(store.delayed_tasks.find({"q": QUEUE}))

    assert broker.renew("worker", [QUEUE], [claim.ref for claim in claims], 100.0).lost == []

    assert list(store.delayed_tasks.find({"q": QUEUE})) == before
    assert [round(entry.due, -1) for entry in broker.peek(QUEUE, "running")] == [100.0, 100.0]


def test_many_are_renewed_by_one_write(broker: MongoBroker, store: Any) -> None:
    Producer(broker)(150)
    refs = [claim.ref for claim in Worker(broker).claim(150)]
    first, more = refs[:100], refs[100:]
    assert broker.renew("worker", [QUEUE], first, 100.0).held == first
    store.command("profile", 2)
    writes = []
    for asked in (first, refs, refs):
        assert broker.renew("worker", [QUEUE], asked, 100.0).held == asked
        writes.append(store.system.profile.count_documents({"op": "update"}))

    assert writes == [1, 1 + 1 + len(more), 1 + 1 + len(more) + 1]


def test_renewals_and_sweepers_agree_who_was_first(broker: MongoBroker) -> None:
    """Of each claim whose lease ends in this moment: either it was renewed, or it was returned."""
    put, worker = Producer(broker), Worker(broker)
    for _ in range(10):
        put(5)
        claims = worker.claim(5, lease=0.02)
        held: list[Any] = []
        returned: list[int] = []
        ends = time.monotonic() + 0.15

        def renew(_: int, claims: Any = claims, held: Any = held, returned: Any = returned, ends: Any = ends) -> None:
            if _:
                while time.monotonic() < ends:
                    returned.append(broker.sweep(QUEUE, 15.0).returned)
            else:
                time.sleep(0.015 + secrets.randbelow(15) / 1000)
                held.extend(broker.renew("worker", [QUEUE], [claim.ref for claim in claims], 15.0).held)

        in_threads(2, renew)

        assert len(held) + sum(returned) == 5
        assert broker.counts(QUEUE) == (0, sum(returned), len(held), 0)
        broker.settle("worker", [Settlement(ref, "done") for ref in held])
        assert all(worker.done(worker.claim(100)))


# -- joining and transactions ------------------------------------------------------------------------------------


def test_a_session_that_is_in_no_transaction_or_elsewhere_is_refused(
    broker: MongoBroker, mongo_database: str, server: MongoServer
) -> None:
    with pymongo.MongoClient(mongo_database) as client, client.start_session() as session:
        with pytest.raises(ConfigError, match=r"session\.start_transaction"):
            broker.join(session)
        with pytest.raises(ConfigError, match=r"ClientSession, not of a .*MongoClient"):
            broker.join(client)
    with pymongo.MongoClient(server.url) as client, client.start_session() as session:
        session.start_transaction()
        with pytest.raises(ConfigError, match="another server"):
            broker.join(session)


def test_the_drivers_with_transaction_tries_again_what_may_succeed(broker: MongoBroker, store: Any) -> None:
    """The tables are made in the middle of the first try, and so it can't see them; the second one is cut off."""
    store.orders.insert_one({"_id": 0})
    tries = []

    def order(session: Any) -> None:
        tries.append(session)
        store.orders.insert_one({}, session=session)
        joined = broker.join(session)
        first = joined.reserve_ids(QUEUE, 20)
        if len(tries) == 2:
            store.client.admin.command("killSessions", [session.session_id])
        joined.enqueue(QUEUE, [Message(first + i, "mod:f", b"") for i in range(20)])

    with store.client.start_session() as session:
        session.with_transaction(order)

    assert len(tries) == 3
    assert broker.counts(QUEUE).ready == 20
    assert store.orders.count_documents({}) == 2


def test_a_first_use_inside_a_transaction_that_has_read_nothing(broker: MongoBroker, store: Any) -> None:
    with store.client.start_session() as session, session.start_transaction():
        broker.join(session).enqueue(QUEUE, [Message(1, "mod:f", b"")])
    assert broker.counts(QUEUE).ready == 1


def test_a_delay_in_a_transaction_counts_by_the_servers_clock(broker: MongoBroker, mongo_database: str) -> None:
    with pymongo.MongoClient(mongo_database) as client, client.start_session() as session:
        session.start_transaction()
        joined = broker.join(session)
        joined.enqueue(QUEUE, [Message(joined.reserve_ids(QUEUE, 1), "mod:f", b"", delay=50.0)])
        session.commit_transaction()
        with pytest.raises(BrokerError, match="is over"):
            joined.enqueue(QUEUE, [Message(joined.reserve_ids(QUEUE, 1), "mod:f", b"")])

    (entry,) = broker.peek(QUEUE, "scheduled")
    assert 40 < entry.due <= 50


def test_a_transaction_goes_on_beside_renewals_and_sweeps(broker: MongoBroker, store: Any) -> None:
    Producer(broker)()
    (claim,) = Worker(broker).claim(lease=0.05)
    broker.renew("worker", [QUEUE], [claim.ref], 15.0)

    with broker.transaction(claim.ref) as joined:
        session = joined.connection
        session.client[store.name].effects.insert_one({"x": 1}, session=session)
        for _ in range(3):
            assert broker.renew("worker", [QUEUE], [claim.ref], 15.0).held == [claim.ref]
            assert broker.sweep(QUEUE).returned == 0
            time.sleep(0.03)

    assert store.effects.count_documents({}) == 1
    assert broker.counts(QUEUE) == (0, 0, 0, 0)
    assert store.delayed_leases.count_documents({}) == 0


@pytest.mark.parametrize("when", ["before", "inside"])
def test_a_claim_that_was_lost_keeps_nothing(broker: MongoBroker, store: Any, when: str) -> None:
    Producer(broker)()
    (claim,) = Worker(broker).claim()
    if when == "before":
        broker.settle("worker", [Settlement(claim.ref, "back")])

    with pytest.raises(TaskLost), broker.transaction(claim.ref) as joined:
        session = joined.connection
        session.client[store.name].effects.insert_one({"x": 1}, session=session)
        store.delayed_tasks.update_one({"q": QUEUE}, {"$inc": {"d": 1}})  # as if it had gone to another

    assert store.effects.count_documents({}) == 0


def test_who_settles_the_claim_of_a_dead_run_ends_its_transaction(broker: MongoBroker, store: Any) -> None:
    """A killed process can't say that its transaction is over; the server would wait for a minute."""
    Producer(broker)()
    worker = Worker(broker)
    (claim,) = worker.claim()
    store.effects.insert_one({"_id": 1, "x": 0})
    left_open = broker.transaction(claim.ref)
    session = left_open.__enter__().connection
    session.client[store.name].effects.update_one({"_id": 1}, {"$inc": {"x": 1}}, session=session)

    assert broker.settle("worker", [Settlement(claim.ref, "retry")]) == [True]

    (again,) = worker.claim()
    with broker.transaction(again.ref) as joined:
        session = joined.connection
        session.client[store.name].effects.update_one({"_id": 1}, {"$inc": {"x": 1}}, session=session)
    assert store.effects.find_one() == {"_id": 1, "x": 1}
    with pytest.raises((BrokerUnavailable, TaskLost)):
        left_open.__exit__(None, None, None)
    assert store.effects.find_one() == {"_id": 1, "x": 1}


def test_sweepers_end_the_transaction_of_a_dead_run_that_is_not_tried_again(broker: MongoBroker, store: Any) -> None:
    Producer(broker)()
    (claim,) = Worker(broker).claim()
    store.effects.insert_one({"_id": 1, "x": 0})
    left_open = broker.transaction(claim.ref)
    session = left_open.__enter__().connection
    session.client[store.name].effects.update_one({"_id": 1}, {"$inc": {"x": 1}}, session=session)
    assert broker.settle("worker", [Settlement(claim.ref, "done")]) == [True]

    def over() -> bool:
        broker.sweep(QUEUE)
        return store.delayed_leases.count_documents({"session": {"$exists": True}}) == 0

    eventually(over)

    store.effects.with_options(write_concern=pymongo.WriteConcern(w=1)).update_one({"_id": 1}, {"$inc": {"x": 5}})
    assert store.effects.find_one() == {"_id": 1, "x": 5}
    with pytest.raises((BrokerUnavailable, TaskLost)):
        left_open.__exit__(None, None, None)


def test_a_run_whose_end_could_not_be_noted_costs_no_other_its_transaction(
    own: MongoBroker, server: MongoServer
) -> None:
    Producer(own)(2)
    first, second = Worker(own).claim()
    with pymongo.MongoClient(server.url) as client:
        client.delayed.create_collection("effects")
        refused = {"failCommands": ["update"], "errorCode": 50}
        with contextlib.suppress(OSError), own.transaction(first.ref):
            client.admin.command({"configureFailPoint": "failCommand", "mode": {"times": 1}, "data": refused})
            raise OSError

        with own.transaction(second.ref) as joined:
            own.settle("worker", [Settlement(first.ref, "retry")])
            joined.connection.client.delayed.effects.insert_one({}, session=joined.connection)

        assert client.delayed.effects.count_documents({}) == 1


@pytest.mark.parametrize("after", ["nothing", "another transaction"])
def test_a_commit_inside_is_noticed(broker: MongoBroker, store: Any, after: str) -> None:
    Producer(broker)()
    store.create_collection("effects")
    (claim,) = Worker(broker).claim()

    with pytest.raises(BrokerError, match="ended it early"), broker.transaction(claim.ref) as joined:
        session = joined.connection
        effects = session.client[store.name].effects
        session.commit_transaction()
        if after == "another transaction":
            session.start_transaction()
            effects.insert_one({}, session=session)

    assert broker.counts(QUEUE) == (0, 0, 1, 0)
    assert store.effects.count_documents({}) == 0


def test_errors_of_the_tasks_own_writes_are_for_the_task(broker: MongoBroker, store: Any) -> None:
    Producer(broker)()
    (claim,) = Worker(broker).claim()
    store.effects.insert_one({"_id": 1})

    with pytest.raises(pymongo.errors.DuplicateKeyError), broker.transaction(claim.ref) as joined:
        session = joined.connection
        session.client[store.name].effects.insert_one({"_id": 1}, session=session)

    assert broker.counts(QUEUE) == (0, 0, 1, 0)


def test_a_commit_whose_answer_is_lost_is_looked_up(own: MongoBroker) -> None:
    Producer(own)()
    (claim,) = Worker(own).claim()
    cut = {"failCommands": ["commitTransaction"], "closeConnection": True}

    with own.transaction(claim.ref) as joined:
        client = joined.connection.client
        client.admin.command({"configureFailPoint": "failCommand", "mode": {"times": 5}, "data": cut})
        client.shop.effects.insert_one({"x": 1}, session=joined.connection)

    assert client.shop.effects.count_documents({}) == 1
    assert own.counts(QUEUE) == (0, 0, 0, 0)


def test_a_server_that_dies_in_a_transaction_keeps_nothing_of_it(own: MongoBroker, server: MongoServer) -> None:
    Producer(own)()
    (claim,) = Worker(own).claim()

    with pytest.raises(BrokerUnavailable) as caught, own.transaction(claim.ref) as joined:
        client = joined.connection.client
        client.shop.effects.insert_one({"x": 1}, session=joined.connection)
        server.kill()
        server.start()
    assert not caught.value.sent

    assert insist(lambda: own.counts(QUEUE)) == (0, 0, 1, 0)
    assert client.shop.effects.count_documents({}) == 0
    with own.transaction(claim.ref):
        pass
    assert own.counts(QUEUE) == (0, 0, 0, 0)


def test_a_transaction_that_a_caught_error_has_ended_says_so(broker: MongoBroker, store: Any) -> None:
    Producer(broker)()
    (claim,) = Worker(broker).claim()
    store.effects.insert_one({"_id": 1})
    with pytest.raises(BrokerUnavailable, match="duplicate key"), broker.transaction(claim.ref) as joined:
        effects = joined.connection.client[store.name].effects
        with contextlib.suppress(PyMongoError):
            effects.insert_one({"_id": 1}, session=joined.connection)


def test_a_transaction_that_takes_too_long_says_so() -> None:
    with mongo_server("--setParameter", "transactionLifetimeLimitSeconds=1") as server:
        broker = MongoBroker(server.url)
        Producer(broker)()
        (claim,) = Worker(broker).claim()
        with (
            pytest.raises(BrokerUnavailable, match="transactionLifetimeLimitSeconds"),
            broker.transaction(claim.ref) as joined,
        ):
            time.sleep(2.5)
            joined.connection.client.shop.effects.insert_one({"x": 1}, session=joined.connection)
        assert broker.counts(QUEUE) == (0, 0, 1, 0)
        broker.close()


# -- outages -----------------------------------------------------------------------------------------------------


def test_a_killed_server_that_comes_back_has_lost_and_doubled_nothing(own: MongoBroker, server: MongoServer) -> None:
    put, worker = Producer(own), Worker(own)
    enqueued: list[int] = []
    done: list[int] = []
    stop = threading.Event()

    def produce(_: int) -> None:
        while not stop.is_set():
            enqueued.extend(put(1 + len(enqueued) % 30))

    producer = threading.Thread(target=produce, args=(0,))
    producer.start()
    for _ in range(2):
        n = len(enqueued)
        eventually(lambda: len(enqueued) > n + 200)  # noqa: B023
        server.kill()
        server.start()
    stop.set()
    producer.join()

    while claims := worker.claim(100):
        done += ids(claims)
        assert all(worker.done(claims))
    assert sorted(done) == sorted(enqueued)


def test_a_primary_that_steps_down_is_waited_for(own: MongoBroker, server: MongoServer) -> None:
    put = Producer(own)
    put()
    with pymongo.MongoClient(server.url, directConnection=True) as client:
        client.admin.command("replSetStepDown", 2, force=True)
        secondary = MongoBroker(f"{server.url}?directConnection=true")
        with pytest.raises(BrokerUnavailable, match="takes no writes"):
            secondary.check()
        secondary.close()

    put()

    assert len(Worker(own).claim()) == 2


def test_a_server_that_is_not_there_is_certainly_not_reached() -> None:
    broker = MongoBroker("mongodb://127.0.0.1:9/delayed?serverSelectionTimeoutMS=300")
    start = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:9") as caught:
        broker.check()
    assert not caught.value.sent
    assert time.monotonic() - start < 3.0


# -- waiting -----------------------------------------------------------------------------------------------------


def test_nobody_waits_for_the_connects_of_others() -> None:
    """Nor does a close, and what it met on its way leaves nothing open."""
    broker = MongoBroker("mongodb://127.0.0.1:1/x?serverSelectionTimeoutMS=600")
    failures: list[BrokerUnavailable] = []

    def look(number: int) -> None:
        try:
            broker.counts(QUEUE)
        except BrokerUnavailable as error:
            failures.append(error)

    began = time.monotonic()
    closer = threading.Timer(0.2, broker.close)
    closer.start()
    in_threads(6, look)
    assert time.monotonic() - began < 1.8, "six of 0.6 seconds at once"
    closer.join(0.01)
    assert not closer.is_alive()
    assert len(failures) == 6


def test_an_object_that_is_closed_while_it_is_opened_stays_closed(mongo_database: str) -> None:
    before = set(threading.enumerate())
    broker = MongoBroker(mongo_database)
    broker.check()
    for round in range(30):
        broker.close()
        threads = [threading.Thread(target=lambda: insist(lambda: broker.counts(QUEUE))) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(round * 0.0005)
        broker.close()
        for thread in threads:
            thread.join()
    broker.close()
    eventually(lambda: set(threading.enumerate()) <= before)


def test_an_enqueue_wakes_a_sleeper_within_milliseconds(broker: MongoBroker, mongo_database: str) -> None:
    sleeper, put, worker = MongoBroker(mongo_database), Producer(broker), Worker(broker)
    took = []
    for _ in range(8):
        woken: list[float] = []
        thread = threading.Thread(target=lambda: (sleeper.wait([QUEUE], 5.0), woken.append(time.monotonic())))  # noqa: B023
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        start = time.monotonic()
        put()
        thread.join()
        took.append(woken[0] - start)
        assert all(worker.done(worker.claim()))
    sleeper.close()

    assert sorted(took)[4] < 0.05, took  # polling would have been at one look in a second by then


def test_what_comes_to_other_queues_does_not_end_a_wait(broker: MongoBroker) -> None:
    put = Producer(broker)
    thread = threading.Thread(target=broker.wait, args=(["another"], 0.6))
    start = time.monotonic()
    thread.start()
    while thread.is_alive():
        put()
    assert time.monotonic() - start >= 0.6


def test_nobody_follows_the_stream_when_nobody_sleeps(broker: MongoBroker) -> None:
    broker.wait([QUEUE], 0.2)
    assert any(thread.name.startswith("delayed-mongo") for thread in threading.enumerate())
    eventually(lambda: not any(thread.name.startswith("delayed-mongo") for thread in threading.enumerate()))


# -- servers and clients -----------------------------------------------------------------------------------------


def test_a_standalone_does_all_but_transactions(standalone: MongoServer) -> None:
    broker = MongoBroker(standalone.url)
    put, worker = Producer(broker), Worker(broker)
    expected = put(3)
    put.again()
    claims = worker.claim()
    assert ids(claims) == expected
    with pytest.raises(Unsupported, match="--replSet"), broker.transaction(claims[0].ref):
        pass
    with pymongo.MongoClient(standalone.url) as client, client.start_session() as session:
        session.start_transaction()
        with pytest.raises(Unsupported, match="--replSet"):
            broker.join(session)
    assert worker.done(claims) == [True] * 3
    assert "--replSet" in broker.check()[0]

    woken: list[float] = []
    thread = threading.Thread(target=lambda: (broker.wait([QUEUE], 5.0), woken.append(time.monotonic())))
    thread.start()
    thread.join(0.1)
    start = time.monotonic()
    put()
    thread.join()
    assert woken[0] - start < 1.0
    broker.close()


@pytest.mark.parametrize("kind", ["client", "database"])
def test_a_client_of_the_users_own(mongo_database: str, store: Any, kind: str) -> None:
    with pymongo.MongoClient(mongo_database, tz_aware=True, w=1) as client:
        broker = broker_for(client if kind == "client" else client[store.name])
        assert isinstance(broker, MongoBroker)
        assert broker.spec() is None
        put, worker = Producer(broker), Worker(broker)
        expected = put(2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            claims = Worker(broker, "forked").claim(1)
            os._exit(0 if ids(claims) == expected[:1] and worker.done(claims) == [True] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert ids(worker.claim()) == expected[1:]
        broker.close()
        assert store.name in client.list_database_names(), "it is not closed"


def test_it_is_one_store_however_it_is_named(mongo_database: str, standalone: MongoServer) -> None:
    with pymongo.MongoClient(mongo_database) as client:
        database = client.get_default_database()
        plain = mongo_database.partition("?")[0]
        same = [
            MongoBroker(conn)
            for conn in (
                mongo_database,
                plain + "?appname=x",
                plain.replace("127.0.0.1", "localhost"),
                plain + "?directConnection=true",
                client,
                database,
            )
        ]
        for broker in same:
            assert all(broker.same_store(other) for other in same)
        others = [
            MongoBroker(client["other"]),
            MongoBroker(standalone.url_of(database.name)),
            broker_for("memory://"),
        ]
        for broker in same:
            assert not any(broker.same_store(other) for other in others)
        for broker in [*same, *others]:
            broker.close()


def test_a_forked_child_leaves_the_parents_wait_alone(broker: MongoBroker) -> None:
    woken: list[float] = []
    thread = threading.Thread(target=lambda: (broker.wait([QUEUE], 5.0), woken.append(time.monotonic())))
    thread.start()
    thread.join(0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        broker.wait([QUEUE], 0.2)
        broker.close()
        Producer(broker)()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    thread.join(10.0)
    assert woken
    assert len(Worker(broker).claim()) == 1


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("mongodb:///delayed", "names no host"),
        ("mongodb://localhost/delayed?replicasett=rs0", "did you mean replicaset"),
        ("mongodb://localhost/a.b", "name of a MongoDB database"),
        ("mongodb://localhost:port/delayed", "wrong URL"),
        ("mongodb://localhost/delayed?w=1&serverSelectionTimeoutMS=soon", "wrong URL"),
        ("mongodbb://localhost/delayed", "did you mean mongodb://"),
    ],
)
def test_a_url_that_is_wrong_is_refused_when_the_broker_is_made(url: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        broker_for(url)


def test_passwords_are_shown_to_nobody() -> None:
    broker = broker_for("mongodb://me:secret@127.0.0.1:9/tasks?serverSelectionTimeoutMS=100")
    assert repr(broker) == "MongoBroker('mongodb://me:***@127.0.0.1:9/tasks?serverSelectionTimeoutMS=100')"
    with pytest.raises(BrokerUnavailable) as caught:
        broker.check()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "mongodb:user:hunter2@h/db",
        "mongodb:///user:hunter2@h/db",
        "mongodb://u:hunter2/hunter2@h/db",
        "mongodb://u:hunter2?hunter2@h/db",
        "mongodb://u:1?hunter2@h/db",
        "mongodb://u:1?hunter2&@h/db",
        "mongodb://u:hunter2:hunter2@h/db",
        "mongodb://u:hunter2@hunter2@h/db",
        "mongodb://u:hunter2%@h/db",
        "mongodb://u:hunter2%40/hunter2@h/db",
        "mongodb://u@h/hunter2@h/db",
        "mongodb+srv://u:hunter2/hunter2@h/db",
        "mongodb+srv://u:hunter2@h:1/db",
        "mongodb+srv://u:hunter2@h/db?maxPoolSize=abc",
        "mongodb://h/db?authMechanismProperties=hunter2",
        "mongodb://u:hunter2@a,b/db?directConnection=true",
    ],
)
def test_errors_of_a_wrong_url_show_no_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        broker_for(url)
    assert "hunter2" not in "".join(traceback.format_exception_only(caught.value))
    assert caught.value.__cause__ is None


def test_a_file_of_the_url_that_can_not_be_read_is_named() -> None:
    with pytest.raises(ConfigError, match=r"tlsCAFile names a file that can't be read: /nowhere/ca\.pem \(No such"):
        broker_for("mongodb://h/?tls=true&tlsCAFile=/nowhere/ca.pem")


@pytest.mark.parametrize(
    ("url", "shown", "database"),
    [
        ("mongodb://u:hunter2#hunter2@h/db", "mongodb://u:***@h/db", "db"),
        ("mongodb://u:hunter2[@h/db", "mongodb://u:***@h/db", "db"),
        ("mongodb://h/?tls=true&tlsCertificateKeyFilePassword=hunter2", None, "delayed"),
        (
            "mongodb://h/db?authMechanismProperties=AWS_SESSION_TOKEN:hunter2",
            "mongodb://h/db?authMechanismProperties=***",
            "db",
        ),
        ("mongodb://h1:1,h2:2,[::1]:3/db?replicaSet=a", "mongodb://h1:1,h2:2,[::1]:3/db?replicaSet=a", "db"),
        ("mongodb://%2Ftmp%2Fmongodb-27017.sock/db", "mongodb://%2Ftmp%2Fmongodb-27017.sock/db", "db"),
        ("mongodb+srv://u:hunter2@a.example.com/db?srvMaxHosts=2", None, "db"),
    ],
)
def test_a_url_is_read_as_the_driver_reads_it(url: str, shown: str | None, database: str) -> None:
    broker = broker_for(url)
    assert repr(broker) == f"MongoBroker({shown or url.replace('hunter2', '***')!r})"
    assert isinstance(broker, MongoBroker)
    assert broker._access.database == database


def test_who_may_not_write_is_told(tmp_path: Any) -> None:
    with mongo_server("--auth", replica_set="") as server:
        with pymongo.MongoClient(server.url) as client:
            roles: list[Any] = ["root"]
            client.admin.command("createUser", "root", pwd="root", roles=roles)
        where = server.url.removeprefix("mongodb://")
        with pymongo.MongoClient(f"mongodb://root:root@{where}?authSource=admin") as client:
            client.delayed.command("createUser", "reader", pwd="r", roles=["read"])
            client.delayed.command("createUser", "writer", pwd="w", roles=["readWrite"])
        for user in ("writer:wrong", "reader:r"):
            broker = MongoBroker(f"mongodb://{user}@{where}")
            with pytest.raises(BrokerError, match="readWrite"):
                broker.check()
        broker = MongoBroker(f"mongodb://writer:w@{where}")
        put, worker = Producer(broker), Worker(broker)
        put()
        assert all(worker.done(worker.claim()))
        broker.close()
        reader = MongoBroker(f"mongodb://reader:r@{where}")  # for whom there is nothing to make any more
        with pytest.raises(BrokerError, match="readWrite"):
            reader.check()
        reader.close()


def test_tables_of_a_later_version_are_left_alone(broker: MongoBroker, store: Any) -> None:
    store.delayed_meta.insert_one({"_id": "schema", "version": 99})
    with pytest.raises(ConfigError, match="upgrade delayed"):
        broker.check()
    assert store.list_collection_names() == ["delayed_meta"]


def test_tables_of_a_later_version_are_used_if_that_says_so(broker: MongoBroker, store: Any) -> None:
    broker.check()
    store.delayed_meta.update_one({"_id": "schema"}, {"$set": {"version": 99}})
    other = MongoBroker(broker.spec())
    other.check()
    other.close()
    assert store.delayed_meta.find_one()["version"] == 99


def test_many_processes_make_the_tables_at_once(mongo_database: str) -> None:
    brokers = [MongoBroker(mongo_database) for _ in range(6)]
    failures: list[BaseException] = []

    def open(number: int) -> None:
        try:
            Producer(brokers[number])()
        except (BrokerError, ConfigError, PyMongoError) as error:
            failures.append(error)

    in_threads(6, open)

    assert failures == []
    assert brokers[0].counts(QUEUE).ready == 6
    for broker in brokers:
        broker.close()


def test_a_worker_that_is_killed_by_force_leaves_its_claims_to_be_found(broker: MongoBroker) -> None:
    expected = Producer(broker)(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        Worker(broker, "victim").claim(3)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)

    assert ids(broker.held("victim", [QUEUE])) == expected
    renewal = broker.renew("victim", [QUEUE], [], 15.0)
    assert ids(renewal.unknown) == expected
