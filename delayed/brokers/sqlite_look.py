"""Looking at the tasks in a SQLite file, and removing them."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from delayed.message import LIFE, STATES, Counts, Entry, Message, State

NUMBER = "(SELECT number FROM delayed_queue WHERE name = :queue)"
_READY = f"queue = {NUMBER} AND state = 1"
_DUE = f"queue = {NUMBER} AND state = 0 AND at <= :now"  # ready too, but no claim has come by to say so
_WHERE: Mapping[State, list[str]] = {
    "scheduled": [f"queue = {NUMBER} AND state = 0 AND at > :now"],
    "ready": [_READY, _DUE],
    "running": [f"queue = {NUMBER} AND state = 2"],
    "dead": [f"queue = {NUMBER} AND state = 3"],
}
# What is odd can be looked at too, until a claim finds it: a column takes what it is given.
_ENVELOPE = """
    CASE typeof(id) WHEN 'integer' THEN id ELSE 0 END, state, at + 0, attempt + 0, delivery + 0, worker, reason,
    CASE typeof(header) WHEN 'blob' THEN header ELSE x'' END, CASE typeof(notes) WHEN 'blob' THEN notes ELSE x'' END
"""
_COLUMNS = f"{_ENVELOPE}, CASE typeof(payload) WHEN 'blob' THEN payload ELSE x'' END"

_READY_PART = "SELECT * FROM (SELECT *, {key} AS turn FROM delayed_task WHERE {where} ORDER BY {order} LIMIT :top)"
_ORDER: Mapping[State, str] = {
    "scheduled": "at, seat",
    "ready": "priority DESC, state DESC, turn, seat",
    "running": "priority DESC, place",
    "dead": "at DESC, seat DESC",
}


def counts(db: sqlite3.Connection, queue: str, now: int) -> Counts:
    # In one statement, and so at one moment: a task that moves meanwhile is neither missed nor counted twice.
    sums = [
        " + ".join(f"(SELECT count(*) FROM delayed_task WHERE {where})" for where in wheres(state)) for state in STATES
    ]
    return Counts(*db.execute(f"SELECT {', '.join(sums)}", {"queue": queue, "now": now}).fetchall()[0])


def peek(
    db: sqlite3.Connection, queue: str, state: State, limit: int, offset: int, now: int, *, payloads: bool
) -> list[Entry]:
    if state == "ready":
        ready = _READY_PART.format(key="place", order="priority DESC, place", where=_READY)
        due = _READY_PART.format(key="at", order="at", where=_DUE)
        source = f"({ready} UNION ALL {due})"
    else:
        source = f"delayed_task WHERE {wheres(state)[0]}"
    columns = _COLUMNS if payloads else _ENVELOPE
    rows = db.execute(
        f"SELECT {columns} FROM {source} ORDER BY {_ORDER[state]} LIMIT :limit OFFSET :offset",
        {"queue": queue, "now": now, "limit": limit, "offset": offset, "top": limit + offset},
    ).fetchall()
    return [_entry(row, now) for row in rows]


def get(db: sqlite3.Connection, queue: str, id: int, now: int) -> Entry | None:
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM delayed_task WHERE queue = {NUMBER} AND id = :id", {"queue": queue, "id": id}
    ).fetchall()
    return _entry(rows[0], now) if rows else None


def remove(db: sqlite3.Connection, queue: str, id: int, dead: bool) -> bool:
    states = "(0, 1, 3)" if dead else "(0, 1)"
    where = f"queue = {NUMBER} AND id = :id AND state IN {states}"
    return db.execute(f"DELETE FROM delayed_task WHERE {where}", {"queue": queue, "id": id}).rowcount > 0


def purge(db: sqlite3.Connection, queue: str, where: str, limit: int, now: int) -> int:
    """Remove up to `limit` of the rows of one of :func:`wheres`."""
    return db.execute(
        f"DELETE FROM delayed_task WHERE seat IN (SELECT seat FROM delayed_task WHERE {where} LIMIT :limit)",
        {"queue": queue, "now": now, "limit": limit},
    ).rowcount


def wheres(state: State) -> list[str]:
    """The conditions, without overlap, for the rows of one state.

    Raises:
        ValueError: When there is no such state.
    """
    try:
        return _WHERE[state]
    except KeyError:
        raise ValueError(f"no state {state!r}; it can be {', '.join(STATES)}") from None


def _entry(row: tuple[Any, ...], now: int) -> Entry:
    id, number, at, attempt, delivery, worker, reason, header, notes, *payload = row
    message = Message.glimpse(id, header, payload[0] if payload else b"")
    state: State = STATES[number]
    if state == "scheduled" and at <= now:
        state = "ready"
    due = (at - now) / 1000 if state in ("scheduled", "running") else 0.0
    died = (now - at) / 1000 if state == "dead" else 0.0
    lines = tuple(notes.split(b"\n")) if notes else ()
    return Entry(message, state, attempt, delivery % LIFE, worker, due, reason, died, header, lines)
