"""Waiting for tasks in MongoDB: with a change stream where the server has them, else by looking again and again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from pymongo.collection import Collection
from pymongo.read_concern import ReadConcern

from delayed.brokers import mongo_pauses as pauses
from delayed.brokers.mongo_client import MongoAccess
from delayed.errors import BrokerUnavailable, DelayedError

Document = dict[str, Any]

POLL = (0.001, 0.25)  # seconds between two looks without a stream: they become fewer
FLOOR = 1.0  # seconds between two looks with a stream, should it miss something
AWAIT = 500  # milliseconds that a stream waits in the server at most
IDLE = 0.3  # seconds without a sleeper after which a stream is closed: to follow it costs more than to open it again
PAUSE = 0.25  # seconds before a stream that failed is opened again
NEVER = float("inf")


class MongoWait:
    """The sleepers of one broker object in one process, and the stream that wakes them.

    A thread of its own follows the stream, for as long as somebody sleeps: a read that waits in the server can't be
    interrupted, and a sleeper has to be.
    """

    def __init__(self, access: MongoAccess) -> None:
        self._access = access
        self.start_afresh()

    def start_afresh(self) -> None:
        """What a fork inherited has no thread."""
        self._changed = threading.Condition()
        self._pid = os.getpid()
        self._sleepers = 0
        self._wanted: frozenset[str] = frozenset()  # the queues that the stream is to tell of
        self._rung = 0  # how often something has come to one of them
        self._woken = 0  # how often wake() was called that no wait has answered yet
        self._closed = 0
        self._streaming: frozenset[str] = frozenset()  # the queues of the stream that is open
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        with self._changed:
            self._woken = 1
            self._changed.notify_all()

    def close(self) -> None:
        """End every wait, and the stream as soon as it notices."""
        with self._changed:
            self._closed += 1
            self._thread = None
            self._streaming = frozenset()
            self._changed.notify_all()

    def wait(self, queues: Sequence[str], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        names = frozenset(queues)
        with self._changed:
            closed = self._closed
            self._sleepers += 1
            self._wanted = names | self._wanted if self._sleepers > 1 else names
        try:
            with self._access.use() as opened:
                streams = opened.transactions
            poll = POLL[0]
            while True:
                with self._changed:
                    rung = self._rung
                    if streams:
                        self._follow()
                    follows = names <= self._streaming
                left = deadline - time.monotonic()
                with self._access.use() as opened:
                    due = next_due(opened.tasks, queues)
                if due <= 0 or left <= 0:
                    return
                floor = FLOOR if follows else poll
                poll = min(poll * 2, POLL[1])
                with self._changed:
                    self._sleep(min(left, due, floor), rung, closed)
                    if self._woken or self._closed != closed:
                        self._woken = 0
                        return
        except BrokerUnavailable:
            if self._closed == closed:
                raise
        finally:
            with self._changed:
                self._sleepers -= 1
                self._changed.notify_all()

    def _sleep(self, seconds: float, rung: int, closed: int) -> None:
        """Until something has happened since. The lock is held."""
        self._changed.wait_for(lambda: self._woken or self._closed != closed or self._rung != rung, seconds)

    # -- the stream --------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """See that a thread follows the stream. The lock is held."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="delayed-mongo-stream", daemon=True)
            self._thread.start()

    def _mine(self) -> bool:
        return self._thread is threading.current_thread()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._sleepers or not self._mine(), IDLE) or not self._mine():
                    if self._mine():
                        self._thread = None
                    return
                wanted = self._wanted
            try:
                with self._access.use() as opened:
                    self._stream(opened.tasks, wanted)
            except DelayedError:  # it is only a hint: the sleepers look for themselves meanwhile
                time.sleep(PAUSE)
            finally:
                with self._changed:
                    if self._mine():
                        self._streaming = frozenset()

    def _stream(self, tasks: Collection[Document], wanted: frozenset[str]) -> None:
        names = [f"{letter}/{queue}" for queue in wanted for letter in "rl"]
        steps: list[Document] = [
            {
                "$match": {
                    "$or": [
                        {"updateDescription.updatedFields.s": {"$in": names}},
                        {"fullDocument.s": {"$in": names}},
                        {"documentKey._id": {"$in": [pauses.name_of(queue) for queue in wanted]}},
                    ]
                }
            },
            {"$project": {"_id": 1}},
        ]
        followed = tasks.with_options(read_concern=ReadConcern("majority"))
        with followed.watch(steps, max_await_time_ms=AWAIT, batch_size=1000) as stream:
            self._ring(wanted)  # what came before it was open
            while stream.alive:
                with self._changed:
                    self._changed.wait_for(lambda: self._sleepers or not self._mine(), IDLE)
                    if not self._sleepers or not self._mine() or not self._wanted <= wanted:
                        return
                if stream.try_next() is not None:
                    self._ring(wanted)

    def _ring(self, wanted: frozenset[str]) -> None:
        with self._changed:
            if self._mine():
                self._streaming = wanted
                self._rung += 1
                self._changed.notify_all()


def next_due(tasks: Collection[Document], queues: Sequence[str]) -> float:
    """Seconds until one of these queues has something to claim, as far as is known now; inf if nothing waits."""
    paused = pauses.among(tasks, queues)
    queues = [queue for queue in queues if queue not in paused]
    if tasks.find_one({"s": {"$in": ["r/" + queue for queue in queues]}}, {"_id": 1}) is not None:
        return 0.0
    rows = tasks.aggregate(
        [
            {"$match": {"s": {"$in": ["l/" + queue for queue in queues]}, "at": {"$exists": True}}},
            {"$sort": {"at": 1}},
            {"$limit": 1},
            {"$project": {"left": {"$subtract": ["$at", "$$NOW"]}}},
        ]
    )
    for row in rows:
        return max(0.0, float(row["left"]) / 1000)
    return NEVER
