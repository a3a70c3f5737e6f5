"""Where a scenario plays, and the register of all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos import tasks
from tests.chaos.arena import Arena, House
from tests.chaos.history import Run
from tests.chaos.proxy import Proxy
from tests.chaos.stores import STORES, Store, open_store

BOUND = 30.0  # seconds within which anything that is waited for has to happen, and three leases
LEASE = 4.0  # seconds: many requests may be lost, one after the other, before one ends, on a busy machine too
REMOTE = ("redis", "postgres", "mongodb")  # those that a proxy can stand before
ALL = tuple(STORES)
HARM = ("kill", "stop", "cut", "down")  # what counts as a fault in the nemesis log


class Unplayable(Exception):
    """Raised by a scenario that this machine has no means for: what is missing, in words."""


class Guardians(NamedTuple):
    """A worker that can run something, and the pids of its two guardians."""

    house: House
    monitor: int
    server: int


class Scene:
    """Where a scenario plays.

    Attributes:
        arena: whose producers and workers reach the store through the proxy, if there is one.
        tasks: how many, about.
        dice: decides what is left to chance.
        later: what is to be put right when all is over.
    """

    def __init__(
        self, arena: Arena, proxy: Proxy | None = None, tasks: int = 60, store: Store | None = None, seed: int = 0
    ) -> None:
        self.arena = arena
        self.tasks = tasks
        self.dice = random.Random(seed)
        self.later = ExitStack()
        self._proxy = proxy
        self._store = store

    @property
    def proxy(self) -> Proxy:
        assert self._proxy is not None, "a scenario without a proxy uses it: register it with proxied=True"
        return self._proxy

    @property
    def store(self) -> Store:
        """The store, which is this scene's alone: it may be stopped, killed and configured."""
        assert self._store is not None, "this scene plays on a store that others use, too"
        return self._store

    @property
    def nap(self) -> Callable[..., Any]:
        """A task that takes some time, such that this kind of worker can have several at once."""
        return tasks.nap_async if self.arena.mode == "async" else tasks.nap

    def put(self, seconds: float = 0.0, count: int = 0, **options: Any) -> list[int]:
        """Enqueue naps; returns their numbers."""
        return [self.arena.put(self.nap, seconds, **options) for _ in range(count or self.tasks)]

    def put_watched(self, seconds: float) -> list[int]:
        """Enqueue a task that looks at its end whether its claim holds: of two runs of which the first ends amid the
        second, and may not end that too. None in a worker whose tasks share a thread; returns its number.
        """
        return [] if self.arena.mode == "async" else [self.arena.put(tasks.watch, seconds)]

    def worker(self, role: str = "worker", **options: Any) -> Guardians:
        """Start one, and wait until its children can run something."""
        known = set(self.arena.guardians())
        house = self.arena.start(role, **options)

        def found() -> list[tuple[int, int]]:
            return [pair for pair in self.arena.guardians() if pair not in known and pair[1] in self.arena.ready]

        return Guardians(house, *self.wait_for(found)[0])

    def wait_for(self, what: Callable[[], Any]) -> Any:
        bound = BOUND + 3 * self.arena.lease
        deadline = time.monotonic() + bound
        while not (found := what()):
            assert time.monotonic() < deadline, f"not within {bound:g} s"
            time.sleep(0.02)
        return found

    def runs(self, number: int) -> list[Run]:
        """Those of one task so far."""
        intent = self.arena.history().intents.get(number)
        return intent.runs if intent else []

    def probe(self, worker: Guardians) -> float:
        """When a worker begins a task that is enqueued now."""

        def begun() -> float | None:
            (number,) = self.put(0.2, count=1)
            (run,) = self.wait_for(lambda: self.runs(number))
            return run.begun if self.arena.history().worker_of(run) == worker.monitor else None

        at: float = self.wait_for(begun)
        return at

    def measure(self, name: str, value: float, *, least: float = -inf, most: float = inf) -> None:
        """Note a figure, and between what it has to be: the checker compares them."""
        self.arena.note("figure", name=name, value=round(value, 3), least=least, most=most)

    def look_for_leftovers(self) -> None:
        """Note what the store has of tasks that are over."""
        if self._store is not None:
            dead = len(self.arena.history().having("dead"))
            for words in self._store.leftovers(self.arena.name, dead):
                self.arena.note("leak", words=words)

    def worker_log(self) -> str:
        """What the workers have logged so far."""
        return "".join(path.read_text(errors="replace") for path in self.arena.folder.glob("worker-*.log"))

    def begun(self) -> int:
        """How many tasks have begun."""
        return sum(bool(intent.runs) for intent in self.arena.history().intents.values())

    def refused(self) -> int:
        """How many enqueues were refused."""
        return sum(intent.refused for intent in self.arena.history().intents.values())

    def all_begun(self) -> bool:
        """Whether every task has that a producer knows to be stored, and that the store has not forgotten."""
        history = self.arena.history()
        return all(
            intent.runs or history.forgets(intent) for intent in history.intents.values() if intent.stored is not None
        )

    def hits(self) -> int:
        """How many requests the proxy has harmed."""
        return len(self._proxy.hits()) if self._proxy else 0

    def faults(self) -> int:
        """How many faults the logs know of."""
        return self.hits() + sum(record["what"] in HARM for record in self.arena.logs()[2])


Play = Callable[[Scene], "int | None"]


@dataclass(frozen=True)
class Scenario:
    """One kind of fault, played on purpose.

    Attributes:
        id: its row in the matrix: ``N2``; several may be of one row.
        play: does it, and returns when the harm is over; the scene then ends in peace. Returns how many faults it did
            that are in no log, None for none. Raises :class:`Unplayable`.
        stores: on which it can be played.
        proxied: whether the store is reached through a proxy.
        toxic: whether the proxy has to have harmed at least one request, else it has failed.
        lease: of the workers, seconds.
    """

    id: str
    play: Play
    stores: tuple[str, ...] = REMOTE
    proxied: bool = True
    toxic: bool = False
    lease: float = LEASE

    @property
    def name(self) -> str:
        return self.play.__name__


SCENARIOS: dict[str, Scenario] = {}


def scenario(id: str, **more: Any) -> Callable[[Play], Play]:
    """Register a function by its name, see :class:`Scenario`::

    @scenario("B1", stores=("redis",), proxied=False)
    def restarts(scene: Scene) -> None: ...
    """

    def register(play: Play) -> Play:
        assert play.__name__ not in SCENARIOS, play.__name__
        SCENARIOS[play.__name__] = Scenario(id, play, **more)
        return play

    return register


@contextmanager
def staged(scenario: Scenario, store: str, folder: Path, mode: str, lease: float, seed: int) -> Iterator[Scene]:
    """A scene for it on a store of its own; `folder` gets the logs."""
    with ExitStack() as stack:
        opened = stack.enter_context(open_store(store))
        proxy = stack.enter_context(Proxy(opened.url, folder, seed)) if scenario.proxied else None
        url = proxy.url if proxy else opened.url
        arena = stack.enter_context(Arena(folder, url, mode, direct=opened.url, lease=lease))
        yield Scene(arena, proxy, store=opened, seed=seed)


def play(scene: Scene, scenario: Scenario) -> int:
    """Play it, and let all end in peace; returns how many faults it was."""
    with scene.later:
        return _play(scene, scenario)


def _play(scene: Scene, scenario: Scenario) -> int:
    more = scenario.play(scene) or 0
    scene.wait_for(lambda: scene.hits() or not scenario.toxic)
    scene.wait_for(scene.all_begun)
    if scenario.proxied:
        scene.proxy.set()
    scene.arena.drain()
    scene.arena.close()
    scene.look_for_leftovers()
    return scene.faults() + more
