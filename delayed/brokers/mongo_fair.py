"""Turns among tenants in MongoDB: the places of fair tasks.

A fair task has its tenant as `f`. The first one of a tenant who has none ready goes beside the first of all fair tasks,
each further one behind his last. So of those that have tasks ready each gets one done before anybody gets the next, and
who comes late has lost nothing. What is needed for that is looked up among the ready tasks that were not run yet; those
that were are served in the order in which they come back.

Places are moments of the server's clock. Those of fair tasks follow each other closely after that of the first of them:
where some always wait, tasks of the same priority that are not fair come after them.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from bson.timestamp import Timestamp
from pymongo.client_session import ClientSession
from pymongo.collection import Collection

Document = dict[str, Any]

EPOCH = datetime.datetime(1970, 1, 1)
LATE = 1 << 30  # in a second, behind all that the server has put there


def place(
    tasks: Collection[Document], queue: str, rows: Sequence[Document], session: ClientSession | None = None
) -> dict[int, Timestamp]:
    """The places of those of the tasks (f, p) that are fair, by their numbers among the rows."""
    places: dict[int, Timestamp] = {}
    first: dict[int, int] = {}  # by priority
    last: dict[tuple[int, str], int] = {}
    for number, row in enumerate(rows):
        tenant, priority = row.get("f"), row["p"]
        if tenant is None:
            continue
        if priority not in first:
            found = _look(tasks, {"s": "r/" + queue, "p": priority, "f": {"$exists": True}}, 1, "fair", session)
            first[priority] = found if found is not None else _end(tasks)
        if (priority, tenant) not in last:
            found = _look(tasks, {"s": "r/" + queue, "f": tenant, "p": priority}, -1, "tenant", session)
            last[priority, tenant] = found if found is not None else 0
        at = last[priority, tenant] = max(first[priority], last[priority, tenant] + 1)
        places[number] = Timestamp(at >> 32, at & 0xFFFFFFFF)
    return places


def _look(
    tasks: Collection[Document], which: Document, order: int, index: str, session: ClientSession | None
) -> int | None:
    """The first or last place of those that were not run yet."""
    found = tasks.find({**which, "a": 0}, {"o": 1}, session=session).sort("o", order).limit(1).hint(index)
    for row in found:
        if type(row["o"]) is Timestamp:
            return int(row["o"].time << 32 | row["o"].inc)
    return None


def _end(tasks: Collection[Document]) -> int:
    """The end of the present second."""
    now = tasks.database.client.admin.command("hello")["localTime"]
    return int((now.replace(tzinfo=None) - EPOCH).total_seconds()) << 32 | LATE
