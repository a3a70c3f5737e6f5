"""Tasks that tell of the trace that they are in, and enqueue others."""

from __future__ import annotations

from delayed import Queue, current
from delayed.delay import delay
from tests.workers.tasks import note


def first(ledger: str, url: str) -> None:
    note(ledger, "first", current.trace)
    delay(Queue(current.queue, url))(second)(ledger)


def second(ledger: str) -> None:
    note(ledger, "second", current.trace)
    raise ValueError("no")


async def second_async(ledger: str) -> None:
    second(ledger)
