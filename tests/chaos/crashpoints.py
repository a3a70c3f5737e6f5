"""Every crash point, one after the other, and the verdict on each; ends with 1 if any has a finding.

``make crashpoints`` runs this. There are two kinds. At the store: each operation, the role that sends it, and whether
that dies before the request arrives, after its effect, or with the answer (``claim monitor after-effect redis``). And
system calls: just before the n-th of its name (``fsync#3 courier sqlite``); all of them in the long form.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

from tests.chaos import call_scenes, syscalls
from tests.chaos.arena import Arena
from tests.chaos.crash_scenes import PLOTS, POSITIONS, Check, NotReached, Stage
from tests.chaos.points import Outcome, Point, Table, chosen, merge
from tests.chaos.proxy import Proxy
from tests.chaos.stores import RedisStore, Store, open_store

EVERY = 25  # system calls of which the short form takes one
QUIET = 0.3  # seconds for which the queue has to be empty at the end of a point
SLACK = 10.0  # seconds that the machine may be slow; see Arena.judge()
STORES = ("sqlite", "redis", "postgres", "mongodb")
LEASE = 4.0  # seconds: longer than a busy machine takes to start a stand-in, which loads the store's driver first

POINTS = [
    Point(plot.operation, plot.role, position, store)
    for plot in PLOTS
    for store in plot.stores
    for position in POSITIONS
]
ALL_ROLES = tuple(dict.fromkeys([*(plot.role for plot in PLOTS), *call_scenes.ROLES]))
SCENES = {(plot.operation, plot.role): plot.scene for plot in PLOTS}


def run(point: Point, store: Store, folder: Path, lease: float = LEASE, broker: str = "") -> Outcome:
    """Go there, let all end in peace, and judge; the folder gets the logs. For `broker`, see :class:`Arena`."""
    begun = time.monotonic()
    outcome = Outcome()
    check: Check | None = None
    mode = "preforked" if point.position else call_scenes.ROLES[point.role][0]
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(store.url, folder)) if point.position else None
        url = proxy.url if proxy else store.url
        arena = stack.enter_context(Arena(folder, url, mode, direct=store.url, lease=lease, broker=broker))
        try:
            if proxy:
                check = SCENES[point.what, point.role](Stage(arena, proxy, point.position))
            else:
                outcome.reached = call_scenes.play(Stage(arena), point.role, point.what)
        except NotReached as error:
            outcome.findings.append(str(error))
        if proxy:
            proxy.set()
            arena.start()
        arena.drain(quiet=QUIET)
        arena.close()
        _look(arena, store)
        verdict = arena.judge(SLACK)
        outcome.findings += [f"{column}: {words}" for column, found in verdict.findings.items() for words in found]
        outcome.findings += check(arena.history()) if check else []
        outcome.reruns = sum(verdict.explained.values())
    outcome.seconds = time.monotonic() - begun
    return outcome


def _look(arena: Arena, store: Store) -> None:
    """Note what is in the store when all is over; other points may be using it, too."""
    runs = arena.history().runs
    for intent, run in store.effects():
        if run in runs:
            arena.note("effect", intent=intent, run=run)
    if isinstance(store, RedisStore):
        for words in store.leftovers(arena.name):
            arena.note("leak", words=words)


def prime(store: Store) -> None:
    """Ask a store for everything once: an answer that only says that it does not know the script yet is no effect."""
    with tempfile.TemporaryDirectory() as folder, Arena(Path(folder), store.url) as arena:
        broker, name = arena.queue.broker, arena.name
        arena.put(prime)
        arena.put(prime, unique=True)
        claims = broker.claim([name], "w", 1, 1, 1, 9.0)
        broker.renew("w", [name], [claim.ref for claim in claims], 9.0)
        broker.held("w", [name])
        broker.sweep(name)
        broker.remove(name, 1)


class Runner:
    """Tries points, several at a time, and says what becomes of each.

    Args:
        record: a file that keeps what became of them: those in it are not tried again; None: there is none.
        until: when no further one is begun, by :func:`time.monotonic`.
    """

    def __init__(self, stores: Mapping[str, Store], jobs: int, lease: float, record: Path | None, until: float) -> None:
        self.stores = stores
        self.jobs = jobs
        self.lease = lease
        self.record = record
        self.until = until
        self.outcomes: dict[Point, Outcome] = {}
        self.calls: dict[tuple[str, str], list[str]] = {}  # (role, store) -> the system calls that there are
        for line in record.read_text().splitlines() if record and record.exists() else ():
            entry = json.loads(line)
            if "calls" in entry:
                self.calls[entry["role"], entry["store"]] = entry["calls"]
            else:
                self.outcomes[Point(**entry["point"])] = Outcome(**entry["outcome"])

    def run(self, points: Sequence[Point]) -> None:
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(self._one, [point for point in points if point not in self.outcomes]))

    def calls_of(self, role: str, store: str) -> list[Point]:
        """The crash points that a run without harm shows."""
        if (role, store) not in self.calls and (folder := self._one(Point("", role, "", store), keep=True)):
            self.calls[role, store] = calls = syscalls.calls(folder / syscalls.TRACE)
            shutil.rmtree(folder)
            self._note({"role": role, "store": store, "calls": calls})
        return [Point(call, role, "", store) for call in self.calls.get((role, store), ())]

    def _note(self, entry: Mapping[str, Any]) -> None:
        if self.record:
            with open(self.record, "a") as file:
                file.write(json.dumps(entry) + "\n")

    def _one(self, point: Point, keep: bool = False) -> Path | None:
        """Try it; the folder of its logs, if it was tried."""
        if time.monotonic() > self.until:
            return None
        folder = Path(tempfile.mkdtemp(prefix="delayed-crash-"))
        try:
            outcome = run(point, self.stores[point.store], folder, self.lease)
        except Exception as error:  # the judge's own; the other points are tried all the same
            outcome = Outcome(findings=[f"{type(error).__name__}: {error}"])
        if point.what or outcome.findings:
            self.outcomes[point] = outcome
            self._note({"point": asdict(point), "outcome": asdict(outcome)})
        words = str(outcome) if point.what or outcome.findings else "no harm"
        lines = [f"{point} ... {words} ({outcome.seconds:.1f} s)", *[f"    {it}" for it in outcome.findings]]
        if outcome.findings:
            lines.append(f"    the logs are in {folder}")
        elif not keep:
            shutil.rmtree(folder)
        print("\n".join(lines), flush=True)
        return folder


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.crashpoints", description=__doc__)
    parser.add_argument("--store", action="append", choices=STORES, help="this one only; may be given again")
    parser.add_argument(
        "--role", action="append", choices=ALL_ROLES, help="only whoever is called so; may be given again"
    )
    parser.add_argument("--only", default="", help='points with all these words: "claim monitor", "fsync#3 courier"')
    parser.add_argument("--long", action="store_true", help=f"every system call, not one of {EVERY}")
    parser.add_argument("--seed", type=int, default=random.randrange(EVERY), help="which of them the short form takes")
    parser.add_argument("--lease", type=float, default=LEASE, help="of the workers, seconds")
    parser.add_argument("--jobs", type=int, default=2, help="points that are tried at the same time")
    parser.add_argument("--record", type=Path, help="a file for what became of each; those in it are not tried again")
    parser.add_argument("--minutes", type=float, default=inf, help="begin no further point after so long")
    parser.add_argument("--write", action="store_true", help="write the rows that were tried into docs/guarantees.md")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    kinds, roles, words = options.store or STORES, options.role or ALL_ROLES, options.only.split()
    if options.write and options.only:
        sys.exit("the tables have whole rows: --write does not go with --only")
    print(f"python -m tests.chaos.crashpoints --seed {options.seed}{' --long' * options.long}", flush=True)
    with ExitStack() as stack:
        stores = {kind: stack.enter_context(open_store(kind)) for kind in kinds}
        until = time.monotonic() + options.minutes * 60
        runner = Runner(stores, options.jobs, options.lease, options.record, until)
        points = [point for point in chosen(POINTS, kinds, words) if point.role in roles]
        for kind in dict.fromkeys(point.store for point in points):
            prime(stores[kind])
        runner.run(points)
        _try_calls(runner, kinds, roles, words, 1 if options.long else EVERY, options.seed)
    table = Table.of(runner.outcomes, {key: len(calls) for key, calls in runner.calls.items()})
    print(table)
    if options.write:
        merge(table)
    return 1 if any(outcome.findings for outcome in runner.outcomes.values()) else 0


def _try_calls(
    runner: Runner, kinds: Sequence[str], roles: Sequence[str], words: Sequence[str], step: int, seed: int
) -> None:
    """Try every `step`-th system call of each role."""
    if why := syscalls.missing():
        print(f"system calls ... skipped: {why}")
        return
    for role, (_, stores) in call_scenes.ROLES.items():
        for store in stores:
            exact = [Point(word, role, "", store) for word in words if "#" in word]
            # Some of these roles have operations too, which may be all that is wanted.
            if (
                store not in kinds
                or role not in roles
                or not set(words) <= {role, store, "call", *[point.what for point in exact]}
            ):
                continue
            runner.run(exact or runner.calls_of(role, store)[seed % step :: step])


if __name__ == "__main__":
    sys.exit(main())
