"""How the commands that look at a store show what they see."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from delayed.cli.common import duration

_NUMBERS = (
    "scheduled", "ready", "running", "dead", "workers", "processes", "pid", "for", "up", "in", "attempt", "deliveries",
    "age",
)  # fmt: skip


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
    return duration(time.time() - info["started"]) if "started" in info else "?"
