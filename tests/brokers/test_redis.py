"""What is special to Redis: its keys, its ways to fail, its kinds of clients and servers."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.sentinel import Sentinel

from delayed import Queue, clock
from delayed.brokers import broker_for
from delayed.brokers.redis import SEEN_INTERVAL, UNKNOWN_MAX, RedisBroker
from delayed.errors import BrokerError, BrokerFull, BrokerUnavailable, ConfigError
from delayed.message import Action, Answer, Claim, Message, Settlement
from delayed.task import Task
from tests.brokers.patience import eventually, insist
from tests.servers import ServerError, unavailable
from tests.servers.redis import RedisServer, redis_server

QUEUE = "default"
BOOKKEEPING = {"delayed_queues", "default_id", "default_last", "default_meta", "default_prod", "default_prodt"}


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def broker(server: RedisServer) -> Iterator[RedisBroker]:
    broker = RedisBroker(server.url)
    yield broker
    broker.close()


@pytest.fixture
def store(server: RedisServer) -> Iterator[Any]:
    """A plain client, to look behind the broker's back and to spoil things there."""
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        yield client


class Producer:
    """Enqueues as a producer does: ids reserved, one session, sequence numbers that rise."""

    def __init__(self, broker: RedisBroker) -> None:
        self.broker = broker
        self.session = uuid.uuid4().hex
        self.seq = 0

    def __call__(self, n: int = 1, payload: bytes = b"x", **options: Any) -> list[int]:
        first = self.broker.reserve_ids(QUEUE, n)
        messages = [Message(id=first + i, func="mod:f", payload=payload, **options) for i in range(n)]
        self.seq += 1
        self.broker.enqueue(QUEUE, messages, self.session, self.seq)
        return [message.id for message in messages]


class Worker:
    """Claims as a worker does: one id, sequence numbers that rise, a new nonce each."""

    def __init__(self, broker: RedisBroker, name: str = "worker") -> None:
        self.broker = broker
        self.name = name
        self.seq = 0

    def claim(self, limit: int = 10, lease: float = 15.0) -> list[Claim]:
        self.seq += 1
        return self.broker.claim([QUEUE], self.name, self.seq, 1000 + self.seq, limit, lease)

    def done(self, claims: list[Claim]) -> list[bool]:
        return self.broker.settle(self.name, [Settlement(claim.ref, "done") for claim in claims])


def ids(claims: list[Claim]) -> list[int]:
    return [claim.id for claim in claims]


class Sleep(threading.Thread):
    """A wait in another thread, and how long it took."""

    def __init__(self, broker: RedisBroker, timeout: float = 2.0) -> None:
        super().__init__()
        self.broker = broker
        self.timeout = timeout
        self.woken = 0.0
        self.start()

    def run(self) -> None:
        self.broker.wait([QUEUE], self.timeout)
        self.woken = time.monotonic()

    def after(self, moment: float) -> float:
        self.join(10)
        assert self.woken
        return self.woken - moment


def sleepers(store: Any, n: int) -> None:
    """Return when `n` clients are blocked."""
    eventually(lambda: store.info("clients")["blocked_clients"] == n)


# -- keys --------------------------------------------------------------------------------------------------------


def test_finished_tasks_leave_nothing_but_a_few_keys_that_do_not_grow(broker: RedisBroker, store: Any) -> None:
    produce, worker = Producer(broker), Worker(broker)

    def round_of_work() -> dict[str, int]:
        produce(20)
        produce(5, priority=7)
        produce(2, delay=0.01)
        broker.sweep(QUEUE)
        claims = worker.claim(3)
        broker.settle(worker.name, [Settlement(claims[0].ref, "back"), Settlement(claims[1].ref, "retry")])
        worker.done(claims[2:])

        def finished() -> bool:
            worker.done(worker.claim())
            return sum(broker.counts(QUEUE)) == 0

        eventually(finished)
        size = {"hash": store.hlen, "zset": store.zcard, "list": store.llen, "set": store.scard}
        return {key: size.get(store.type(key), lambda _: 1)(key) for key in store.scan_iter()}

    first = round_of_work()
    again = round_of_work()

    assert set(first) == BOOKKEEPING
    assert {key: size for key, size in again.items() if key != "default_meta"} == {
        key: size for key, size in first.items() if key != "default_meta"
    }
    assert again["default_meta"] <= 10


def test_ids_do_not_go_backwards_when_the_counter_is_lost(broker: RedisBroker, store: Any) -> None:
    before = broker.reserve_ids(QUEUE, 100)
    time.sleep(0.1)  # of the store's clock, from which ids are made: 0.1 s is room for 200,000 of them

    store.delete("default_id")

    assert before + 100 <= broker.reserve_ids(QUEUE, 1) < 2**53


def test_messages_that_are_nearly_the_same_end_differently(broker: RedisBroker, server: RedisServer) -> None:
    payloads = {id: b"[[%d], {}]" % n for n in range(3) for id in Producer(broker)(100, b"[[%d], {}]" % n)}

    with redis.Redis.from_url(server.url) as raw:
        messages = {int(id): message for id, message in raw.hgetall("default_msg").items()}
    for first in (0, 100, 200):
        assert len({messages[id][-1] for id in sorted(payloads)[first : first + 100]}) >= 99

    claims = broker.claim([QUEUE], "w", 1, 1, 300, 60.0)
    assert {claim.id: claim.payload for claim in claims} == payloads
    assert {claim.id: claim.payload for claim in broker.held("w", [QUEUE])} == payloads


def test_an_id_without_a_message_and_one_that_stands_twice_are_passed_over(broker: RedisBroker, store: Any) -> None:
    [id] = Producer(broker)()
    store.rpush(QUEUE, "12345", id, id)
    worker = Worker(broker)

    claims = worker.claim()

    assert ids(claims) == [id]
    assert worker.claim() == []
    assert worker.done(claims) == [True]


def test_an_id_that_stands_in_the_queue_while_it_runs_is_not_run_twice(broker: RedisBroker, store: Any) -> None:
    [id] = Producer(broker)()
    worker = Worker(broker)
    claims = worker.claim()
    store.rpush(QUEUE, id)

    assert Worker(broker, "other").claim() == []
    assert worker.done(claims) == [True]


def test_sweeping_drops_what_is_left_over(broker: RedisBroker, store: Any) -> None:
    store.hset("default_claim", "77", "1||1|0|0|")
    store.hset("default_prod", "stale", 9)
    store.zadd("default_prodt", {"stale": 1})
    store.hset("default_last", "ghost", "3|1|5|77")
    store.zadd("default_workers", {"ghost": 1})
    store.hset("default_workinfo", "ghost", "{}")

    broker.sweep(QUEUE)

    assert store.keys() == ["default_meta"]


def test_a_producer_is_noted_now_and_then_and_again_when_it_was_forgotten(
    broker: RedisBroker, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce = Producer(broker)
    produce()
    began = store.zscore("default_prodt", produce.session)
    store.zadd("default_prodt", {produce.session: began - 60_000})

    produce()
    assert store.zscore("default_prodt", produce.session) == began - 60_000  # that is not long ago

    monkeypatch.setattr("delayed.brokers.redis.now", lambda: clock.now() + SEEN_INTERVAL + 1)
    produce()
    assert store.zscore("default_prodt", produce.session) >= began
    monkeypatch.undo()

    store.zadd("default_prodt", {produce.session: 1})
    broker.sweep(QUEUE)
    assert not store.exists("default_prod", "default_prodt")
    produce(3)
    assert store.zscore("default_prodt", produce.session) >= began
    assert store.hgetall("default_prod") == {produce.session: "4"}


def test_a_producer_is_noted_again_after_a_call_that_was_not_answered_or_was_one_again(
    broker: RedisBroker, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce = Producer(broker)
    produce()
    aged = store.zscore("default_prodt", produce.session) - 60_000

    def fail(*args: Any) -> None:
        raise BrokerUnavailable("it is away")

    with monkeypatch.context() as away:
        away.setattr(broker._client, "run", fail)
        with pytest.raises(BrokerUnavailable):
            broker.enqueue(QUEUE, [Message(id=99, func="mod:f", payload=b"x")], produce.session, 2)
    produce.seq = 0
    produce()  # which was stored before: nothing is, or is noted
    store.zadd("default_prodt", {produce.session: aged})
    produce.seq = 1
    produce()

    assert store.zscore("default_prodt", produce.session) > aged


def test_a_producer_is_noted_in_each_queue(broker: RedisBroker, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def enqueue(seq: int) -> None:
        for queue in queues:
            message = Message(id=broker.reserve_ids(queue, 1), func="mod:f", payload=b"x")
            broker.enqueue(queue, [message], "session", seq)

    queues = ["one", "other"]
    enqueue(1)
    for queue in queues:
        store.zadd(f"{queue}_prodt", {"session": 1})
    monkeypatch.setattr("delayed.brokers.redis.now", lambda: clock.now() + SEEN_INTERVAL + 1)
    enqueue(2)

    assert all(store.zscore(f"{queue}_prodt", "session") > 1 for queue in queues)


def test_one_connection_remembers_no_end_of_producers(broker: RedisBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delayed.brokers.redis.SEEN_MAX", 3)
    for _ in range(8):
        Producer(broker)()

    assert 0 < len(broker._seen) <= 3


def test_sweeping_keeps_the_producers_workers_and_records_that_are_in_use(broker: RedisBroker, store: Any) -> None:
    produce, worker = Producer(broker), Worker(broker)
    produce(2)
    claims = worker.claim(1)
    broker.announce(worker.name, [QUEUE], {"pid": 1}, 60)

    broker.sweep(QUEUE)

    assert [info.worker for info in broker.workers(QUEUE)] == [worker.name]
    assert store.hlen("default_prod") == store.hlen("default_last") == 1
    assert worker.done(claims) == [True]


def test_a_clock_that_went_back_does_not_make_leases_last_longer(broker: RedisBroker, store: Any) -> None:
    """As if the store's clock had been an hour ahead until now."""
    Producer(broker)()
    Worker(broker).claim(lease=15)
    hour = 3_600_000
    store.hincrby("default_meta", "contact", hour)
    store.zincrby("default_dequeued", hour, store.zrange("default_dequeued", 0, 0)[0])

    swept = broker.sweep(QUEUE, lease=15)

    assert swept.grace
    [entry] = broker.peek(QUEUE, "running")
    assert 10 < entry.due <= 15.1


def test_only_losses_send_a_task_to_the_back(broker: RedisBroker) -> None:
    """Being given back is no fault of the task's."""
    first, second = Producer(broker)(2)
    worker = Worker(broker)
    for _ in range(3):
        [claim] = worker.claim(1)
        broker.settle(worker.name, [Settlement(claim.ref, "back")])

    order = []
    for _ in range(2):
        [claim] = worker.claim(1, lease=0.02)
        assert claim.id == first
        eventually(lambda: broker.sweep(QUEUE, lease=0.2).returned)
        order.append([entry.message.id for entry in broker.peek(QUEUE, "ready")])

    assert order == [[first, second], [second, first]]


def test_a_lost_count_of_claims_hides_no_unknown_claim(broker: RedisBroker, store: Any) -> None:
    produce, worker = Producer(broker), Worker(broker)
    produce(3)
    claims = worker.claim()
    store.delete("default_held")

    renewal = broker.renew(worker.name, [QUEUE], [claims[0].ref], 15)

    assert renewal.held == [claims[0].ref]
    assert sorted(ids(renewal.unknown)) == ids(claims[1:])
    assert store.hget("default_held", worker.name) == "3"


def test_all_that_a_worker_holds_is_found_and_not_renewed(broker: RedisBroker) -> None:
    n = UNKNOWN_MAX + 500
    stored = Producer(broker)(n)
    worker = Worker(broker)
    claims = worker.claim(n, lease=5)
    assert ids(claims) == stored

    held = broker.held(worker.name, [QUEUE])

    assert sorted(held) == sorted(claims)
    assert all(entry.due <= 5 for entry in broker.peek(QUEUE, "running", n))


def test_large_tasks_are_claimed_and_found_again_a_few_at_a_time(broker: RedisBroker) -> None:
    """However many were asked for: an answer of a gigabyte would take longer than anybody waits for it."""
    produce, worker = Producer(broker), Worker(broker)
    stored = [id for _ in range(40) for id in produce(payload=b"x" * 1_000_000)]
    urgent = [id for _ in range(5) for id in produce(payload=b"x" * 1_000_000, priority=1)]

    batches = []
    while claims := worker.claim(100):
        batches.append(claims)

    assert max(len(claims) for claims in batches) <= 20
    assert [id for claims in batches for id in ids(claims)] == urgent + stored
    assert len(broker.renew(worker.name, [QUEUE], [], 15).unknown) <= 20
    assert sorted(ids(broker.held(worker.name, [QUEUE]))) == sorted(urgent + stored)


def test_a_key_of_another_program_is_an_error_that_says_so(broker: RedisBroker, store: Any) -> None:
    store.set(QUEUE, "mine")

    with pytest.raises(BrokerError, match="another program") as caught:
        Producer(broker)()
    assert not isinstance(caught.value, BrokerUnavailable)


# -- resends and tokens --------------------------------------------------------------------------------------------


def test_a_task_that_has_run_and_gone_is_not_stored_again_by_a_resend(broker: RedisBroker) -> None:
    produce, worker = Producer(broker), Worker(broker)
    message = Message(id=broker.reserve_ids(QUEUE, 1), func="mod:f", payload=b"x")
    broker.enqueue(QUEUE, [message], produce.session, 1)
    assert worker.done(worker.claim()) == [True]

    broker.enqueue(QUEUE, [message], produce.session, 1)

    assert sum(broker.counts(QUEUE)) == 0
    broker.enqueue(QUEUE, [message], uuid.uuid4().hex, 1)  # of another session it is no resend
    assert broker.counts(QUEUE).ready == 1


@pytest.mark.parametrize("action", ["done", "retry", "back", "dead"])
@pytest.mark.parametrize("wrong", [{"nonce": 7}, {"delivery": 2}])
def test_delivery_and_nonce_must_both_be_right(broker: RedisBroker, action: Action, wrong: dict[str, int]) -> None:
    """A store that lost its last second gives the same delivery a second time, to another."""
    Producer(broker)()
    worker = Worker(broker)
    [claim] = worker.claim()
    other = claim.ref._replace(**wrong)

    assert broker.settle(worker.name, [Settlement(other, action)]) == [False]
    assert broker.renew(worker.name, [QUEUE], [other], 15)[:2] == ([], [other])
    assert broker.counts(QUEUE).running == 1
    assert broker.settle(worker.name, [Settlement(claim.ref, action)]) == [True]


# -- scripts and connections -------------------------------------------------------------------------------------


def test_flushed_scripts_go_unnoticed(broker: RedisBroker, store: Any) -> None:
    produce, worker = Producer(broker), Worker(broker)
    for _ in range(2):
        store.script_flush()
        [id] = produce()
        store.script_flush()
        claims = worker.claim()
        store.script_flush()
        assert ids(claims) == [id]
        assert broker.renew(worker.name, [QUEUE], [claims[0].ref], 15).held
        store.script_flush()
        assert worker.done(claims) == [True]
        store.script_flush()
        assert not broker.sweep(QUEUE).returned


def test_flushed_scripts_go_unnoticed_by_many_at_once(broker: RedisBroker, store: Any) -> None:
    queue = Queue(QUEUE, broker)
    store.script_flush()
    many = queue.enqueue_many([Task.create(abs, (number,)) for number in range(1200)])
    assert len(many) == 1200
    assert ids(Worker(broker).claim(2000)) == many


def test_killed_connections_cost_nothing(broker: RedisBroker, store: Any) -> None:
    worker = Worker(broker)

    def kill() -> None:
        store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    first = broker.reserve_ids(QUEUE, 1)
    message = Message(id=first, func="mod:f", payload=b"x")
    kill()
    insist(lambda: broker.enqueue(QUEUE, [message], "session", 1))
    kill()
    claims = insist(lambda: broker.claim([QUEUE], worker.name, 1, 5, 10, 15))
    kill()

    assert ids(claims) == [first]
    assert insist(lambda: worker.done(claims)) == [True]


def test_a_waiter_whose_connection_is_killed_says_so_and_can_wait_again(broker: RedisBroker, store: Any) -> None:
    caught: list[Exception] = []

    def wait() -> None:
        try:
            broker.wait([QUEUE], 2)
        except BrokerUnavailable as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    sleepers(store, 1)
    store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    thread.join(1)
    assert not thread.is_alive()
    assert caught

    sleep = Sleep(broker)
    sleepers(store, 1)
    Producer(broker)()
    assert sleep.after(time.monotonic()) < 1


def test_a_killed_server_that_comes_back_has_lost_nothing() -> None:
    with redis_server(aof=True) as server:
        broker = RedisBroker(server.url)
        produce, worker = Producer(broker), Worker(broker)
        stored = produce(10)
        claims = worker.claim(4)
        server.kill()
        with pytest.raises(BrokerUnavailable) as caught:
            broker.reserve_ids(QUEUE, 1)
        assert not caught.value.sent
        with pytest.raises(BrokerUnavailable):
            broker.wait([QUEUE], 1)
        server.start()

        assert insist(lambda: worker.done(claims)) == [True] * 4
        assert ids(worker.claim()) == stored[4:]
        broker.close()


def test_a_replica_is_not_available_for_work(server: RedisServer, store: Any) -> None:
    with redis_server() as other:
        broker = RedisBroker(server.url)
        produce = Producer(broker)
        produce()
        store.replicaof("127.0.0.1", str(other.port))

        with pytest.raises(BrokerUnavailable):
            Worker(broker).claim()
        with pytest.raises(BrokerUnavailable):
            produce()
        broker.close()


def test_the_answer_of_an_interrupted_call_is_not_taken_for_the_next_ones(broker: RedisBroker, store: Any) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        Producer(broker)(2)
        store.execute_command("CLIENT", "PAUSE", 400, "ALL")
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Interrupt):
            broker.reserve_ids(QUEUE, 1)
    finally:
        signal.signal(signal.SIGALRM, before)

    assert broker.counts(QUEUE).ready == 2


def most_memory(process: Path) -> int:
    """Bytes that a process has had at most."""
    (line,) = [line for line in (process / "status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def test_large_dead_letters_are_looked_at_revived_and_dropped_without_much_memory(
    broker: RedisBroker, store: Any
) -> None:
    size, count = 1 << 20, 40
    produce, worker = Producer(broker), Worker(broker)
    ids = [produce(payload=b"x" * size)[0] for _ in range(count)]
    while claims := worker.claim():
        broker.settle(worker.name, [Settlement(claim.ref, "dead", reason="bad") for claim in claims])
    process = Path("/proc", str(store.info("server")["process_id"]))
    before = most_memory(process)

    entries = broker.peek(QUEUE, "dead", 1000, payloads=False)
    assert sorted(entry.message.id for entry in entries) == ids
    assert broker.revive(QUEUE, ids[: count // 2]) == ids[: count // 2]
    assert broker.drop(QUEUE, ids) == ids[count // 2 :]

    assert most_memory(process) - before < 1.2 * count * size, "half of them are copied, and little else"
    assert broker.counts(QUEUE).ready == count // 2


def test_a_forked_child_waits_on_a_connection_of_its_own(broker: RedisBroker, store: Any) -> None:
    def blocked() -> set[str]:
        return {client["id"] for client in store.client_list() if "b" in client["flags"]}

    broker.wait([QUEUE], 0.01)  # the connection for waiting is there, and would be taken again
    child = os.fork()
    if not child:
        status = 1
        try:
            broker.wait([QUEUE], 2)
            status = 0
        finally:
            os._exit(status)
    eventually(lambda: len(blocked()) == 1)
    sleep = Sleep(broker)
    sleepers(store, 2)  # one more, not a second command on the same connection
    broker.wake([QUEUE])
    sleep.join(5)
    Producer(broker)()
    _, status = os.waitpid(child, 0)

    assert status == 0


def test_a_forked_child_makes_its_own_connections(broker: RedisBroker, store: Any) -> None:
    produce, worker = Producer(broker), Worker(broker)
    broker.wait([QUEUE], 0.01)  # opens the connection for waiting too
    child = os.fork()
    if not child:
        status = 1
        try:
            own = Producer(broker)
            for _ in range(50):
                own(payload=b"c")
            broker.wait([QUEUE], 0.01)
            broker.close()
            status = 0
        finally:
            os._exit(status)

    for _ in range(50):
        produce(payload=b"p")
    _, status = os.waitpid(child, 0)

    assert status == 0
    broker.wait([QUEUE], 0.01)
    assert sorted(claim.payload for claim in worker.claim(200)) == [b"c"] * 50 + [b"p"] * 50


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # that is the case here
def test_a_fork_while_another_thread_connects_leaves_the_child_free_to() -> None:
    """The lock of the thread that connects is never released in the child."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        port = silent.getsockname()[1]
        broker = RedisBroker(f"redis://127.0.0.1:{port}/?cluster=1&socket_timeout=1")

        def ask() -> None:
            with pytest.raises(BrokerUnavailable):
                broker.counts(QUEUE)

        thread = threading.Thread(target=ask)
        thread.start()
        with silent.accept()[0]:  # it is connecting now
            child = os.fork()
            if not child:
                signal.alarm(8)  # ends a child that would wait for ever
                status = 1
                try:
                    ask()
                    status = 0
                finally:
                    os._exit(status)
            _, status = os.waitpid(child, 0)
            thread.join(10)

    assert status == 0


# -- a full store ------------------------------------------------------------------------------------------------


def test_a_full_redis_refuses_tasks_whole_and_goes_on_draining() -> None:
    with redis_server("--maxmemory", "6mb") as server:
        broker = RedisBroker(server.url)
        produce, worker = Producer(broker), Worker(broker)
        stored: list[int] = []
        locked = broker.put_key(QUEUE, "lock", b"1", ttl=15)
        with pytest.raises(BrokerFull):
            while True:
                stored += produce(20, payload=b"x" * 5000)
        assert broker.counts(QUEUE).ready == len(stored)
        with redis.Redis(port=server.port) as store:
            store.config_set("maxmemory", "1mb")
            assert broker.reserve_ids(QUEUE, 1) > stored[-1]  # it is the enqueue that says what the matter is
            with pytest.raises(BrokerFull):
                broker.put_key(QUEUE, "new", b"", version=0)
            assert broker.put_key(QUEUE, "lock", b"2", version=locked, ttl=15, keep_version=True) == locked
            assert broker.put_key(QUEUE, "lock", None, version=locked) == locked
            store.config_set("maxmemory", "6mb")

        claims = worker.claim(2, lease=15)
        assert ids(claims) == stored[:2]
        assert broker.renew(worker.name, [QUEUE], [claim.ref for claim in claims], 0.05).lost == []
        eventually(lambda: broker.sweep(QUEUE, lease=0.5).returned, 3)
        run = []
        while claims := worker.claim(50):
            assert all(worker.done(claims))
            run += ids(claims)
        assert sorted(run) == stored
        refused = Message(id=broker.reserve_ids(QUEUE, 1), func="mod:f", payload=b"")
        broker.enqueue(QUEUE, [refused], produce.session, produce.seq)  # its number is not taken for a resend
        assert ids(worker.claim()) == [refused.id]
        broker.close()


# -- the wake-up -------------------------------------------------------------------------------------------------


def test_a_sleeper_wakes_when_a_task_comes(broker: RedisBroker, server: RedisServer, store: Any) -> None:
    produce = Producer(RedisBroker(server.url))
    sleep = Sleep(broker)
    sleepers(store, 1)

    start = time.monotonic()
    produce()

    assert sleep.after(start) < 0.5
    produce.broker.close()


def test_closing_during_a_wait_leaves_no_connection(broker: RedisBroker, store: Any) -> None:
    worker = Worker(broker)
    worker.claim()
    sleep = Sleep(broker)
    sleepers(store, 1)

    broker.close()
    sleep.join(5)

    eventually(lambda: len(store.client_list()) == 1)  # the one that asks


@pytest.mark.parametrize("end", ["wake", "close"])
def test_a_wait_is_ended_from_another_thread(broker: RedisBroker, store: Any, end: str) -> None:
    for _ in range(2):  # the second one finds everything as it was
        sleep = Sleep(broker)
        sleepers(store, 1)
        start = time.monotonic()
        if end == "wake":
            broker.wake([QUEUE])
        else:
            broker.close()
        assert sleep.after(start) < 0.5
        sleepers(store, 0)


def test_a_wake_just_before_the_wait_is_not_lost(broker: RedisBroker) -> None:
    broker.wake([QUEUE])
    start = time.monotonic()

    broker.wait([QUEUE], 2)

    assert time.monotonic() - start < 0.5


def test_each_sleeper_that_takes_a_task_wakes_the_next(server: RedisServer, store: Any) -> None:
    first, second, producer = (RedisBroker(server.url) for _ in range(3))
    sleeps = [Sleep(first), Sleep(second)]
    sleepers(store, 2)

    start = time.monotonic()
    Producer(producer)(2)
    sleepers(store, 1)
    assert len(Worker(first).claim(1)) == 1

    assert max(sleep.after(start) for sleep in sleeps) < 1
    for broker in (first, second, producer):
        broker.close()


def test_a_scheduled_task_ends_the_wait_of_who_slept_before_it_came(broker: RedisBroker, store: Any) -> None:
    sleep = Sleep(broker)
    sleepers(store, 1)

    start = time.monotonic()
    [id] = Producer(broker)(delay=0.3)

    assert 0.25 < sleep.after(start) < 0.8
    assert ids(Worker(broker).claim()) == [id]


def test_a_retry_in_a_while_ends_the_wait_of_another_worker(
    broker: RedisBroker, server: RedisServer, store: Any
) -> None:
    [id] = Producer(broker)()
    worker, other = Worker(broker), Worker(RedisBroker(server.url), "other")
    [claim] = worker.claim()
    assert other.claim() == []
    sleep = Sleep(other.broker)
    sleepers(store, 1)

    start = time.monotonic()
    broker.settle(worker.name, [Settlement(claim.ref, "retry", 0.3)])

    assert 0.25 < sleep.after(start) < 0.8
    assert ids(other.claim()) == [id]
    other.broker.close()


def test_a_lost_wake_up_is_repaired_by_a_claim_and_by_a_sweep(broker: RedisBroker, store: Any) -> None:
    produce, worker = Producer(broker), Worker(broker)
    produce(3)
    store.delete("default_noti")
    assert len(worker.claim(1)) == 1
    assert store.llen("default_noti") == 1

    store.delete("default_noti")
    broker.sweep(QUEUE)
    start = time.monotonic()
    broker.wait([QUEUE], 2)
    assert time.monotonic() - start < 0.5


def test_surplus_wake_ups_are_gone_after_one_claim(broker: RedisBroker, store: Any) -> None:
    store.rpush("default_noti", *["1"] * 100_000)
    broker.wait([QUEUE], 2)
    assert Worker(broker).claim() == []

    start = time.monotonic()
    broker.wait([QUEUE], 0.3)

    assert time.monotonic() - start > 0.25


def test_an_idle_worker_sends_one_command_a_second(broker: RedisBroker, store: Any) -> None:
    worker = Worker(broker)
    worker.claim()
    broker.wait([QUEUE], 0.01)  # the connection is there
    before = store.info("commandstats")

    start = time.monotonic()
    broker.wait([QUEUE], 2)
    worker.claim()
    seconds = time.monotonic() - start

    after = store.info("commandstats")
    sent = {
        name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"]
        for name in ("cmdstat_blpop", "cmdstat_evalsha", "cmdstat_eval", "cmdstat_client|unblock")
        if name in after
    }
    assert seconds > 1.9
    assert sum(sent.values()) == 2


# -- clients and servers -----------------------------------------------------------------------------------------


def works(broker: RedisBroker) -> None:
    """Everything once, with bytes that are no text."""
    produce, worker = Producer(broker), Worker(broker)
    [id, other] = produce(2, payload=bytes(range(256)))
    [later] = produce(delay=60, priority=3)
    assert [claim.payload for claim in worker.claim(1)] == [bytes(range(256))]
    [claim] = broker.held(worker.name, [QUEUE])
    assert claim.id == id
    assert broker.settle(worker.name, [Settlement(claim.ref, "dead", reason="späť")]) == [True]
    [dead] = broker.peek(QUEUE, "dead")
    assert (dead.message.payload, dead.reason) == (bytes(range(256)), "späť")
    entry = broker.get(QUEUE, later)
    assert entry is not None
    assert entry.state == "scheduled"
    assert broker.remove(QUEUE, later)
    assert broker.queues() == [QUEUE]
    broker.announce(worker.name, [QUEUE], {"host": "hôte"}, 60)
    assert broker.workers(QUEUE)[0].info == {"host": "hôte"}
    broker.wait([QUEUE], 1)
    broker.sweep(QUEUE)
    [claim] = worker.claim()
    assert claim.id == other
    listener = broker.listen(QUEUE)
    broker.settle(worker.name, [Settlement(claim.ref, "done", answer=Answer(b"\0\xff", 60))])
    assert listener.wait(5)
    listener.close()
    broker.put_result(QUEUE, 7, Answer(b"7", 60))
    assert broker.get_results(QUEUE, [other, 7, 8]) == {other: b"\0\xff", 7: b"7"}
    assert broker.purge(QUEUE) == 1
    assert any("append-only" in warning for warning in broker.check())


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode", [False, True])
def test_a_clients_own_settings_do_not_matter(server: RedisServer, protocol: int, decode: bool) -> None:
    with redis.Redis(
        port=server.port, decode_responses=decode, protocol=protocol, encoding="latin-1", socket_timeout=1
    ) as client:
        broker = RedisBroker(client)
        works(broker)
        broker.close()
        assert client.ping()


def test_where_nobody_may_publish_or_subscribe_answers_are_found_by_looking(server: RedisServer) -> None:
    with redis.Redis(port=server.port) as admin:
        admin.execute_command("ACL", "SETUSER", "quiet", "on", ">secret", "~*", "resetchannels", "+@all")
        broker = RedisBroker(f"redis://quiet:secret@127.0.0.1:{server.port}")
        Producer(broker)()
        [claim] = Worker(broker).claim()
        listener = broker.listen(QUEUE)

        assert broker.settle("worker", [Settlement(claim.ref, "done", answer=Answer(b"answer", 60))]) == [True]

        assert listener.wait(5), "it polls"
        assert broker.get_results(QUEUE, [claim.id]) == {claim.id: b"answer"}
        listener.close()
        broker.close()
        admin.execute_command("ACL", "DELUSER", "quiet")


def test_answers_have_a_time_to_live(server: RedisServer) -> None:
    broker = RedisBroker(server.url)
    Producer(broker)()
    [claim] = Worker(broker).claim()
    broker.settle("worker", [Settlement(claim.ref, "done", answer=Answer(b"answer", 60))])

    with redis.Redis(port=server.port) as node:
        [key] = node.scan_iter(b"*_answer:*")
        assert 0 < node.pttl(key) <= 60_000
    broker.close()


def test_a_client_with_a_single_connection_keeps_it_for_itself(server: RedisServer) -> None:
    with redis.Redis(port=server.port, single_connection_client=True) as client:
        broker = RedisBroker(client)
        sleep = Sleep(broker)
        Producer(broker)()
        assert sleep.after(time.monotonic()) < 1
        works_again = Worker(broker).claim()
        assert len(works_again) == 1
        broker.close()
        assert client.ping()


def test_the_spec_of_a_client_opens_the_same_store(tmp_path: Path) -> None:
    password = "p@ss/w:rd?#%"
    path = str(tmp_path / "redis.sock")
    with redis_server("--requirepass", password, "--unixsocket", path) as server:
        clients = [
            redis.Redis(port=server.port, password=password, db=3),
            redis.Redis(unix_socket_path=path, password=password, db=3),
            redis.Redis(port=server.port, username="default", password=password, db=3, protocol=3),
        ]
        broker = RedisBroker(clients[0])
        Producer(broker)()
        for client in clients:
            broker = RedisBroker(client)
            spec = broker.spec()
            assert spec is not None
            again = broker_for(spec)
            assert again.counts(QUEUE).ready == 1
            assert again.spec() == spec
            for shown in (repr(broker), repr(again)):
                assert "ss/w" not in shown
                assert "%2F" not in shown
            again.close()
            client.close()

        wrong = RedisBroker(f"redis://:secret@127.0.0.1:{server.port}/0")
        with pytest.raises(BrokerError) as caught:
            wrong.counts(QUEUE)
        assert not isinstance(caught.value, BrokerUnavailable)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://localhost:http/0", "redis://localhost/0?socket_timeout=soon", "redis://localhost:99999"]
)
def test_a_url_that_is_wrong_is_refused_when_the_broker_is_made(url: str) -> None:
    with pytest.raises(ConfigError, match="not a Redis URL"):
        RedisBroker(url)


def test_a_client_that_can_not_be_used_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"redis\.Redis"):
        RedisBroker(redis.ConnectionPool())


def test_settings_that_lose_tasks_are_warned_of() -> None:
    with redis_server("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as server:
        broker = RedisBroker(server.url)
        warnings = broker.check()
        assert ["allkeys-lru" in warning for warning in warnings] == [True, False]
        broker.close()
    with redis_server("--rename-command", "CONFIG", "", aof=True) as server:
        broker = RedisBroker(server.url)
        assert broker.check() == []
        broker.close()


def test_values_whose_time_is_over_take_no_space(broker: RedisBroker, store: Any) -> None:
    for number in range(10):
        broker.put_key(QUEUE, f"short:{number}", b"value", ttl=0.01)
    broker.put_key(QUEUE, "long", b"value", ttl=100.0)
    broker.put_key(QUEUE, "ever", b"value")

    def left() -> list[str]:
        broker.sweep(QUEUE)
        return sorted(store.hkeys(QUEUE + "_keys"))

    eventually(lambda: left() == ["ever", "long"])
    assert store.zrange(QUEUE + "_keys_names", 0, -1) == ["ever", "long"]
    assert store.zrange(QUEUE + "_keys_ends", 0, -1) == ["long"]


def test_on_a_cluster_the_keys_of_a_queue_lie_together(tmp_path: Path) -> None:
    with redis_server("--cluster-enabled", "yes", "--cluster-config-file", str(tmp_path / "nodes.conf")) as server:
        with redis.Redis(port=server.port) as node:
            node.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            eventually(lambda: node.cluster("info")["cluster_state"] == "ok", 10)
            broker = RedisBroker(f"redis://127.0.0.1:{server.port}/?cluster=1")
            works(broker)
            many = Queue(QUEUE, broker).enqueue_many([Task.create(abs, (number,)) for number in range(3)])
            worker = Worker(broker, "another")
            claims = worker.claim(3)
            assert ids(claims) == many
            assert worker.done(claims) == [True] * 3
            broker.put_key(QUEUE, "lock:{other}", b"value", version=0, ttl=100)
            assert broker.add_key(QUEUE, "count", 2) == 2
            assert [*broker.get_keys(QUEUE, broker.list_keys(QUEUE, ""))] == ["count", "lock:{other}"]
            assert {key for key in node.scan_iter() if not key.startswith(b"{default}")} == {b"delayed_queues"}

        with redis.Redis(port=server.port) as node:
            sleep = Sleep(broker)
            sleepers(node, 1)
            start = time.monotonic()
            Producer(broker)()
            assert sleep.after(start) < 1

            before = {client["id"] for client in node.client_list()}
            sleep = Sleep(broker)
            sleepers(node, 1)
            broker.wake([QUEUE])
            assert sleep.after(time.monotonic()) < 1
            broker.wait([QUEUE, "another", "third"], 0.2)
            assert before <= {client["id"] for client in node.client_list()}  # no wait costs a connection

        with redis.RedisCluster(host="127.0.0.1", port=server.port, decode_responses=True) as client:
            mine = RedisBroker(client)
            assert mine.counts(QUEUE).ready == 1
            spec = mine.spec()
            assert spec is not None
            assert "cluster=1" in spec
            again = broker_for(spec)
            assert again.counts(QUEUE).ready == 1
            again.close()
        broker.close()


def test_the_master_behind_sentinels_is_found(server: RedisServer, tmp_path: Path) -> None:
    settings = tmp_path / "sentinel.conf"
    settings.write_text(f"sentinel monitor main 127.0.0.1 {server.port} 1\n")
    watch = RedisServer(tmp_path)
    watch.settings = lambda: [str(settings), "--sentinel", "--port", str(watch.port)]  # type: ignore[method-assign]
    try:
        watch.start()
    except ServerError as error:
        unavailable(str(error))
    try:
        sentinel: Any = Sentinel([("127.0.0.1", watch.port)])  # type: ignore[no-untyped-call, unused-ignore]
        client = sentinel.master_for("main")
        broker = RedisBroker(client)
        works(broker)
        spec = broker.spec()
        assert spec == f"redis://127.0.0.1:{watch.port}/0?sentinel=main"
        again = broker_for(spec)
        assert again.queues() == [QUEUE]
        again.close()
        broker.close()
        client.close()
        sentinel.sentinels[0].close()
    finally:
        watch.kill()
