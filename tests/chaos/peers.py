"""The same judge on other libraries: ``python -m tests.chaos.peers``. It installs them into an environment of its own.

A judge that finds nothing in a library may be blind. Here it looks at two others, as they are by default, on a real
Redis: tasks are under way, and every second a worker is killed with all its processes, and another one is started. Of
its columns these are shown that mean something for a library that it does not know: what never returned, and what ran
again, or twice at once, although nobody had died. Our own workers are treated the same way.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import tasks
from tests.chaos.arena import ROOT, Arena
from tests.chaos.checker import Bounds, Verdict, judge
from tests.chaos.history import History
from tests.chaos.processes import below, send, with_marker
from tests.chaos.records import ENQUEUED, LEDGER, NEMESIS, note, now, read
from tests.chaos.stores import open_store

PACKAGES = {"rq": ["rq"], "celery": ["celery[redis]"]}
WORKERS = {
    "rq": ["rq", "worker", "--url", "{url}", "chaos"],
    "celery": ["celery", "-A", "tests.chaos.peer_celery", "worker", "--concurrency", "1"],
}
COLUMNS = ("lost", "rerun", "overlap")
AT_ONCE = 2  # workers, each of which runs one task at a time
PACE = 1.0  # seconds from one kill to the next
PATIENCE = 30.0  # seconds without anything new, after which no more is expected


@dataclass
class Peer:
    """One of them, at work.

    Attributes:
        name: rq or celery.
        bin: of the environment that it is installed in.
        folder: for the logs.
        url: of the Redis.
    """

    name: str
    bin: Path
    folder: Path
    url: str
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        command, *rest = (word.format(url=self.url) for word in WORKERS[self.name])
        with open(self.folder / f"worker-{now()}.log", "wb") as log:
            worker = subprocess.Popen([self.bin / command, *rest], cwd=ROOT, env=self.environ(), stdout=log, stderr=log)
        note(self.folder / NEMESIS, "born", role="worker", pid=worker.pid, parent=worker.pid)  # its own guardian
        self.workers.append(worker)

    def environ(self) -> dict[str, str]:
        return {**os.environ, tasks.FOLDER: str(self.folder), tasks.URL: self.url, "PYTHONPATH": str(ROOT)}

    def produce(self, count: int, seconds: float) -> None:
        code = f"from tests.chaos.peer_tasks import main; main({self.name!r}, {self.url!r}, {count}, {seconds})"
        subprocess.run([self.bin / "python", "-c", code], cwd=ROOT, env=self.environ(), check=True)

    def kill_one(self) -> None:
        worker = self.workers.pop(0)
        for pid in list(below(worker.pid)):
            sent = now()
            if send(pid, signal.SIGKILL):
                note(self.folder / NEMESIS, "kill", role="worker", pid=pid, sent=sent)
        worker.wait()
        self.start()

    def history(self) -> History:
        return History(read(self.folder / LEDGER), read(self.folder / ENQUEUED), read(self.folder / NEMESIS))

    def close(self) -> None:
        for pid in with_marker(str(self.folder)):
            send(pid, signal.SIGKILL)
        for worker in self.workers:
            worker.wait()


def harm(history: Callable[[], History], kill_one: Callable[[], object], kills: int) -> None:
    """Kill a worker now and then, from when the first task has begun; then wait until nothing comes any more."""
    while not history().runs:
        time.sleep(0.05)
    for _ in range(kills):
        kill_one()
        time.sleep(PACE)
    last, since = 0, time.monotonic()
    while time.monotonic() < since + PATIENCE:
        found = history()
        if all(any(run.returned for run in intent.runs) for intent in found.intents.values()):
            return
        if len(found.runs) > last:
            last, since = len(found.runs), time.monotonic()
        time.sleep(0.1)


def theirs(name: str, bin: Path, folder: Path, url: str, count: int, seconds: float, kills: int) -> Verdict:
    peer = Peer(name, bin, folder, url)
    try:
        for _ in range(AT_ONCE):
            peer.start()
        peer.produce(count, seconds)
        harm(peer.history, peer.kill_one, kills)
    finally:
        peer.close()
    return judge(read(folder / LEDGER), read(folder / ENQUEUED), read(folder / NEMESIS), Bounds())


def ours(folder: Path, url: str, count: int, seconds: float, kills: int) -> Verdict:
    with Arena(folder, url, processes=1) as arena:
        for _ in range(AT_ONCE):
            arena.start()
        for _ in range(count):
            arena.put(tasks.nap, seconds)

        def kill_one() -> None:
            house = next(house for house in arena.houses if house.poll() is None)
            for pid, role in zip(list(below(house.pid)), ("monitor", "forkserver"), strict=False):
                arena.kill(pid, role)
            arena.start()

        harm(arena.history, kill_one, kills)
        return arena.judge()


@contextmanager
def installed(names: list[str]) -> Iterator[Path]:
    """The folder of the programs of an environment that they are in."""
    with tempfile.TemporaryDirectory(prefix="delayed-peers-") as folder:
        venv.create(folder, with_pip=True)
        bin = Path(folder) / "bin"
        packages = [package for name in names for package in PACKAGES[name]]
        subprocess.run([bin / "python", "-m", "pip", "install", "--quiet", *packages], check=True)
        yield bin


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.peers", description=__doc__)
    parser.add_argument("--peer", action="append", choices=WORKERS, help="this one only; may be given again")
    parser.add_argument("--tasks", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each takes")
    parser.add_argument("--kills", type=int, default=5)
    options = parser.parse_args()
    names = options.peer or list(WORKERS)
    with installed(names) as bin:
        print(
            f"| | tasks | kills | {' | '.join(COLUMNS)} | ran again, as it had to |\n{'| --- ' * (len(COLUMNS) + 4)}|"
        )
        for name in ("delayed", *names):
            with ExitStack() as stack:
                store = stack.enter_context(open_store("redis"))
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="delayed-peer-")))
                plan = (folder, store.url, options.tasks, options.seconds, options.kills)
                verdict = ours(*plan) if name == "delayed" else theirs(name, bin, *plan)
            found = " | ".join(str(len(verdict.findings[column])) for column in COLUMNS)
            reruns = sum(verdict.explained.values())
            print(f"| {name} | {options.tasks} | {options.kills} | {found} | {reruns} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
