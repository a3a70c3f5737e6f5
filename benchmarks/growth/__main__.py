"""``python -m benchmarks.growth [--only waiting,stuck,…] [--stores redis,…] [--rounds 3] [--quick] [--write]``: how
this library does with more workers, tasks, bytes and queues, further away from its store, and when a task is stuck.

Everything is measured once in each round; what needs long, stuck tasks, and what is always the same, bytes, in the
first round only.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time

from rich.console import Console

from benchmarks import limits
from benchmarks.growth import curves, network, report, sleepers, stuck
from benchmarks.growth.curves import CURVES, STORES
from benchmarks.page import PAGE, put
from benchmarks.peers import measures
from benchmarks.peers.catalog import PEERS
from benchmarks.peers.environments import interpreter
from benchmarks.peers.figures import Figures, Key
from benchmarks.peers.stands import Stand, stand

PARTS = (*CURVES, "bytes", "network", "stuck", "sleepers")
STUCK = 10  # times


class Run:
    def __init__(self, only: list[str], stores: list[str], rounds: int, quick: bool, console: Console) -> None:
        self.only, self.stores, self.rounds, self.console = only, stores, rounds, console
        self.part = 10 if quick else 1  # by which all numbers of tasks are divided
        self.figures = Figures()
        self.stands: dict[str, Stand] = {}

    def measure(self) -> None:
        with contextlib.ExitStack() as servers:
            for store in dict.fromkeys([*self.stores, "redis"]):
                self.stands[store] = servers.enter_context(stand(store))
            for number in range(self.rounds):
                self.console.print(f"round {number + 1} of {self.rounds}")
                for part in self.only:
                    begun = time.monotonic()
                    if part in CURVES:
                        self.curve(part)
                    elif number == 0 or part not in ("bytes", "stuck"):
                        getattr(self, part)()
                    self.console.print(f"  {part}: {time.monotonic() - begun:.0f} s")

    def curve(self, name: str) -> None:
        for store in self.stores:
            for point in curves.points(name, store):
                if self.part > 1 and point > 100_000:  # as many as nobody waits for
                    continue
                key = Key(store, name, str(point))
                with self.noting(key):
                    rate = CURVES[name].measure(store, self.stands[store], point, self.part)
                    self.figures.add(key, rate)

    def bytes(self) -> None:
        for store in self.stores:
            with self.noting(Key(store, "bytes")):
                self.figures.add(Key(store, "bytes"), curves.bytes_per_task(self.stands[store], self.part))

    def network(self) -> None:
        redis = self.stands["redis"]
        for way, added in network.WAYS.items():
            with self.noting(Key("redis", "trip", way)):
                self.figures.add(Key("redis", "trip", way), network.trip(redis, added))
        for name in network.WHO:
            with self.noting(Key(name, "network")):
                peer = PEERS[name]
                subject = measures.asked(measures.Subject(peer, interpreter(peer), redis))
                tasks, _ = subject.told["workers"]["one"]
                for way, added in network.WAYS.items():
                    rate = network.drain(subject, added, max(4, tasks // self.part))
                    self.figures.add(Key(name, "network", way), rate)

    def stuck(self) -> None:
        for mode in stuck.MODES:
            for kind in stuck.KINDS:
                with self.noting(Key(mode, "stuck", kind)):
                    for one in stuck.stops(self.stands["redis"], mode, kind, max(1, STUCK // self.part)):
                        found = {"after": one.after, "late": one.late, "killed": one.killed, "next": one.next}
                        for what, value in found.items():
                            self.figures.add(Key(mode, what, kind), value)

    def sleepers(self) -> None:
        for mode in sleepers.MODES:
            with self.noting(Key(mode, "sleepers")):
                for way, seconds in sleepers.sleepers(self.stands["redis"], mode).items():
                    self.figures.add(Key(mode, "sleepers", way), seconds)
        for way, seconds in limits.sleeping_threads(sleepers.MANY, sleepers.SECONDS).items():
            self.figures.add(Key(sleepers.POOL, "sleepers", way), seconds)

    def noting(self, key: Key) -> contextlib.AbstractContextManager[None]:
        return self.figures.noting(key, lambda line: self.console.print(f"  {line}", markup=False))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth")
    parser.add_argument("--only", metavar="PART,…", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--stores", metavar="STORE,…", help=f"of {', '.join(STORES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one round of a tenth of the tasks: to see that it works")
    parser.add_argument("--write", action="store_true", help=f"write its part of docs/{PAGE.name} and its plots")
    options = parser.parse_args()
    chosen = {}
    for name, known in (("only", [*PARTS]), ("stores", [*STORES])):
        given = getattr(options, name)
        chosen[name] = given.split(",") if given else known
        if unknown := [each for each in chosen[name] if each not in known]:
            parser.error(f"--{name}: no {unknown[0]!r}; there are {', '.join(known)}")
    if options.write and (options.quick or options.only or options.stores):
        parser.error("--write is for a full run: without --quick, --only and --stores")
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which ends servers and workers too
    begun = time.monotonic()
    run = Run(chosen["only"], chosen["stores"], 1 if options.quick else options.rounds, options.quick, console)
    run.measure()
    servers = [stand.version for stand in run.stands.values()]
    page = report.page(run.figures, servers, run.rounds, time.monotonic() - begun)
    console.print(page, markup=False, soft_wrap=True)
    if options.write:
        put("growth", page)
        report.PLOT.write_text(report.plot(run.figures))
        report.BYTES_PLOT.write_text(report.bytes_plot(run.figures))
    return 1 if run.figures.failed else 0


if __name__ == "__main__":
    sys.exit(main())
