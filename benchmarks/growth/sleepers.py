"""A thousand tasks that wait, in one child that runs as many at once."""

from __future__ import annotations

import time

from benchmarks.growth import tasks
from benchmarks.growth.places import command, fill, place
from benchmarks.growth.tasks import SLEPT
from benchmarks.peers.measures import LINGER, LOOK, PATIENCE, Failed, Site
from benchmarks.peers.stands import Stand

MANY = 1000
SECONDS = 0.1
MODES = {"async": "AsyncWorker", "threaded": "ThreadedWorker"}
POOL = "ThreadPoolExecutor"  # of Python's own, with nothing else in its process: what threads can do
OPTIONS = {"async": "--concurrency", "threaded": "--threads"}
CALLS = {"async": tasks.sleep_async, "threaded": tasks.sleep}


WAYS = {"cold": "a worker that has just started", "warm": "one that waits for them"}


def sleepers(stand: Stand, mode: str) -> dict[str, float]:
    """By way, the seconds from the beginning of the first to the end of the last: of a queue that was full before the
    child began, then of as many that are enqueued at once when all those have ended.

    Raises:
        Failed: When not each of them ran exactly once.
    """
    found = {}
    with place(stand, command(OPTIONS[mode], str(MANY), mode=mode)) as here:
        fill(here.url, MANY, CALLS[mode], SECONDS)
        with here.worker():
            found["cold"] = _last(here, 0)
            fill(here.url, MANY, CALLS[mode], SECONDS)
            found["warm"] = _last(here, MANY)
        if (ran := len(here.lines(SLEPT))) != 2 * MANY:
            raise Failed(f"{2 * MANY} tasks ran {ran} times")
    return found


def _last(here: Site, before: int) -> float:
    """Seconds from the first beginning to the last end, but for those that had ended before."""
    deadline = time.monotonic() + PATIENCE
    while len(here.lines(SLEPT)) < before + MANY and time.monotonic() < deadline:
        time.sleep(LOOK)
    time.sleep(LINGER)
    rows = [[float(word) for word in line.split()] for line in here.lines(SLEPT)[before:]]
    if len(rows) != MANY:
        raise Failed(f"{MANY} tasks ran {len(rows)} times; the log ends with: {here.log()}")
    return max(end for _, end in rows) - min(begin for begin, _ in rows)
