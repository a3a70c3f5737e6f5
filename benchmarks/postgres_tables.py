"""``python -m benchmarks.postgres_tables [--rows N] [--tasks N]``: what size does to the queue's table in PostgreSQL.

1. The cost of a claim of one task, beside 1,000 and beside a million rows that are scheduled, running, dead or ready.
2. The size of the table and its indexes while a million tasks pass through, with the autovacuum that every server has.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from delayed.brokers import broker_for
from delayed.message import Message, Settlement
from tests.servers.postgres import postgres_server

# What fills the table: state, priority, and when it is due or its lease ends.
CROWDS = {
    "scheduled": (0, 0, "interval '1 day'"),
    "running": (2, 0, "interval '1 day'"),
    "dead": (3, 0, "interval '0'"),
    "ready, of a lower priority": (1, -1, "interval '0'"),
}
_FILL = """
    INSERT INTO delayed.delayed_task
        (queue, id, place, at, lease_end, max_deliveries, state, priority, worker, header, payload)
    SELECT q.number, n, n, clock_timestamp() + {due}, clock_timestamp() + {due}, 11, {state}, {priority},
        'worker ' || n %% 100, %(header)s, %(payload)s
    FROM delayed.delayed_queue q, generate_series(%(first)s::bigint, %(last)s::bigint) AS n WHERE q.name = %(queue)s
"""


def claim_cost(url: str, conn: psycopg.Connection[Any], crowd: str, sizes: list[int]) -> list[float]:
    """Median milliseconds of a claim of one task beside so many rows of that crowd."""
    queue = f"q-{secrets.token_hex(4)}"
    broker = broker_for(url)
    broker.reserve_ids(queue, 1)
    state, priority, due = CROWDS[crowd]
    message = Message(1, "module:function", b"x" * 100)
    there = 0
    found = []
    session = secrets.token_hex(16)
    seq = 0
    for size in sizes:
        values = {"header": message.header(), "payload": message.payload, "queue": queue}
        fill = _FILL.format(state=state, priority=priority, due=due)
        conn.execute(fill.encode(), {**values, "first": there + 1, "last": size})
        there = size
        times = []
        for _ in range(300):
            seq += 1
            broker.enqueue(queue, [message._replace(id=broker.reserve_ids(queue, 1))], session, seq)
            start = time.perf_counter()
            (claim,) = broker.claim([queue], queue, seq, secrets.randbits(64), 1, 60.0)
            times.append(time.perf_counter() - start)
            broker.settle(queue, [Settlement(claim.ref, "done")])
        found.append(statistics.median(times) * 1e3)
    broker.close()
    conn.execute("TRUNCATE delayed.delayed_task")
    return found


def passing(url: str, conn: psycopg.Connection[Any], total: int, report: Callable[[int, float], None]) -> float:
    """Pass `total` tasks through: a producer, and a worker that claims and settles 100 at a time. Seconds taken."""
    queue = f"q-{secrets.token_hex(4)}"
    producer, worker = broker_for(url), broker_for(url)

    def produce() -> None:
        session = secrets.token_hex(16)
        for number in range(total // 1000):
            while producer.counts(queue).ready > 20_000:
                time.sleep(0.05)
            first = producer.reserve_ids(queue, 1000)
            messages = [Message(first + i, "module:function", b"x" * 200) for i in range(1000)]
            producer.enqueue(queue, messages, session, number + 1)

    thread = threading.Thread(target=produce)
    start = time.perf_counter()
    thread.start()
    done = seq = 0
    settlements: list[Settlement] = []
    while done < total:
        seq += 1
        accepted, claims = worker.settle_and_claim(queue, settlements, [queue], seq, secrets.randbits(64), 100, 60.0)
        assert all(accepted)
        if (done + len(settlements)) * 10 // total > done * 10 // total:
            report(done + len(settlements), size(conn))
        done += len(settlements)
        settlements = [Settlement(claim.ref, "done") for claim in claims]
    thread.join()
    return time.perf_counter() - start


def size(conn: psycopg.Connection[Any]) -> float:
    """MB of the table with its indexes."""
    ((found,),) = conn.execute("SELECT pg_total_relation_size('delayed.delayed_task') / 1048576.0").fetchall()
    return float(found)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.postgres_tables")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    options = parser.parse_args()
    console = Console()
    with postgres_server(shared_buffers="256MB", autovacuum_naptime="60s", max_wal_size="4GB") as server:
        broker_for(server.url).check()
        with psycopg.connect(server.url, autocommit=True) as conn:
            table = Table("beside rows that are", "claim at 1,000, ms", f"at {options.rows:,}, ms", "ratio")
            for crowd in CROWDS:
                small, large = claim_cost(server.url, conn, crowd, [1000, options.rows])
                table.add_row(crowd, f"{small:.2f}", f"{large:.2f}", f"{large / small:.2f}")
            console.print(table)

            def report(done: int, megabytes: float) -> None:
                console.print(f"{done:>9,} tasks passed through: {megabytes:6.1f} MB")

            seconds = passing(server.url, conn, options.tasks, report)
            console.print(f"{options.tasks / seconds:,.0f} tasks a second, enqueued, claimed and settled")


if __name__ == "__main__":
    main()
