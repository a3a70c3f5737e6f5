"""What is measured of a peer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.peers import processes
from benchmarks.peers.catalog import Peer
from benchmarks.peers.environments import ROOT, packages
from benchmarks.peers.stands import Stand
from benchmarks.peers.work import COUNT, FOLDER, STAMPS

PATIENCE = 60.0  # seconds that a drain may take
LOOK = 0.002  # seconds between two looks at how far a drain is
LINGER = 0.3  # seconds after a drain in which a task that runs again is seen
SETTLED = 15.0  # seconds after its first task until a worker is taken to be idle: chores of the beginning are over


class Subject(NamedTuple):
    """A peer, its Python, the store that it stands on, and what its client told of it, once that was asked."""

    peer: Peer
    python: Path
    stand: Stand
    told: Mapping[str, Any] = MappingProxyType({})


class Failed(Exception):
    """Raised when a run did not do what it had to, with what it did."""


class Site:
    """A subject in its environment, on an emptied store, with a folder for the files of its tasks."""

    def __init__(self, subject: Subject, way: str, folder: Path) -> None:
        self.subject, self.way, self.folder = subject, way, folder
        self.url = subject.stand.fresh()
        python = subject.python
        self.environ = {
            **os.environ,
            "PATH": f"{python.parent}:{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(ROOT),
            "PEERS_URL": self.url,
            "PEERS_WAY": way,
            FOLDER: str(folder),
        }

    def client(self, job: str, *arguments: object) -> Any:
        module = self.subject.peer.module
        command = [str(self.subject.python), "-m", "benchmarks.peers.client", module, job, *map(str, arguments)]
        done = subprocess.run(command, env=self.environ, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE * 3)
        if done.returncode:
            raise Failed(f"its client failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        return json.loads(done.stdout.splitlines()[-1])

    def worker(self) -> AbstractContextManager[list[int]]:
        """The process ids of a worker, for as long as the block runs."""
        _, commands = self.subject.told["workers"][self.way]
        commands = [[word.replace("{url}", self.url) for word in command] for command in commands]
        return processes.running(commands, self.environ, self.folder / "log")

    def move(self, url: str) -> None:
        """Whoever is started from now on reaches the store by this URL."""
        self.url = self.environ["PEERS_URL"] = url

    def drained(self, tasks: int) -> float:
        """Tasks a second that a worker runs of a full queue, from when a fifth has run until all have.

        Raises:
            Failed: When not each of them ran exactly once.
        """
        with self.worker():
            begun = self.until(COUNT, max(1, tasks // 5))
            before = self.size(COUNT)
            ended = self.until(COUNT, tasks)
            time.sleep(LINGER)
        if (ran := self.size(COUNT)) != tasks:
            raise Failed(f"{tasks} tasks ran {ran} times")
        return (tasks - before) / max(ended - begun, LOOK)

    def size(self, name: str) -> int:
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return 0

    def lines(self, name: str) -> list[str]:
        """Those that are complete."""
        if not self.size(name):
            return []
        return (self.folder / name).read_text().rpartition("\n")[0].splitlines()

    def until(self, name: str, size: int) -> float:
        """Waits until the file has so many bytes; when that was."""
        deadline = time.monotonic() + PATIENCE
        while self.size(name) < size:
            if time.monotonic() > deadline:
                raise Failed(f"{self.size(name)} of {size} within {PATIENCE:g} s; its log ends with: {self.log()}")
            time.sleep(LOOK)
        return time.monotonic()

    def log(self) -> str:
        path = self.folder / "log"
        return " | ".join(path.read_text(errors="replace").splitlines()[-3:])[-300:] if path.exists() else ""


@contextmanager
def site(subject: Subject, way: str = "") -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        yield Site(subject, way, Path(folder))


def asked(subject: Subject) -> Subject:
    """The subject, with what its client tells of it."""
    with site(subject) as place:
        return subject._replace(told=place.client("describe", *packages(subject.peer)))


def enqueue(subject: Subject, single: int, many: int) -> dict[str, float]:
    """Tasks a second that are enqueued ``one by one`` and in ``bulk``; 0 where the peer has no bulk."""
    with site(subject) as place:
        return dict(place.client("fill", "count", single + many * subject.told["bulk"], single))


def drain(subject: Subject, way: str, tasks: int) -> float:
    """Tasks a second of a full queue; see :meth:`Site.drained`."""
    with site(subject, way) as place:
        place.client("fill", "count", tasks, 0)
        return place.drained(tasks)


def idle(subject: Subject, way: str, seconds: float, tasks: int) -> dict[str, Any]:
    """Start-up in seconds, from the command to the first line of a task that waits; then, if `seconds` is not 0, what
    an idle worker uses in that time: bytes, cores, commands a second; then latencies.
    """
    with site(subject, way) as place:
        place.client("fill", "stamp", 1, 1)
        begun = time.monotonic_ns()
        with place.worker() as pids:
            place.until(STAMPS, 1)
            found: dict[str, Any] = {"start": (int((place.folder / STAMPS).read_text()) - begun) / 1e9}
            if seconds:
                time.sleep(SETTLED)
                before = processes.cpu(pids)
                found["asked"] = subject.stand.asked(place.url, seconds)
                found["cpu"] = (processes.cpu(pids) - before) / seconds
                found["memory"] = processes.memory(pids)
            found["latencies"] = place.client("latency", tasks, max(2.0, tasks * 0.05))
        return found


def importing(n: int = 5) -> float:
    """Seconds that ``from delayed import Queue, delayed`` takes in an interpreter that has just started, at best."""
    code = "from time import perf_counter as t; s = t(); from delayed import Queue, delayed; print(t() - s)"
    command = [sys.executable, "-c", code]
    return min(float(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout) for _ in range(n))
