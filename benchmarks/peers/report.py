"""The report as Markdown, and its plot."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from benchmarks.page import FOLDER
from benchmarks.peers.catalog import PEERS, WAYS
from benchmarks.peers.client import WARM_ALONE
from benchmarks.peers.figures import MACHINE, Figures
from benchmarks.peers.plot import bars
from benchmarks.peers.targets import Target, targets

PLOT = FOLDER / "benchmarks.svg"

LIMITS = {
    "PING": "PING round trips of redis-py, one process",
    "pipelined PING": "the same, 1,000 in a round trip",
    "SELECT 1": "`SELECT 1` round trips of psycopg, one process",
    "claims": "`find_one_and_update` of pymongo that claim a task, one process",
    "forks": "fork, `_exit`, waitpid in an interpreter started with `-I -S`",
    "pipe": "one byte through a pipe to another process, and back",
    "count": "one byte appended to an open file: what the counted task costs",
    "call": "calls of a function that does nothing",
}


def page(
    figures: Figures,
    about: Mapping[str, Mapping[str, Any]],
    servers: dict[str, str],
    left_out: dict[str, str],
    rounds: int,
    seconds: float,
) -> str:
    """The whole document. `about`: what each peer's client told of it; `servers`: their versions, and what is counted
    of those who ask them.
    """
    return "\n".join(
        [
            "# Side by side",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({platform.machine()}), {platform.system()} "
            f"{platform.release()}, Python {platform.python_version()}, {', '.join(servers)} on the same machine; "
            f"{rounds} rounds in {seconds / 60:.0f} minutes, in each of which everybody had a turn. Medians, and in "
            "brackets the lowest and the highest. Tasks do nothing but append one byte to a file, by which it was "
            "checked that each ran exactly once. Results are off, queues are full before a worker starts, and the "
            "first fifth of a drain is not timed. Machines are noisy: compare within this page only.",
            "",
            "`make bench-peers` measures it on yours.",
            "",
            f"![tasks per second, drained by one process and by two cores]({PLOT.name})",
            "",
            *_drains(figures, about),
            *_enqueues(figures, about),
            *_idle(figures, about, servers),
            *_limits(figures),
            *_targets(figures, about),
            *_versions(about, left_out, figures),
        ]
    )


def plot(figures: Figures) -> str:
    """A picture of how fast queues are drained."""
    rows = []
    for name in PEERS:
        for way in ("one", "two"):
            if (value := figures.get(name, "drain", way)) is not None:
                values = figures.values(name, "drain", way)
                rows.append((f"{name}, {WAYS[way]}", min(values), value, max(values)))
    return bars("Tasks that do nothing, per second (logarithmic)", rows)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """The first column is text, the others are figures."""
    head = list(head)
    yield f"| {' | '.join(head)} |"
    yield f"| --- |{' ---: |' * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def spread(values: list[float], scale: float = 1.0, digits: int = 0) -> str:
    if not values:
        return ""
    if not digits and 0 < statistics.median(values) * scale < 10:
        digits = 1
    low, middle, high = (
        f"{value * scale:,.{digits}f}" for value in (min(values), statistics.median(values), max(values))
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def _drains(figures: Figures, about: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "## A full queue, tasks per second\n"
    ways = [way for way in WAYS if any(figures.values(name, "drain", way) for name in about)]
    yield from table(
        ["", "survives a crash", *[WAYS[way] for way in ways]],
        (
            [
                name,
                "yes" if told["acknowledges"] else "no",
                *[spread(figures.values(name, "drain", way)) for way in ways],
            ]
            for name, told in about.items()
        ),
    )
    yield (
        "*Survives a crash*: a task stays in the store until it has run; else a worker that is killed takes with it "
        "what it holds.\n"
    )


def _enqueues(figures: Figures, about: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "## Enqueue, tasks per second, one client\n"
    yield from table(
        ["", "one by one", "in bulk"],
        ([name, *[spread(figures.values(name, what)) for what in ("one by one", "bulk")]] for name in about),
    )


def _idle(figures: Figures, about: Mapping[str, Mapping[str, Any]], servers: dict[str, str]) -> Iterator[str]:
    yield "## An idle worker\n"
    latency = ["latency, median, ms", "99th percentile, ms", "tasks"]
    asked = f"{' or '.join(filter(None, servers.values()))} a second"
    head = ["", *latency, "start-up, s", "private memory, MB", "% of a core", asked]

    def rows() -> Iterator[list[str]]:
        for name in about:
            for way in PEERS[name].idle:
                latencies = figures.values(name, "latency", way)
                late = figures.percentile(99, name, "latency", way)
                if latencies and late is not None:
                    yield [
                        f"{name}, {WAYS[way]}",
                        f"{statistics.median(latencies) * 1e3:.2f}",
                        f"{late * 1e3:.2f}",
                        str(len(latencies)),
                        spread(figures.values(name, "start", way), digits=2),
                        spread(figures.values(name, "memory", way), 1e-6),
                        spread(figures.values(name, "cpu", way), 100, 2),
                        spread(figures.values(name, "asked", way), digits=1),
                    ]

    yield from table(head, rows())
    ping = spread(figures.values(MACHINE, "PING after a pause"), 1e3, 2)
    yield (
        "*Latency*: from before the enqueue to the first line of the task, 20 ms after the last one, when all have "
        f"gone to sleep (a PING of redis-py takes {ping} ms then); without the first {WARM_ALONE} of a client, and who "
        "polls was given fewer of them. *Start-up*: from the command to the first line of a task that waits. Memory, "
        "CPU and commands: of all its processes, in thirty seconds of the first round.\n"
    )


def _limits(figures: Figures) -> Iterator[str]:
    yield "## What the machine can do, per second\n"
    yield from table(
        ["", "per second"],
        ([words, spread(values)] for what, words in LIMITS.items() if (values := figures.values(MACHINE, what))),
    )


def _targets(figures: Figures, about: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "## What was to be reached\n"
    yield from judged(list(targets(figures, [name for name, told in about.items() if told["acknowledges"]])))


def judged(found: list[Target]) -> Iterator[str]:
    """A table of targets, and how many were reached."""
    words = {True: "reached", False: "**missed**", None: "not measured"}
    yield from table(
        ["medians, and ratios of them", "measured", "target", ""],
        (
            [
                target.what,
                "" if target.value is None else f"{_short(target.value)} {target.unit}".rstrip(),
                f"{'≤' if target.most else '≥'} {_short(target.bound)} {target.unit}".rstrip(),
                words[target.reached],
            ]
            for target in found
        ),
    )
    yield f"{sum(target.reached is True for target in found)} of {len(found)} reached.\n"


def _versions(about: Mapping[str, Mapping[str, Any]], left_out: dict[str, str], figures: Figures) -> Iterator[str]:
    yield "## Who took part\n"
    for name, told in about.items():
        docs = told["docs"]
        docs = docs if docs.startswith("http") else f"[{docs}]({docs.removeprefix('docs/')})"
        versions = ", ".join(f"{package} {version}" for package, version in told["versions"].items())
        yield f"* {name}: {versions}; set up by {docs}"
    for name, reason in left_out.items():
        yield f"* {name} is left out: {reason}"
    for key, reason in figures.failed.items():
        yield f"* Failed in a round: {' '.join(key).strip()}: {reason}"
    yield ""


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
