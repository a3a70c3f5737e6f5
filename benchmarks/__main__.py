"""``python -m benchmarks [--rounds N]``: measures, prints a table, and fails if a target is missed.

Redis is the one in DELAYED_URL, else a server of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks import limits, measures
from tests.servers.redis import redis_server


class Row(NamedTuple):
    """One line of the table; `ratio` has to reach `target`, or stay below it where `target` is negative."""

    what: str
    value: str
    limit: str
    ratio: float
    target: float

    @property
    def good(self) -> bool:
        return self.ratio >= self.target if self.target >= 0 else self.ratio <= -self.target


def rate(what: str, target: float, rounds: int, measure: Callable[[], float], limit: Callable[[], float]) -> Row:
    """The median of ratios: each round measures the limit right before and after."""
    pairs = []
    for _ in range(rounds):
        before = limit()
        value = measure()
        pairs.append((value, (before + limit()) / 2))
    value, best = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(value / best for value, best in pairs)
    return Row(what, f"{value:,.0f}/s", f"{best:,.0f}/s", ratio, target)


def latency(mode: str, url: str) -> list[Row]:
    """Beside a PING of many in a row, and beside one after the same pause, for which the machine has to wake up too."""
    ping = 1 / limits.pings(url)
    pause = limits.ping_after(url, measures.PAUSE)
    times = measures.latencies(url, mode)
    ping = (ping + 1 / limits.pings(url)) / 2
    pause = (pause + limits.ping_after(url, measures.PAUSE)) / 2
    return [
        Row(
            f"latency, {mode}, {name} / {beside}",
            f"{value * 1e6:,.0f} us",
            f"{one * 1e6:,.0f} us",
            value / one,
            -target,
        )
        for name, value, target in (
            ("median", statistics.median(times), 8.0),
            ("99th percentile", measures.percentile(times, 99), 30.0),
        )
        for beside, one in (("PING", ping), ("PING after the same pause", pause))
        for what in (f"latency, {mode}, {name} / {beside}",)
    ]


@contextlib.contextmanager
def redis() -> Iterator[str]:
    url = os.environ.get("DELAYED_URL", "")
    if url.startswith("redis"):
        yield url
    else:
        with redis_server() as server:
            yield server.url


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (default: 3)")
    rounds = parser.parse_args().rounds
    rows: list[Row] = []
    with redis() as url:
        console = Console()

        def pings() -> float:
            return limits.pings(url)

        def forked(processes: int) -> Row:
            what = f"ForkedWorker, processes={processes} / bare forks"
            return rate(what, 0.3, rounds, lambda: measures.drain(url, "forked", 2000, processes), limits.forks)

        def preforked() -> Row:
            what = "PreforkedWorker, processes=1 / PING"
            return rate(what, 5.0, rounds, lambda: measures.drain(url, "preforked", 40_000), pings)

        for lines in (
            lambda: [forked(1)],
            lambda: [forked(2)],
            lambda: [preforked()],
            lambda: [rate(".delay() / PING", 0.7, rounds, lambda: measures.delays(url), pings)],
            lambda: latency("preforked", url),
            lambda: latency("forked", url),
        ):
            with console.status("measuring"):
                rows += lines()
            console.print(rows[-1].what, f"{rows[-1].ratio:.2f}")
    table = Table("what", "measured", "limit", "ratio", "target", "")
    for row in rows:
        target = f">= {row.target:g}" if row.target >= 0 else f"<= {-row.target:g}"
        table.add_row(row.what, row.value, row.limit, f"{row.ratio:.2f}", target, "ok" if row.good else "MISSED")
    console.print(table)
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
