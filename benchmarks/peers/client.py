"""One job of a peer's client, in that peer's environment: ``python -m benchmarks.peers.client MODULE JOB …``.

A job is a method of :class:`Client`. Prints its answer as JSON. Imports nothing that a peer's environment may lack.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.peers.work import FOLDER, STAMPS

WARM = 1000  # calls before those that are timed: connections are open then, and ids reserved
WARM_ALONE = 3  # the same, of latency: the first call of a program takes ten times as long, whoever the peer is
PAUSE = 0.02  # seconds from the end of one measurement of latency to the next


class Client:
    def __init__(self, module: str) -> None:
        self.peer = importlib.import_module(f"benchmarks.peers.{module}")
        self.loop = asyncio.new_event_loop()
        self.call(getattr(self.peer, "prepare", lambda: None))

    def call(self, function: Callable[..., Any], *args: object) -> Any:
        answer = function(*args)
        return self.loop.run_until_complete(answer) if inspect.isawaitable(answer) else answer

    def describe(self, *packages: str) -> dict[str, Any]:
        return {
            "docs": self.peer.DOCS,
            "acknowledges": self.peer.ACKNOWLEDGES,
            "workers": self.peer.WORKERS,
            "bulk": hasattr(self.peer, "send_many"),
            "versions": {package: found for package in packages if (found := self.version(package))},
        }

    def version(self, package: str) -> str:
        """Empty if it is not installed."""
        try:
            return version(package)
        except PackageNotFoundError:
            return ""

    def fill(self, task: str, tasks: str, one_by_one: str) -> dict[str, float]:
        """Enqueue so many; calls a second of those that went one by one, and in bulk. A rate of 0 was not measured."""
        many = getattr(self.peer, "send_many", None)
        n = int(tasks)
        single = min(n, int(one_by_one)) if many else n
        warm = min(WARM, single // 2)
        rates = {"one by one": 0.0, "bulk": 0.0}
        self.call(self.peer.send, task, warm)
        if single > warm:
            rates["one by one"] = self.timed(self.peer.send, task, single - warm)
        if many and n > single:
            warm = (n - single) // 10
            self.call(many, task, warm)
            rates["bulk"] = self.timed(many, task, n - single - warm)
        return rates

    def timed(self, send: Callable[..., Any], task: str, n: int) -> float:
        start = time.perf_counter()
        self.call(send, task, n)
        return n / (time.perf_counter() - start)

    def latency(self, tasks: str, seconds: str) -> list[float]:
        """Seconds from before the enqueue to the first line of the task, of a worker that waits, one after the other:
        so many, or as many as there is time for; without those before the client is warm.
        """
        stamps = Path(os.environ[FOLDER], STAMPS)
        before = len(stamps.read_bytes().split())  # of the task by which it was known that the worker has started
        sent: list[int] = []
        deadline = time.monotonic() + float(seconds)
        most = WARM_ALONE + int(tasks)
        while len(sent) < most and (time.monotonic() < deadline or len(sent) < 2 * WARM_ALONE):
            time.sleep(PAUSE)
            sent.append(time.monotonic_ns())
            self.call(self.peer.send, "stamp", 1)
            while len(stamps.read_bytes().split()) < before + len(sent):
                time.sleep(0.001)
                if time.monotonic() > deadline + 30:
                    raise TimeoutError(f"task {len(sent)} did not run")
        begun = map(int, stamps.read_bytes().split()[before:])
        return [(end - start) / 1e9 for start, end in zip(sent, begun, strict=True)][WARM_ALONE:]


if __name__ == "__main__":
    _, module, job, *arguments = sys.argv
    print(json.dumps(getattr(Client(module), job)(*arguments)))
