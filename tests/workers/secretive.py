"""Tasks with something to hide, which fail."""

from __future__ import annotations

import os
import signal

from delayed import Hidden


def fail(ledger: str, word: str, password: Hidden[str], *more: object) -> None:
    raise ValueError("my own words")


def succeed(ledger: str, word: str) -> None: ...


def die(ledger: str, word: str, password: Hidden[str]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def take(ledger: str, number: list[dict[str, tuple[int, ...]]]) -> None: ...


class Loud:
    def __repr__(self) -> str:
        raise SystemError("no repr")
