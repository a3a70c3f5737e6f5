"""What the commands that act on running tasks and workers share: finding a task, and asking its worker."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

import click

from delayed.brokers import Broker
from delayed.cli.common import check_name
from delayed.message import Entry

LOOK = 0.1  # seconds between looks whether an order was obeyed
AGAIN = 3.0  # seconds after which a worker is asked again: an order may be lost with the answer that it travelled in
ORDER_AGE = 10.0  # seconds that an order waits to be fetched


class Order:
    """Something that one worker is asked to do.

    Args:
        queue: one that the worker serves.
        do: ``stop``, ``cancel`` or ``stack``.
        task: the id of the task in `queue` that it is about.
    """

    def __init__(self, broker: Broker, worker: str, queue: str, do: str, task: int | None = None) -> None:
        self.broker = broker
        self.worker = worker
        self.queue = queue
        self.what: dict[str, Any] = {"id": secrets.token_hex(8), "do": do}
        if task is not None:
            self.what |= {"task": task, "queue": queue}
        self._ask_at = 0.0

    def reply(self) -> Mapping[str, Any] | None:
        """Ask, if it is time to; the worker's reply, None as long as there is none.

        Returns:
            ``done``: whether it did what it was asked for; ``text``: what came of it, in words.
        """
        now = time.monotonic()
        if now >= self._ask_at:
            self.broker.ask(self.worker, self.queue, self.what, ORDER_AGE)
            self._ask_at = now + AGAIN
        for worker in self.broker.workers(self.queue):
            if worker.worker == self.worker:
                reply: Mapping[str, Any] | None = worker.info.get("replies", {}).get(self.what["id"])
                return reply
        return None


def find(broker: Broker, id: int, queue: str | None) -> tuple[str, Entry]:
    """The queue and the entry of the task that an id means.

    Args:
        queue: where to look; None looks everywhere.

    Raises:
        ClickException: When there is none, or, in a store with several queues, more than one.
    """
    if queue is not None:
        check_name(broker, queue)
    names = broker.queues()
    found = [(name, entry) for name in names if (entry := broker.get(name, id)) is not None]
    for name, entry in found:
        if queue in (None, name) and (queue or len(found) == 1):
            return name, entry
    where = " and ".join(repr(name) for name, _ in found)
    if queue is not None and found:
        raise click.ClickException(f"{queue!r} has no task {id}, but {where} has: choose it with --queue")
    if found:
        raise click.ClickException(f"there is a task {id} in {where}: choose one with --queue")
    looked = repr(queue) if queue is not None else f"any of the {len(names)} queues of {broker!r}"
    raise click.ClickException(
        f"no task {id} in {looked}: it has ended, was removed, or is in another store (--url, DELAYED_URL)"
    )


def nobody(entry: Entry) -> click.ClickException:
    """The error for a task whose worker does not answer."""
    return click.ClickException(
        f"{entry.worker}, which has task {entry.message.id}, does not answer: it has died, can't reach the store, or "
        f"took the task with Queue.dequeue(). Its lease ends in {max(entry.due, 0.0):.0f} s, unless it is renewed"
    )
