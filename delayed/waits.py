"""Who waits for the end of a task: ids that lie under its name in its queue, for whoever stores its answer.

They are a hint, by which a wait ends at once. Whoever waits looks again after he has given himself back, and every
while: so a hint that is lost costs time, and nothing else.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable

from delayed.brokers.base import Broker
from delayed.fields import ID_MAX, is_queue

PREFIX = "waits:"  # before the id of the task that is waited for
LOOK_MAX = 500  # names that are asked for in one call
WAITING_MAX = 1000  # tasks that are noted for one; further ones look every while
TTL = 86400.0  # seconds that a note is kept; it is made again by who still waits
TRIES = 100  # to change what others change at the same time

Place = tuple[str, int]  # the name of a queue, and the id of a task in it


def note(broker: Broker, queue: str, id: int, waiting: Place) -> None:
    """Let a task be woken when the answer of task `id` is stored."""
    name = f"{PREFIX}{id}"
    for attempt in range(TRIES):
        stored = broker.get_keys(queue, [name]).get(name)
        places = _read(stored.value) if stored is not None else []
        known = waiting in places
        if known and stored is not None and stored.left is not None and stored.left > TTL / 2:
            return
        if not known:
            if len(places) >= WAITING_MAX:
                return
            places.append(waiting)
        version = stored.version if stored is not None else 0
        if broker.put_key(queue, name, json.dumps(places).encode(), ttl=TTL, version=version):
            return
        pause(attempt)


def wake(broker: Broker, answered: Iterable[Place]) -> None:
    """Let go on who waits for these tasks, whose answers are stored."""
    by_queue: dict[str, list[str]] = {}
    for queue, id in answered:
        by_queue.setdefault(queue, []).append(f"{PREFIX}{id}")
    for queue, names in by_queue.items():
        for start in range(0, len(names), LOOK_MAX):
            for name, stored in broker.get_keys(queue, names[start : start + LOOK_MAX]).items():
                for place in _read(stored.value):
                    broker.reschedule(*place, 0.0)
                # Who was noted since then has seen the answer, or looks for it before he waits.
                broker.put_key(queue, name, None)


def pause(attempt: int) -> None:
    """Let others finish what they change, before the next attempt."""
    time.sleep(random.uniform(0.0, 0.001 * min(2**attempt, 32)))


def _read(data: bytes) -> list[Place]:
    """The places of a note; none if it is none: others can write to a store too."""
    try:
        found = [(queue, id) for queue, id in json.loads(data)]
    except (ValueError, TypeError, RecursionError):
        return []
    return [
        (queue, id)
        for queue, id in found
        if type(queue) is str and is_queue(queue) and type(id) is int and 0 < id <= ID_MAX
    ]
