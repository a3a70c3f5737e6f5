"""What workers say of themselves in MongoDB, and what people ask of them: documents of ``delayed_workers``.

An announcement is named ``worker/queue``, an order ``/worker/id`` (no worker's id begins with a slash); `until` is when
it ends. The server removes what has ended, in its own time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pymongo import UpdateOne

from delayed.brokers.mongo_client import Opened
from delayed.message import WorkerInfo

Document = dict[str, Any]


def announce(opened: Opened, worker: str, queues: Sequence[str], info: Mapping[str, Any] | None, ttl: float) -> None:
    """Say that `worker` lives; see :meth:`Broker.announce`."""
    names = [f"{worker}/{queue}" for queue in queues]
    if info is None:
        opened.workers.delete_many({"_id": {"$in": names}})
        return
    until: Document = {"$add": ["$$NOW", round(ttl * 1000)]}
    text = {"$literal": json.dumps(info)}
    opened.workers.bulk_write(
        [
            UpdateOne(
                {"_id": name},
                [{"$set": {"q": {"$literal": queue}, "w": {"$literal": worker}, "info": text, "until": until}}],
                upsert=True,
            )
            for name, queue in zip(names, queues, strict=True)
        ],
        ordered=False,
    )


def workers(opened: Opened, queue: str) -> list[WorkerInfo]:
    """See :meth:`Broker.workers`."""
    rows = opened.workers.find({"q": queue, "$expr": {"$gt": ["$until", "$$NOW"]}}).sort("w", 1)
    return [WorkerInfo(row["w"], json.loads(row["info"])) for row in rows]


def ask(opened: Opened, worker: str, order: Mapping[str, Any], ttl: float) -> None:
    """See :meth:`Broker.ask`."""
    until: Document = {"$add": ["$$NOW", round(ttl * 1000)]}
    change = [{"$set": {"order": {"$literal": json.dumps(order)}, "until": until}}]
    opened.workers.update_one({"_id": f"/{worker}/{order['id']}"}, change, upsert=True)


def orders(opened: Opened, worker: str) -> list[Mapping[str, Any]]:
    """The orders that wait for a worker; they are removed."""
    # Read by their names, which are indexed. An order that comes between the two commands waits for the next time.
    prefix = f"/{worker}/"
    which = {"_id": {"$gte": prefix, "$lt": prefix[:-1] + "0"}}
    live = {**which, "$expr": {"$gt": ["$until", "$$NOW"]}}
    found = list(opened.workers.find(live, {"order": 1}))
    if found:
        opened.workers.delete_many({"_id": {"$in": [row["_id"] for row in found]}})
    return [json.loads(row["order"]) for row in found]
