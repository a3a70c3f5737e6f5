"""What the library does on this machine."""

from __future__ import annotations

import contextlib
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.tasks import note_time, nothing, sleep_and_note
from delayed import Queue, Task
from delayed.delay import delay

PATIENCE = 120.0  # seconds that a drain may take
PAUSE = 0.02  # seconds from the end of one measurement of latency to the next


@contextlib.contextmanager
def serving(queue: Queue, mode: str, processes: int, lanes: int = 1) -> Iterator[None]:
    """A worker in a process of its own."""
    url = str(queue.broker.spec())
    command = [sys.executable, "-m", "benchmarks.serve", url, queue.name, mode, str(processes), str(lanes)]
    worker = subprocess.Popen(command)
    try:
        yield
    finally:
        worker.terminate()
        worker.wait(60)


def drain(
    url: str, mode: str, n: int, processes: int = 1, lanes: int = 1, func: Callable[..., object] = nothing
) -> float:
    """No-op tasks a second that one worker runs, from the start of the first to the start of the last."""
    queue = Queue(f"bench-{secrets.token_hex(4)}", url)
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder, "times")
        mark, task = Task.create(note_time, (str(times),)), Task.create(func)
        # All are there before the worker starts, so that nobody else is at work; the first bring it to full speed.
        queue.enqueue_many([task] * (n // 10) + [mark] + [task] * (n - 1) + [mark])
        with serving(queue, mode, processes, lanes):
            _until_empty(queue)
        first, last = map(int, times.read_text().split())
        return n / (last - first) * 1e9


def sleepers(url: str, n: int, seconds: float) -> tuple[float, float]:
    """(seconds from the first beginning to the last end, seconds of CPU of their process for each) of `n` coroutines
    that sleep at once in one child.
    """
    queue = Queue(f"bench-{secrets.token_hex(4)}", url)
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder, "times")
        queue.enqueue_many([Task.create(sleep_and_note, (str(times), seconds))] * n)
        with serving(queue, "async", 1, n):
            _until_empty(queue)
        rows = [list(map(float, line.split())) for line in times.read_text().splitlines()]
        begun, ended, before, after = zip(*rows, strict=True)
        assert len(rows) == n
        return max(ended) - min(begun), (max(after) - min(before)) / n


def delays(url: str, n: int = 5000) -> float:
    """Calls of ``.delay()`` a second, one by one."""
    queue = Queue(f"bench-{secrets.token_hex(4)}", url)
    call = delay(queue)(nothing)
    try:
        for _ in range(1100):  # until ids are reserved in large blocks
            call()
        start = time.perf_counter()
        for _ in range(n):
            call()
        return n / (time.perf_counter() - start)
    finally:
        queue.broker.purge(queue.name)


def latencies(url: str, mode: str, n: int = 300) -> list[float]:
    """Seconds from ``.delay()`` to the first line of the task, in a worker that was idle; sorted."""
    queue = Queue(f"bench-{secrets.token_hex(4)}", url)
    with tempfile.TemporaryDirectory() as folder, serving(queue, mode, 1):
        times = Path(folder, "times")
        call = delay(queue)(note_time)
        delay(queue)(nothing)()  # it has started when this is gone
        _until_empty(queue)
        sent = []
        for number in range(n):
            time.sleep(PAUSE)  # until the worker has settled the last one and waits again
            sent.append(time.monotonic_ns())
            call(str(times))
            _until(lambda number=number: times.exists() and len(times.read_text().split()) > number)
        begun = map(int, times.read_text().split())
        return sorted((end - start) / 1e9 for start, end in zip(sent, begun, strict=True))


def percentile(values: list[float], percent: float) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[round(percent) - 1]


def _until_empty(queue: Queue) -> None:
    _until(lambda: not any(queue.broker.counts(queue.name)[:3]), 0.05)


def _until(condition, pause: float = 0.001) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not done within {PATIENCE:g} s")
        time.sleep(pause)
