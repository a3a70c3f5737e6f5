"""What leads to a crash point: each operation that goes to the store, and the role that sends it, as a scene.

A scene brings the role to where it is about to send the request, lays the trap (see :class:`tests.chaos.proxy.Rule`),
and waits until that has snapped. What has died is started again by whoever plays the scene, and the checker judges.
What a scene knows beyond the checker's columns it returns as something that looks for findings when all is over.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from delayed.retry import Retry
from tests.chaos import tasks
from tests.chaos.arena import Arena, House
from tests.chaos.history import History
from tests.chaos.processes import children_of, send, state_of
from tests.chaos.proxy import Proxy, Rule

POSITIONS = {"before": "kill_before", "after-effect": "kill_between", "delivered": "kill_after"}
BOUND = 30.0  # seconds within which anything that is waited for has to happen
KEEP = 600.0  # seconds that answers are kept


class NotReached(Exception):
    """Raised when what leads to a crash point did not happen."""


@dataclass
class Stage:
    """Where a scene plays.

    Attributes:
        arena: whose processes reach the store through `proxy`, if there is one.
        position: at which of :data:`POSITIONS` the role is to die.
        when: at which of its requests of the kind.
    """

    arena: Arena
    proxy: Proxy | None = None
    position: str = ""
    when: int = 1

    @property
    def took_effect(self) -> bool:
        return self.position != "before"

    def worker(self, role: str = "worker", **options: Any) -> tuple[House, int, int]:
        """Start one, and wait until its children can run something: the house, a monitor, and its fork server."""
        known = set(self.arena.guardians())
        house = self.arena.start(role, **options)
        (pair,) = self.wait_for(
            lambda: [each for each in self.arena.guardians() if each not in known and each[1] in self.arena.ready][:1],
            "a worker that is ready",
        )
        return house, *pair

    def client(self, does: str, numbers: Iterable[int]) -> House:
        """Start one, that has stopped itself."""
        order = {"url": self.arena.url, "queue": self.arena.name, "does": does, "numbers": list(numbers)}
        house = self.arena.run("tests.chaos.client", **order)
        self.wait_for(lambda: state_of(house.pid) == "T", "a client that has opened the store")
        return house

    def put(self, count: int, func: Callable[..., Any] = tasks.nap, *args: Any, **options: Any) -> None:
        for _ in range(count):
            self.arena.put(func, *args, **options)

    def doom(self, op: str, role: str, *pids: int) -> None:
        """One of these processes is killed at its next request of this kind."""
        assert self.proxy is not None
        toxic = POSITIONS[self.position]
        self.proxy.set(Rule(op, toxic, most=1, of=pids, nth=self.when, role=role))

    def wait_for(self, what: Callable[[], Any], words: str) -> Any:
        deadline = time.monotonic() + BOUND
        while not (found := what()):
            if time.monotonic() > deadline:
                raise NotReached(f"not within {BOUND:g} s: {words}")
            time.sleep(0.01)
        return found

    def until_killed(self, *pids: int) -> None:
        def dead() -> bool:
            return any(record["pid"] in pids for record in self.arena.history().having("kill"))

        self.wait_for(dead, "the request")

    def begun(self) -> int:
        """How many tasks have begun."""
        return sum(bool(intent.runs) for intent in self.arena.history().intents.values())

    def until_begun(self, count: int = 1) -> None:
        self.wait_for(lambda: self.begun() >= count, f"{count} tasks that have begun")

    def orphan(self, monitor: int) -> None:
        """Kill a monitor, so that its fork server stands in."""
        self.arena.kill(monitor, "monitor")


Check = Callable[[History], list[str]]
Scene = Callable[[Stage], Check | None]


@dataclass(frozen=True)
class Plot:
    """A scene, and what it is called."""

    operation: str
    role: str
    scene: Scene
    stores: tuple[str, ...]


PLOTS: list[Plot] = []


def plot(operation: str, role: str, *stores: str) -> Callable[[Scene], Scene]:
    def add(scene: Scene) -> Scene:
        PLOTS.append(Plot(operation, role, scene, stores or ("redis", "postgres", "mongodb")))
        return scene

    return add


# -- producers -----------------------------------------------------------------------------------------------------


@plot("reserve ids", "producer")
def reserve(stage: Stage) -> Check:
    return _produce(stage, "reserve", "enqueue", at=1)


@plot("enqueue", "producer")
def enqueue(stage: Stage) -> Check:
    return _produce(stage, "enqueue", "enqueue", at=3)


@plot("enqueue unique", "producer")
def enqueue_unique(stage: Stage) -> Check:
    return _produce(stage, "enqueue", "unique", at=3)


@plot("commit of an enqueue", "producer", "postgres", "mongodb")
def join(stage: Stage) -> Check:
    numbers = range(1, 6)
    client = stage.client("join", numbers)
    _kill_client(stage, client, "commit")
    stage.worker()
    return lambda history: _ran(history, numbers if stage.took_effect else [])


@plot("cancel", "producer")
def cancel(stage: Stage) -> Check:
    stage.put(8, tasks.noop)
    client = stage.client("cancel", range(1, 7))
    stage.when = 3
    _kill_client(stage, client, "remove")
    stage.worker()
    return lambda history: _ran(history, range(4 if stage.took_effect else 3, 9))


def _produce(stage: Stage, op: str, does: str, at: int) -> Check:
    """The client dies at its `at`-th request, and another one enqueues what is left."""
    stage.when = at
    client = stage.client(does, range(1, 7))
    _kill_client(stage, client, op)
    known = set(stage.arena.history().intents)
    rest = stage.client(does, [number for number in range(1, 7) if number not in known])
    send(rest.pid, signal.SIGCONT)
    rest.wait(BOUND)
    stage.worker()
    stored = at if op == "enqueue" and stage.took_effect else at - 1
    return lambda history: _ran(history, [number for number in range(1, 7) if number <= stored or number not in known])


def _kill_client(stage: Stage, client: House, op: str) -> None:
    stage.doom(op, "producer", client.pid)
    send(client.pid, signal.SIGCONT)
    stage.until_killed(client.pid)


def _ran(history: History, numbers: Iterable[int]) -> list[str]:
    """Exactly these have run."""
    expected = set(numbers)
    found = {intent.number for intent in history.intents.values() if intent.runs}
    return [f"intent {number} has run, and must not" for number in sorted(found - expected)] + [
        f"intent {number} has not run" for number in sorted(expected - found)
    ]


# -- monitors ------------------------------------------------------------------------------------------------------


@plot("claim", "monitor")
def claim(stage: Stage) -> None:
    _, monitor, _ = stage.worker()
    stage.put(6, tasks.nap, 0.05)
    stage.doom("claim", "monitor", monitor)
    stage.put(6, tasks.nap, 0.05)
    stage.until_killed(monitor)


@plot("claim of what is due", "monitor")
def promote(stage: Stage) -> None:
    """The first claim of a worker that has just started: nobody can stand in for it yet."""
    stage.put(6, tasks.noop, delay=0.2)
    time.sleep(0.25)
    house = stage.arena.start()
    stage.doom("claim", "monitor", house.pid)
    stage.until_killed(house.pid)


@plot("settle", "monitor")
def settle(stage: Stage) -> None:
    _monitor_dies(stage, "done", tasks.nap, 0.1)


@plot("settle with an answer", "monitor")
def answer(stage: Stage) -> Check:
    _monitor_dies(stage, "answer", tasks.nap, 0.1, keep=KEEP)
    return lambda history: _answered(stage, history)


@plot("retry", "monitor")
def retry(stage: Stage) -> None:
    _monitor_dies(stage, "retry", tasks.moody, 1, retry=Retry(3, delay=0.1))


@plot("give back", "monitor")
def give_back(stage: Stage) -> None:
    """A worker that was told to leave stops what takes too long, and gives it back."""
    house, monitor, _ = stage.worker(shutdown_timeout=0.1)
    stage.put(4, tasks.nap, 1.5)
    stage.until_begun(2)
    stage.doom("back", "monitor", monitor)
    stage.arena.note("leave", pid=monitor)
    send(house.pid, signal.SIGTERM)
    stage.until_killed(monitor)


@plot("renew", "monitor")
def renew(stage: Stage) -> None:
    _, monitor, _ = stage.worker()
    stage.put(4, tasks.nap, stage.arena.lease * 0.6)
    stage.until_begun(2)
    stage.doom("renew", "monitor", monitor)
    stage.until_killed(monitor)


@plot("sweep", "monitor")
def sweep(stage: Stage) -> None:
    _leave_lost_tasks(stage)
    house = stage.arena.start(processes=1)
    stage.doom("sweep", "monitor", house.pid)
    stage.until_killed(house.pid)


def _monitor_dies(stage: Stage, op: str, func: Callable[..., Any], *args: Any, **options: Any) -> None:
    _, monitor, _ = stage.worker()
    stage.doom(op, "monitor", monitor)
    stage.put(8, func, *args, **options)
    stage.until_killed(monitor)


def _answered(stage: Stage, history: History) -> list[str]:
    ids = {id: intent.number for intent in history.intents.values() for id in intent.ids}
    kept = stage.arena.answers(list(ids))
    return [f"intent {number} has ended, and its answer is not there" for id, number in ids.items() if id not in kept]


# -- stand-ins -----------------------------------------------------------------------------------------------------


@plot("take over", "stand-in")
def take_over(stage: Stage) -> None:
    _, monitor, server = stage.worker()
    stage.put(4, tasks.nap, 1.0)
    stage.until_begun(2)
    stage.doom("held", "forkserver", server)
    stage.orphan(monitor)
    stage.until_killed(server)


@plot("settle", "stand-in")
def settle_in_place(stage: Stage) -> Check:
    return _stand_in_dies(stage, "done", tasks.nap, 1.0)


@plot("settle with an answer", "stand-in")
def answer_in_place(stage: Stage) -> Check:
    settled = _stand_in_dies(stage, "answer", tasks.nap, 1.0, keep=KEEP)
    return lambda history: settled(history) + _answered(stage, history)


@plot("retry", "stand-in")
def retry_in_place(stage: Stage) -> None:
    _, monitor, server = stage.worker(processes=1)
    stage.put(5, tasks.late_moody, 0.5, retry=Retry(3, delay=0.1))
    stage.until_begun()
    stage.doom("retry", "forkserver", server)
    stage.orphan(monitor)
    stage.until_killed(server)


@plot("give back", "stand-in")
def give_back_in_place(stage: Stage) -> None:
    """What lies ahead of the children when the monitor dies."""
    _, monitor, server = stage.worker(processes=1)
    stage.put(20, tasks.noop)  # so that it expects short ones, and claims many
    stage.arena.drain(quiet=0.0)
    stage.put(12, tasks.nap, 0.7)
    stage.until_begun(21)
    stage.wait_for(lambda: stage.arena.counts().running > 1, "claims ahead")
    stage.doom("back", "forkserver", server)
    stage.orphan(monitor)
    stage.until_killed(server)


@plot("renew", "stand-in")
def renew_in_place(stage: Stage) -> None:
    _, monitor, server = stage.worker(processes=1)
    stage.put(3, tasks.nap, stage.arena.lease)
    stage.until_begun()
    stage.doom("renew", "forkserver", server)
    stage.orphan(monitor)
    stage.until_killed(server)


def _stand_in_dies(stage: Stage, op: str, func: Callable[..., Any], *args: Any, **options: Any) -> Check:
    """It has one task to settle; if it could, that must not run again, though nobody is left who saw its end."""
    _, monitor, server = stage.worker(processes=1)
    stage.put(5, func, *args, **options)
    stage.until_begun()
    first = next(intent.number for intent in stage.arena.history().intents.values() if intent.runs)
    stage.doom(op, "forkserver", server)
    stage.orphan(monitor)
    stage.until_killed(server)

    def check(history: History) -> list[str]:
        runs = len(history.intents[first].runs)
        return [f"intent {first} was settled, and has run {runs} times"] if stage.took_effect and runs > 1 else []

    return check


# -- the others ----------------------------------------------------------------------------------------------------


@plot("give back", "supervisor")
def give_back_for_another(stage: Stage) -> None:
    house, _, _ = stage.worker("supervisor", processes=1)
    stage.put(6, tasks.nap, 1.0)
    stage.until_begun(1)
    stage.wait_for(lambda: len(stage.arena.guardians()) == 2, "two workers")
    stage.doom("settle", "supervisor", house.pid)
    running = next(iter(stage.arena.history().runs.values()))
    monitor, server = next(pair for pair in stage.arena.guardians() if pair[1] == running.ppid)
    stage.arena.kill(monitor, "monitor")
    stage.arena.kill(server, "forkserver")
    stage.until_killed(house.pid)


@plot("sweep", "sweeper")
def sweep_beside(stage: Stage) -> None:
    _leave_lost_tasks(stage)
    house = stage.arena.start("sweeper")
    stage.doom("sweep", "sweeper", house.pid)
    stage.until_killed(house.pid)
    stage.arena.start("sweeper")


@plot("commit of a task", "child", "postgres", "mongodb")
def commit(stage: Stage) -> Check:
    """The guardian asks the store what became of the commit: with it the task has ended, and without it not."""
    _, _, server = stage.worker(processes=1)
    (child,) = stage.wait_for(lambda: children_of(server)[:1], "a child")
    stage.doom("commit", "child", child)
    stage.put(5, tasks.effect, 0.05)
    stage.until_killed(child)

    def check(history: History) -> list[str]:
        return [
            f"intent {intent.number} was committed, and has run {len(intent.runs)} times"
            for intent in history.intents.values()
            if stage.took_effect and len(intent.runs) > 1
        ]

    return check


def _leave_lost_tasks(stage: Stage) -> None:
    """There are tasks whose lease has ended, and nobody has swept them.

    Another worker renews what it has meanwhile: else the next sweep would take the gap for an outage.
    """
    stage.worker(sweep=False, processes=1)
    stage.put(1, tasks.nap, stage.arena.lease * 2.5)
    stage.until_begun()
    _, monitor, server = stage.worker(sweep=False)
    stage.put(4, tasks.nap, stage.arena.lease)
    stage.until_begun(3)
    stage.arena.kill(monitor, "monitor")
    stage.arena.kill(server, "forkserver")
    stage.wait_for(lambda: stage.arena.overdue() >= 2, "leases that have ended")
