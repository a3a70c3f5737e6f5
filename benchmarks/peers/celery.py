"""celery, by https://docs.celeryq.dev/en/stable/userguide/optimizing.html: many short tasks, fetched well ahead."""

from __future__ import annotations

import os

from celery import Celery

from benchmarks.peers import work

URL = os.environ["PEERS_URL"]

DOCS = "https://docs.celeryq.dev/en/stable/userguide/optimizing.html"
ACKNOWLEDGES = True  # as it is set here; not by default

# What a worker says to other workers, and asks them, is left out.
COMMAND = ["celery", "-A", __name__, "worker", "-l", "ERROR", "--without-gossip", "--without-mingle", "-P", "prefork"]
WORKERS = {
    "one": (800, [[*COMMAND, "-c", "1"]]),
    "two": (1000, [[*COMMAND, "-c", "2"]]),
    "forked two": (4, [[*COMMAND, "-c", "2", "--max-tasks-per-child", "1"]]),
}

app = Celery("peers", broker=URL)
app.conf.task_ignore_result = True
app.conf.task_acks_late = True
app.conf.worker_prefetch_multiplier = 64
app.conf.broker_connection_retry_on_startup = True
CALLS = {"count": app.task(name="count")(work.count), "stamp": app.task(name="stamp")(work.stamp)}


def send(task: str, n: int) -> None:
    for _ in range(n):
        CALLS[task].delay()
