"""How the rate of a drain changes when there is more of something; each a point after the other."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.growth import tasks
from benchmarks.growth.places import QUEUE, command, fill, left, place
from benchmarks.peers import work
from benchmarks.peers.measures import LOOK, Failed
from benchmarks.peers.stands import Stand
from benchmarks.peers.work import COUNT

STORES = {"redis": "Redis", "sqlite": "SQLite", "postgres": "PostgreSQL", "mongodb": "MongoDB"}
DRAIN = {"redis": 60_000, "sqlite": 60_000, "postgres": 30_000, "mongodb": 10_000}  # tasks of about a second
FIRST = 20_000  # tasks that are run of those that wait
BYTES = 50_000_000  # of all arguments of a drain at most
WAITING = 100_000  # tasks by which the bytes of one are told


def workers(store: str, stand: Stand, point: int, part: int) -> float:
    n = DRAIN[store] // part
    with place(stand, *[command()] * point) as found:
        fill(found.url, n)
        return found.drained(n)


def waiting(store: str, stand: Stand, point: int, part: int) -> float:
    """Of the first tasks, from when a fifth of them has run, while `point` more wait behind them.

    Raises:
        Failed: When those that ran and those that are left are not all.
    """
    n = FIRST // part
    with place(stand, command()) as found:
        fill(found.url, n + point)
        with found.worker():
            begun = found.until(COUNT, n // 5)
            before = found.size(COUNT)
            ended = found.until(COUNT, n)
            after = found.size(COUNT)
        ran, rest = found.size(COUNT), left(found.url)
        if ran + rest != n + point:
            raise Failed(f"of {n + point} tasks {ran} ran, and {rest} are left")
        return (after - before) / max(ended - begun, LOOK)


def payloads(store: str, stand: Stand, point: int, part: int) -> float:
    n = max(20, min(DRAIN[store], BYTES // point) // part)
    with place(stand, command()) as found:
        fill(found.url, n, tasks.take, os.urandom(point), size=point)
        return found.drained(n)


def queues(store: str, stand: Stand, point: int, part: int) -> float:
    """All of them have the same number of tasks, and the worker takes them in the order of its queues."""
    each = DRAIN[store] // part // point
    names = [f"{QUEUE}{number}" for number in range(point)]
    with place(stand, command(queues=names)) as found:
        for name in names:
            fill(found.url, each, queue=name)
        return found.drained(each * point)


def bytes_per_task(stand: Stand, part: int) -> float:
    """Bytes in the store for each task that waits, without what the first of them makes necessary."""
    n = WAITING // part
    with place(stand) as found:
        fill(found.url, 1)
        before = stand.size(found.url)
        fill(found.url, n, work.count)
        return (stand.size(found.url) - before) / n


class Curve(NamedTuple):
    """What is plotted.

    Attributes:
        what: there is more of.
        points: how much, from the least on.
        measure: tasks a second by store, its stand, the point, and by what all numbers of tasks are divided.
    """

    what: str
    points: tuple[int, ...]
    measure: Callable[[str, Stand, int, int], float]


CURVES = {
    "workers": Curve("workers, of one child each, on two cores", (1, 2, 4), workers),
    "waiting": Curve("tasks that wait behind those that run", (1000, 10_000, 100_000, 1_000_000), waiting),
    "payloads": Curve("bytes in the argument of each task", (100, 1000, 10_000, 100_000, 1_000_000), payloads),
    "queues": Curve("queues of one worker", (1, 10, 100), queues),
}
MOST = {("waiting", "mongodb"): 100_000}  # more would take minutes to be enqueued


def points(name: str, store: str) -> list[int]:
    """The points of a curve on this store."""
    return [point for point in CURVES[name].points if point <= MOST.get((name, store), point)]
