"""arq, by https://arq-docs.helpmanuals.io/: many jobs at once, and a poll every 10 ms instead of every half second.

The shorter pause buys throughput and latency for commands while idle.
"""

from __future__ import annotations

import os

from arq import create_pool, func
from arq.connections import ArqRedis, RedisSettings

from benchmarks.peers import work

URL = os.environ["PEERS_URL"]

DOCS = "https://arq-docs.helpmanuals.io/"
ACKNOWLEDGES = True

COMMAND = ["arq", "--custom-log-dict", f"{__name__}.LOG", f"{__name__}.Settings"]
WORKERS = {"one": (600, [COMMAND]), "two": (800, [COMMAND, COMMAND])}
LOG = {"version": 1, "disable_existing_loggers": True}


async def count(context: object) -> None:
    work.count()


async def stamp(context: object) -> None:
    work.stamp()


class Settings:
    functions = (func(count, keep_result=0), func(stamp, keep_result=0))
    redis_settings = RedisSettings.from_dsn(URL)
    max_jobs = 100
    poll_delay = 0.01  # seconds


pool: ArqRedis


async def prepare() -> None:
    global pool
    pool = await create_pool(RedisSettings.from_dsn(URL))


async def send(task: str, n: int) -> None:
    for _ in range(n):
        await pool.enqueue_job(task)
