"""The small values of queues in a SQLite file: statements, and who runs them in a caller's transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from delayed.brokers import keys
from delayed.brokers.sqlite_tasks import reserve_ids
from delayed.message import Stored

_NUMBER = "queue = (SELECT number FROM delayed_queue WHERE name = :queue)"
_LIVE = "(until IS NULL OR until > :now)"
_GET = f"SELECT value, version, until FROM delayed_key WHERE {_NUMBER} AND name = :name AND {_LIVE}"
_PUT = """
    INSERT INTO delayed_key (queue, name, version, until, value) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (queue, name) DO UPDATE
    SET version = excluded.version, until = excluded.until, value = excluded.value
"""
_COUNT = "UPDATE delayed_key SET version = ?, value = ? WHERE queue = ? AND name = ?"
_REMOVE = "DELETE FROM delayed_key WHERE queue = ? AND name = ?"
_LIST = f"SELECT name FROM delayed_key WHERE {_NUMBER} AND name >= :prefix AND {_LIVE}"
_FORGET = "DELETE FROM delayed_key WHERE seat IN (SELECT seat FROM delayed_key WHERE until <= ? LIMIT ?)"


def get(db: sqlite3.Connection, queue: str, names: Sequence[str], now: int) -> dict[str, Stored]:
    """See :meth:`Broker.get_keys`."""
    found = {}
    for name in names:
        for value, version, until in db.execute(_GET, {"queue": queue, "name": name, "now": now}).fetchall():
            found[name] = Stored(value, version, None if until is None else (until - now) / 1000)
    return found


def put(
    db: sqlite3.Connection,
    queue: tuple[str, int],
    name: str,
    value: bytes | None,
    ttl: float | None,
    version: int | None,
    keep: bool,
    now: int,
) -> int:
    """See :meth:`Broker.put_key`. `queue` is its name and number."""
    found = get(db, queue[0], (name,), now).get(name)
    present = found.version if found is not None else 0
    if version is not None and version != present:
        return 0
    if value is None:
        db.execute(_REMOVE, (queue[1], name))
        return present
    new = present if keep and present else reserve_ids(db, queue[1], 1, now)
    db.execute(_PUT, (queue[1], name, new, _end(ttl, now), value))
    return new


def add(db: sqlite3.Connection, queue: tuple[str, int], name: str, by: int, ttl: float | None, now: int) -> int:
    """See :meth:`Broker.add_key`."""
    found = get(db, queue[0], (name,), now).get(name)
    number = by if found is None else keys.total(name, found.value, by)
    version = reserve_ids(db, queue[1], 1, now)
    if found is None:
        db.execute(_PUT, (queue[1], name, version, _end(ttl, now), b"%d" % number))
    else:
        db.execute(_COUNT, (version, b"%d" % number, queue[1], name))
    return number


def list_names(db: sqlite3.Connection, queue: str, prefix: str, limit: int, now: int) -> list[str]:
    """See :meth:`Broker.list_keys`."""
    end = keys.following(prefix)
    values = {"queue": queue, "prefix": prefix, "end": end, "now": now, "limit": limit}
    below = "" if end is None else " AND name < :end"
    return [name for (name,) in db.execute(f"{_LIST}{below} ORDER BY name LIMIT :limit", values).fetchall()]


def forget(db: sqlite3.Connection, now: int) -> None:
    """Remove what has run out."""
    db.execute(_FORGET, (now, keys.FORGET_MAX))


def _end(ttl: float | None, now: int) -> int | None:
    return None if ttl is None else now + max(round(ttl * 1000), 1)
