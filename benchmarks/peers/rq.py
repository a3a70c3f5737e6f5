"""rq, by https://python-rq.org/docs/workers/: SimpleWorker where no job needs a process of its own."""

from __future__ import annotations

import os

from redis import Redis
from rq import Queue

from benchmarks.peers import work

URL = os.environ["PEERS_URL"]

DOCS = "https://python-rq.org/docs/workers/"
ACKNOWLEDGES = True

SIMPLE = ["-w", "rq.SimpleWorker"]
WORKERS = {
    "one": (300, [["rq", "worker", "-q", "-u", "{url}", *SIMPLE, "peers"]]),
    "two": (500, [["rq", "worker-pool", "-q", "-u", "{url}", "-n", "2", *SIMPLE, "peers"]]),
    "forked": (60, [["rq", "worker", "-q", "-u", "{url}", "peers"]]),
    "forked two": (100, [["rq", "worker-pool", "-q", "-u", "{url}", "-n", "2", "peers"]]),
}

queue = Queue("peers", connection=Redis.from_url(URL))
CALLS = {"count": work.count, "stamp": work.stamp}


def send(task: str, n: int) -> None:
    for _ in range(n):
        queue.enqueue(CALLS[task], result_ttl=0)


def send_many(task: str, n: int) -> None:
    queue.enqueue_many([Queue.prepare_data(CALLS[task], result_ttl=0) for _ in range(n)])
