"""How the commands that look at a store show what they see."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, TypeGuard

from rich.console import Console
from rich.table import Table

from delayed.cli.common import duration

WIDE = 100_000  # columns
_NUMBERS = (
    "scheduled", "ready", "running", "dead", "workers", "processes", "pid", "for", "up", "in", "attempt", "deliveries",
    "age",
)  # fmt: skip


def console(*, stderr: bool = False) -> Console:
    """Where to print. What comes from a store or a task is text for it and nothing else: no markup, no emoji."""
    made = Console(stderr=stderr, markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = WIDE  # lines that a program reads are whole
    return made


def table(*columns: str) -> Table:
    """An empty table; columns of numbers and durations are aligned to the right."""
    made = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in _NUMBERS else "left", overflow="fold")
    return made


def first_line(reason: str) -> str:
    """The verdict of a dead letter, without the traceback that may follow."""
    line, _, more = reason.strip().partition("\n")
    return f"{line} …" if more else line


def short(worker: str) -> str:
    """The end of a worker's id, which tells it from the others."""
    return worker[-8:]


def up(info: Mapping[str, Any]) -> str:
    """Since when a worker works."""
    started = info.get("started")
    return lasting(time.time() - started) if is_number(started) else "?"


def running(info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tasks that a worker says it runs."""
    found = info.get("running")
    return [task for task in found if isinstance(task, Mapping)] if isinstance(found, (list, tuple)) else []


def lasting(seconds: object) -> str:
    """A duration that somebody else says; "?" if it is none."""
    return duration(seconds) if is_number(seconds) else "?"


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number of seconds that can be counted with, since 1970 or of a duration."""
    return isinstance(value, (int, float)) and -1e15 < value < 1e15
