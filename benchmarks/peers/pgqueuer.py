"""pgqueuer on PostgreSQL, by its guide to performance: asyncpg, one connection for the manager, larger batches, and its
settings of autovacuum. Of batches of 10, 25, 100, 500 and 1,000 those of 100 were the fastest.
"""

from __future__ import annotations

import os
import sys

import asyncpg
import uvloop
from pgqueuer import AsyncpgDriver, Job, PgQueuer, Queries

from benchmarks.peers import work

URL = os.environ["PEERS_URL"]

DOCS = "https://github.com/janbjorge/pgqueuer/blob/main/docs/guides/performance-tuning.md"
ACKNOWLEDGES = True

BATCH = 100
COMMAND = [sys.executable, "-m", __name__]
WORKERS = {"one": (15_000, [COMMAND]), "two": (20_000, [COMMAND, COMMAND])}

queries: Queries


async def prepare() -> None:
    global queries
    queries = Queries(AsyncpgDriver(await asyncpg.connect(URL)))
    if not await queries.schema_is_installed():
        await queries.install()
        await queries.optimize_autovacuum()


async def send(task: str, n: int) -> None:
    for _ in range(n):
        await queries.enqueue(task, None)


async def send_many(task: str, n: int) -> None:
    for begin in range(0, n, 1000):
        part = min(1000, n - begin)
        await queries.enqueue([task] * part, [None] * part, [0] * part)


async def serve() -> None:
    async def count(job: Job) -> None:
        work.count()

    async def stamp(job: Job) -> None:
        work.stamp()

    manager = PgQueuer(AsyncpgDriver(await asyncpg.connect(URL)))
    manager.entrypoint("count")(count)
    manager.entrypoint("stamp")(stamp)
    await manager.run(batch_size=BATCH)


if __name__ == "__main__":
    uvloop.run(serve())
