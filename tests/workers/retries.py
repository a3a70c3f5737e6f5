"""Tasks that fail, and retry policies that decide about them; all write to the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Any

from delayed import Queue, Retry, current, delayed
from tests.workers.tasks import note


def say(*words: object) -> None:
    note(os.environ["LEDGER"], *words)


class Busy(Exception):
    pass


class VeryBusy(Busy):
    pass


ERRORS: dict[str, Any] = {
    "ValueError": ValueError,
    "VeryBusy": VeryBusy,
    "SystemExit": lambda text: SystemExit(3),
    "group": lambda text: ExceptionGroup(text, [OSError(1), ExceptionGroup("inner", [VeryBusy()])]),
    "later": lambda text: Retry.later("50ms", text, count=True),
}


def fail(ledger: str, name: str) -> None:
    note(ledger, "run", current.attempt)
    raise ERRORS[name]("no")


async def fail_async(ledger: str, name: str) -> None:
    fail(ledger, name)


def hang(ledger: str) -> None:
    note(ledger, "run", current.attempt)
    for _ in range(3000):  # a thread is not stopped amid a sleep
        time.sleep(0.01)


async def hang_async(ledger: str) -> None:
    note(ledger, "run", current.attempt)
    await asyncio.sleep(30)


def swallow(ledger: str) -> None:
    """Be stopped by nothing but SIGKILL."""
    note(ledger, "run", current.attempt)
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(30)


def die(ledger: str) -> None:
    note(ledger, "run", current.attempt)
    os.kill(os.getpid(), 9)
    time.sleep(30)


def exit_hard(ledger: str) -> None:
    note(ledger, "run", current.attempt)
    os._exit(3)


def until_third(error: BaseException, attempt: int) -> float | bool:
    say("asked", type(error).__name__, attempt)
    return 0.01 if attempt < 3 else False


def as_usual(error: BaseException, attempt: int) -> bool:
    say("asked", type(error).__name__, attempt)
    return True


def nonsense(error: BaseException, attempt: int) -> str:
    return "nonsense"


def broken(error: BaseException, attempt: int) -> bool:
    raise SystemExit("the policy is broken")


def endless(error: BaseException, attempt: int) -> bool:
    for _ in range(3000):
        time.sleep(0.01)
    return False


def deadly(error: BaseException, attempt: int) -> bool:
    os._exit(1)


async def coroutine(error: BaseException, attempt: int) -> float | None:
    await asyncio.sleep(0)
    say("asked", type(error).__name__, attempt)
    return 0.01 if attempt < 2 else None


used = Retry(policy=until_third)  # so that a worker which imports this knows it as a policy


@delayed(Queue("q", "memory://"))
def decorated(ledger: str) -> None:
    fail(ledger, "VeryBusy")
