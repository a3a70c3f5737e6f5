"""Orders to workers, from whoever can reach the store: to stop, to cancel a task, to show where it stands."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from delayed import waits
from delayed.answers import cancelled
from delayed.brokers import Broker
from delayed.message import Entry

LOOK = 0.1  # seconds between looks whether an order was obeyed
AGAIN = 3.0  # seconds after which a worker is asked again: an order may be lost with the answer that it travelled in
ORDER_AGE = 10.0  # seconds that an order waits to be fetched
LAST_WORDS = 1.0  # seconds that the reply of a worker may come after the end of its task


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
        self.what: dict[str, Any] = {"id": os.urandom(8).hex(), "do": do}
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
                # Anybody who can write to the store may have written it.
                replies = worker.info.get("replies") if isinstance(worker.info, Mapping) else None
                reply = replies.get(self.what["id"]) if isinstance(replies, Mapping) else None
                return reply if isinstance(reply, Mapping) and {"done", "text"} <= reply.keys() else None
        return None


def remove(broker: Broker, queue: str, entry: Entry) -> bool:
    """Take a task that does not run out of its queue; False if it does not wait there any more.

    If its answer is to be kept, that is now that it was cancelled.
    """
    keep = entry.message.keep
    answer = cancelled(keep) if keep is not None and entry.state != "dead" else None
    removed = broker.remove(queue, entry.message.id, answer)
    if removed and answer is not None:
        waits.wake(broker, ((queue, entry.message.id),))
    return removed


def cancel(broker: Broker, queue: str, entry: Entry, deadline: float) -> tuple[bool | None, str]:
    """Keep a task from running, or stop it: whether that was done, and in words what became of it. None: its worker
    did not answer.

    Args:
        entry: as it was seen last.
        deadline: until when to wait for a worker, by :func:`time.monotonic`.
    """
    id = entry.message.id
    order: Order | None = None
    while True:
        if entry.state != "running" and remove(broker, queue, entry):
            return True, f"removed from {queue!r}, where it was {entry.state}"
        if entry.state == "running" and (order is None or order.worker != entry.worker):
            order = Order(broker, entry.worker, queue, "cancel", id)
        reply = order.reply() if order is not None else None
        if reply is not None and reply["done"]:
            return True, str(reply["text"])
        if reply is not None:  # it did not have it, or not any more: look who has
            order = None
        if time.monotonic() >= deadline:
            return None, ""
        time.sleep(LOOK)
        found = broker.get(queue, id)
        if found is None:
            return _last_words(order)
        entry = found


def _last_words(order: Order | None) -> tuple[bool, str]:
    """What the worker says of a task that is gone."""
    end = time.monotonic() + LAST_WORDS
    while order is not None and time.monotonic() < end:
        reply = order.reply()
        if reply is not None and reply["done"]:
            return True, str(reply["text"])
        time.sleep(LOOK)
    return False, "it has ended by itself before it could be stopped"
