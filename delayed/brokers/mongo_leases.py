"""The leases of tasks in MongoDB: renewing them, and returning the tasks of those that have ended.

A task's document is not touched by a renewal, for that would abort a transaction that the task has open to end itself
(:meth:`Broker.transaction`). The end of the *first* lease is in the document; where it is renewed, the end of the
last one is in a document of ``delayed_leases``, named by the claim. That document decides between a renewal and a
sweeper: each writes there first, on the condition that the other has not.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, DuplicateKeyError

from delayed import attempts
from delayed.brokers import mongo_once as onces
from delayed.brokers import mongo_sessions as sessions
from delayed.brokers.base import DEAD_LETTERS, LETTERS_LOOK
from delayed.brokers.grace import OUTAGE
from delayed.brokers.mongo_client import Opened
from delayed.brokers.mongo_enqueue import DUPLICATE, EPOCH, repair, tidy
from delayed.brokers.mongo_tasks import AT_END, LET_GO, delete, name_of, noted, ref_of, token
from delayed.message import LIFE, Bounds, Ref, Swept

Document = dict[str, Any]

TIDY_INTERVAL = 60_000  # milliseconds
TRIM_INTERVAL = 1000  # milliseconds between two looks for dead letters beyond their bounds
CHUNK = 1000  # claims that are looked up at a time


def renew(leases: Collection[Document], refs: Sequence[Ref], lease: float) -> set[Ref]:
    """Renew the leases of these claims; those of them that no sweeper was quicker with."""
    names = {name_of(ref): ref for ref in refs}
    renewal: list[Document] = [{"$set": {"end": {"$add": ["$$NOW", round(lease * 1000)]}}}]
    # All at once, which takes half as long as one by one. Most have been renewed before.
    done = leases.update_many({"_id": {"$in": list(names)}, "swept": {"$ne": True}}, renewal)
    if done.matched_count == len(names):
        return set(refs)
    known = {row["_id"]: row.get("swept") for row in leases.find({"_id": {"$in": list(names)}}, {"swept": 1})}
    swept = {name for name in known if known[name]}
    new = [name for name in names if name not in known]
    while new:
        steps: list[Any] = [UpdateOne({"_id": name, "swept": {"$ne": True}}, renewal, upsert=True) for name in new]
        try:
            leases.bulk_write(steps, ordered=False)
            break
        except BulkWriteError as error:
            failures = error.details["writeErrors"]
            if not failures or any(failure["code"] != DUPLICATE for failure in failures):
                raise
        # Refused: the document was there and swept, or somebody else made it in that very moment.
        refused = [new[failure["index"]] for failure in failures]
        swept |= _swept(leases, refused)
        new = [name for name in refused if name not in swept]
    return {ref for name, ref in names.items() if name not in swept}


def _swept(leases: Collection[Document], names: Sequence[str]) -> set[str]:
    return {row["_id"] for row in leases.find({"_id": {"$in": list(names)}, "swept": True}, {"_id": 1})}


def left(leases: Collection[Document], refs: Iterable[Ref]) -> dict[Ref, float]:
    """Seconds until the renewed leases end; nothing for those that never were renewed."""
    names = {name_of(ref): ref for ref in refs}
    found = leases.aggregate(
        [
            {"$match": {"_id": {"$in": list(names)}, "swept": {"$ne": True}}},
            {"$project": {"left": {"$subtract": ["$end", "$$NOW"]}}},
        ]
    )
    return {names[row["_id"]]: row["left"] / 1000 for row in found}


# -- sweeping --------------------------------------------------------------------------------------------------


def sweep(opened: Opened, queue: str, lease: float) -> Swept:
    """See :meth:`Broker.sweep`."""
    before, untidy, crowded, bounds = _note_sweep(opened.queues, queue, round(lease * 1000))
    swept = Swept(0, 0, True) if before is None else _return_lost(opened, queue, before)
    sessions.sweep(opened)
    if crowded and random.random() * bounds.most < LETTERS_LOOK:  # where there may be more, not each time
        _trim(opened, queue, bounds)
    if untidy:
        tidy(opened.tasks)
        onces.tidy(opened.tasks, opened.queues, queue)
    repair(opened.tasks, lambda key, batch: onces.complete(opened.tasks, key, batch))
    claimed = opened.tasks.find_one({"s": "h/" + queue, "at": {"$exists": True}}, {"_id": 1})
    return swept._replace(idle=claimed is None)


def _return_lost(opened: Opened, queue: str, before: datetime) -> Swept:
    returned = dead = 0
    lost = opened.tasks.find(
        {"s": "h/" + queue, "at": {"$exists": True}, "$expr": {"$lt": ["$at", before]}},
        {"q": 1, "id": 1, "a": 1, "d": 1, "n": 1, "m": 1, "l": 1, "w": 1},
    ).sort([("at", 1), ("o", 1)])
    rows: list[Document] = []
    for row in lost:
        rows.append(row)
        if len(rows) == CHUNK:
            returned, dead = _return(opened, rows, before, returned, dead)
            rows = []
    returned, dead = _return(opened, rows, before, returned, dead)
    return Swept(returned, dead, False)


def _note_sweep(queues: Collection[Document], queue: str, lease: int) -> tuple[datetime | None, bool, bool, Bounds]:
    """Note that the queue is swept now; before when the leases ended of what may be returned (None: nothing may),
    whether to tidy it, whether to look for dead letters beyond their bounds, and these.
    """
    # As :meth:`Grace.sweep`. What is missing, or null, is less than all times, and no minimum.
    gap: Document = {"$subtract": ["$$NOW", {"$ifNull": ["$swept", "$$NOW"]}]}
    away: Document = {"$gt": [gap, lease / 2]}
    within: Document = {"$lt": ["$swept", "$grace"]}
    fresh: Document = {"$add": ["$$NOW", lease]}
    longer: Document = {"$add": ["$grace", {"$subtract": [gap, round(lease * OUTAGE)]}]}
    over: Document = {"$not": ["$quiet"]}
    untidy = {"$gt": [{"$subtract": ["$$NOW", {"$ifNull": ["$tidied", EPOCH]}]}, TIDY_INTERVAL]}
    crowded = {"$gte": [{"$subtract": ["$$NOW", {"$ifNull": ["$trimmed", EPOCH]}]}, TRIM_INTERVAL]}
    steps: list[Document] = [
        {
            "$set": {
                "grace": {"$cond": [away, {"$cond": [within, longer, fresh]}, {"$ifNull": ["$grace", "$$NOW"]}]},
                "outage": {"$cond": [{"$and": [away, within]}, {"$ifNull": ["$outage", "$swept"]}, "$outage"]},
            }
        },
        {"$set": {"swept": "$$NOW", "quiet": {"$lt": ["$$NOW", "$grace"]}, "untidy": untidy, "crowded": crowded}},
        {
            "$set": {
                "before": {"$cond": [over, {"$min": ["$outage", "$$NOW"]}, None]},
                "grace": {"$cond": [{"$and": [over, "$outage"]}, fresh, "$grace"]},
                "outage": {"$cond": [over, None, "$outage"]},
                "tidied": {"$cond": ["$untidy", "$$NOW", "$tidied"]},
                "trimmed": {"$cond": ["$crowded", "$$NOW", "$trimmed"]},
            }
        },
    ]
    # Not durable, which would take until the journal is written. If it is lost, that looks like an outage.
    quick = queues.with_options(write_concern=sessions.QUICK)
    for _ in range(3):
        try:
            row = quick.find_one_and_update({"_id": queue}, steps, upsert=True, return_document=True)
            assert row is not None  # it is upserted
            return row["before"], row["untidy"], row["crowded"], Bounds(*row.get("dead", DEAD_LETTERS))
        except DuplicateKeyError:  # two were the first
            continue
    return None, False, False, DEAD_LETTERS


def _return(opened: Opened, rows: Sequence[Document], before: datetime, returned: int, dead: int) -> tuple[int, int]:
    if not rows:
        return returned, dead
    claims = {name_of(ref_of(row)): row for row in rows}
    renewed = opened.leases.find(
        {"_id": {"$in": list(claims)}, "swept": {"$ne": True}, "$expr": {"$gte": ["$end", before]}}, {"_id": 1}
    )
    for found in list(renewed):
        del claims[found["_id"]]
    lost = [claims[name] for name in _mark(opened.leases, list(claims), before)]
    sessions.kill(opened, [ref_of(row) for row in lost])
    poison = [row for row in lost if row["a"] >= row["m"]]
    again = [row for row in lost if row["a"] < row["m"]]
    return returned + _end(opened.tasks, again, _back), dead + _end(opened.tasks, poison, _dead)


def _mark(leases: Collection[Document], names: Sequence[str], before: datetime) -> list[str]:
    """Say of these claims that they are swept; those that nobody has renewed meanwhile."""
    if not names:
        return []
    swept: Document = {"$or": [{"$eq": ["$swept", True]}, {"$lt": [{"$ifNull": ["$end", EPOCH]}, before]}]}
    mark: list[Document] = [{"$set": {"swept": swept}}, {"$set": {"end": {"$cond": ["$swept", "$$NOW", "$end"]}}}]
    leases.bulk_write([UpdateOne({"_id": name}, mark, upsert=True) for name in names], ordered=False)
    now = _swept(leases, names)
    return [name for name in names if name in now]


def _end(tasks: Collection[Document], rows: Sequence[Document], change: Callable[[Document], Document]) -> int:
    """End the claims that still hold; how many these were."""
    if not rows:
        return 0
    return tasks.bulk_write([UpdateOne(token(ref_of(row)), change(row)) for row in rows]).matched_count


def _back(row: Document) -> Document:
    change: Document = {"$set": {"s": "r/" + row["q"]}, "$unset": {**LET_GO, "at": ""}, "$inc": {"l": 1}}
    return change | ({"$currentDate": AT_END} if row["l"] else {}) | _lost(row)


def _dead(row: Document) -> Document:
    reason = f"poison: delivered {row['d'] % LIFE} times, and its worker was lost again"
    now = {"at": True, **AT_END}
    dead: Document = {"$set": {"s": "d/" + row["q"], "r": reason}, "$unset": LET_GO, "$inc": {"l": 1}}
    return dead | {"$currentDate": now} | _lost(row)


def _lost(row: Document) -> Document:
    return noted(attempts.lost(row["a"], row["w"], time.time()))


def _trim(opened: Opened, queue: str, bounds: Bounds) -> None:
    """Forget dead letters beyond their bounds. To find the surplus ones, as many as may be kept are passed over."""
    dead = {"s": "d/" + queue, "at": {"$exists": True}}
    age = round(bounds.age * 1000)
    old = {**dead, "$expr": {"$lt": ["$at", {"$subtract": ["$$NOW", age]}]}}
    delete(opened.tasks, old)
    last = opened.tasks.find(dead, {"at": 1, "o": 1}).sort([("at", -1), ("o", -1)]).skip(bounds.most).limit(1)
    for row in last:
        delete(opened.tasks, {"s": "d/" + queue, "at": {"$lt": row["at"]}})
        delete(opened.tasks, {"s": "d/" + queue, "at": row["at"], "o": {"$lte": row["o"]}})
