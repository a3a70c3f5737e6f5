"""Unique tasks in a SQLite file: who holds which key, see `sqlite_4.sql`."""

from __future__ import annotations

from delayed.brokers import sqlite_tasks as tasks
from delayed.brokers.sqlite_tasks import Executor
from delayed.message import Message, Once

LOOK = 500  # keys that one sweep looks at
NEIGHBOURS = 2  # keys that an enqueue looks at: so that those that are over do not grow more than those that are held

_IS_HELD = """
    CASE WHEN o.until IS NOT NULL THEN o.until > :now ELSE EXISTS (
        SELECT 1 FROM delayed_task AS t
        WHERE t.queue = o.queue AND t.id = o.id AND t.state IN (0, 1, 2) AND NOT (o.begun AND t.attempt > 0)
    ) END
"""
_HOLDER = f"SELECT o.id FROM delayed_once AS o WHERE o.queue = :queue AND o.key = :key AND {_IS_HELD}"
_NEXT = f"""
    SELECT o.key, {_IS_HELD} FROM delayed_once AS o WHERE o.queue = :queue AND o.key > :key ORDER BY o.key LIMIT :n
"""
_FORGET = "DELETE FROM delayed_once WHERE queue = ? AND key = ?"
_WITHDRAW = "DELETE FROM delayed_task WHERE queue = ? AND id = ? AND state IN (0, 1)"


def insert(db: Executor, number: int, message: Message, once: Once, session: str, seq: int, now: int) -> int:
    """Store a message unless its key is held, or this session has sent it before; the id that holds the key."""
    if db.execute("SELECT 1 FROM delayed_producer WHERE session = ? AND seq >= ?", (session, seq)).fetchall():
        return message.id
    id = store(db, number, message, once, now)
    if id == message.id:
        tasks.note_enqueue(db, session, seq, now)
    return id


def store(db: Executor, number: int, message: Message, once: Once, now: int) -> int:
    """Store a message unless its key is held; the id that holds it."""
    held = db.execute(_HOLDER, {"queue": number, "key": once.key, "now": now}).fetchall()
    if held:
        if not once.replace:
            return int(held[0][0])
        db.execute(_WITHDRAW, (number, held[0][0]))
    until = None if once.period is None else now + round(once.period * 1000)
    db.execute(
        "INSERT OR REPLACE INTO delayed_once VALUES (?, ?, ?, ?, ?)",
        (number, once.key, message.id, int(once.begun), until),
    )
    tasks.store(db, number, [message], now)
    _forget_after(db, number, once.key, NEIGHBOURS, now)
    return message.id


def forget(db: Executor, number: int, now: int) -> None:
    """Forget keys that are not held any more: of some of them, and at the next call of those that follow."""
    ((key,),) = db.execute("SELECT once_from FROM delayed_queue WHERE number = ?", (number,)).fetchall()
    last = _forget_after(db, number, key, LOOK, now)
    if last != key:
        db.execute("UPDATE delayed_queue SET once_from = ? WHERE number = ?", (last, number))


def _forget_after(db: Executor, number: int, key: str, n: int, now: int) -> str:
    """Forget those of the next `n` keys that are not held; the last of them, "" if they were fewer."""
    rows = db.execute(_NEXT, {"queue": number, "key": key, "now": now, "n": n}).fetchall()
    db.executemany(_FORGET, [(number, other) for other, held in rows if not held])
    return rows[-1][0] if len(rows) == n else ""
