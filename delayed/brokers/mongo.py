"""The MongoDB broker."""

from __future__ import annotations

import atexit
import contextlib
import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pymongo.errors import DuplicateKeyError

from delayed.brokers import keys
from delayed.brokers import mongo_answers as answers
from delayed.brokers import mongo_keys as values
from delayed.brokers import mongo_leases as leases
from delayed.brokers import mongo_letters as letters
from delayed.brokers import mongo_look as look
from delayed.brokers import mongo_pauses as pauses
from delayed.brokers import mongo_people as people
from delayed.brokers import mongo_sessions as sessions
from delayed.brokers import mongo_tasks as tasks
from delayed.brokers.base import LEASE, Broker, Listener
from delayed.brokers.mongo_client import MongoAccess, Opened
from delayed.brokers.mongo_enqueue import enqueue
from delayed.brokers.mongo_join import MongoJoined, check_session, ending
from delayed.brokers.mongo_once import enqueue_once
from delayed.brokers.mongo_wait import MongoWait
from delayed.errors import BrokerError
from delayed.message import (
    Answer,
    Bounds,
    Claim,
    Counts,
    Entry,
    Message,
    Once,
    Ref,
    Renewal,
    Settlement,
    State,
    Stored,
    Swept,
    WorkerInfo,
)

FEW = 4  # queues that are each asked whether they have tasks, as quickly as it is found out which of more have
DUE_LOOK = 0.1  # seconds between two looks for due tasks by one who finds others ready


class MongoBroker(Broker):
    """Tasks in a MongoDB database, 5.0 or later.

    On a replica set (of one member or more) sleepers are woken by a change stream, and tasks can be enqueued and ended
    inside transactions. A standalone mongod does all but that, and sleepers poll it.

    Args:
        conn: ``mongodb://user:password@host:port/database?options`` or ``mongodb+srv://…`` (without a database:
            ``delayed``), a :class:`pymongo.MongoClient`, or a database of one.

    Raises:
        ConfigError: When the URL is wrong.
    """

    scheme: ClassVar[str] = "mongodb"
    threads: ClassVar[tuple[str, ...]] = ("pymongo_", "delayed-mongo-")
    answer_max: ClassVar[int] = 15 << 20

    def __init__(self, conn: Any) -> None:
        self._access = MongoAccess(conn)
        self._waits = MongoWait(self._access)
        self._used: set[str] = set()
        self._looked: dict[str, float] = {}
        _brokers.add(self)

    # -- producing ---------------------------------------------------------------------------------------------

    def reserve_ids(self, queue: str, n: int) -> int:
        floor = {"$multiply": [{"$toLong": "$$NOW"}, 2048]}
        step: list[Mapping[str, Any]] = [{"$set": {"counter": {"$add": [{"$max": ["$counter", floor]}, n]}}}]
        with self._access.use() as opened:
            for _ in range(3):
                with contextlib.suppress(DuplicateKeyError):  # two were the first
                    row = opened.queues.find_one_and_update(
                        {"_id": queue}, step, {"counter": 1}, upsert=True, return_document=True
                    )
                    assert row is not None  # it is upserted
                    return int(row["counter"]) - n + 1
        raise BrokerError(f"{self!r}: no counter for the queue {queue!r}")

    def clock(self, queue: str) -> float:
        with self._access.use() as opened:
            return look.clock(opened)

    def enqueue(self, queue: str, messages: Sequence[Message], session: str, seq: int) -> None:
        with self._access.use() as opened:
            self._note_used(opened, queue)
            enqueue(opened.tasks, queue, messages, session, seq)

    def enqueue_once(self, queue: str, message: Message, once: Once, session: str, seq: int) -> int:
        with self._access.use() as opened:
            self._note_used(opened, queue)
            return enqueue_once(self._access.name, opened.tasks, queue, message, once, session, seq)

    def join(self, conn: Any) -> MongoJoined:
        with self._access.use() as opened:
            return self._joined(check_session(self._access, opened, conn))

    # -- working -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self, ref: Ref, answer: Answer | None = None) -> Iterator[MongoJoined]:
        with ending(self._access, ref, answer) as session:
            yield self._joined(session)

    def claim(self, queues: Sequence[str], worker: str, seq: int, nonce: int, limit: int, lease: float) -> list[Claim]:
        names = list(dict.fromkeys(queues))
        with self._access.use() as opened:
            claiming = tasks.Claiming(opened.tasks, worker, seq, nonce, limit, lease)
            paused = pauses.among(opened.tasks, names)
            some = set(names)
            for number, queue in enumerate(names):
                if not claiming.wants_more:
                    break
                if number == 1 and len(names) > FEW:
                    some = tasks.occupied(opened.tasks, names[1:])
                if queue in paused or queue not in some:
                    continue
                looked = self._look_for_due(opened, queue, DUE_LOOK)
                fresh = claiming.take(queue)
                if fresh and claiming.wants_more and not looked and self._look_for_due(opened, queue, 0.0):
                    fresh = claiming.take(queue)
                if not fresh:
                    return tasks.held(opened.tasks, names, worker, nonce)
            if not claiming.claims and tasks.was_noted(opened.tasks, worker, seq):
                return tasks.held(opened.tasks, names, worker, nonce)
            return claiming.claims

    def settle(self, worker: str, settlements: Sequence[Settlement]) -> list[bool]:
        with self._access.use() as opened:
            sessions.kill(opened, [settlement.ref for settlement in settlements if settlement.action != "done"])
            return tasks.settle(opened.tasks, settlements) if settlements else []

    def renew(self, worker: str, queues: Sequence[str], refs: Sequence[Ref], lease: float) -> Renewal:
        names = list(dict.fromkeys([*queues, *[ref.queue for ref in refs]]))
        known = set(refs)
        with self._access.use() as opened:
            there = tasks.held_refs(opened.tasks, names, worker)
            renewed = leases.renew(opened.leases, [ref for ref in refs if ref in there], lease)
            unknown: list[Claim] = []
            if not there <= known:
                unknown = [claim for claim in tasks.held(opened.tasks, names, worker) if claim.ref not in known]
        return Renewal([ref for ref in refs if ref in renewed], [ref for ref in refs if ref not in renewed], unknown)

    def held(self, worker: str, queues: Sequence[str]) -> list[Claim]:
        with self._access.use() as opened:
            return tasks.held(opened.tasks, queues, worker)

    def wait(self, queues: Sequence[str], timeout: float) -> None:
        self._waits.wait(queues, timeout)

    def wake(self, queues: Sequence[str]) -> None:
        self._waits.wake()

    # -- answers -----------------------------------------------------------------------------------------------

    def put_result(self, queue: str, id: int, answer: Answer) -> None:
        with self._access.use() as opened:
            answers.put(opened.tasks, queue, id, answer)

    def get_results(self, queue: str, ids: Sequence[int]) -> dict[int, bytes]:
        with self._access.use() as opened:
            return answers.get(opened.tasks, queue, ids)

    def listen(self, queue: str) -> Listener:
        return answers.MongoListener(self._access, queue)

    # -- small values ------------------------------------------------------------------------------------------

    def get_keys(self, queue: str, names: Sequence[str]) -> dict[str, Stored]:
        with self._access.use() as opened:
            return values.get(opened.keys, queue, names)

    def put_key(
        self,
        queue: str,
        name: str,
        value: bytes | None,
        *,
        ttl: float | None = None,
        version: int | None = None,
        keep_version: bool = False,
    ) -> int:
        keys.checked(name, value)
        with self._access.use() as opened:
            if value is None:
                return values.remove(opened.keys, queue, name, version)
            return values.put(opened.keys, queue, name, value, ttl, version, keep_version)

    def add_key(self, queue: str, name: str, by: int, ttl: float | None = None) -> int:
        keys.checked(name)
        with self._access.use() as opened:
            return values.add(opened.keys, queue, name, by, ttl)

    def list_keys(self, queue: str, prefix: str, limit: int = 1000) -> list[str]:
        with self._access.use() as opened:
            return values.list_names(opened.keys, queue, prefix, limit)

    # -- pausing -----------------------------------------------------------------------------------------------

    def pause(self, queue: str) -> None:
        with self._access.use() as opened:
            pauses.put(opened.tasks, queue, True)

    def resume(self, queue: str) -> None:
        with self._access.use() as opened:
            pauses.put(opened.tasks, queue, False)

    def paused(self, queue: str) -> bool:
        with self._access.use() as opened:
            return bool(pauses.among(opened.tasks, [queue]))

    # -- repairing ---------------------------------------------------------------------------------------------

    def sweep(self, queue: str, lease: float = LEASE) -> Swept:
        with self._access.use() as opened:
            return leases.sweep(opened, queue, lease)

    # -- looking and tidying -----------------------------------------------------------------------------------

    def queues(self) -> list[str]:
        with self._access.use() as opened:
            return sorted(row["_id"] for row in opened.queues.find({"used": True}, {"_id": 1}))

    def counts(self, queue: str) -> Counts:
        with self._access.use() as opened:
            return look.counts(opened, queue)

    def peek(
        self, queue: str, state: State, limit: int = 100, after: Entry | None = None, *, payloads: bool = True
    ) -> list[Entry]:
        with self._access.use() as opened:
            return look.peek(opened, queue, state, limit, after, payloads=payloads)

    def get(self, queue: str, id: int) -> Entry | None:
        with self._access.use() as opened:
            return look.get(opened, queue, id)

    def remove(self, queue: str, id: int, answer: Answer | None = None, *, dead: bool = True) -> bool:
        with self._access.use() as opened:
            if answer is not None:
                return answers.remove(opened.tasks, queue, id, answer, dead)
            return look.remove(opened, queue, id, dead)

    def reschedule(self, queue: str, id: int, delay: float) -> bool:
        with self._access.use() as opened:
            return look.is_id(id) and tasks.reschedule(opened.tasks, queue, id, delay)

    def purge(self, queue: str, states: Sequence[State] = ("scheduled", "ready", "dead")) -> int:
        if "running" in states:
            raise ValueError("running tasks can't be purged: stop their workers, or wait until they have ended")
        with self._access.use() as opened:
            return look.purge(opened, queue, list(dict.fromkeys(states)))

    # -- dead letters ------------------------------------------------------------------------------------------

    def revive(self, queue: str, ids: Sequence[int]) -> list[int]:
        with self._access.use() as opened:
            return letters.revive(opened, queue, ids)

    def drop(self, queue: str, ids: Sequence[int]) -> list[int]:
        with self._access.use() as opened:
            return letters.drop(opened, queue, ids)

    def bound(self, queue: str, bounds: Bounds) -> None:
        with self._access.use() as opened:
            letters.bound(opened, queue, bounds)

    # -- workers and people ------------------------------------------------------------------------------------

    def announce(
        self, worker: str, queues: Sequence[str], info: Mapping[str, Any] | None, ttl: float
    ) -> list[Mapping[str, Any]]:
        with self._access.use() as opened:
            people.announce(opened, worker, list(dict.fromkeys(queues)), info, ttl)
            return people.orders(opened, worker)

    def workers(self, queue: str) -> list[WorkerInfo]:
        with self._access.use() as opened:
            return people.workers(opened, queue)

    def ask(self, worker: str, queue: str, order: Mapping[str, Any], ttl: float) -> None:
        with self._access.use() as opened:
            people.ask(opened, worker, order, ttl)

    # -- itself ------------------------------------------------------------------------------------------------

    def check(self) -> list[str]:
        with self._access.use() as opened:
            opened.tasks.delete_one({"_id": None})  # there is none; but whoever may only read is refused
            if opened.transactions:
                return []
        return [
            f"{self._access.name} is a standalone mongod: it has no transactions, idle workers poll it, and a lost "
            "disk takes all tasks with it; start it with --replSet rs0 and call rs.initiate() once"
        ]

    def spec(self) -> str | None:
        return self._access.url

    def same_store(self, other: Broker) -> bool:
        return isinstance(other, MongoBroker) and self._access.is_same(other._access)

    def close(self) -> None:
        self._waits.close()
        self._access.close()

    def __repr__(self) -> str:
        return f"MongoBroker({self._access.name!r})"

    # -- parts -------------------------------------------------------------------------------------------------

    def start_afresh(self) -> None:
        """In the child of a fork."""
        self._access.start_afresh()
        self._waits.start_afresh()

    def _joined(self, session: Any) -> MongoJoined:
        def note(queue: str) -> None:
            with self._access.use() as opened:
                self._note_used(opened, queue)

        return MongoJoined(self._access, session, self.reserve_ids, self.clock, note)

    def _note_used(self, opened: Opened, queue: str) -> None:
        """Before the first task, so that no task is in a queue that :meth:`queues` does not name."""
        if queue not in self._used:
            with contextlib.suppress(DuplicateKeyError):
                opened.queues.update_one({"_id": queue}, {"$set": {"used": True}}, upsert=True)
            self._used.add(queue)

    def _look_for_due(self, opened: Opened, queue: str, interval: float) -> bool:
        """Make due tasks ready, if that was not done just now; whether it was looked for them."""
        now = time.monotonic()
        if now - self._looked.get(queue, -interval) < interval:
            return False
        self._looked[queue] = now
        tasks.promote(opened.tasks, queue)
        return True


_brokers: weakref.WeakSet[MongoBroker] = weakref.WeakSet()


def _after_fork() -> None:
    for broker in list(_brokers):
        broker.start_afresh()


def _at_exit() -> None:
    """The driver warns of every client that is still open then."""
    for broker in list(_brokers):
        with contextlib.suppress(Exception):
            broker.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
