"""The store goes away for a while, or ends everybody's sessions, or takes no writes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from delayed.brokers.deadline import LEAST
from tests.chaos.records import now
from tests.chaos.scenarios.producing import Producing, ProducingInALoop
from tests.chaos.scenarios.scene import Guardians, Scene, scenario

RESTARTS = {"redis-server": 20}  # others take longer
FEWER = 6
AWAY = 0.66, 2.5  # leases
BACK = 2.0  # seconds after which a store that is there again is used
SLACK = 1.0  # seconds that a busy machine takes for what should be done at once
ATTEMPTS = 5.0  # connections that a process tries to make each second while the store is away
LATE = 1.0  # seconds by which an event loop may be late on a busy machine: a call that blocks it takes five
SAME = 0.98  # of the tasks that workers take which never saw the store go
ROUNDS = 8  # in one of which that has to be seen: who takes how many is chance too
WAKE_UP = 0.25  # seconds from an enqueue to the run: who only looks now and then takes longer
ROUND = 200  # tasks
NAP = 0.05  # seconds that each takes


@scenario("B1", proxied=False, lease=15.0)
def killed_stores(scene: Scene) -> None:
    """The store is killed again and again while tasks come and are run: nothing is lost, nothing runs twice."""
    server = scene.store.server
    assert server is not None
    if server.name == "redis-server":
        server.arguments = ("--appendfsync", "everysec")
    workers = _two_workers(scene)
    longest = 0.0
    with Producing(scene):
        for _ in range(RESTARTS.get(server.name, FEWER)):
            scene.put(NAP, count=scene.tasks // 3)  # there is something to do when it is back
            scene.arena.note("down", lossy=False)
            server.kill()
            server.start()
            scene.arena.note("up")
            longest = max(longest, back(scene))
    scene.measure("served again after", longest, most=BACK + SLACK)
    _as_new(scene, workers)


@scenario("B3", lease=15.0)
def store_is_down(scene: Scene) -> None:
    """The store is away for less than a lease: what ended is kept, nobody waits for longer than he said, or hammers."""
    attempts = _down(scene, AWAY[0])
    scene.measure("connections a second and process", attempts / AWAY[0] / scene.arena.lease / 3, most=ATTEMPTS)


@scenario("B3")
def store_is_down_for_long(scene: Scene) -> None:
    """... for some leases: nothing of what ran runs twice."""
    _down(scene, AWAY[1])


def _down(scene: Scene, leases: float) -> int:
    """Returns how many connections were tried."""
    server = scene.store.server
    assert server is not None
    seconds = leases * scene.arena.lease
    _two_workers(scene)
    with Producing(scene) as producing, ProducingInALoop(scene) as loop:
        scene.wait_for(lambda: producing.calls > 10 and loop.calls > 10)
        scene.put(NAP, count=scene.tasks)
        scene.put(seconds / 2, count=2)  # they end while it is away
        number = scene.put(seconds + 1.0, count=1)[0]
        scene.wait_for(lambda: scene.runs(number))
        scene.put(NAP, count=scene.tasks)
        known = scene.proxy.accepted()
        scene.arena.note("down", lossy=False)
        server.kill()
        time.sleep(seconds)
        attempts = scene.proxy.accepted() - known
        server.start()
        scene.arena.note("up")
        scene.measure("served again after", back(scene), most=BACK + SLACK)
    patience = scene.arena.queue.enqueue_timeout + LEAST
    scene.measure(".delay() took at most", producing.longest, most=patience + SLACK)
    scene.measure(".adelay() took at most", loop.longest, most=patience + SLACK)
    scene.measure("the event loop was late by", loop.late, most=LATE)
    return attempts


@scenario("B4", stores=("postgres",), proxied=False)
def ended_sessions(scene: Scene) -> int:
    """PostgreSQL ends all sessions every two seconds."""
    import psycopg

    times = 5

    def harm() -> None:
        with psycopg.connect(scene.store.url, autocommit=True) as conn:
            for _ in range(times):
                conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                    "AND backend_type = 'client backend'"
                )
                time.sleep(2.0)

    _harmed(scene, harm)
    return times


@scenario("B4", stores=("postgres",), proxied=False)
def read_only(scene: Scene) -> None:
    """PostgreSQL takes no writes for a while, as after a switch to a standby."""
    import psycopg

    def harm() -> None:
        with psycopg.connect(scene.store.url, autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            conn.execute("SELECT pg_reload_conf()")
            scene.arena.note("down", lossy=False)
            time.sleep(1.5 * scene.arena.lease)
            conn.execute("SET default_transaction_read_only = off")
            conn.execute("ALTER SYSTEM RESET default_transaction_read_only")
            conn.execute("SELECT pg_reload_conf()")
            scene.arena.note("up")

    _harmed(scene, harm)


@scenario("B4", stores=("mongodb",), proxied=False)
def step_downs(scene: Scene) -> None:
    """The primary of a replica set steps down, and nobody is primary until there has been an election."""
    import pymongo

    def harm() -> None:
        client: pymongo.MongoClient[Any]
        with pymongo.MongoClient(scene.store.url, directConnection=True) as client:
            for _ in range(FEWER // 2):
                scene.arena.note("down", lossy=False)
                with contextlib.suppress(pymongo.errors.AutoReconnect):
                    client.admin.command("replSetStepDown", 2, force=True)
                scene.wait_for(lambda: client.admin.command("hello")["isWritablePrimary"])
                scene.arena.note("up")
                time.sleep(1.0)

    _harmed(scene, harm)


def _harmed(scene: Scene, harm: Callable[[], None]) -> None:
    """Harm is done while tasks come and are run, and all is as before afterwards."""
    workers = _two_workers(scene)
    with Producing(scene):
        scene.put(NAP, count=scene.tasks)
        harm()
        scene.put(NAP, count=1)
        scene.measure("served again after", back(scene), most=BACK + SLACK)
    _as_new(scene, workers)


def _two_workers(scene: Scene) -> list[Guardians]:
    return [scene.worker(), scene.worker()]


def back(scene: Scene) -> float:
    """Seconds from now until a task begins."""
    at = now()

    def begun() -> list[float]:
        return [run.begun for run in scene.arena.history().runs.values() if run.begun > at]

    first: float = min(scene.wait_for(begun))
    return first - at


def _as_new(scene: Scene, workers: list[Guardians]) -> None:
    """They wake up as soon as ever, and beside as many new ones they take half of the tasks."""
    scene.wait_for(scene.all_begun)
    scene.measure("began after", _wake_up(scene), most=WAKE_UP)
    _two_workers(scene)
    known = {worker.monitor for worker in workers}
    share = 0.0
    for _ in range(ROUNDS):
        numbers = set(scene.put(NAP, count=ROUND))
        scene.wait_for(scene.all_begun)
        history = scene.arena.history()
        theirs = sum(history.worker_of(run) in known for run in history.runs.values() if run.intent in numbers)
        share = max(share, theirs / max(ROUND - theirs, 1))
        if share >= SAME:
            break
    scene.measure("tasks a second, of those of new workers", share, least=SAME)


def _wake_up(scene: Scene) -> float:
    """Seconds until a worker that has nothing to do begins a task that comes; the median of a few."""
    times = []
    for _ in range(7):
        scene.wait_for(lambda: not any(scene.arena.counts()[1:3]))
        time.sleep(0.3)  # so that it sleeps
        at = now()
        (number,) = scene.put(count=1)
        (run,) = scene.wait_for(lambda number=number: scene.runs(number))
        times.append(run.begun - at)
    return median(times)
