"""How much memory processes use, as far as the kernel tells it in /proc.

Two numbers can be had of a process. Its resident size (VmRSS and VmSwap in ``status``) takes 15 µs to read, and counts
a page in each of the processes that share it: all that was loaded before a fork counts again in every child. Its
proportional size (Pss and SwapPss in ``smaps_rollup``) divides such a page among those who share it, so that it can be
added up; but for it the kernel walks through all of the process's pages, 16 ms for each GB. The first is never the
smaller one. So it is read always, and the second only where the first is more than is allowed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

MEASURABLE = sys.platform.startswith("linux")
SHARE = 0.05  # of the time that may be spent on looking
WORKER_LOOK = 5.0  # seconds between looks at a whole worker
WORKER_PATIENCE = 60.0  # seconds that a worker works at least, however large it is: else it might do nothing but start


class Gauge:
    """Looks now and then at what a process uses together with those that it started.

    Daemons are not found: they have cut themselves off from their parents.

    Args:
        limit: bytes.
        every: seconds between looks; more when a look takes long.
        first: when to look first; by the clock that :meth:`over` is told.
    """

    def __init__(self, limit: int, every: float, first: float = 0.0) -> None:
        self.limit = limit
        self.every = every
        self.next_look = first

    def over(self, pid: int, now: float) -> int:
        """The bytes used, if a look is due and they are more than the limit; else 0."""
        if now < self.next_look:
            return 0
        begun = time.perf_counter()
        pids = family(pid)
        used = sum(map(resident, pids))
        if used > self.limit:
            used = sum(map(proportional, pids))
        self.next_look = now + max(self.every, (time.perf_counter() - begun) / SHARE)
        return used if used > self.limit else 0


def worker_gauge(limit: int | None, now: float) -> Gauge | None:
    """What measures a worker that starts now; None if there is no limit."""
    return Gauge(limit, WORKER_LOOK, now + WORKER_PATIENCE) if limit is not None else None


def family(pid: int) -> Sequence[int]:
    """A process, and those that it started and that still live, with theirs (CONFIG_PROC_CHILDREN)."""
    found = [pid]
    for each in found:  # which grows meanwhile
        try:
            for thread in os.listdir(f"/proc/{each}/task"):
                with open(f"/proc/{each}/task/{thread}/children", "rb") as file:
                    found += map(int, file.read().split())
        except OSError:
            continue  # it has just ended
    return found


def resident(pid: int) -> int:
    """Bytes that a process has in memory or swapped out, shared ones included; 0 if it is gone."""
    return _sum(pid, "status", (b"VmRSS:", b"VmSwap:"))


def proportional(pid: int) -> int:
    """... with its share of what it shares; its resident size where the kernel does not tell."""
    return _sum(pid, "smaps_rollup", (b"Pss:", b"SwapPss:")) or resident(pid)


def _sum(pid: int, name: str, wanted: tuple[bytes, ...]) -> int:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith(wanted)) * 1024
    except OSError:
        return 0
