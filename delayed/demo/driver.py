"""Starts a worker and a sweeper, gives them a few hundred tasks, and counts how each one ended."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import delayed
from delayed.delay import delay, delay_in_time
from delayed.demo import tasks
from delayed.demo.evidence import FOLDER_VARIABLE, Evidence
from delayed.errors import DelayedError
from delayed.message import Counts
from delayed.queue import Queue

VERDICTS = ("succeeded", "failed", "timed out", "killed")
FILES_MAX = 64  # files that are worked on; each gives a task for every hash and every compressor
STICK_TIMEOUT = 2.0  # seconds after which the stuck task is stopped
PATIENCE = 110.0  # seconds for everything
STOP_PATIENCE = 10.0  # seconds for the worker to leave

# What has to become of each kind of task.
EXPECTED = {
    "digest": "succeeded",
    "compress": "succeeded",
    "parse": "failed",
    "stick": "timed out",
    "die": "killed",
}


@dataclass(frozen=True)
class Progress:
    """One look: what is where (by the store's counts) and how the finished ones ended (by the evidence)."""

    enqueued: int
    counts: Counts
    verdicts: Counter[str]

    @property
    def finished(self) -> int:
        return self.verdicts.total()


class Demo:
    """A context in which a worker and a sweeper serve a queue of their own, which nobody else knows.

    Args:
        url: the store; None means a SQLite file in a temporary folder.
        processes: how many tasks run at once.
    """

    def __init__(self, url: str | None = None, processes: int = 2) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="delayed-demo-"))
        self.url = url or f"sqlite:///{self.folder}/demo.db"
        self.queue = Queue(f"demo-{os.urandom(4).hex()}", self.url)
        self.kinds: dict[int, str] = {}  # task id -> kind
        self.deadline = time.monotonic() + PATIENCE
        self._processes = processes
        self._evidence = Evidence(self.folder)
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        handlers = ("--success-handler", "delayed.demo.tasks:succeeded", "--error-handler", "delayed.demo.tasks:failed")
        preforked = ("--mode", "preforked", "--processes", str(self._processes), "--no-sweep")
        self._start("worker", *preforked, *handlers)
        self._start("sweeper")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop()
        with contextlib.suppress(DelayedError):
            self.queue.broker.purge(self.queue.name)  # on a store that lives on, leave nothing behind
        self.queue.broker.close()

    def forget(self) -> None:
        """Remove the folder with the log, the evidence and, if it was temporary, the store."""
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- the work --------------------------------------------------------------------------------------------------

    def plan(self) -> list[tuple[Callable[..., None], tuple[str, ...]]]:
        """The calls to make, the hopeless ones first."""
        files = [str(path) for path in own_files()]
        calls: list[tuple[Callable[..., None], tuple[str, ...]]] = [
            (tasks.stick, ()),
            (tasks.die, ()),
            (tasks.parse, (files[0],)),
        ]
        for path in files:
            calls += [(tasks.digest, (path, method)) for method in tasks.HASHES]
            calls += [(tasks.compress, (path, method)) for method in tasks.COMPRESSORS]
        return calls

    def enqueue(self, function: Callable[..., None], args: tuple[str, ...]) -> None:
        """Enqueue one call of the plan."""
        if function is tasks.stick:
            handle = delay_in_time(self.queue)(function, timeout=STICK_TIMEOUT)(*args)
        else:
            handle = delay(self.queue)(function)(*args)
        self.kinds[handle.id] = function.__name__

    def progress(self) -> Progress:
        """How far it is.

        Raises:
            DelayedError: When the worker or the sweeper has left.
        """
        for process in self._running:
            if process.poll() is not None:
                name = " ".join(map(str, process.args[3:4]))  # type: ignore[index]
                raise DelayedError(
                    f"`delayed {name}` left with exit code {process.returncode}; its last words: {self._last_words()}"
                )
        verdicts = Counter(fact["verdict"] for fact in self._verdicts())
        return Progress(len(self.kinds), self.queue.broker.counts(self.queue.name), verdicts)

    def watch(self, interval: float = 0.1) -> Iterator[Progress]:
        """Look every `interval` seconds, until all is finished and the store is empty, or patience is at its end."""
        while True:
            now = self.progress()
            yield now
            if now.finished >= len(self.kinds) and not any(now.counts):
                return
            if time.monotonic() > self.deadline:
                return
            time.sleep(interval)

    # -- the sums --------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Counter[str]]:
        """For each kind of task: how many were enqueued, and how many ended in which way."""
        table = {kind: Counter[str]() for kind in EXPECTED}
        for kind in self.kinds.values():
            table[kind]["enqueued"] += 1
        for fact in self._verdicts():
            table[self.kinds[fact["id"]]][fact["verdict"]] += 1
        return table

    def complaints(self) -> list[str]:
        """What does not add up; empty if everything does."""
        found: list[str] = []
        verdicts: dict[int, list[str]] = {id: [] for id in self.kinds}
        for fact in self._verdicts():
            verdicts[fact["id"]].append(fact["verdict"])
        for id, kind in self.kinds.items():
            if verdicts[id] != [EXPECTED[kind]]:
                ended = " and ".join(verdicts[id]) or "not ended"
                found.append(f"task {id} ({kind}) is {ended}, and should be {EXPECTED[kind]}")
        results = [fact for fact in self._evidence.read() if "result" in fact]
        runs = Counter((fact["path"], fact["method"]) for fact in results)
        found += [f"{method} of {path} was done {times} times" for (path, method), times in runs.items() if times > 1]
        successes = sum(ended == ["succeeded"] for ended in verdicts.values())
        if len(runs) != successes:
            found.append(f"{successes} tasks succeeded, but {len(runs)} results were noted")
        for fact in results:
            if fact["method"] in tasks.HASHES:
                again = hashlib.new(fact["method"], Path(fact["path"]).read_bytes()).hexdigest()
                if again != fact["result"]:
                    found.append(f"{fact['method']} of {fact['path']} is wrong")
        left = self.queue.broker.counts(self.queue.name)
        if any(left):
            found.append(f"the store still holds tasks: {left}")
        return found

    def ends(self) -> dict[str, tuple[str, str]]:
        """Kind of task -> the verdict and where the task stood, for those that did not succeed."""
        told = [fact for fact in self._verdicts() if "text" in fact]
        return {self.kinds[fact["id"]]: (fact["text"], fact["stack"]) for fact in told}

    def _verdicts(self) -> list[dict[str, Any]]:
        return [fact for fact in self._evidence.read() if fact.get("id") in self.kinds]

    # -- the processes ---------------------------------------------------------------------------------------------

    def _start(self, command: str, *options: str) -> None:
        line = [sys.executable, "-m", "delayed", command, "--queue", self.queue.name, *options]
        environ = {**os.environ, FOLDER_VARIABLE: str(self.folder), "DELAYED_URL": self.url}
        with (self.folder / "worker.log").open("ab") as log:
            # A session of its own: Ctrl-C is for the driver, which then stops them in order.
            self._running.append(subprocess.Popen(line, env=environ, stderr=log, start_new_session=True))

    def _stop(self) -> None:
        for process in self._running:
            process.send_signal(signal.SIGTERM)
        for process in self._running:
            try:
                process.wait(STOP_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _last_words(self) -> str:
        lines = (self.folder / "worker.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "none"


def own_files() -> list[Path]:
    """The repository's own files, or where the package is installed without them, the package's own."""
    package = Path(delayed.__file__).parent
    root = package.parent if (package.parent / "pyproject.toml").exists() else package
    found = []
    for folder, folders, names in os.walk(root):
        # Not what tools and editors put there: caches, environments, version control.
        folders[:] = sorted(name for name in folders if name[0] not in "._" and not name.endswith(".egg-info"))
        found += [path for name in sorted(names) if name[0] != "." and (path := Path(folder, name)).suffix in _TEXTS]
    return found[:FILES_MAX]


_TEXTS = {".py", ".md", ".lua", ".sql", ".toml", ".typed"}
