"""Very many tasks: behind a long queue, a great number of claims ends at once."""

from __future__ import annotations

import time
from pathlib import Path

from delayed import Task
from tests.chaos import tasks
from tests.chaos.scenarios.scene import ALL, Scene, scenario
from tests.chaos.stores import RedisStore

READY = 100_000
CLAIMED = 10_000
PAGE = 1000  # claims that are made at once
LATE = 2.0  # seconds within which what is more important begins, on a busy machine
LONG = 0.2  # seconds that no command may take: twenty times of what is aimed at, for the same reason


@scenario("M1", stores=ALL, proxied=False)
def crowd(scene: Scene) -> int:
    """Ten thousand claims of a worker that is gone end at once, behind a hundred thousand tasks that wait: each of them
    runs once, and nobody who is more important has to wait for that.
    """
    arena, broker = scene.arena, scene.arena.queue.broker
    for _ in range(READY // PAGE):
        arena.queue.enqueue_many([Task.create(tasks.count, priority=-1) for _ in range(PAGE)])
    for page in range(1, CLAIMED // PAGE + 1):
        claims = broker.claim([arena.name], "gone", page, page, PAGE, lease=arena.lease)
        assert len(claims) == PAGE
    scene.worker()
    scene.worker()
    while sum(arena.counts()[:3]):
        (number,) = scene.put(count=1)
        scene.wait_for(lambda number=number: scene.runs(number))
        time.sleep(0.1)
    late = [intent.runs[0].begun - (intent.stored or 0.0) for intent in arena.history().intents.values()]
    scene.measure("what is more important waited for", max(late), most=LATE)
    ran = Path(arena.folder, tasks.COUNT).stat().st_size
    scene.measure("tasks of the crowd that ran", ran, least=READY, most=READY)
    if isinstance(scene.store, RedisStore):
        scene.measure("the longest command took", scene.store.longest(), most=LONG)
    return 1
