"""Enqueueing and settling inside transactions, on every store that has them."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from delayed.brokers import Broker
from delayed.delay import Call, delay, delay_with_params
from delayed.errors import ConfigError, TaskLost, Unsupported
from delayed.message import Claim, Message, Settlement
from delayed.options import Options
from delayed.queue import Queue
from delayed.task import Task
from delayed.unique import Unique
from tests.bank import Bank, bank_at
from tests.brokers.conftest import STORES
from tests.functions import echo

TRANSACTIONAL = [store for store in STORES if store not in ("memory", "redis")]


def only(*stores: str) -> Any:
    return pytest.mark.parametrize("store", stores, indirect=True)


@pytest.fixture
def bank(store: str, broker: Broker) -> Bank:
    broker.check()  # makes the tables
    bank = bank_at(store, f"bank_{secrets.token_hex(6)}")
    bank.open()
    return bank


def put(broker: Broker, queue: str, n: int = 1) -> int:
    first = broker.reserve_ids(queue, n)
    messages = [Message(first + i, "os:getpid", b"") for i in range(n)]
    broker.enqueue(queue, messages, secrets.token_hex(16), 1)
    return first


def take(broker: Broker, queue: str, worker: str = "w", lease: float = 30.0) -> Claim:
    (claim,) = broker.claim([queue], worker, time.monotonic_ns(), secrets.randbits(64), 1, lease)
    return claim


def ready(broker: Broker, queue: str) -> int:
    return broker.counts(queue).ready


# -- joining the caller's ------------------------------------------------------------------------------------------


@only(*TRANSACTIONAL)
def test_what_is_enqueued_in_a_transaction_comes_with_its_commit(broker: Broker, queue: str, bank: Bank) -> None:
    tasks = Queue(queue, broker)
    with bank.transaction() as conn:
        bank.move(conn, 1)
        with tasks.transaction(conn):
            handle = delay_with_params(tasks)(expires=60)(divmod)(7, 2)
        assert ready(broker, queue) == 0
        bank.commit(conn)

    assert ready(broker, queue) == 1
    claim = take(broker, queue)
    assert claim.id == handle.id
    assert 30 < claim.begin_by - broker.clock(queue) < 61
    bank.check([1])


@only(*TRANSACTIONAL)
def test_what_is_enqueued_in_a_transaction_goes_with_it(broker: Broker, queue: str, bank: Bank) -> None:
    tasks = Queue(queue, broker)
    with bank.transaction() as conn:
        bank.move(conn, 1)
        with tasks.transaction(conn):
            delay(tasks)(divmod)(7, 2)
            tasks.enqueue_many([tasks.task(divmod, 1, n) for n in range(5)])

    assert ready(broker, queue) == 0
    bank.check([])
    delay(tasks)(divmod)(7, 2)
    assert ready(broker, queue) == 1, "afterwards the queue enqueues as ever"


@only(*TRANSACTIONAL)
def test_a_unique_task_comes_and_goes_with_a_transaction(broker: Broker, queue: str, bank: Bank) -> None:
    tasks = Queue(queue, broker)

    def put(number: int, **options: Any) -> int:
        return tasks.enqueue(Task.create(divmod, (7, number), unique=Unique("k", **options)))

    with bank.transaction() as conn, tasks.transaction(conn):  # which is rolled back
        gone = put(1)
        assert put(2) == gone
    assert ready(broker, queue) == 0
    with bank.transaction() as conn:
        with tasks.transaction(conn):
            first = put(3)
            assert put(4) == first
        bank.commit(conn)
    assert first != gone
    assert put(5) == first
    with bank.transaction() as conn:
        with tasks.transaction(conn):
            second = put(6, on_conflict="replace")
        assert ready(broker, queue) == 1
        bank.commit(conn)

    assert take(broker, queue).id == second != first
    assert ready(broker, queue) == 0


@only(*TRANSACTIONAL)
def test_fair_tasks_take_their_turns_in_a_transaction(broker: Broker, queue: str, bank: Bank) -> None:
    tasks = Queue(queue, broker)
    with bank.transaction() as conn:
        with tasks.transaction(conn):
            for customer in "aaaaabb":
                tasks.enqueue(Task.create(echo, (), {"customer": customer}, key=customer, fair_by="customer"))
        bank.commit(conn)
    tasks.enqueue(Task.create(echo, (), {"customer": "c"}, key="c", fair_by="customer"))

    served = [take(broker, queue).message().key or "" for _ in range(8)]

    assert sorted(served[:5]) == ["a", "a", "b", "b", "c"]


@only(*TRANSACTIONAL)
def test_queues_of_one_store_join_and_others_do_not(
    store: str, open_broker: Callable[[], Broker], broker: Broker, queue: str, bank: Bank
) -> None:
    here, there = Queue(queue, broker), Queue(f"{queue}-2", open_broker())
    elsewhere = Queue(queue, f"memory://{secrets.token_hex(8)}")
    with bank.transaction() as conn, here.transaction(conn):
        for tasks in (here, there, elsewhere):
            delay(tasks)(divmod)(7, 2)

    assert (here.len(), there.len(), elsewhere.len()) == (0, 0, 1)


@only(*TRANSACTIONAL)
def test_a_coroutine_enqueues_in_its_own_transaction(broker: Broker, queue: str, bank: Bank) -> None:
    tasks = Queue(queue, broker)

    async def enqueue() -> None:
        await Call(divmod, tasks, Options()).adelay(7, 2)
        await Call(divmod, tasks, Options()).astarmap([(7, 2)])

    with bank.transaction() as conn:
        with tasks.transaction(conn):
            asyncio.run(enqueue())
        assert ready(broker, queue) == 0
        bank.commit(conn)

    assert ready(broker, queue) == 2


@only(*TRANSACTIONAL)
def test_another_thread_does_not_join(broker: Broker, queue: str, bank: Bank) -> None:
    tasks = Queue(queue, broker)
    with bank.transaction() as conn, tasks.transaction(conn):
        thread = threading.Thread(target=delay(tasks)(divmod), args=(7, 2))
        thread.start()
        thread.join()

    assert ready(broker, queue) == 1


@only(*TRANSACTIONAL)
def test_a_commit_wakes_who_waits(broker: Broker, open_broker: Callable[[], Broker], queue: str, bank: Bank) -> None:
    sleeper = open_broker()
    tasks = Queue(queue, broker)
    put(broker, queue)
    take(sleeper, queue)
    woken: list[float] = []

    def sleep() -> None:
        while not ready(sleeper, queue):
            sleeper.wait([queue], 20.0)
        woken.append(time.monotonic())

    with bank.transaction() as conn:
        with tasks.transaction(conn):
            delay(tasks)(divmod)(7, 2)
        thread = threading.Thread(target=sleep)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        committed = time.monotonic()
        bank.commit(conn)
        thread.join(10.0)

    assert woken[0] - committed < 0.5


@only(*TRANSACTIONAL)
def test_what_is_no_connection_is_refused(broker: Broker, queue: str) -> None:
    with pytest.raises(ConfigError, match="object"), Queue(queue, broker).transaction(object()):
        pass


@only("memory", "redis")
def test_a_store_without_transactions_says_so(broker: Broker, queue: str) -> None:
    put(broker, queue)
    claim = take(broker, queue)

    with pytest.raises(Unsupported, match="PostgreSQL, MongoDB and SQLite"), Queue(queue, broker).transaction(None):
        pass
    with pytest.raises(Unsupported, match="idempotency key"), broker.transaction(claim.ref):
        pass


# -- ending a claim ------------------------------------------------------------------------------------------------


@only(*TRANSACTIONAL)
def test_writes_and_the_end_of_the_task_are_one(broker: Broker, queue: str, bank: Bank) -> None:
    put(broker, queue)
    claim = take(broker, queue)

    with broker.transaction(claim.ref) as joined:
        bank.move(joined.connection, 1)

    bank.check([1])
    assert broker.get(queue, claim.id) is None
    assert broker.settle("w", [Settlement(claim.ref, "retry")]) == [False]
    assert sum(broker.counts(queue)) == 0


@only(*TRANSACTIONAL)
def test_an_error_rolls_everything_back(broker: Broker, queue: str, bank: Bank) -> None:
    put(broker, queue)
    claim = take(broker, queue)

    with pytest.raises(ZeroDivisionError), broker.transaction(claim.ref) as joined:
        bank.move(joined.connection, 1)
        joined.enqueue(queue, [Message(joined.reserve_ids(queue, 1), "os:getpid", b"")])
        raise ZeroDivisionError

    bank.check([])
    assert broker.counts(queue) == (0, 0, 1, 0)
    assert broker.settle("w", [Settlement(claim.ref, "done")]) == [True]


@only(*TRANSACTIONAL)
def test_follow_ups_come_with_the_end_of_the_task(broker: Broker, queue: str, bank: Bank) -> None:
    put(broker, queue)
    claim = take(broker, queue)

    with broker.transaction(claim.ref) as joined:
        first = joined.reserve_ids(queue, 2)
        joined.enqueue(queue, [Message(first, "os:getpid", b""), Message(first + 1, "os:getpid", b"")])

    assert broker.counts(queue) == (0, 2, 0, 0)


@only(*TRANSACTIONAL)
def test_a_claim_that_was_lost_before_commits_nothing(broker: Broker, queue: str, bank: Bank) -> None:
    put(broker, queue)
    claim = take(broker, queue)
    broker.settle("w", [Settlement(claim.ref, "back")])
    again = take(broker, queue, "v")

    with pytest.raises(TaskLost), broker.transaction(claim.ref) as joined:
        bank.move(joined.connection, 1)

    bank.check([])
    assert broker.settle("v", [Settlement(again.ref, "done")]) == [True]


@only(*[store for store in TRANSACTIONAL if store != "sqlite"])  # there nobody else can write meanwhile
def test_a_claim_that_is_lost_meanwhile_commits_nothing(broker: Broker, queue: str, bank: Bank) -> None:
    put(broker, queue)
    claim = take(broker, queue)

    with pytest.raises(TaskLost), broker.transaction(claim.ref) as joined:
        bank.move(joined.connection, 1)
        assert broker.settle("w", [Settlement(claim.ref, "back")]) == [True]

    bank.check([])
    assert ready(broker, queue) == 1


@only(*[store for store in TRANSACTIONAL if store != "sqlite"])
def test_a_renewal_neither_waits_for_a_transaction_nor_harms_it(broker: Broker, queue: str, bank: Bank) -> None:
    put(broker, queue)
    claim = take(broker, queue, lease=2.0)

    with broker.transaction(claim.ref) as joined:
        bank.move(joined.connection, 1)
        start = time.monotonic()
        assert broker.renew("w", [queue], [claim.ref], 30.0).held == [claim.ref]
        assert time.monotonic() - start < 1.0
        bank.move(joined.connection, 2)

    bank.check([1, 2])


@only(*TRANSACTIONAL)
def test_transactions_of_several_tasks_run_beside_each_other(
    broker: Broker, open_broker: Callable[[], Broker], queue: str, bank: Bank
) -> None:
    n = 20
    put(broker, queue, n)

    def work(broker: Broker, name: str) -> None:
        for number in range(1 << 30):
            claims = broker.claim([queue], name, number + 1, secrets.randbits(64), 1, 30.0)
            if not claims:
                return
            (claim,) = claims
            while True:
                try:
                    with broker.transaction(claim.ref) as joined:
                        bank.move(joined.connection, claim.id % 1_000_000)
                    break
                except ConnectionError:  # two transfers met; the driver says: again
                    continue

    threads = [threading.Thread(target=work, args=(open_broker(), f"w{i}")) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    first, second, log = bank.read()
    assert len(set(log)) == len(log) == n
    assert first + second == 2_000_000
    assert sum(broker.counts(queue)) == 0
