"""``python -m benchmarks.scheduled [STORE …] [--scheduled N]``: whether tasks that wait slow claims down.

A task is claimed and settled by 100 at a time, first with nothing scheduled in the queue and then with N tasks that are
due in a day to a month.
"""

from __future__ import annotations

import argparse
import random
import secrets
import statistics
import time
from collections.abc import Iterator
from itertools import islice

from rich.console import Console
from rich.table import Table

from benchmarks.stores import STORES
from delayed.brokers import Broker, broker_for
from delayed.message import Message, Settlement

BATCH = 1000  # tasks of an enqueue
CLAIM = 100  # tasks of a claim
PAYLOAD = b"\x01\x01\x00\x00" + b"x" * 60


class Bench:
    """A queue on one store."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.queue = f"bench-{secrets.token_hex(4)}"
        self.session = secrets.token_hex(16)
        self.seq = 0
        self.claims = 0

    def fill(self, delays: Iterator[float]) -> float:
        """Store a task for each delay; how many a second."""
        begun, stored = time.perf_counter(), 0
        while batch := list(islice(delays, BATCH)):
            first = self.broker.reserve_ids(self.queue, len(batch))
            messages = [Message(first + n, "app:f", PAYLOAD, delay=delay) for n, delay in enumerate(batch)]
            self.seq += 1
            self.broker.enqueue(self.queue, messages, self.session, self.seq)
            stored += len(batch)
        return stored / (time.perf_counter() - begun)

    def drain(self, tasks: int) -> float:
        """Claim and settle so many; how many a second."""
        self.fill(iter([0.0] * tasks))
        settlements: list[Settlement] = []
        begun, done = time.perf_counter(), 0
        while done < tasks:
            self.claims += 1
            nonce = secrets.randbits(64)
            _, claims = self.broker.settle_and_claim("w", settlements, [self.queue], self.claims, nonce, CLAIM, 60.0)
            settlements = [Settlement(claim.ref, "done") for claim in claims]
            done += len(claims)
        rate = done / (time.perf_counter() - begun)
        self.broker.settle("w", settlements)
        return rate


def measure(url: str, scheduled: int, tasks: int, rounds: int) -> tuple[float, float, float]:
    """Claims a second without and with so many scheduled tasks, and how many of these are stored a second."""
    broker = broker_for(url)
    empty, full = Bench(broker), Bench(broker)
    rng = random.Random(1)
    filled = full.fill(iter([rng.uniform(86400, 30 * 86400) for _ in range(scheduled)]))
    for bench in (empty, full):
        bench.drain(tasks)
    pairs = [(empty.drain(tasks), full.drain(tasks)) for _ in range(rounds)]
    broker.close()
    without, beside = (statistics.median(column) for column in zip(*pairs, strict=True))
    return without, beside, filled


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduled")
    parser.add_argument("stores", nargs="*", choices=[*STORES, []], help="which (default: all)")
    parser.add_argument("--scheduled", type=int, default=1_000_000, help="tasks that wait (default: 1,000,000)")
    parser.add_argument("--tasks", type=int, default=10_000, help="tasks of a round (default: 10,000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each, interleaved (default: 5)")
    options = parser.parse_args()
    console = Console()
    table = Table("store", "claimed/s with none", "claimed/s with them", "ratio", "stored/s")
    for name in options.stores or STORES:
        with console.status(name), STORES[name][0]() as url:
            without, beside, filled = measure(url, options.scheduled, options.tasks, options.rounds)
        table.add_row(name, f"{without:,.0f}", f"{beside:,.0f}", f"{beside / without:.2f}", f"{filled:,.0f}")
        console.print(name, f"{without:,.0f} {beside:,.0f} {filled:,.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
