"""The answers of tasks in MongoDB, and who waits for them.

The document of a task becomes that of its answer in the one write that ends its claim (``a/name``), so that neither can
be there without the other; `gone` is until when it is kept, and then the server removes it in its own time. The
document of a dead letter stays one, and has its answer beside the rest, with `t` for how long, in milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from bson.int64 import Int64
from pymongo.collection import Collection
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from delayed.brokers.base import Listener
from delayed.brokers.mongo_client import MongoAccess, translated
from delayed.errors import BrokerUnavailable
from delayed.message import Answer

Document = dict[str, Any]

AWAIT = 500  # milliseconds that a stream waits in the server at most
POLL = (0.005, 0.25)  # seconds between looks without a stream: at first, and at most
REST = [
    "p",
    "o",
    "at",
    "a",
    "m",
    "l",
    "h",
    "b",
    "w",
    "n",
    "r",
    "t",
    "v",
    "f",
]  # of a task, without its name and deliveries


def becomes(queue: str, answer: Answer) -> list[Document]:
    """What makes the document of a task that of its answer."""
    until: Document = {"$add": ["$$NOW", round(answer.ttl * 1000)]}
    kept = {"s": {"$literal": "a/" + queue}, "y": {"$literal": answer.data}, "gone": until}
    return [{"$set": kept}, {"$unset": REST}]


def beside(answer: Answer) -> Document:
    """What a dead letter has beside the rest."""
    return {"y": answer.data, "t": Int64(answer.ttl * 1000)}


def put(tasks: Collection[Document], queue: str, id: int, answer: Answer) -> None:
    """Store an answer in the place of what is there."""
    which = {"q": queue, "id": Int64(id), "s": "a/" + queue}
    tasks.update_one(which, becomes(queue, answer), upsert=True)


def remove(tasks: Collection[Document], queue: str, id: int, answer: Answer, dead: bool) -> bool:
    """Make a task that does not run its answer."""
    states = [f"{letter}/{queue}" for letter in ("lrd" if dead else "lr")]
    which = {"q": queue, "id": Int64(id), "s": {"$in": states}}
    return tasks.update_one(which, becomes(queue, answer)).matched_count == 1


def get(tasks: Collection[Document], queue: str, ids: Sequence[int]) -> dict[int, bytes]:
    """See :meth:`Broker.get_results`."""
    until: Document = {"$ifNull": ["$gone", {"$add": ["$at", "$t"]}]}
    which = {"q": queue, "id": {"$in": [Int64(id) for id in ids]}, "$expr": {"$gt": [until, "$$NOW"]}}
    return {int(row["id"]): bytes(row["y"]) for row in tasks.find(which, {"id": 1, "y": 1})}


class MongoListener(Listener):
    """A change stream where the server has them, else polling."""

    def __init__(self, access: MongoAccess, queue: str) -> None:
        self._access = access
        self._closed = False
        self._pause = POLL[0]
        self._stream: Any = None
        with access.use() as opened:
            if not opened.transactions:
                return
            names = ["a/" + queue, "d/" + queue]
            steps: list[Document] = [
                {
                    "$match": {
                        "$or": [
                            {"updateDescription.updatedFields.s": {"$in": names}},
                            {"fullDocument.s": names[0]},
                            {
                                "updateDescription.updatedFields.y": {"$exists": True},
                                "updateDescription.updatedFields.s": {"$exists": False},
                            },
                        ]
                    }
                },
                {"$project": {"_id": 1}},
            ]
            followed = opened.tasks.with_options(read_concern=ReadConcern("majority"))
            self._stream = followed.watch(steps, max_await_time_ms=AWAIT, batch_size=1000)

    def wait(self, timeout: float) -> bool:
        if self._stream is None:
            time.sleep(min(timeout, self._pause))
            self._pause = min(self._pause * 2, POLL[1])
            return True
        end = time.monotonic() + timeout
        with translated(self._access.name):  # and not opened again, should it have been closed
            while not self._closed and time.monotonic() < end:
                if not self._stream.alive:
                    raise BrokerUnavailable(f"{self._access.name}: the change stream has ended", sent=False)
                if self._stream.try_next() is not None:
                    return True
        return False

    def close(self) -> None:
        self._closed = True  # its thread ends the wait

    def __del__(self) -> None:
        if self._stream is not None:
            try:  # noqa: SIM105  # nothing may be loaded at the end of a process
                self._stream.close()
            except (PyMongoError, OSError, RuntimeError):
                pass
