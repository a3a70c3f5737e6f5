"""An enqueue waits for no longer than its queue says, whatever has become of the store."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from delayed import EnqueueRefused, EnqueueUncertain, Queue
from delayed.brokers.deadline import LEAST, Attempts, idle, meanwhile
from delayed.delay import Call
from delayed.options import Options
from tests.brokers.patience import insist
from tests.chaos.proxy import Proxy
from tests.chaos.stores import Store, open_store
from tests.functions import add

TIMEOUT = 0.5  # seconds
SLACK = 1.0  # seconds that a busy machine takes for what should be done at once


@pytest.fixture(scope="module", params=["redis", "postgres", "mongodb"])
def server(request: pytest.FixtureRequest) -> Iterator[Store]:
    with open_store(request.param) as store:
        yield store


@contextlib.contextmanager
def frozen(store: Store) -> Iterator[None]:
    with store.stopped():
        yield


@contextlib.contextmanager
def killed(store: Store) -> Iterator[None]:
    assert store.server is not None
    store.server.kill()
    try:
        yield
    finally:
        store.server.start()


@pytest.mark.parametrize("harm", [frozen, killed])
def test_an_enqueue_ends_in_time(server: Store, harm: Callable[[Store], AbstractContextManager[None]]) -> None:
    check(server.url, lambda: harm(server))


@contextlib.contextmanager
def swallowed(proxy: Proxy) -> Iterator[None]:
    proxy.state("swallow")
    yield
    proxy.state("open")
    proxy.reset()


def test_an_enqueue_ends_in_time_where_connections_are_taken_and_nothing_comes_through(
    server: Store, tmp_path: Path
) -> None:
    with Proxy(server.url, tmp_path) as proxy:
        check(proxy.url, lambda: swallowed(proxy))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One of our processes has stopped while it had the lock."""
    with open(f"{path}-lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """Another program has a transaction open."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield


@pytest.mark.parametrize("harm", [locked, written])
def test_an_enqueue_ends_in_time_on_sqlite(
    harm: Callable[[Path], AbstractContextManager[None]], tmp_path: Path
) -> None:
    path = tmp_path / "tasks.db"
    check(f"sqlite:///{path}", lambda: harm(path))


def test_many_enqueues_of_an_event_loop_end_in_time_although_it_has_few_threads(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    queue = Queue("q", f"sqlite:///{path}", enqueue_timeout=TIMEOUT)
    call = Call(add, queue, Options())

    async def many() -> tuple[list[Any], float]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        await call.adelay(1, 2)
        with locked(path):
            begun = time.monotonic()
            ends = await asyncio.gather(*[call.adelay(1, 2) for _ in range(20)], return_exceptions=True)
            return ends, time.monotonic() - begun

    ends, seconds = asyncio.run(many())

    assert {type(error) for error in ends} == {EnqueueRefused}
    assert seconds < TIMEOUT + LEAST + SLACK
    assert len(queue) == 1
    queue.broker.close()


def test_an_enqueue_of_an_event_loop_waits_for_a_thread_as_long_as_the_store_is_there() -> None:
    call = Call(add, Queue("q", "memory://", enqueue_timeout=0.05), Options())
    free = threading.Event()

    async def late() -> int | None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        other = loop.run_in_executor(None, free.wait)
        mine = asyncio.ensure_future(call.adelay(1, 2))
        assert await asyncio.wait((mine,), timeout=0.3) == (set(), {mine})
        free.set()
        await other
        return (await mine).id

    assert asyncio.run(late())


def test_what_a_producer_does_while_the_store_works_does_not_count() -> None:
    attempts = Attempts(0.2)

    with meanwhile(lambda: time.sleep(0.5)):
        attempts.make(idle)

    assert attempts.again()


def check(url: str, harm: Callable[[], AbstractContextManager[None]]) -> None:
    """Enqueue amid the harm, through a queue that has ids and connections, and through one that was not used before."""
    known, fresh = (Queue("q", url, enqueue_timeout=TIMEOUT) for _ in range(2))
    with contextlib.closing(known.broker), contextlib.closing(fresh.broker):
        for _ in range(9):  # the last block that was reserved has six ids left
            insist(lambda: known.enqueue(known.task(add, 1, 2)))
        coming = Call(add, known, Options())
        calls: list[Callable[[], Any]] = [
            lambda: known.enqueue(known.task(add, 1, 2)),
            lambda: known.enqueue_many([known.task(add, 1, 2)] * 2),
            lambda: asyncio.run(coming.adelay(1, 2)),
            lambda: fresh.enqueue(fresh.task(add, 1, 2)),
            lambda: fresh.enqueue(fresh.task(add, 1, 2)),
        ]

        with harm():
            ends = in_threads(calls)

        assert {type(error) for error, _ in ends} <= {EnqueueRefused, EnqueueUncertain}, ends
        assert max(seconds for _, seconds in ends) < TIMEOUT + LEAST + SLACK, ends
        for error, _ in ends:
            if isinstance(error, EnqueueUncertain):
                error.retry(10.0)
        insist(lambda: known.enqueue(known.task(add, 1, 2)))


def in_threads(calls: list[Callable[[], Any]]) -> list[tuple[BaseException | None, float]]:
    """What each call raised, and the seconds that it took."""
    ends: list[tuple[BaseException | None, float]] = []

    def run(call: Callable[[], Any]) -> None:
        begun = time.monotonic()
        try:
            call()
            ends.append((None, time.monotonic() - begun))
        except BaseException as error:
            ends.append((error, time.monotonic() - begun))

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends
