"""Fixtures of the worker tests: a queue on each store, a ledger that tasks write to, and workers as real processes."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from delayed import Queue
from delayed.task import Task

BOUND = 20.0  # seconds within which anything that is waited for has to happen


def wait_for(what: Callable[[], Any], bound: float = BOUND) -> Any:
    """Poll until `what` returns something true, and return that; fail after `bound` seconds."""
    deadline = time.monotonic() + bound
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {bound} s"
        time.sleep(0.01)
    return found


class Ledger:
    """The file in which tasks note what they do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    @property
    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()

    def find(self, start: str) -> list[str]:
        """What follows `start` in the lines that begin with it."""
        return [line.removeprefix(start).strip() for line in self.lines if line.startswith(start)]


class Bench:
    """A queue, a ledger, and workers on them."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.queue = Queue(f"q-{secrets.token_hex(4)}", url)
        self.ledger = Ledger(folder / "ledger")
        self.folder = folder
        self.workers: list[subprocess.Popen[str]] = []

    def put(self, func: Callable[..., Any], *args: Any, **options: Any) -> int:
        """Enqueue a task whose first argument is the ledger's path; return its id."""
        task = Task.create(func, (str(self.ledger.path), *args), **options)
        self.queue.enqueue(task)
        assert task.id
        return task.id

    def start(self, mode: str = "preforked", **options: Any) -> subprocess.Popen[str]:
        """Start a worker as a process of its own."""
        options = {"kill_timeout": 0.5, "lease": 3.0, **options, "mode": mode}
        log = open(self.folder / f"worker-{len(self.workers)}.log", "w")  # noqa: SIM115
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.workers.serve", self.url, self.queue.name, json.dumps(options)],
            stdout=log,
            stderr=log,
            env={**os.environ, "LEDGER": str(self.ledger.path)},
            start_new_session=True,
            text=True,
        )
        log.close()
        self.workers.append(worker)
        return worker

    def log(self, number: int = 0) -> str:
        return (self.folder / f"worker-{number}.log").read_text()

    def burst(self, mode: str = "preforked", bound: float = BOUND, **options: Any) -> None:
        """Run a worker until the queue is empty, for `bound` seconds at most."""
        worker = self.start(mode, burst=True, **options)
        assert worker.wait(bound) == 0, self.log(len(self.workers) - 1)

    def settled(self) -> bool:
        counts = self.queue.broker.counts(self.queue.name)
        return counts.scheduled == counts.ready == counts.running == 0

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in self.workers:
            try:
                worker.wait(0.5)
            except subprocess.TimeoutExpired:
                worker.terminate()  # the second time: at once
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        self.queue.broker.close()


# What a worker does hardly depends on the store: on SQLite everything is run, on the servers what depends on them ...
BY_STORE = {"test_deaths_of_guardians", "test_outages", "test_transactions"}
ON_REDIS = {"test_after", "test_control", "test_limiting", "test_orders", "test_running"}
# ... and what is much the same in all kinds of children runs in one that takes one task at a time, and in one that is
# shared.
TWO_MODES = {
    "test_after": "async",
    "test_control": "async",
    "test_expiry": "async",
    "test_frozen_guardians": "async",
    "test_hooks": "async",
    "test_letters": "async",
    "test_limits": "threaded",
    "test_misbehaviour": "async",
    "test_log_arguments": "threaded",
    "test_odd_rows": "async",
    "test_orders": "threaded",
    "test_results": "async",
    "test_retries": "async",
    "test_tracing": "async",
    "test_transactions": "async",
    "test_trust": "threaded",
}
URLS = {"redis": "redis_url", "postgres": "postgres_schema", "mongodb": "mongo_database"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if _left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _left_out(item: pytest.Item) -> bool:
    if os.environ.get("DELAYED_ALL"):
        return False
    callspec = getattr(item, "callspec", None)
    if callspec is None or Path(__file__).parent not in item.path.parents:
        return False
    store = callspec.params.get("bench") or callspec.params.get("server")
    mode = callspec.params.get("mode", "preforked")
    if store not in URLS:
        return item.path.stem in TWO_MODES and mode not in ("preforked", TWO_MODES[item.path.stem])
    return mode != "preforked" or item.path.stem not in (BY_STORE | ON_REDIS if store == "redis" else BY_STORE)


@pytest.fixture(params=["sqlite", "redis", "postgres", "mongodb"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/tasks.db"
    else:
        url = request.getfixturevalue(URLS[request.param])
    bench = Bench(url, tmp_path)
    yield bench
    bench.close()


@pytest.fixture(params=["forked", "preforked", "threaded", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def fork_server_of(worker: subprocess.Popen[str]) -> int:
    """The pid of a worker's fork server."""
    return int(wait_for(lambda: next(iter(fork_servers_of(worker.pid)), 0)))


def fork_servers_of(pid: int) -> list[int]:
    """The children of a monitor that are fork servers: orphans, which lead a session of their own, become its too."""
    found = []
    for child in children_of(pid):
        try:
            if os.getsid(child) != child:
                found.append(child)
        except ProcessLookupError:
            continue
    return found


def children_of(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
