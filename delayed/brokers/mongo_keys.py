"""The small values of queues in MongoDB: documents of ``delayed_keys``, named by the queue and the name with a NUL
between.

`v` is the version, `y` the value, or `n` if it is a number that can be counted with; `until` is when it is forgotten.
Each change is one command, and `ok` says whether it was done. A version is made of the server's clock and is higher
than the one before it; so what is removed or has run out stays for `REST`, as a document that counts as not there, lest
the clock of another member makes a lower one. Then the server removes it (`gone`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bson.int64 import Int64
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from delayed.brokers import keys
from delayed.brokers.mongo_enqueue import EPOCH
from delayed.errors import BrokerUnavailable
from delayed.message import Stored

Document = dict[str, Any]
Keys = Collection[Document]

REST = 3_600_000  # milliseconds by which the clocks of the members of a replica set may differ

_LIVE: Document = {"$or": [{"$eq": [{"$type": "$until"}, "missing"]}, {"$gt": ["$until", "$$NOW"]}]}
_THERE: Document = {"$and": [{"$ne": [{"$type": "$v"}, "missing"]}, _LIVE]}
_FRESH: Document = {"$add": [{"$max": ["$v", {"$multiply": [{"$toLong": "$$NOW"}, 2048]}]}, 1]}


def get(found: Keys, queue: str, names: Sequence[str]) -> dict[str, Stored]:
    """See :meth:`Broker.get_keys`."""
    ids = {_id(queue, name): name for name in names}
    rows = found.aggregate(
        [
            {"$match": {"_id": {"$in": list(ids)}, "$expr": _LIVE}},
            {"$set": {"left": {"$subtract": ["$until", "$$NOW"]}}},
        ]
    )
    return {ids[row["_id"]]: _stored(row) for row in rows}


def put(
    found: Keys, queue: str, name: str, value: bytes, ttl: float | None, version: int | None, keep_version: bool
) -> int:
    """See :meth:`Broker.put_key`."""
    good: Any = True
    if version is not None:
        there = get(found, queue, (name,)).get(name)  # who is refused, as one who waits for a lock, writes nothing
        if version != (there.version if there is not None else 0):
            return 0
        good = {"$and": [_THERE, {"$eq": ["$v", Int64(version)]}]} if version else {"$not": [_THERE]}
    number = keys.number_of(value)
    change: Document = {
        "v": {"$cond": [_THERE, "$v", _FRESH]} if keep_version else _FRESH,
        "y": {"$literal": value} if number is None else "$$REMOVE",
        "n": Int64(number) if number is not None else "$$REMOVE",
        **_ends(ttl),
    }
    row = _change(found, queue, name, good, change, upsert=not version)
    return int(row["v"]) if row is not None and row["ok"] else 0


def remove(found: Keys, queue: str, name: str, version: int | None) -> int:
    """See :meth:`Broker.put_key`, without a value."""
    which: Document = {"_id": _id(queue, name), "$expr": _LIVE}
    if version is not None:
        which["v"] = Int64(version)
    # Not now: who began to look before, and comes to it after, has an earlier one.
    end: Document = {"until": EPOCH, "gone": {"$add": ["$$NOW", REST]}, "y": "$$REMOVE", "n": "$$REMOVE"}
    row = found.find_one_and_update(which, [{"$set": end}], {"v": 1})
    return int(row["v"]) if row is not None else 0


def add(found: Keys, queue: str, name: str, by: int, ttl: float | None) -> int:
    """See :meth:`Broker.add_key`."""
    keys.bounded(name, by)
    total: Document = {"$add": [{"$cond": [_THERE, "$n", 0]}, Int64(by)]}
    small = {"$lte": [{"$abs": total}, Int64(keys.NUMBER_MAX)]}
    good = {"$or": [{"$not": [_THERE]}, {"$and": [{"$isNumber": "$n"}, small]}]}
    ends = {field: {"$cond": [_THERE, "$" + field, end]} for field, end in _ends(ttl).items()}
    change = {"v": _FRESH, "n": {"$toLong": total}, "y": "$$REMOVE", **ends}
    row = _change(found, queue, name, good, change, upsert=True)
    assert row is not None  # it is upserted
    if not row["ok"]:
        keys.total(name, _stored(row).value, by)
    return int(row["n"])


def list_names(found: Keys, queue: str, prefix: str, limit: int) -> list[str]:
    """See :meth:`Broker.list_keys`."""
    begin = _id(queue, prefix)
    rows = found.find({"_id": {"$gte": begin, "$lt": keys.following(begin)}, "$expr": _LIVE}, {"_id": 1})
    return [row["_id"].partition("\0")[2] for row in rows.sort("_id", 1).limit(limit)]


def _change(found: Keys, queue: str, name: str, good: Any, change: Document, *, upsert: bool) -> Document | None:
    """Change a document if `good` holds; what is there then, whether or not it was changed."""
    steps: list[Document] = [
        {"$set": {"ok": good}},
        {"$set": {field: {"$cond": ["$ok", new, "$" + field]} for field, new in change.items()}},
    ]
    for _ in range(3):
        try:
            return found.find_one_and_update({"_id": _id(queue, name)}, steps, upsert=upsert, return_document=True)
        except DuplicateKeyError:  # two were the first
            continue
    raise BrokerUnavailable(f"too many make {name!r} in the queue {queue!r} at once", sent=False)


def _ends(ttl: float | None) -> Document:
    if ttl is None:
        return {"until": "$$REMOVE", "gone": "$$REMOVE"}
    ms = max(round(ttl * 1000), 1)
    return {"until": {"$add": ["$$NOW", ms]}, "gone": {"$add": ["$$NOW", ms + REST]}}


def _stored(row: Document) -> Stored:
    value = bytes(row["y"]) if "y" in row else b"%d" % row["n"]
    left = row.get("left")
    return Stored(value, int(row["v"]), None if left is None else left / 1000)


def _id(queue: str, name: str) -> str:
    return f"{queue}\0{name}"
