"""This library on a store, its queues filled from here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.growth import tasks
from benchmarks.peers import work
from benchmarks.peers.catalog import OURS, PEERS
from benchmarks.peers.measures import Site, Subject, site
from benchmarks.peers.stands import Stand
from delayed import Queue, Task

QUEUE = "peers"
TOGETHER = 8 << 20  # bytes of arguments that are enqueued at once


def command(*options: str, mode: str = "preforked", queues: Sequence[str] = (QUEUE,)) -> list[str]:
    """What starts a worker with one child."""
    words = [word for name in queues for word in ("--queue", name)]
    words += ["--preload", work.__name__, "--preload", tasks.__name__, "--log-level", "error"]
    return [
        *(sys.executable, "-m", "delayed", "worker", "--url", "{url}", "--mode", mode, "--processes", "1"),
        *words,
        *options,
    ]


@contextmanager
def place(stand: Stand, *commands: list[str]) -> Iterator[Site]:
    """A place in the store where nobody has been, and the workers that are to be started there."""
    with site(Subject(PEERS[OURS], Path(sys.executable), stand, {"workers": {"": (0, commands)}})) as found:
        yield found


def fill(
    url: str, n: int, call: Callable[..., Any] = work.count, *args: Any, size: int = 0, queue: str = QUEUE
) -> None:
    """Enqueue so many calls in bulk; `size`: of their arguments, in bytes."""
    batch = max(1, min(1000, TOGETHER // max(size, 1)))
    target = Queue(queue, url)
    with closing(target.broker):
        for begin in range(0, n, batch):
            target.enqueue_many([Task.create(call, args)] * min(batch, n - begin))


def left(url: str, queue: str = QUEUE) -> int:
    """Tasks that are in the store, whatever they do there."""
    target = Queue(queue, url)
    with closing(target.broker):
        return sum(target.broker.counts(queue))
