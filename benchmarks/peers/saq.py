"""saq, by https://saq-py.readthedocs.io/en/latest/getting_started.html: a hundred jobs at once."""

from __future__ import annotations

import os

from saq import Queue

from benchmarks.peers import work

URL = os.environ["PEERS_URL"]

DOCS = "https://saq-py.readthedocs.io/en/latest/getting_started.html"
ACKNOWLEDGES = True

COMMAND = ["saq", f"{__name__}.settings", "--quiet"]
WORKERS = {"one": (800, [COMMAND]), "two": (1200, [[*COMMAND, "--workers", "2"]])}

queue = Queue.from_url(URL, name="peers")


async def count(context: object) -> None:
    work.count()


async def stamp(context: object) -> None:
    work.stamp()


settings = {"queue": queue, "functions": [count, stamp], "concurrency": 100}


async def prepare() -> None:
    await queue.connect()


async def send(task: str, n: int) -> None:
    for _ in range(n):
        await queue.enqueue(task, ttl=-1)
