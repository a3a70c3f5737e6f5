"""Pausing a queue in MongoDB: a document ``q/name`` in the collection of the tasks, whose change stream the sleepers of
the queue follow anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

Tasks = Collection[dict[str, Any]]


def name_of(queue: str) -> str:
    """The name of the document that says whether `queue` is paused."""
    return "q/" + queue


def put(tasks: Tasks, queue: str, paused: bool) -> None:
    """Pause a queue, or resume it."""
    change = {"$set": {"paused": paused}}
    try:
        tasks.update_one({"_id": name_of(queue)}, change, upsert=True)
    except DuplicateKeyError:  # two were the first
        tasks.update_one({"_id": name_of(queue)}, change)


def among(tasks: Tasks, queues: Iterable[str]) -> set[str]:
    """Those of the queues that are paused."""
    found = tasks.find({"_id": {"$in": [name_of(queue) for queue in queues]}, "paused": True}, {"_id": 1})
    return {row["_id"].removeprefix("q/") for row in found}
