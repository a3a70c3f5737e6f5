"""huey, by https://huey.readthedocs.io/en/latest/consumer.html: processes, and no periodic tasks."""

from __future__ import annotations

import os

from huey import RedisHuey

from benchmarks.peers import work

URL = os.environ["PEERS_URL"]

DOCS = "https://huey.readthedocs.io/en/latest/consumer.html"
ACKNOWLEDGES = False

COMMAND = ["huey_consumer", f"{__name__}.huey", "-q", "-n", "-k", "process"]
WORKERS = {
    "one": (2000, [[*COMMAND, "-w", "1"]]),
    "two": (3000, [[*COMMAND, "-w", "2"]]),
}

huey = RedisHuey("peers", url=URL, results=False)
CALLS = {"count": huey.task(name="count")(work.count), "stamp": huey.task(name="stamp")(work.stamp)}


def send(task: str, n: int) -> None:
    for _ in range(n):
        CALLS[task]()
