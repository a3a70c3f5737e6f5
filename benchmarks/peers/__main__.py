"""``python -m benchmarks.peers [--only rq,celery,…] [--rounds 5] [--quick] [--write]``: this library and its peers,
side by side, in one run, on servers of their own.

Each round measures the limits of the machine, and then everything of one peer after the other. What needs long to be
seen, an idle worker, is measured in the first round only. Environments for the peers are made in build/peers.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks import limits
from benchmarks.page import PAGE, put
from benchmarks.peers import client, measures, report
from benchmarks.peers.catalog import OURS, PEERS, Peer
from benchmarks.peers.environments import LeftOut, interpreter
from benchmarks.peers.figures import MACHINE, Figures, Key
from benchmarks.peers.stands import Stand, stand

SINGLE, MANY = 2000, 10_000  # tasks that are enqueued one by one, half of them timed, and in bulk
LATENCIES = 400  # of all rounds together
IDLE = 30.0  # seconds, in which who does something every few has several turns


class Run:
    """All rounds, with what they found."""

    def __init__(self, chosen: list[Peer], rounds: int, quick: bool, console: Console) -> None:
        self.rounds, self.console = rounds, console
        self.part = 10 if quick else 1  # by which all numbers of tasks are divided
        self.figures = Figures()
        self.left_out: dict[str, str] = {}
        self.stands: dict[str, Stand] = {}
        self.pythons: dict[Peer, Path] = {}
        self.subjects: list[measures.Subject] = []
        for peer in chosen:
            with console.status(f"{peer.name}: installing"):
                try:
                    self.pythons[peer] = interpreter(peer)
                except LeftOut as error:
                    self.left_out[peer.name] = str(error)

    def measure(self) -> None:
        with contextlib.ExitStack() as servers:
            for store in sorted({peer.store for peer in self.pythons} | {"redis"}):
                self.stands[store] = servers.enter_context(stand(store))
            for peer, python in self.pythons.items():
                try:
                    subject = measures.Subject(peer, python, self.stands[peer.store])
                    self.subjects.append(measures.asked(subject))
                except measures.Failed as error:
                    self.left_out[peer.name] = str(error)
            self.attempt(Key(OURS, "import"), measures.importing)
            for number in range(self.rounds):
                self.console.print(f"round {number + 1} of {self.rounds}")
                self.limits()
                for subject in self.subjects:
                    self.one_round(subject, IDLE if number == 0 else 0.0)

    def limits(self) -> None:
        url = self.stands["redis"].url
        for what, limit in {
            "PING": lambda: limits.pings(url),
            "pipelined PING": lambda: limits.pipelined(url),
            "forks": limits.forks,
            "pipe": limits.pipe_trips,
            "count": limits.writes,
            "call": limits.calls,
        }.items():
            self.attempt(Key(MACHINE, what), limit)
        self.attempt(Key(MACHINE, "PING after a pause"), lambda: limits.ping_after(url, client.PAUSE))
        if "postgres" in self.stands:
            self.attempt(Key(MACHINE, "SELECT 1"), lambda: limits.selects(self.stands["postgres"].url))
        if "mongodb" in self.stands:
            self.attempt(Key(MACHINE, "claims"), lambda: limits.mongo_claims(self.stands["mongodb"].fresh()))

    def one_round(self, subject: measures.Subject, idle: float) -> None:
        begun = time.monotonic()
        name = subject.peer.name
        with self.noting(Key(name, "enqueue")):
            rates = measures.enqueue(subject, SINGLE // self.part, MANY // self.part)
            for what, rate in rates.items():
                if rate:
                    self.figures.add(Key(name, what), rate)
        for way, (tasks, _) in subject.told["workers"].items():
            n = max(4, tasks // self.part)
            with self.noting(Key(name, "drain", way)):
                self.figures.add(Key(name, "drain", way), measures.drain(subject, way, n))
        for way in subject.peer.idle:
            with self.noting(Key(name, "idle", way)):
                found = measures.idle(subject, way, idle / self.part, LATENCIES // self.part // self.rounds)
                self.figures.add(Key(name, "latency", way), *found.pop("latencies"))
                for what, value in found.items():
                    self.figures.add(Key(name, what, way), value)
        drained = self.figures.get(name, "drain", "one") or 0.0
        self.console.print(f"  {name}: {drained:,.0f}/s by one process, {time.monotonic() - begun:.0f} s")

    def attempt(self, key: Key, measure: Callable[[], float]) -> None:
        with self.noting(key):
            self.figures.add(key, measure())

    def noting(self, key: Key) -> contextlib.AbstractContextManager[None]:
        return self.figures.noting(key, lambda line: self.console.print(f"  {line}", markup=False))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("--only", metavar="PEER,…", help=f"of {', '.join(PEERS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, interleaved (default: 5)")
    parser.add_argument("--quick", action="store_true", help="one round of a tenth of the tasks: to see that it works")
    parser.add_argument("--write", action="store_true", help=f"write docs/{PAGE.name} and its plot")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(PEERS)
    if unknown := [name for name in names if name not in PEERS]:
        parser.error(f"no peer {unknown[0]!r}; there are {', '.join(PEERS)}")
    if options.write and (options.quick or options.only):
        parser.error("--write is for a full run: without --quick and --only")
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which ends servers and workers too
    begun = time.monotonic()
    compileall.compile_dir("delayed", quiet=1)  # as pip does for those that it installs
    run = Run([PEERS[name] for name in names], 1 if options.quick else options.rounds, options.quick, console)
    run.measure()
    page = report.page(
        run.figures,
        {subject.peer.name: subject.told for subject in run.subjects},
        {stand.version: stand.unit for stand in run.stands.values()},
        run.left_out,
        run.rounds,
        time.monotonic() - begun,
    )
    console.print(page, markup=False, soft_wrap=True)
    if options.write:
        put("peers", page)
        report.PLOT.write_text(report.plot(run.figures))
    return 1 if any(key.peer in PEERS and PEERS[key.peer].ours for key in run.figures.failed) else 0


if __name__ == "__main__":
    sys.exit(main())
