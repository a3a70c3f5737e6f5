"""sergeant, by https://intsights.github.io/sergeant/worker/config/tasks_per_transaction/: a thousand at a time.

They are popped: a crash loses what its worker holds.
"""

from __future__ import annotations

import os
import sys
from typing import Any
from urllib.parse import urlsplit

import sergeant

from benchmarks.peers import work

URL = os.environ["PEERS_URL"]

DOCS = "https://intsights.github.io/sergeant/worker/config/tasks_per_transaction/"
ACKNOWLEDGES = False

COMMAND = [sys.executable, "-m", "sergeant.supervisor", f"--worker-module={__name__}", "--worker-class=Worker"]
WORKERS = {
    "one": (60_000, [[*COMMAND, "--concurrent-workers=1"]]),
    "two": (100_000, [[*COMMAND, "--concurrent-workers=2"]]),
}


class Worker(sergeant.worker.Worker):
    def generate_config(self) -> sergeant.config.WorkerConfig:
        url = urlsplit(URL)
        node = {"host": url.hostname, "port": url.port, "password": None, "database": 0}
        return sergeant.config.WorkerConfig(
            name="peers",
            connector=sergeant.config.Connector(type="redis", params={"nodes": [node]}),
            tasks_per_transaction=1000,
        )

    def work(self, task: Any) -> None:
        (work.count if task.kwargs["task"] == "count" else work.stamp)()


producer: Worker


def prepare() -> None:
    global producer
    producer = Worker()
    producer.init_broker()


def send(task: str, n: int) -> None:
    for _ in range(n):
        producer.push_task(kwargs={"task": task})


def send_many(task: str, n: int) -> None:
    for begin in range(0, n, 1000):
        producer.push_tasks(kwargs_list=[{"task": task}] * min(1000, n - begin))
