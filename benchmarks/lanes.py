"""``python -m benchmarks.lanes [--tasks N] [--rounds N]``: children that run several tasks at once, beside preforked
ones and the round trips of the same minute, on a Redis of its own.
"""

from __future__ import annotations

import argparse
import statistics

from rich.console import Console
from rich.table import Table

from benchmarks import measures
from benchmarks.stores import STORES, trips
from benchmarks.tasks import nothing, nothing_async

SLEEPERS = 1000
SLEEP = 0.1  # seconds
KINDS = {
    "preforked": ("preforked", 1, nothing),
    "threaded, 1 thread": ("threaded", 1, nothing),
    "threaded, 8 threads": ("threaded", 8, nothing),
    "async, 100 coroutines": ("async", 100, nothing_async),
    "async, 1,000 coroutines": ("async", 1000, nothing_async),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lanes")
    parser.add_argument("--tasks", type=int, default=20_000, help="tasks of a drain (default: 20,000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, interleaved (default: 3)")
    options = parser.parse_args()
    console = Console()
    found: dict[str, list[float]] = {name: [] for name in KINDS}
    pings, walls, costs = [], [], []
    server, tripper = STORES["redis"]
    with server() as url:
        trip = tripper(url)
        for _ in range(options.rounds):
            for name, (mode, lanes, func) in KINDS.items():
                with console.status(name):
                    pings.append(trips(trip))
                    found[name].append(measures.drain(url, mode, options.tasks, 1, lanes, func))
            with console.status("sleepers"):
                wall, cost = measures.sleepers(url, SLEEPERS, SLEEP)
                walls.append(wall)
                costs.append(cost)
    ping = statistics.median(pings)
    table = Table("one child", "no-op tasks/s", "of PING")
    for name, rates in found.items():
        rate = statistics.median(rates)
        table.add_row(name, f"{rate:,.0f}", f"{rate / ping:.1f}")
    console.print(table)
    console.print(f"PING: {ping:,.0f}/s")
    console.print(
        f"{SLEEPERS:,} coroutines that sleep {SLEEP:g} s: {statistics.median(walls) / SLEEP:.2f} of the ideal time, "
        f"{statistics.median(costs) * 1e3:.2f} ms of CPU each"
    )


if __name__ == "__main__":
    main()
