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
from tests.chaos.progress import STRIDE
from tests.chaos.stores import Store

PRODUCERS = 2
HOUSES = ("supervisor", "worker", "sweeper")
WORKERS = {"supervisor": 2, "worker": 1}  # that are in a house
PATIENCE = 60.0  # seconds without a new task, beyond the plan's time
WARM_UP = 60.0  # seconds that the first workers get to start


@dataclass(frozen=True)
class Plan:
    """What is to happen.

    Attributes:
        store: sqlite, redis, postgres or mongodb.
        worker: forked, preforked, threaded or async.
        seconds: how long tasks are enqueued and harm is done.
        tasks: how many are enqueued meanwhile.
        kills: how many faults are done, at random moments. When that takes longer, tasks go on to come.
        seed: decides what is enqueued, and what harm is done; when each of them hits, the machine decides.
        lease: of the workers, seconds. It has to be longer than a busy machine takes to start a stand-in, which loads
            the store's driver first.
        faults: those that are done, see :class:`Nemesis`; none: all.
        busy: see :class:`Nemesis`.
        processes: children of a worker.
        mix: of tasks, see :data:`tests.chaos.producer.MIXES`.
        houses: who is at work besides the producers.
        backlog: of ready tasks, beyond which no more are enqueued, so that who dies is what a task waits for and not
            the others; 0: as many as come.
        preload: what the fork servers load besides the tasks.
        slack: see :meth:`Arena.judge`.
        other: see :class:`Arena`.
    """

    store: str = "sqlite"
    worker: str = "preforked"
    seconds: float = 60.0
    tasks: int = 500
    kills: int = 40
    seed: int = 0
    lease: float = 6.0
    faults: tuple[str, ...] = ()
    busy: bool = False
    processes: int = 2
    mix: str = "mixed"
    houses: tuple[str, ...] = HOUSES
    backlog: int = 0
    preload: tuple[str, ...] = ()
    slack: float = 5.0
    other: str = ""

    def __str__(self) -> str:
        other = f" --other {self.other}" if self.other else ""
        return (
            f"--store {self.store} --worker {self.worker} --seconds {self.seconds:g} --tasks {self.tasks} "
            f"--kills {self.kills} --lease {self.lease:g} --seed {self.seed}{other}"
        )


class Chaos:
    """One run: who is to be at work, by default a supervisor of two workers, a worker without one and a sweeper; two
    producers; and who kills them.
    """

    def __init__(self, plan: Plan, folder: Path, store: Store) -> None:
        self.plan = plan
        self.store = store
        options = {"processes": plan.processes, "lease": plan.lease, "preload": plan.preload, "other": plan.other}
        self.arena = Arena(folder, store.url, plan.worker, **options)
        self.nemesis = Nemesis(self.arena, store, random.Random(plan.seed), plan.faults, plan.busy)
        self.kept: list[House] = []
        self.orders: dict[int, tuple[int, int, float, float]] = {}  # producer -> first, count, since, seconds
        self.numbers = iter(range(STRIDE, 1 << 40, STRIDE))

    def run(self, say: bool = True) -> Verdict:
        """Do it all, and judge it.

        Args:
            say: whether to print a line every few seconds.
        """
        with self.arena as arena:
            self.kept = [arena.start(role) for role in self.plan.houses]
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
        strikes = sorted(dice.random() for _ in range(self.plan.kills))  # after which part of the time and the tasks
        progress = self.arena.progress
        begun = said = time.monotonic()
        while strikes:
            self._keep(on=True)
            progress.look()
            at = time.monotonic()
            part = min((at - begun) / self.plan.seconds, progress.made.total() / self.plan.tasks)
            if part >= strikes[0] and self.nemesis.strike():
                strikes.pop(0)
            if say and at > said + 5.0:
                said = at
                harm = self.plan.kills - len(strikes)
                print(
                    f"{at - begun:5.0f} s: {progress.made.total()} tasks, {progress.ended} ended, {harm} faults",
                    flush=True,
                )
            time.sleep(0.05)

    def _keep(self, on: bool = False) -> None:
        """Start again what has died, as a service manager does; a producer, for what it had not enqueued.

        Args:
            on: whether there are always to be tasks: then who has enqueued all of them goes on with some more.
        """
        for number, house in enumerate(self.kept):
            if house.poll() is None:
                continue
            if house.role != "producer":
                self.kept[number] = self.arena.start(house.role)
            elif house.returncode:
                first, count, since, seconds = self.orders[house.pid]
                self.arena.progress.look()
                missing = count - self.arena.progress.made[first // STRIDE]
                left = max(since + seconds - time.monotonic(), 1.0)
                self.kept[number] = self._produce(missing, left)
            elif on:
                some = max(self.plan.tasks // PRODUCERS // 10, 1)
                self.kept[number] = self._produce(some, self.plan.seconds * some * PRODUCERS / self.plan.tasks)

    def _produce(self, count: int, seconds: float) -> House:
        first = next(self.numbers)
        order = {"queue": self.arena.name, "seed": f"{self.plan.seed} {first}", "first": first, "count": count}
        more = {"seconds": seconds, "mix": self.plan.mix, "mode": self.plan.worker, "backlog": self.plan.backlog}
        house = self.arena.run("tests.chaos.producer", **order, **more, transactional=self.store.transactional)
        self.orders[house.pid] = (first, count, time.monotonic(), seconds)
        return house

    def _warm_up(self) -> None:
        """Wait until all workers have had something to do, and have opened what they keep open."""
        arena, deadline = self.arena, time.monotonic() + WARM_UP
        workers = sum(WORKERS.get(role, 0) for role in self.plan.houses)
        while len({monitor for monitor, server in arena.guardians() if server in arena.ready}) < workers:
            if time.monotonic() > deadline:
                sys.exit(f"the workers do not start: see {arena.folder}")
            time.sleep(0.05)
        for _ in range(4 * arena.slots()):
            arena.put(tasks.nap, 0.1)
        arena.drain()
        arena.warm()

    def _wait_for_producers(self) -> None:
        progress, most = self.arena.progress, 0
        deadline = time.monotonic()
        while any(house.role == "producer" and house.poll() is None for house in self.kept):
            progress.look()
            if progress.made.total() > most:
                most, deadline = progress.made.total(), time.monotonic() + self.plan.seconds + PATIENCE
            if time.monotonic() > deadline:
                raise TimeoutError(f"the producers have enqueued {most} tasks, and do not go on")
            time.sleep(0.05)
