"""taskiq with taskiq-redis, by https://github.com/taskiq-python/taskiq-redis: the broker that acknowledges."""

from __future__ import annotations

import os

from taskiq_redis import RedisStreamBroker

from benchmarks.peers import work

URL = os.environ["PEERS_URL"]

DOCS = "https://github.com/taskiq-python/taskiq-redis"
ACKNOWLEDGES = True

COMMAND = ["taskiq", "worker", f"{__name__}:broker", "--log-level", "ERROR"]
WORKERS = {
    "one": (2000, [[*COMMAND, "--workers", "1"]]),
    "two": (3000, [[*COMMAND, "--workers", "2"]]),
}

broker = RedisStreamBroker(URL)
CALLS = {
    "count": broker.task(task_name="count")(work.count_async),
    "stamp": broker.task(task_name="stamp")(work.stamp_async),
}


async def prepare() -> None:
    await broker.startup()


async def send(task: str, n: int) -> None:
    for _ in range(n):
        await CALLS[task].kiq()
