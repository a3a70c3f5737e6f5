"""Looking at the tasks in MongoDB, and removing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import takewhile
from typing import Any

from bson.datetime_ms import DatetimeMS
from bson.int64 import Int64

from delayed.brokers import mongo_leases as leases
from delayed.brokers.mongo_client import Opened
from delayed.brokers.mongo_enqueue import EPOCH
from delayed.brokers.mongo_tasks import MOST, delete, promote, ref_of
from delayed.message import LIFE, Counts, Entry, Message, State

Document = dict[str, Any]
_Place = tuple[list[Any], list[str]]  # the values that a state is ordered by; the names given of those there

LETTERS: Mapping[State, str] = {"scheduled": "l", "ready": "r", "running": "h", "dead": "d"}
STATES: Mapping[str, State] = {letter: state for state, letter in LETTERS.items()}
DUE: Document = {"$expr": {"$lte": ["$at", "$$NOW"]}}
LATER: Document = {"$expr": {"$gt": ["$at", "$$NOW"]}}
PROMOTIONS = 20  # how often a look at a queue makes due tasks ready before it looks

_ORDERS = {
    "scheduled": [("at", 1), ("o", 1)],
    "ready": [("p", -1), ("o", 1)],
    "running": [("at", 1), ("o", 1)],
    "dead": [("at", -1), ("o", -1)],
}


def clock(opened: Opened) -> float:
    """What the server's clock shows, in unix seconds."""
    shown = opened.queues.database.command("hello")["localTime"]
    return float((shown - EPOCH).total_seconds())


def counts(opened: Opened, queue: str) -> Counts:
    names = {state: f"{letter}/{queue}" for state, letter in LETTERS.items()}
    steps: list[Document] = [
        {"$match": {"s": names["ready"]}},
        {"$count": "n"},
        {"$addFields": {"_id": "ready"}},
        *[
            {
                "$unionWith": {
                    "coll": opened.tasks.name,
                    "pipeline": [
                        {"$match": {"s": names[kind], "at": {"$exists": True}, **condition}},
                        {"$count": "n"},
                        {"$addFields": {"_id": label}},
                    ],
                }
            }
            for label, kind, condition in _COUNTED
        ],
    ]
    # All at one moment, where the server can: a task that moves meanwhile would be missed, or counted twice.
    with opened.client.start_session(snapshot=True) if opened.transactions else nullcontext() as session:
        found = {row["_id"]: row["n"] for row in opened.tasks.aggregate(steps, session=session)}
    due = found.get("due", 0)
    return Counts(found.get("later", 0), found.get("ready", 0) + due, found.get("running", 0), found.get("dead", 0))


_COUNTED: list[tuple[str, State, Document]] = [
    ("due", "scheduled", DUE),
    ("later", "scheduled", LATER),
    ("running", "running", {}),
    ("dead", "dead", {}),
]


def peek(opened: Opened, queue: str, state: State, limit: int, after: Entry | None, *, payloads: bool) -> list[Entry]:
    if state in ("ready", "scheduled"):
        for _ in range(PROMOTIONS):
            if not promote(opened.tasks, queue):
                break
    which: Document = {"s": f"{LETTERS[state]}/{queue}"}
    if state != "ready":
        which["at"] = {"$exists": True}
    order = _ORDERS[state]
    if after is not None:
        which = _behind(which, order, after.place)
    steps: list[Document] = [{"$match": which}, {"$sort": dict(order)}, {"$limit": min(limit, MOST)}]
    if not payloads:
        steps.append({"$project": {"b": 0}})
    if limit <= 0:
        return []
    rows, found = _look(opened, steps)
    return [*found[:-1], found[-1]._replace(place=_place(rows, order, after))] if found else []


def _behind(which: Document, order: Sequence[tuple[str, int]], place: _Place) -> Document:
    """Those of `which` that are behind a place; of the same place, as fair ones can be, those that are not given yet.

    Each part has all of the condition, so that each is a range of the index, and the server need not sort.
    """
    (first, second), given = place
    (major, up), (minor, on) = order
    signs = {1: "$gt", -1: "$lt"}
    if major == "at":
        first = DatetimeMS(int(first))
    base = which.get(major, {})
    same = {major: {**base, "$eq": first}, minor: {f"{signs[on]}e": second}, "_id": {"$nin": given}}
    return {"$or": [{**which, **same}, {**which, major: {**base, signs[up]: first}}]}


def _place(rows: Sequence[Document], order: Sequence[tuple[str, int]], after: Entry | None) -> _Place:
    """The place of the last of these rows, which came behind `after`."""
    fields = ["ms" if field == "at" else field for field, _ in order]
    values = [rows[-1].get(field) for field in fields]
    here = list(takewhile(lambda row: [row.get(field) for field in fields] == values, reversed(rows)))
    given = [row["_id"] for row in here]
    if len(here) == len(rows) and after is not None and after.place[0] == values:
        given += after.place[1]
    return values, given


def get(opened: Opened, queue: str, id: int) -> Entry | None:
    if not is_id(id):
        return None
    which = {"q": queue, "id": Int64(id), "s": {"$in": [f"{letter}/{queue}" for letter in LETTERS.values()]}}
    _, found = _look(opened, [{"$match": which}])
    return found[0] if found else None


def _look(opened: Opened, steps: list[Document]) -> tuple[list[Document], list[Entry]]:
    """The rows, in which `ms` is what `at` is in milliseconds, and what they say."""
    left: Document = {"$cond": [{"$gt": ["$at", None]}, {"$subtract": ["$at", "$$NOW"]}, 0]}
    fields = {"left": left, "ms": {"$convert": {"input": "$at", "to": "long", "onError": None, "onNull": "$$REMOVE"}}}
    rows = list(opened.tasks.aggregate([*steps, {"$addFields": fields}, {"$unset": "at"}]))
    renewed = leases.left(opened.leases, [ref_of(row) for row in rows if row["s"][0] == "h"])
    return rows, [_entry(row, renewed) for row in rows]


def _entry(row: Document, renewed: Mapping[Any, float]) -> Entry:
    state = STATES[row["s"][0]]
    due = row["left"] / 1000
    if state == "scheduled" and due <= 0:
        state = "ready"
    if state == "running":
        due = max(due, renewed.get(ref_of(row), due))
    header = _bytes(row.get("h"))
    return Entry(
        message=Message.glimpse(_number(row.get("id")), header, _bytes(row.get("b"))),
        state=state,
        attempt=_number(row.get("a")),
        delivery=_number(row.get("d")) % LIFE,
        worker=row.get("w", ""),
        due=due if state in ("running", "scheduled") else 0.0,
        reason=row.get("r", ""),
        died=-due if state == "dead" else 0.0,
        header=header,
        notes=_notes(row.get("v")),
    )


def _number(value: Any) -> int:
    """A number of a document, 0 if it is none: what is odd can be looked at too, until a claim finds it."""
    return int(value) if isinstance(value, int) else 0


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else b""


def _notes(value: Any) -> tuple[bytes, ...]:
    return tuple(map(_bytes, value)) if isinstance(value, list) else ()


def is_id(id: int) -> bool:
    """Whether it is one that the server can compare."""
    return -(1 << 63) <= id < 1 << 63


def remove(opened: Opened, queue: str, id: int, dead: bool) -> bool:
    if not is_id(id):
        return False
    states = [f"{letter}/{queue}" for letter in ("lrd" if dead else "lr")]
    return opened.tasks.delete_one({"q": queue, "id": Int64(id), "s": {"$in": states}}).deleted_count == 1


def purge(opened: Opened, queue: str, states: Sequence[State]) -> int:
    wheres: list[Document] = []
    if "ready" in states:
        wheres += [{"s": "r/" + queue}, {"s": "l/" + queue, "at": {"$exists": True}, **DUE}]
    if "scheduled" in states:
        wheres.append({"s": "l/" + queue, "at": {"$exists": True}, **LATER})
    if "dead" in states:
        wheres.append({"s": "d/" + queue, "at": {"$exists": True}})
    return sum(delete(opened.tasks, where) for where in wheres)
