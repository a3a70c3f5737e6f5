"""Tasks that run beside those that die, and after them, and see whether that touched them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from typing import Any

from delayed import current
from tests.workers.tasks import note


def wait(ledger: str, name: str, gate: str) -> None:
    """Run until the file `gate` is there; not a second time, for one that runs again may have to run alone."""
    waits = _begin(ledger, name)
    while waits and not os.path.exists(gate):
        time.sleep(0.01)
    note(ledger, "end", name)


async def wait_async(ledger: str, name: str, gate: str) -> None:
    waits = _begin(ledger, name)
    while waits and not os.path.exists(gate):
        await asyncio.sleep(0.01)
    note(ledger, "end", name)


def _begin(ledger: str, name: str) -> bool:
    with open(ledger) as file:
        is_first = f"begin {name} " not in file.read()
    note(ledger, "begin", name, current.attempt)
    return is_first


def look_around(ledger: str, name: str, alone: bool) -> None:
    """Use what a task may expect to find; `alone`: in a process in which nothing else runs."""
    pipes = [os.pipe() for _ in range(16)]
    for fd in sum(pipes, ()):
        os.close(fd)
    thread = threading.Thread(target=print, args=("a thread can start",))
    thread.start()
    thread.join()
    if alone:
        assert os.getcwd() == os.environ["FOLDER"], "not the worker's folder"
        assert threading.active_count() == 1, f"{threading.active_count()} threads"
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL, "somebody else's signal handler"
        assert subprocess.run(["true"], check=False).returncode == 0
    note(ledger, "after", name, os.getpid())


def last(ledger: str, seconds: float) -> None:
    """Take so long, in steps."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.0005)


async def last_async(ledger: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(0.0005)


def on_success(task: Any) -> None:
    note(os.environ["LEDGER"], "returned", task.id)


def on_error(task: Any, kill_signal: int | None, exc_info: Any) -> None:
    note(os.environ["LEDGER"], "failed", task.id, kill_signal, task.verdict.kind)
