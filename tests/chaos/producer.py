"""A producer as a process: ``python -m tests.chaos.producer '{"first": 1000, "count": 100, ...}'``.

It may be killed between any two of its steps; then what it was about to enqueue may run, or not.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from delayed import Queue
from delayed.errors import BrokerError
from tests.chaos import tasks
from tests.chaos.arena import enqueue

LOOK = 10  # tasks from one look at the backlog to the next
# name -> (how many of a hundred tasks, kind, how long they take or how often they fail)
MIXES: dict[str, tuple[tuple[float, str, tuple[float, float]], ...]] = {
    "mixed": (
        (40, "noop", (0.0, 0.0)),
        (40, "nap", (0.005, 0.05)),
        (12, "nap", (0.5, 2.0)),
        (4, "moody", (1, 2)),
        (3, "effect", (0.005, 0.005)),
        (1, "watch", (0.3, 0.3)),
    ),
    # For thousands in a minute. The last two load a driver in their child.
    "quick": (
        (45, "noop", (0.0, 0.0)),
        (49.5, "nap", (0.005, 0.05)),
        (0.5, "nap", (0.5, 2.0)),
        (4, "moody", (1, 2)),
        (0.7, "effect", (0.005, 0.005)),
        (0.3, "watch", (0.3, 0.3)),
    ),
    "effects": ((100, "effect", (0.0, 0.02)),),
}


def draw(mix: str, dice: random.Random, mode: str, transactional: bool) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """One task of the mix: a function, and its arguments after the intent."""
    (chosen,) = dice.choices(MIXES[mix], [share for share, _, _ in MIXES[mix]])
    _, kind, (least, most) = chosen
    if kind == "moody":
        return tasks.moody, (dice.randint(int(least), int(most)),)
    seconds = round(dice.uniform(least, most), 3)
    if kind == "nap":
        return (tasks.nap_async if mode == "async" else tasks.nap), (seconds,)
    if kind == "effect" and transactional:
        return tasks.effect, (seconds,)
    return (tasks.noop, ()) if kind == "noop" else (tasks.watch, (0.3,))


def plan(
    seed: str, first: int, count: int, mix: str, mode: str, transactional: bool
) -> Iterator[tuple[int, Callable[..., Any], tuple[Any, ...]]]:
    """(intent, function, arguments) of each task."""
    dice = random.Random(seed)
    for number in range(first, first + count):
        yield number, *draw(mix, dice, mode, transactional)


def main(
    folder: str,
    url: str,
    queue: str,
    seed: str,
    first: int,
    count: int,
    seconds: float,
    mix: str,
    mode: str,
    transactional: bool,
    backlog: int,
) -> None:
    """Enqueue `count` tasks evenly within `seconds`, and leave.

    Args:
        backlog: while more are ready it waits, however long that takes; 0: never.
    """
    target = Queue(queue, url)
    begun = time.monotonic()
    for done, (number, func, args) in enumerate(plan(seed, first, count, mix, mode, transactional)):
        time.sleep(max(0.0, begun + seconds * done / count - time.monotonic()))
        if backlog and done % LOOK == 0:
            _wait_for_room(target, backlog)
        enqueue(Path(folder), target, number, func, *args, max_deliveries=1000)
    target.broker.close()


def _wait_for_room(queue: Queue, backlog: int) -> None:
    with contextlib.suppress(BrokerError):
        while queue.broker.counts(queue.name).ready > backlog:
            time.sleep(0.02)


if __name__ == "__main__":
    main(os.environ[tasks.FOLDER], os.environ[tasks.URL], **json.loads(sys.argv[1]))
