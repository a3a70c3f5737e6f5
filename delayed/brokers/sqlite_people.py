"""What workers say of themselves in a SQLite file, and what people ask of them. Times are milliseconds by its clock."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from delayed.brokers.sqlite_look import NUMBER
from delayed.message import WorkerInfo


def announce(
    db: sqlite3.Connection, worker: str, numbers: Sequence[int], info: Mapping[str, Any] | None, now: int, ttl: float
) -> list[Mapping[str, Any]]:
    """See :meth:`Broker.announce`; queues go by their numbers."""
    if info is None:
        db.executemany(
            "DELETE FROM delayed_announcement WHERE queue = ? AND worker = ?", [(number, worker) for number in numbers]
        )
    else:
        text, until = json.dumps(info), now + round(ttl * 1000)
        db.executemany(
            "INSERT OR REPLACE INTO delayed_announcement VALUES (?, ?, ?, ?)",
            [(number, worker, text, until) for number in numbers],
        )
    orders = db.execute("DELETE FROM delayed_order WHERE worker = ? RETURNING what, until", (worker,)).fetchall()
    return [json.loads(what) for what, until in orders if until > now]


def workers(db: sqlite3.Connection, queue: str, now: int) -> list[WorkerInfo]:
    """See :meth:`Broker.workers`."""
    rows = db.execute(
        f"SELECT worker, info FROM delayed_announcement WHERE queue = {NUMBER} AND until > :now ORDER BY worker",
        {"queue": queue, "now": now},
    ).fetchall()
    return [WorkerInfo(worker, json.loads(info)) for worker, info in rows]


def ask(db: sqlite3.Connection, worker: str, order: Mapping[str, Any], now: int, ttl: float) -> None:
    """See :meth:`Broker.ask`."""
    row = (worker, order["id"], json.dumps(order), now + round(ttl * 1000))
    db.execute("INSERT OR REPLACE INTO delayed_order VALUES (?, ?, ?, ?)", row)
