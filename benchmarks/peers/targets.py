"""What is to be reached, and whether it was: ratios within one run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from benchmarks.peers.catalog import OURS, OURS_ON_MONGODB, OURS_ON_POSTGRES, OURS_ON_SQLITE, PEERS
from benchmarks.peers.figures import MACHINE, Figures


class Target(NamedTuple):
    """`value` has to be at least `bound`, or at most, where `most` is set. None: not measured in this run."""

    what: str
    value: float | None
    bound: float
    unit: str = ""
    most: bool = False

    @property
    def reached(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.bound if self.most else self.value >= self.bound


def ratio(value: float | None, beside: float | None) -> float | None:
    return value / beside if value is not None and beside else None


def best(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def targets(figures: Figures, acknowledging: Iterable[str]) -> Iterator[Target]:
    """`acknowledging`: the names of the peers whose tasks survive a crash."""
    get = figures.get
    ping = get(MACHINE, "PING")
    others = [name for name in acknowledging if not PEERS[name].ours]
    on_redis = [name for name in others if PEERS[name].store == "redis"]
    one, two, forked = (get(OURS, "drain", way) for way in ("one", "two", "forked two"))
    yield Target("drain, `PreforkedWorker`, one process / PING", ratio(one, ping), 8)
    yield Target(
        "drain, the same / the best peer that acknowledges, one process",
        ratio(one, best(get(name, "drain", "one") for name in on_redis)),
        15,
    )
    yield Target("drain, two cores / PING", ratio(two, ping), 10)
    yield Target("drain, two cores", two, 100_000, "/s")
    yield Target("drain, `ForkedWorker`, two cores / bare forks", ratio(forked, get(MACHINE, "forks")), 0.5)
    yield Target("drain, the same / the default worker of rq", ratio(forked, get("rq", "drain", "forked")), 20)
    for way, worker in (("threads", "ThreadedWorker"), ("coroutines", "AsyncWorker")):
        yield Target(f"drain, `{worker}`, one process / PING", ratio(get(OURS, "drain", way), ping), 5)
    on_postgres = get(OURS_ON_POSTGRES, "drain", "one")
    yield Target("drain, PostgreSQL, one process / `SELECT 1`", ratio(on_postgres, get(MACHINE, "SELECT 1")), 2)
    for name, bound in (("procrastinate", 10.0), ("pgqueuer", 1.5)):
        rival = best(get(name, "drain", way) for way in ("one", "two"))
        yield Target(f"drain, the same / {name} at its best", ratio(on_postgres, rival), bound)
    on_sqlite = get(OURS_ON_SQLITE, "drain", "one")
    yield Target("drain, SQLite, one process", on_sqlite, 20_000, "/s")
    rival = best(get("huey-sqlite", "drain", way) for way in ("one", "two"))
    yield Target("drain, the same / huey on SQLite at its best", ratio(on_sqlite, rival), 5)
    on_mongodb = get(OURS_ON_MONGODB, "drain", "one")
    yield Target("drain, MongoDB, one process / `find_one_and_update`", ratio(on_mongodb, get(MACHINE, "claims")), 10)
    bulk = get(OURS, "bulk")
    yield Target("enqueue one by one / PING", ratio(get(OURS, "one by one"), ping), 0.85)
    yield Target("enqueue in bulk / PING", ratio(bulk, ping), 25)
    yield Target("enqueue in bulk / sergeant", ratio(bulk, get("sergeant", "bulk")), 1)
    yield from _waiting(figures)


def _waiting(figures: Figures) -> Iterator[Target]:
    get = figures.get
    for way, worker, bound in (("one", "PreforkedWorker", 1.0), ("forked", "ForkedWorker", 1.5)):
        median = get(OURS, "latency", way)
        yield Target(f"latency, `{worker}`, median", ratio(median, 1e-3), bound, "ms", most=True)
        late = figures.percentile(99, OURS, "latency", way)
        yield Target(f"latency, `{worker}`, 99th percentile / median", ratio(late, median), 3, most=True)
    peers = [peer for peer in PEERS.values() if not peer.ours]
    rivals = [get(peer.name, "latency", way) for peer in peers for way in peer.idle]
    fastest = min((value for value in rivals if value is not None), default=None)
    yield Target(
        "latency, `PreforkedWorker` / the quickest peer", ratio(get(OURS, "latency", "one"), fastest), 1, most=True
    )
    yield Target("idle, share of a core", ratio(get(OURS, "cpu", "one"), 0.01), 0.3, "%", most=True)
    yield Target("idle, commands a second", get(OURS, "asked", "one"), 1, "/s", most=True)
    yield Target("idle, private memory", ratio(get(OURS, "memory", "one"), 1e6), 45, "MB", most=True)
    yield Target("start-up to the first task", get(OURS, "start", "one"), 0.35, "s", most=True)
    yield Target("`from delayed import Queue, delayed`", ratio(get(OURS, "import"), 1e-3), 60, "ms", most=True)
