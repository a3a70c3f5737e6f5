"""A program that uses a queue, and is to be killed in it: ``python -m tests.chaos.client '{"does": "enqueue", ...}'``.

It opens the store, and then stops itself with SIGSTOP: whoever lets it go on has had the time to lie in wait for it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from delayed import Queue, Task, Unique
from delayed.retry import Retry
from tests.chaos import tasks
from tests.chaos.arena import enqueue
from tests.chaos.records import ENQUEUED, note, read

RETRY = Retry(100, delay=0.0)


def main(folder: Path, url: str, queue: str, does: str, numbers: Sequence[int]) -> None:
    """Do it for each of these intents.

    Args:
        does: ``enqueue``; ``unique``: the same, with a key; ``join``: all in one transaction;
            ``cancel``: those that have been enqueued.
    """
    target = Queue(queue, url)
    target.broker.counts(queue)
    os.kill(os.getpid(), signal.SIGSTOP)
    if does == "join":
        _join(folder, url, target, numbers)
    elif does == "cancel":
        ids = {record["intent"]: record["id"] for record in read(folder / ENQUEUED) if record["what"] == "ok"}
        for number in numbers:
            note(folder / ENQUEUED, "cancel", intent=number)
            if target.cancel(ids[number]):
                note(folder / ENQUEUED, "cancelled", intent=number)
    else:
        for number in numbers:
            unique = Unique(key=f"intent {number}") if does == "unique" else None
            enqueue(folder, target, number, tasks.noop, unique=unique)
    target.broker.close()


def _join(folder: Path, url: str, target: Queue, numbers: Sequence[int]) -> None:
    """What is enqueued becomes true with the commit, and so does that it is known."""
    made = []
    with _transaction(url) as conn, target.transaction(conn):
        for number in numbers:
            note(folder / ENQUEUED, "intent", intent=number, kind="noop", retry=RETRY.max)
            task = Task.create(tasks.noop, (number,), retry=RETRY)
            target.enqueue(task)
            made.append((number, task.id))
    for number, id in made:
        note(folder / ENQUEUED, "ok", intent=number, id=id)


@contextmanager
def _transaction(url: str) -> Iterator[Any]:
    if url.startswith("mongodb"):
        import pymongo

        with pymongo.MongoClient(url) as client, client.start_session() as session, session.start_transaction():
            yield session
    else:
        import psycopg

        with psycopg.connect(url, autocommit=True) as conn, conn.transaction():
            yield conn


if __name__ == "__main__":
    main(Path(os.environ[tasks.FOLDER]), **json.loads(sys.argv[1]))
