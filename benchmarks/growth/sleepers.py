"""A thousand tasks that wait, in one child that runs as many at once."""

from __future__ import annotations

import time

from benchmarks.growth import tasks
from benchmarks.growth.places import command, fill, place
from benchmarks.growth.tasks import SLEPT
from benchmarks.peers.measures import LINGER, LOOK, PATIENCE, Failed
from benchmarks.peers.stands import Stand

MANY = 1000
SECONDS = 0.1
MODES = {"async": "AsyncWorker", "threaded": "ThreadedWorker"}
OPTIONS = {"async": "--concurrency", "threaded": "--threads"}
CALLS = {"async": tasks.sleep_async, "threaded": tasks.sleep}


def sleepers(stand: Stand, mode: str) -> float:
    """Seconds from the beginning of the first to the end of the last, of a queue that was full before the child began.

    Raises:
        Failed: When not each of them ran exactly once.
    """
    with place(stand, command(OPTIONS[mode], str(MANY), mode=mode)) as found:
        fill(found.url, MANY, CALLS[mode], SECONDS)
        with found.worker():
            deadline = time.monotonic() + PATIENCE
            while len(found.lines(SLEPT)) < MANY and time.monotonic() < deadline:
                time.sleep(LOOK)
            time.sleep(LINGER)
        rows = [line.split() for line in found.lines(SLEPT)]
        if len(rows) != MANY:
            raise Failed(f"{MANY} tasks ran {len(rows)} times; the log ends with: {found.log()}")
        return max(float(end) for _, end in rows) - min(float(begin) for begin, _ in rows)
