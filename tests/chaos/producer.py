"""A producer as a process: ``python -m tests.chaos.producer '{"first": 1000, "count": 100, ...}'``.

It may be killed between any two of its steps; then what it was about to enqueue may run, or not.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from delayed import Queue
from tests.chaos import tasks
from tests.chaos.arena import enqueue

# (how many of a hundred tasks, kind, how long they take)
MIX = ((40, "noop", (0.0, 0.0)), (40, "nap", (0.005, 0.05)), (12, "nap", (0.5, 2.0)), (4, "moody", (1, 2)))
EFFECT_SECONDS = 0.005


def draw(dice: random.Random, mode: str, transactional: bool) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """One task of the mix: a function, and its arguments after the intent."""
    at = dice.uniform(0, 100)
    for share, kind, (least, most) in MIX:
        if at < share:
            if kind == "moody":
                return tasks.moody, (dice.randint(int(least), int(most)),)
            if kind == "nap":
                return (tasks.nap_async if mode == "async" else tasks.nap), (round(dice.uniform(least, most), 3),)
            return tasks.noop, ()
        at -= share
    if transactional and at < 3:
        return tasks.effect, (EFFECT_SECONDS,)
    return tasks.watch, (0.3,)


def plan(
    seed: str, first: int, count: int, mode: str, transactional: bool
) -> Iterator[tuple[int, Callable[..., Any], tuple[Any, ...]]]:
    """(intent, function, arguments) of each task."""
    dice = random.Random(seed)
    for number in range(first, first + count):
        yield number, *draw(dice, mode, transactional)


def main(
    folder: str, url: str, queue: str, seed: str, first: int, count: int, seconds: float, mode: str, transactional: bool
) -> None:
    """Enqueue `count` tasks evenly within `seconds`, and leave."""
    target = Queue(queue, url)
    begun = time.monotonic()
    for done, (number, func, args) in enumerate(plan(seed, first, count, mode, transactional)):
        time.sleep(max(0.0, begun + seconds * done / count - time.monotonic()))
        enqueue(Path(folder), target, number, func, *args, max_deliveries=1000)
    target.broker.close()


if __name__ == "__main__":
    main(os.environ[tasks.FOLDER], os.environ[tasks.URL], **json.loads(sys.argv[1]))
