"""How soon a task that is stuck is stopped, and the next one begins."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

from benchmarks.growth import tasks
from benchmarks.growth.places import QUEUE, command, place
from benchmarks.peers import work
from benchmarks.peers.measures import Failed, Site
from benchmarks.peers.stands import Stand
from benchmarks.peers.work import STAMPS
from delayed import Queue, Task

TIMEOUT = 1.0  # seconds
STUCK = "stuck"  # how the files are called in which they note it
KILL_TIMEOUT = 0.5  # seconds from the soft stop to the kill
PATIENCE = 30.0  # seconds
MODES = {"preforked": "PreforkedWorker", "forked": "ForkedWorker"}


class Kind(NamedTuple):
    what: str
    run: Callable[[str], None]


KINDS = {
    "spin": Kind("`while True: pass`", tasks.spin),
    "match": Kind("`re.match(r'(a+)+$', …)`, which holds the GIL", tasks.match),
    "consume": Kind("`deque(repeat(0), maxlen=0)`, which holds the GIL", tasks.consume),
}


class Stop(NamedTuple):
    """How one was stopped.

    Attributes:
        after: seconds from its first line to the exception that it saw, or to the death of its process.
        killed: which of the two it was.
        next: seconds from then to the first line of the next task.
    """

    after: float
    killed: bool
    next: float

    @property
    def late(self) -> float:
        """Seconds after it was to be stopped; below 0: before."""
        return self.after - (TIMEOUT + KILL_TIMEOUT if self.killed else TIMEOUT)


def stops(stand: Stand, mode: str, kind: str, times: int) -> list[Stop]:
    """So many in a row, each followed by a task that notes when it begins.

    Raises:
        Failed: When not each of these ran exactly once.
    """
    with place(stand, command("--kill-timeout", str(KILL_TIMEOUT), mode=mode)) as found:
        queue = Queue(QUEUE, found.url)
        with closing(queue.broker):
            for number in range(times):
                queue.enqueue(Task.create(KINDS[kind].run, (f"{STUCK}{number}",), timeout=TIMEOUT))
                queue.enqueue(Task.create(work.stamp))
        with found.worker():
            stopped = [_watch(found, number) for number in range(times)]
        if (ran := len(found.lines(STAMPS))) != times:
            raise Failed(f"{times} tasks ran {ran} times")
        return stopped


def _watch(found: Site, number: int) -> Stop:
    """Wait for one to be stuck, for its end, and for the next task."""
    name, deadline = f"{STUCK}{number}", time.monotonic() + PATIENCE
    while not found.lines(name):
        _pause(deadline, found)
    pid, begun = found.lines(name)[0].split()
    death = select.poll()
    handle = os.pidfd_open(int(pid))
    try:
        death.register(handle, select.POLLIN)
        died = 0.0
        while len(found.lines(STAMPS)) <= number:
            if not died and death.poll(1):
                died = time.monotonic()
            _pause(deadline, found)
    finally:
        os.close(handle)
    noted = found.lines(name)[1:]
    if not noted and not died:
        raise Failed("the next task began while the one that is stuck was still there")
    stopped = float(noted[0]) if noted else died
    return Stop(stopped - float(begun), not noted, int(found.lines(STAMPS)[number]) / 1e9 - stopped)


def _pause(deadline: float, found: Site) -> None:
    if time.monotonic() > deadline:
        raise Failed(f"nothing happens for {PATIENCE:g} s; the log ends with: {found.log()}")
    time.sleep(0.0005)
