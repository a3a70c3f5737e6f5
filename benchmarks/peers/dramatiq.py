"""dramatiq, by https://dramatiq.io/guide.html#workers: eight threads in each process, a process for each core."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.peers import work

URL = os.environ["PEERS_URL"]

DOCS = "https://dramatiq.io/guide.html#workers"
ACKNOWLEDGES = True

COMMAND = ["dramatiq", "--skip-logging", __name__, "--threads", "8"]
WORKERS = {
    "one": (2000, [[*COMMAND, "--processes", "1"]]),
    "two": (3000, [[*COMMAND, "--processes", "2"]]),
}

dramatiq.set_broker(RedisBroker(url=URL))
CALLS = {
    "count": dramatiq.actor(work.count, actor_name="count"),
    "stamp": dramatiq.actor(work.stamp, actor_name="stamp"),
}


def send(task: str, n: int) -> None:
    for _ in range(n):
        CALLS[task].send()
