"""Tasks whose answers are asked for."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from typing import Any

from delayed import Reject, RetireChild, TaskHandle, current
from tests.bank import bank_at
from tests.workers.tasks import note


class Plain(Exception):
    """Survives the way."""


class Demanding(Exception):
    """Does not: pickle would call it with one argument."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


class Deadly:
    """A result that ends the process that serializes it."""

    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
        return int, ()


def give(ledger: str, value: Any) -> Any:
    return value


async def give_async(ledger: str, value: Any) -> Any:
    return value


def give_later(ledger: str, value: Any, seconds: float) -> Any:
    note(ledger, "begin")
    time.sleep(seconds)
    return value


def give_large(ledger: str, megabytes: int) -> bytes:
    return bytes([megabytes % 256]) * (megabytes << 20)


def give_lock(ledger: str) -> Any:
    note(ledger, "begin")
    return threading.Lock()


def give_without_files(ledger: str, value: Any) -> Any:
    """Leave no descriptor free."""
    note(ledger, "begin")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return value


def give_deadly(ledger: str) -> Any:
    note(ledger, "begin")
    return Deadly() if current.attempt == 1 else "second"


def give_attempt(ledger: str, times: int) -> int:
    note(ledger, "begin")
    if current.attempt < times:
        raise ValueError("not yet")
    return current.attempt


def give_sum(ledger: str, handles: list[TaskHandle[int]]) -> int:
    return sum(handle.result(20) for handle in handles)


def raise_plain(ledger: str) -> None:
    raise Plain("it went wrong") from KeyError("inner")


def raise_demanding(ledger: str) -> None:
    raise Demanding(3, "it went wrong")


def leave(ledger: str) -> None:
    raise RetireChild


def reject(ledger: str) -> None:
    raise Reject("nobody wants it")


def exit_with(ledger: str, code: int) -> None:
    raise SystemExit(code)


def kill_self(ledger: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def commit_and(ledger: str, url: str, bank: str, then: str) -> str:
    with current.transaction() as tx:
        bank_at(url, bank).move(tx, 1)
    note(ledger, "committed")
    if then == "raise":
        raise Plain("after it")
    if then == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if then == "wait":
        while not os.path.exists(ledger + ".go"):
            time.sleep(0.01)
    return "result"


def report(ledger: str, *parts: float) -> str:
    """Says how far it is; goes on to the next part when the file named like the ledger with its number is there."""
    for number, part in enumerate(parts):
        for _ in range(1000):
            current.report(part, f"part {number}")
        note(ledger, "reported", current.progress)
        while not os.path.exists(f"{ledger}.{number}"):
            time.sleep(0.01)
    return "done"


def report_more(ledger: str, value: Any) -> None:
    current.progress = value
