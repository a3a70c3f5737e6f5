"""Random chaos: producers, workers and a nemesis for a while, then the verdict."""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import tasks
from tests.chaos.arena import Arena, House
from tests.chaos.checker import Verdict
from tests.chaos.nemesis import Nemesis
from tests.chaos.stores import Store

PRODUCERS = 2
WORKERS = 3  # two of them a supervisor's
WARM_UP = 30.0  # seconds that the first workers get to start


@dataclass(frozen=True)
class Plan:
    """What is to happen.

    Attributes:
        store: sqlite, redis, postgres or mongodb.
        worker: forked, preforked, threaded or async.
        seconds: how long tasks are enqueued and harm is done.
        tasks: how many are enqueued meanwhile.
        kills: how much harm is done meanwhile, on average.
        seed: decides what is enqueued, and what harm is done; when each of them hits, the machine decides.
        lease: of the workers, seconds. It has to be longer than a busy machine takes to start a stand-in, which loads
            the store's driver first.
        without: faults that are left out.
        slack: see :meth:`Arena.judge`.
    """

    store: str = "sqlite"
    worker: str = "preforked"
    seconds: float = 60.0
    tasks: int = 500
    kills: int = 40
    seed: int = 0
    lease: float = 6.0
    without: tuple[str, ...] = ()
    slack: float = 5.0

    def __str__(self) -> str:
        return (
            f"--store {self.store} --worker {self.worker} --seconds {self.seconds:g} --tasks {self.tasks} "
            f"--kills {self.kills} --lease {self.lease:g} --seed {self.seed}"
        )


class Chaos:
    """One run: a supervisor of two workers, a worker without one, a sweeper, two producers, and who kills them."""

    def __init__(self, plan: Plan, folder: Path, store: Store) -> None:
        self.plan = plan
        self.store = store
        self.arena = Arena(folder, store.url, plan.worker, lease=plan.lease)
        self.nemesis = Nemesis(self.arena, store, random.Random(plan.seed), plan.without)
        self.kept: list[House] = []
        self.orders: dict[int, tuple[int, int, float, float]] = {}  # producer -> first, count, since, seconds
        self.numbers = iter(range(1_000_000, 1 << 40, 1_000_000))

    def run(self, say: bool = True) -> Verdict:
        """Do it all, and judge it.

        Args:
            say: whether to print a line every few seconds.
        """
        with self.arena as arena:
            self.kept = [arena.start("supervisor"), arena.start("worker"), arena.start("sweeper")]
            self._warm_up()
            self.kept += [self._produce(self.plan.tasks // PRODUCERS, self.plan.seconds) for _ in range(PRODUCERS)]
            self._harm(say)
            self.nemesis.rest()
            self._keep()
            self._wait_for_producers()
            arena.drain()
            arena.close()
            for intent, run in self.store.effects():
                arena.note("effect", intent=intent, run=run)
            for words in self.store.leftovers(arena.name):
                arena.note("leak", words=words)
            return arena.judge(self.plan.slack)

    def _harm(self, say: bool) -> None:
        dice = random.Random(f"{self.plan.seed} when")
        pace = self.plan.kills / self.plan.seconds
        begun = time.monotonic()
        said = strike_at = begun
        while (at := time.monotonic()) < begun + self.plan.seconds:
            self._keep()
            if at >= strike_at:
                self.nemesis.strike()
                strike_at = at + dice.expovariate(pace)
            if say and at > said + 5.0:
                said = at
                history = self.arena.history()
                ended = sum(any(run.returned for run in intent.runs) for intent in history.intents.values())
                harm = sum(self.nemesis.done.values())
                print(f"{at - begun:5.0f} s: {len(history.intents)} tasks, {ended} ended, {harm} faults", flush=True)
            time.sleep(0.05)

    def _keep(self) -> None:
        """Start again what has died, as a service manager does; a producer, for what it had not enqueued."""
        for number, house in enumerate(self.kept):
            if house.poll() is None:
                continue
            if house.role != "producer":
                self.kept[number] = self.arena.start(house.role)
            elif house.returncode:
                first, count, since, seconds = self.orders[house.pid]
                made = sum(first <= intent < first + count for intent in self.arena.history().intents)
                left = max(since + seconds - time.monotonic(), 1.0)
                self.kept[number] = self._produce(count - made, left)

    def _produce(self, count: int, seconds: float) -> House:
        first = next(self.numbers)
        order = {"queue": self.arena.name, "seed": f"{self.plan.seed} {first}", "first": first, "count": count}
        more = {"seconds": seconds, "mode": self.plan.worker, "transactional": self.store.transactional}
        house = self.arena.run("tests.chaos.producer", **order, **more)
        self.orders[house.pid] = (first, count, time.monotonic(), seconds)
        return house

    def _warm_up(self) -> None:
        """Wait until all workers have had something to do, and have opened what they keep open."""
        arena, deadline = self.arena, time.monotonic() + WARM_UP
        while len({monitor for monitor, server in arena.guardians() if server in arena.ready}) < WORKERS:
            if time.monotonic() > deadline:
                sys.exit(f"the workers do not start: see {arena.folder}")
            time.sleep(0.05)
        for _ in range(4 * arena.slots()):
            arena.put(tasks.nap, 0.1)
        arena.drain()
        arena.warm()

    def _wait_for_producers(self) -> None:
        for house in self.kept:
            if house.role == "producer":
                house.wait(self.plan.seconds + 30.0)
