"""Very many tasks of all kinds, and children that are killed: is everything as it was, when all is quiet again?

``python -m tests.chaos.flat --store redis --worker preforked --tasks 100000`` prints what the guardians take after each
tenth of the tasks, and ends with 1 if they have grown, if something is left in the store, or if the judge finds fault
with a task. Nobody but children is killed, for who is new has no memory to compare.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from delayed import Group, Limit, Retry, Unique
from delayed.delay import Call
from delayed.options import Options
from tests.chaos import tasks
from tests.chaos.arena import Arena
from tests.chaos.checker import Verdict
from tests.chaos.house import KINDS
from tests.chaos.nemesis import Nemesis
from tests.chaos.records import ENQUEUED, note
from tests.chaos.residue import MB, Residue, residue
from tests.chaos.stores import STORES, Store, bare, open_store
from tests.chaos.table import table

WORKERS = 2  # of the supervisor
LOOKS = 10
BATCH = 100  # tasks that are drawn together
WAITING = 200  # tasks that wait at most: what follows a group has to come while its answers are kept
KEEP = 60.0  # seconds for which these are
START = 30.0  # seconds that workers get to start
DRAIN = 300.0  # seconds in which a tenth of the tasks has to end
STILL = 10.0  # seconds for which nothing changes in a store that has forgotten what it keeps for a short time
FORGET = 150.0  # seconds that it gets for that
NAMES = 100_000  # small values that are counted
SHOWN = 5  # ... and shown, if something is left
SLACK = 30.0  # seconds by which a task may come late: others wait, too
LOCKS = 1000  # names of them
RETRY = Retry(100, delay=0.0)
MEMBERS = 5  # tasks of a group
# (how many of a hundred draws, kind)
MIX = (
    (50, "noop"), (15, "kept"), (8, "moody"), (6, "later"), (5, "unique"), (5, "locked"), (4, "limited"),
    (3, "crowded"), (2, "urgent"), (1, "group"), (0.7, "nap"), (0.3, "stuck"),
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is to happen: see the module, and the arguments."""

    store: str = "redis"
    worker: str = "preforked"
    tasks: int = 100_000
    warm: int = 5000
    seed: int = 0
    lease: float = 15.0
    kills: float = 5.0

    def __str__(self) -> str:
        return " ".join(f"--{name} {value}" for name, value in vars(self).items())


class Flat:
    """One run: a supervisor of two workers, and one who kills their children."""

    def __init__(self, plan: Plan, folder: Path, store: Store) -> None:
        self.plan = plan
        self.store = store
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.arena = Arena(folder, store.url, plan.worker, lease=plan.lease, temporary=str(self.temporary))
        self.dice = random.Random(plan.seed)
        self.numbers = iter(range(1, 1 << 40))
        self.nemesis = Nemesis(self.arena, store, self.dice)
        self.nemesis.faults = {"kill child": self.nemesis.faults["kill child"]}
        self.looks: list[Residue] = []
        self._strike_at = 0.0

    def run(self, say: bool = True) -> tuple[Verdict, list[str]]:
        """Do it all; the judge's verdict, and in sentences what has grown, or is left.

        Args:
            say: whether to print each look.
        """
        plan = self.plan
        with self.arena as arena:
            self.supervisor = arena.start("supervisor")
            self._wait_for_workers()
            self._feed(plan.warm)
            empty = self._settled(None)
            arena.warm()
            self._look(0, say)
            ends = [plan.tasks * part // LOOKS for part in range(1, LOOKS + 1)]
            for begun, end in pairwise([0, *ends]):
                self._feed(end - begun)
                left = self._settled(empty) if end == plan.tasks else empty
                self._look(end, say)
            findings = [*self.looks[-1].grown(self.looks[0]), *more(empty, left)]
            if findings:
                findings += self._values()
            arena.close()
            for words in self.store.leftovers(arena.name):
                arena.note("leak", words=words)
            return arena.judge(SLACK), findings

    # -- tasks ---------------------------------------------------------------------------------------------------

    def _feed(self, count: int) -> None:
        """Enqueue tasks, never too many ahead, and wait until all of them have ended."""
        while count > 0:
            while sum(self.arena.counts()[:3]) > WAITING:
                self._harm()
                time.sleep(0.02)
            self._put(min(BATCH, count))
            self._harm()
            count -= BATCH
        if not self.arena.drain(DRAIN, quiet=0.5):
            sys.exit(f"the queue does not become empty: {self.arena.counts()}; see {self.folder}")

    def _harm(self) -> None:
        at = time.monotonic()
        if at >= self._strike_at and self.plan.kills:
            self.nemesis.strike()
            self._strike_at = at + self.dice.expovariate(self.plan.kills)

    def _put(self, count: int) -> None:
        """Draw so many tasks of the mix, and enqueue those of a kind together."""
        shares, kinds = [share for share, _ in MIX], [kind for _, kind in MIX]
        for kind, number in Counter(self.dice.choices(kinds, shares, k=count)).items():
            if kind == "group":
                for _ in range(number):
                    members = self._enqueue(MEMBERS - 1, tasks.noop, keep=KEEP)
                    self._enqueue(1, tasks.noop, after=members)
            else:
                func, args, options = self._kind(kind)
                self._enqueue(number, func, *args, **options)

    def _kind(self, kind: str) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """Of a kind: its function, its arguments after the intent, its options."""
        nap = tasks.nap_async if self.plan.worker == "async" else tasks.nap
        kinds: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
            "noop": (tasks.noop, (), {}),
            "kept": (tasks.noop, (), {"keep": 2.0}),
            "moody": (tasks.moody, (1,), {}),
            "later": (tasks.noop, (), {"delay": 0.3}),
            "unique": (tasks.noop, (), {"unique": Unique("chaos {intent}")}),
            "locked": (tasks.locked, (f"lock {self.dice.randrange(LOCKS)}",), {}),
            "limited": (tasks.noop, (), {"limit": Limit(at_once=1, by="intent")}),
            "crowded": (tasks.noop, (), {"at_once": 3}),
            "urgent": (tasks.noop, (), {"priority": 5, "exclusive": True}),
            "nap": (nap, (0.01,), {}),
            "stuck": (nap, (30.0,), {"timeout": 0.2, "retry": None}),
        }
        return kinds[kind]

    def _enqueue(self, count: int, func: Callable[..., Any], *args: Any, **options: Any) -> Group[Any]:
        """Enqueue so many calls, each with the number of its intent first, and note what became of that."""
        log = self.folder / ENQUEUED
        options = {"retry": RETRY, **options}
        retry, delay = options["retry"], options.get("delay", 0.0)
        numbers = [next(self.numbers) for _ in range(count)]
        for number in numbers:
            note(log, "intent", intent=number, kind=func.__name__, retry=retry.max if retry else 0, delay=delay)
        call: Call[..., Any] = Call(func, self.arena.queue, Options().updated(options))
        group = call.starmap((number, *args) for number in numbers)
        for number, handle in zip(numbers, group, strict=True):
            note(log, "ok", intent=number, id=handle.id)
        return group

    # -- looks -----------------------------------------------------------------------------------------------------

    def _look(self, done: int, say: bool) -> None:
        guardians = {f"supervisor {self.supervisor.pid}": self.supervisor.pid}
        for monitor, server in self.arena.guardians():
            guardians |= {f"monitor {monitor}": monitor, f"fork server {server}": server}
        found = residue(guardians, str(self.folder), self.temporary)
        self.looks.append(found)
        if say:
            print(f"{done:>7} tasks; the store: {self.store.size() / MB:.1f} MB; {found}", flush=True)

    def _settled(self, empty: Mapping[str, int] | None) -> Mapping[str, int]:
        """What is in the store when it is as it was when it was `empty`, or, if that is None, when it does not change
        any more; else what is there after :data:`FORGET` seconds.
        """
        deadline = time.monotonic() + FORGET
        found, since = self._inventory(), time.monotonic()
        while time.monotonic() < deadline:
            if empty is not None and not more(empty, found):
                break
            if empty is None and time.monotonic() - since > STILL:
                break
            time.sleep(1.0)
            now = self._inventory()
            if now != found:
                found, since = now, time.monotonic()
        return found

    def _inventory(self) -> Mapping[str, int]:
        names = self.arena.queue.broker.list_keys(self.arena.name, "", NAMES)
        return {**self.store.inventory(), **Counter(f"small values {bare(name)}" for name in names)}

    def _values(self) -> list[str]:
        """The small values that there are, such as locks and limits, as far as they can be shown."""
        broker, queue = self.arena.queue.broker, self.arena.name
        found = broker.get_keys(queue, broker.list_keys(queue, "", SHOWN))
        return [f"there is {name} = {kept.value!r}"[:200] for name, kept in found.items()]

    def _wait_for_workers(self) -> None:
        deadline = time.monotonic() + START
        while len(set(self.arena.guardians())) < WORKERS or len(self.arena.ready) < WORKERS:
            if time.monotonic() > deadline:
                sys.exit(f"the workers do not start: see {self.folder}")
            time.sleep(0.05)


def more(before: Mapping[str, int], now: Mapping[str, int]) -> list[str]:
    """In sentences, what there is more in a store than there was."""
    return [
        f"the store has {count} {what}, and had {before.get(what, 0)}"
        for what, count in sorted(now.items())
        if count > before.get(what, 0)
    ]


def arguments() -> Plan:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.flat", description=__doc__)
    default = Plan()
    parser.add_argument("--store", choices=STORES, default=default.store)
    parser.add_argument("--worker", choices=KINDS, default=default.worker)
    parser.add_argument("--tasks", type=int, default=default.tasks, help="how many, after those by which it gets warm")
    parser.add_argument("--warm", type=int, default=default.warm, help="how many before the first look")
    parser.add_argument("--kills", type=float, default=default.kills, help="children that are killed a second")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--lease", type=float, default=default.lease)
    return Plan(**vars(parser.parse_args()))


def main() -> int:
    plan = arguments()
    print(f"python -m tests.chaos.flat {plan}", flush=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that no process is left
    folder = Path(tempfile.mkdtemp(prefix="delayed-chaos-"))
    with open_store(plan.store) as store:
        flat = Flat(plan, folder, store)
        verdict, findings = flat.run()
    print(table(verdict, flat.nemesis.done))
    print("\n".join(["", *findings]) if findings else "\nnothing has grown, and nothing is left")
    if verdict.passed and not findings:
        shutil.rmtree(folder)
        return 0
    print(f"FAILED; the logs are in {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
