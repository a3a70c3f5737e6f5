"""What workers of other libraries run, in an environment without this one: a task that writes the ledger as ours do."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from tests.chaos.records import ENQUEUED, LEDGER, note

FOLDER = Path(os.environ.get("CHAOS_FOLDER", "."))
QUEUE = "chaos"
TICK = 0.05  # seconds between two signs of life
RETRIES = 100  # so many that no task has ended because of a death


def nap(intent: int, seconds: float) -> None:
    run = os.urandom(6).hex()
    facts = {"intent": intent, "id": intent, "attempt": 1, "token": 0, "pid": os.getpid(), "ppid": os.getppid()}
    note(FOLDER / LEDGER, "S", run=run, **facts)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, TICK))
        note(FOLDER / LEDGER, "T", run=run)
    note(FOLDER / LEDGER, "E", run=run)


def sender(peer: str, url: str) -> Any:
    """What enqueues one nap, as its documentation begins."""
    if peer == "rq":
        import redis
        import rq

        queue = rq.Queue(QUEUE, connection=redis.Redis.from_url(url))
        return lambda *args: queue.enqueue(nap, *args)
    from tests.chaos.peer_celery import celery_nap

    return celery_nap.delay


def main(peer: str, url: str, count: int, seconds: float) -> None:
    """Enqueue so many of so long, and note each."""
    send = sender(peer, url)
    for number in range(1, count + 1):
        note(FOLDER / ENQUEUED, "intent", intent=number, kind="nap", retry=RETRIES)
        send(number, seconds)
        note(FOLDER / ENQUEUED, "ok", intent=number, id=number)
