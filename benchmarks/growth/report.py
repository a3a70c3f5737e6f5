"""The second part of docs/benchmarks.md, and its plots."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from benchmarks.growth import network, sleepers, stuck
from benchmarks.growth.curves import CURVES, FIRST, STORES, WAITING, points
from benchmarks.growth.network import ADDED, WHO
from benchmarks.page import FOLDER
from benchmarks.peers.figures import Figures
from benchmarks.peers.plot import Curves, bars, panels, short
from benchmarks.peers.report import judged, spread, table
from benchmarks.peers.targets import Target, ratio

PLOT = FOLDER / "benchmarks-growth.svg"
BYTES_PLOT = FOLDER / "benchmarks-bytes.svg"
TITLES = {
    "workers": "More workers",
    "waiting": "A longer queue",
    "payloads": "Larger arguments",
    "queues": "More queues",
}


def page(figures: Figures, servers: list[str], rounds: int, seconds: float) -> str:
    return "\n".join(
        [
            "# More of everything",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, the same machine, {', '.join(servers)}; {rounds} rounds in "
            f"{seconds / 60:.0f} minutes. A `PreforkedWorker` with one child drains a queue that was full before it "
            "started; it was checked that each task ran exactly once. Medians of tasks per second, and in brackets the "
            "lowest and the highest.",
            "",
            "`make bench-growth` measures it on yours.",
            "",
            f"![tasks per second with more workers, tasks, bytes and queues]({PLOT.name})",
            "",
            *_curves(figures),
            *_bytes(figures),
            *_network(figures),
            *_stuck(figures),
            *_sleepers(figures),
            "## What was to be reached with more\n",
            *judged(list(targets(figures))),
            *(f"* Failed in a round: {' '.join(key).strip()}: {reason}" for key, reason in figures.failed.items()),
        ]
    )


def plot(figures: Figures) -> str:
    fields: list[tuple[str, str, Curves]] = []
    for name, curve in CURVES.items():
        curves: Curves = {}
        for store, words in STORES.items():
            found = [(point, figures.get(store, name, str(point))) for point in points(name, store)]
            if line := [(float(point), value) for point, value in found if value]:
                curves[words] = line
        fields.append((f"{TITLES[name]}: tasks per second", curve.what, curves))
    return panels(fields)


def bytes_plot(figures: Figures) -> str:
    rows = []
    for store, words in STORES.items():
        if values := figures.values(store, "bytes"):
            rows.append((f"delayed, {words}", min(values), figures.get(store, "bytes") or 0.0, max(values)))
    return bars("Bytes in the store for each task that waits (logarithmic)", rows)


def _curves(figures: Figures) -> Iterator[str]:
    for name, curve in CURVES.items():
        stores = [store for store in STORES if any(figures.values(store, name, str(point)) for point in curve.points)]
        if not stores:
            continue
        yield f"## {TITLES[name]}\n"
        yield from table(
            [curve.what, *map(short, curve.points)],
            (
                [STORES[store], *[spread(figures.values(store, name, str(point))) for point in curve.points]]
                for store in stores
            ),
        )
        if name == "waiting":
            yield f"Of the first {FIRST:,} tasks. On MongoDB more than 100,000 would take minutes to be enqueued.\n"


def _bytes(figures: Figures) -> Iterator[str]:
    yield "## Bytes for each task that waits\n"
    yield f"![bytes in the store for each task that waits]({BYTES_PLOT.name})\n"
    yield from table(
        ["store", "bytes", "of what"],
        (
            [words, spread(figures.values(store, "bytes")), what]
            for (store, words), what in zip(
                STORES.items(),
                (
                    "`used_memory`",
                    "the file",
                    "`pg_total_relation_size` of all tables",
                    "`dataSize` and `indexSize`, before compression",
                ),
                strict=True,
            )
        ),
    )
    yield f"{WAITING:,} calls without arguments.\n"


def _network(figures: Figures) -> Iterator[str]:
    yield f"## {ADDED * 1e3:g} ms further away\n"
    yield from table(
        ["Redis, one process, tasks per second", "through a proxy", f"that adds {ADDED * 1e3:g} ms", "is left"],
        (
            [
                name,
                *[spread(figures.values(name, "network", way)) for way in network.WAYS],
                "" if (rest := _left(figures, name)) is None else f"{rest * 100:.0f} %",
            ]
            for name in WHO
            if figures.values(name, "network", "near")
        ),
    )
    near, far = (spread(figures.values("redis", "trip", way), 1e3, 2) for way in network.WAYS)
    yield f"A PING takes {near} ms through the first, and {far} ms through the second. Queues were filled directly.\n"


def _stuck(figures: Figures) -> Iterator[str]:
    times = max((len(values) for values in (figures.values(*key) for key in _stuck_keys("late"))), default=0)
    yield "## A task that is stuck\n"
    yield (
        f"With a timeout of {stuck.TIMEOUT:g} s and a kill timeout of {stuck.KILL_TIMEOUT:g} s, {times} times each: "
        "when it saw its `TaskTimeout`, or its process was dead; and how long after that the next task began.\n"
    )
    yield from table(
        ["", "stopped by", "after, s", "next task, ms, median", "worst"],
        (
            [
                f"`{worker}`, {kind.what}",
                "its kill" if (figures.get(mode, "killed", name) or 0) > 0.5 else "its `TaskTimeout`",
                spread(figures.values(mode, "after", name), digits=3),
                f"{(figures.get(mode, 'next', name) or 0) * 1e3:.1f}",
                f"{max(figures.values(mode, 'next', name)) * 1e3:.1f}",
            ]
            for mode, worker in stuck.MODES.items()
            for name, kind in stuck.KINDS.items()
            if figures.values(mode, "next", name)
        ),
    )


def _stuck_keys(what: str) -> Iterator[tuple[str, str, str]]:
    return ((mode, what, name) for mode in stuck.MODES for name in stuck.KINDS)


def _sleepers(figures: Figures) -> Iterator[str]:
    yield "## A thousand at once\n"
    yield from table(
        [
            f"{sleepers.MANY:,} tasks that sleep {sleepers.SECONDS * 1e3:g} ms, at once: ms until the last has ended",
            *sleepers.WAYS.values(),
        ],
        (
            [words, *[spread(figures.values(who, "sleepers", way), 1e3) for way in sleepers.WAYS]]
            for who, words in {
                **{mode: f"`{worker}`" for mode, worker in sleepers.MODES.items()},
                sleepers.POOL: f"a bare `{sleepers.POOL}({sleepers.MANY})`",
            }.items()
            if figures.values(who, "sleepers", "cold")
        ),
    )


def targets(figures: Figures) -> Iterator[Target]:
    for store, words in STORES.items():
        found = [figures.get(store, "waiting", str(point)) for point in points("waiting", store)]
        known = [value for value in found if value is not None]
        rest = ratio(min(known), known[0]) if len(known) == len(found) else None
        what = f"{words}: drain of the slowest queue of up to {short(points('waiting', store)[-1])} tasks / of 1k"
        yield Target(what, rest, 0.8)
    yield Target(f"drain, {ADDED * 1e3:g} ms further away / near", _left(figures, "delayed"), 0.7)
    late = [abs(value) for key in _stuck_keys("late") for value in figures.values(*key)]
    yield Target(
        "stuck tasks: the worst distance from when to be stopped", max(late, default=None), 0.2, "s", most=True
    )
    waits = [value for key in _stuck_keys("next") for value in figures.values(*key)]
    yield Target("the next task after one that was stuck, at worst", _ms(max(waits, default=None)), 50, "ms", most=True)
    for mode, worker in sleepers.MODES.items():
        for way, words in sleepers.WAYS.items():
            value = ratio(figures.get(mode, "sleepers", way), sleepers.SECONDS)
            yield Target(f"{sleepers.MANY:,} sleepers, `{worker}`, {words} / the ideal time", value, 1.3, most=True)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _left(figures: Figures, name: str) -> float | None:
    """The part of its rate that is left further away."""
    return ratio(figures.get(name, "network", "far"), figures.get(name, "network", "near"))
