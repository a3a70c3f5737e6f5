"""This library, by docs/workers.md."""

from __future__ import annotations

import os
import sys

from benchmarks.peers import work
from delayed import Queue, delayed

URL = os.environ["PEERS_URL"]

DOCS = "docs/workers.md"
ACKNOWLEDGES = True


def worker(mode: str, processes: int = 1) -> list[list[str]]:
    command = [sys.executable, "-m", "delayed", "worker", "--queue", "peers", "--url", "{url}", "--mode", mode]
    return [[*command, "--processes", str(processes), "--preload", work.__name__, "--log-level", "error"]]


_fast = 60_000 if URL.startswith(("redis", "sqlite")) else 10_000
WORKERS = {
    "one": (_fast, worker("preforked")),
    "two": (_fast, worker("preforked", 2)),
    "forked": (600, worker("forked")),
    "forked two": (800, worker("forked", 2)),
    "threads": (_fast // 2, worker("threaded")),
    "coroutines": (_fast // 2, worker("async")),
}
if not URL.startswith("redis"):
    WORKERS = {way: WORKERS[way] for way in ("one", "two")}

queue = Queue("peers", URL)
if os.environ.get("PEERS_WAY") == "coroutines":
    CALLS = {"count": delayed(queue)(work.count_async), "stamp": delayed(queue)(work.stamp_async)}
else:
    CALLS = {"count": delayed(queue)(work.count), "stamp": delayed(queue)(work.stamp)}


def send(task: str, n: int) -> None:
    call = CALLS[task].delay
    for _ in range(n):
        call()


def send_many(task: str, n: int) -> None:
    CALLS[task].starmap([()] * n)
