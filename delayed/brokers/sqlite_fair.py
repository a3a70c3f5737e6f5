"""Turns among tenants in a SQLite file: the places of fair tasks.

The first task of a tenant who has none ready goes beside the first of all fair tasks, each further one behind his last.
So of those that have tasks ready each gets one done before anybody gets the next, and who comes late has lost nothing.
What is needed for that is looked up among the ready tasks: there is nothing to be kept, or to be forgotten. No place is
behind the last one that the queue counts, for that counts with each task, whatever place it gets.
"""

from __future__ import annotations

import sqlite3

Executor = sqlite3.Connection | sqlite3.Cursor

_FAIR = "state = 1 AND tenant IS NOT NULL AND attempt = 0"  # what was run before is at the end of the queue
_FIRST = f"SELECT place FROM delayed_task WHERE queue = ? AND priority = ? AND {_FAIR} ORDER BY place LIMIT 1"
_LAST = f"""
    SELECT place FROM delayed_task WHERE queue = ? AND tenant = ? AND priority = ? AND {_FAIR}
    ORDER BY place DESC LIMIT 1
"""


class Turns:
    """The places of tasks that become ready together, in one queue.

    Args:
        end: a place behind all others, for the first fair one where none is ready.
    """

    def __init__(self, db: Executor, number: int, end: int) -> None:
        self._db = db
        self._number = number
        self._end = end
        self._first: dict[int, int] = {}  # by priority
        self._last: dict[tuple[int, str], int] = {}

    def place(self, priority: int, tenant: str) -> int:
        """The place of the next task."""
        first = self._first.get(priority)
        if first is None:
            found = self._db.execute(_FIRST, (self._number, priority)).fetchall()
            first = self._first[priority] = found[0][0] if found else self._end
        last = self._last.get((priority, tenant))
        if last is None:
            found = self._db.execute(_LAST, (self._number, tenant, priority)).fetchall()
            last = found[0][0] if found else 0
        place = self._last[priority, tenant] = max(first, last + 1)
        return place
