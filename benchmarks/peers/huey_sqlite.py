"""huey on SQLite, by https://huey.readthedocs.io/en/latest/consumer.html: processes, and no periodic tasks.

``fsync=False``, with which it never waits for the disk; this library's file has ``PRAGMA synchronous = NORMAL``.
"""

from __future__ import annotations

import os

from huey import SqliteHuey

from benchmarks.peers import work

URL = os.environ["PEERS_URL"]

DOCS = "https://huey.readthedocs.io/en/latest/consumer.html"
ACKNOWLEDGES = False

COMMAND = ["huey_consumer", f"{__name__}.huey", "-q", "-n", "-k", "process"]
WORKERS = {
    "one": (15_000, [[*COMMAND, "-w", "1"]]),
    "two": (15_000, [[*COMMAND, "-w", "2"]]),
}

huey = SqliteHuey("peers", filename=URL.removeprefix("sqlite:///"), fsync=False, results=False)
CALLS = {"count": huey.task(name="count")(work.count), "stamp": huey.task(name="stamp")(work.stamp)}


def send(task: str, n: int) -> None:
    for _ in range(n):
        CALLS[task]()
