"""Dead letters in MongoDB: back to the queue, or gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bson import ObjectId
from bson.int64 import Int64
from pymongo import DeleteOne, UpdateOne
from pymongo.errors import DuplicateKeyError

from delayed.brokers.mongo_client import Opened
from delayed.brokers.mongo_look import is_id
from delayed.brokers.mongo_tasks import AT_END
from delayed.message import Bounds, next_life

Document = dict[str, Any]

CHUNK = 1000  # letters that one command changes


def revive(opened: Opened, queue: str, ids: Sequence[int]) -> list[int]:
    """See :meth:`Broker.revive`."""

    def step(_id: ObjectId, delivery: int) -> UpdateOne:
        ready: Document = {
            "$set": {"s": "r/" + queue, "d": next_life(delivery), "a": 0, "l": 0},
            "$unset": {"at": "", "f": "", "r": "", "v": "", "y": "", "t": ""},
            "$currentDate": AT_END,
        }
        return UpdateOne({"_id": _id, "s": "d/" + queue, "d": delivery}, ready)

    return _each(opened, queue, ids, step)


def drop(opened: Opened, queue: str, ids: Sequence[int]) -> list[int]:
    """See :meth:`Broker.drop`."""

    def step(_id: ObjectId, delivery: int) -> DeleteOne:
        return DeleteOne({"_id": _id, "s": "d/" + queue, "d": delivery})

    return _each(opened, queue, ids, step)


def _each(opened: Opened, queue: str, ids: Sequence[int], step: Any) -> list[int]:
    """Write a step for each of the letters; the ids of those that were there, and that nobody else was quicker with."""
    done: list[int] = []
    wanted = [id for id in dict.fromkeys(ids) if is_id(id)]
    for start in range(0, len(wanted), CHUNK):
        which = {"q": queue, "id": {"$in": [Int64(id) for id in wanted[start : start + CHUNK]]}, "s": "d/" + queue}
        rows = {int(row["id"]): row for row in opened.tasks.find(which, {"id": 1, "d": 1})}
        there = [id for id in wanted[start : start + CHUNK] if id in rows]
        if not there:
            continue
        result = opened.tasks.bulk_write([step(rows[id]["_id"], rows[id]["d"]) for id in there])
        if result.matched_count + result.deleted_count == len(there):
            done += there
            continue
        # The server tells only how many there were. Whoever was quicker has revived or removed them all the same.
        left = {int(row["id"]) for row in opened.tasks.find(which, {"id": 1})}
        done += [id for id in there if id not in left]
    return done


def bound(opened: Opened, queue: str, bounds: Bounds) -> None:
    """See :meth:`Broker.bound`."""
    dead = [bounds.most, float(bounds.age)]
    change: Document = {"$set": {"dead": dead}, "$unset": {"tidied": "", "trimmed": ""}}
    try:
        opened.queues.update_one({"_id": queue, "dead": {"$ne": dead}}, change, upsert=True)
    except DuplicateKeyError:  # it has these bounds, or two were the first
        opened.queues.update_one({"_id": queue, "dead": {"$ne": dead}}, change)
