"""``python -m benchmarks.stores [STORE …] [--tasks N] [--rounds N]``: the stores side by side, each on a server of its
own that keeps what it has answered for, and beside it the round trips of its driver alone.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table

from benchmarks import measures
from benchmarks.tasks import nothing
from delayed import Queue, Task
from tests.servers.mongo import mongo_server
from tests.servers.postgres import postgres_server
from tests.servers.redis import redis_server


@contextlib.contextmanager
def sqlite() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/tasks.db"


@contextlib.contextmanager
def redis() -> Iterator[str]:
    with redis_server("--appendonly", "yes", "--appendfsync", "everysec") as server:
        yield server.url


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    with postgres_server(durable=True, shared_buffers="256MB", autovacuum_naptime="60s") as server:
        yield server.url


@contextlib.contextmanager
def mongodb() -> Iterator[str]:
    with mongo_server() as server:
        yield server.url


def _sqlite_trip(url: str) -> Callable[[], object]:
    import sqlite3

    conn = sqlite3.connect(url.removeprefix("sqlite:///"))
    return lambda: conn.execute("SELECT 1").fetchall()


def _redis_trip(url: str) -> Callable[[], object]:
    import redis

    return redis.Redis.from_url(url).ping


def _postgres_trip(url: str) -> Callable[[], object]:
    import psycopg

    conn = psycopg.connect(url, autocommit=True)
    return lambda: conn.execute("SELECT 1").fetchall()


def _mongodb_trip(url: str) -> Callable[[], object]:
    import pymongo

    admin = pymongo.MongoClient(url).admin
    return lambda: admin.command("ping")


STORES = {
    "sqlite": (sqlite, _sqlite_trip),
    "redis": (redis, _redis_trip),
    "postgres": (postgres, _postgres_trip),
    "mongodb": (mongodb, _mongodb_trip),
}


def trips(trip: Callable[[], object], seconds: float = 0.5) -> float:
    """Round trips a second."""
    trip()
    start = time.perf_counter()
    n = 0
    while time.perf_counter() < start + seconds:
        trip()
        n += 1
    return n / (time.perf_counter() - start)


def bulk(url: str, n: int) -> float:
    """Tasks a second that are enqueued in batches of 1,000."""
    queue = Queue(f"bench-{secrets.token_hex(4)}", url)
    tasks = [Task.create(nothing)] * 1000
    queue.enqueue_many(tasks)
    start = time.perf_counter()
    for _ in range(n // 1000):
        queue.enqueue_many(tasks)
    rate = n // 1000 * 1000 / (time.perf_counter() - start)
    queue.broker.purge(queue.name)
    return rate


def measure(name: str, n: int) -> list[float]:
    """One round on one store: the columns of the table."""
    server, tripper = STORES[name]
    with server() as url:
        trip = tripper(url)
        before = trips(trip)
        figures = [
            measures.delays(url, min(n, 3000)),
            bulk(url, n),
            measures.drain(url, "preforked", n),
            statistics.median(measures.latencies(url, "preforked", 100)) * 1e3,
        ]
        return [(before + trips(trip)) / 2, *figures]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stores")
    parser.add_argument("stores", nargs="*", choices=[*STORES, []], help="which (default: all)")
    parser.add_argument("--tasks", type=int, default=20_000, help="tasks of a drain (default: 20,000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, interleaved (default: 3)")
    options = parser.parse_args()
    console = Console()
    stores = options.stores or [*STORES]
    found: dict[str, list[list[float]]] = {name: [] for name in stores}
    for _ in range(options.rounds):
        for name in stores:
            with console.status(name):
                found[name].append(measure(name, options.tasks))
    table = Table("store", "round trips/s", ".delay()/s", "in bulk/s", "no-op tasks/s", "wake-up, ms")
    for name, rounds in found.items():
        row = [statistics.median(column) for column in zip(*rounds, strict=True)]
        table.add_row(name, *[f"{value:,.0f}" for value in row[:-1]], f"{row[-1]:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
