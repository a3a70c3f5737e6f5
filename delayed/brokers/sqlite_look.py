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

# The order of each state, and what is behind a place in it, whose columns are the numbered values.
_ORDER: Mapping[State, str] = {
    "scheduled": "at, seat",
    "ready": "priority DESC, state DESC, turn, seat",
    "running": "priority DESC, place, seat",
    "dead": "at DESC, seat DESC",
}
_BEHIND: Mapping[State, str] = {
    "scheduled": "(at, seat) > (:a, :b)",
    "running": "(-priority, place, seat) > (-:a, :b, :c)",
    "dead": "(at, seat) < (:a, :b)",
}
_PLACES: Mapping[State, str] = {
    "scheduled": "at, seat",
    "ready": "priority, state, turn, seat",
    "running": "priority, place, seat",
    "dead": "at, seat",
}
# In three parts, for each of which there is an index or few rows: what is ready of the last one's priority, what is
# ready of a lower one, and what is due. (That has no index by priority, for whoever claims makes it ready.)
_READY_PART = "SELECT * FROM (SELECT *, {turn} AS turn FROM delayed_task WHERE {where} ORDER BY {order} LIMIT :limit)"
_READY_FROM = " UNION ALL ".join(
    (
        _READY_PART.format(
            turn="place",
            where=f"{_READY} AND priority = :a AND :b = 1 AND (place, seat) > (:c, :d)",
            order="place, seat",
        ),
        _READY_PART.format(turn="place", where=f"{_READY} AND priority < :a", order="priority DESC, place, seat"),
        _READY_PART.format(
            turn="at",
            where=f"{_DUE} AND (priority < :a OR (priority = :a AND (:b = 1 OR (at, seat) > (:c, :d))))",
            order="priority DESC, at, seat",
        ),
    )
)
_FIRST = {"a": 1 << 31, "b": 1, "c": 0, "d": 0}  # a place before all that are ready


def counts(db: sqlite3.Connection, queue: str, now: int) -> Counts:
    # In one statement, and so at one moment: a task that moves meanwhile is neither missed nor counted twice.
    sums = [
        " + ".join(f"(SELECT count(*) FROM delayed_task WHERE {where})" for where in wheres(state)) for state in STATES
    ]
    return Counts(*db.execute(f"SELECT {', '.join(sums)}", {"queue": queue, "now": now}).fetchall()[0])


def peek(
    db: sqlite3.Connection, queue: str, state: State, limit: int, after: Entry | None, now: int, *, payloads: bool
) -> list[Entry]:
    place = _FIRST if after is None else dict(zip("abcd", after.place, strict=False))
    if state == "ready":
        source = f"({_READY_FROM})"
    else:
        source = f"delayed_task WHERE {wheres(state)[0]}"
        if after is not None:
            source += f" AND {_BEHIND[state]}"
    columns = _COLUMNS if payloads else _ENVELOPE
    width = len(_PLACES[state].split(","))
    rows = db.execute(
        f"SELECT {_PLACES[state]}, {columns} FROM {source} ORDER BY {_ORDER[state]} LIMIT :limit",
        {"queue": queue, "now": now, "limit": limit, **place},
    ).fetchall()
    return [_entry(row[width:], now)._replace(place=row[:width]) for row in rows]


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
