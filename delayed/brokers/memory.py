"""A store in the memory of one process: for tests, and for workers in threads. It ends with its process."""

from __future__ import annotations

import heapq
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit

from delayed import attempts
from delayed.brokers import keys
from delayed.brokers.base import DEAD_LETTERS, LEASE, PRODUCER_AGE, Broker, Listener
from delayed.brokers.grace import Grace
from delayed.brokers.masked import masked
from delayed.brokers.memory_keys import MemoryKeys
from delayed.brokers.odd import tasks_among
from delayed.errors import BrokerError, ConfigError
from delayed.message import (
    LIFE,
    NOTES_MAX,
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
    next_life,
)


@dataclass(slots=True, eq=False)
class _Task:
    id: int
    header: bytes
    payload: bytes
    priority: int
    max_deliveries: int
    place: int  # its turn among those of its priority
    tenant: str | None = None  # whose it is, if it is fair
    state: State = "ready"
    at: float = 0.0  # when it is due, its lease ends, or it died
    attempt: int = 0
    delivery: int = 0
    worker: str = ""
    nonce: int = 0
    lost: int = 0
    reason: str = ""
    notes: tuple[bytes, ...] = ()

    def note(self, note: bytes) -> None:
        self.notes = (*self.notes, note)[-NOTES_MAX:]

    def entry(self, now: float, *, payload: bool = True) -> Entry:
        message = Message.glimpse(self.id, self.header, self.payload if payload else b"")
        due = max(0.0, self.at - now) if self.state in ("scheduled", "running") else 0.0
        died = now - self.at if self.state == "dead" else 0.0
        deliveries = self.delivery % LIFE
        told = (self.attempt, deliveries, self.worker, due, self.reason, died, self.header, self.notes)
        return Entry(message, self.state, *told)


@dataclass(slots=True)
class _Queue:
    name: str
    used: bool = False
    last_id: int = 0
    tasks: dict[int, _Task] = field(default_factory=dict)
    # Heaps whose items may be stale: an item counts if its task is still in the same state and at the same turn.
    ready: list[tuple[int, int, int]] = field(default_factory=list)  # (-priority, place, id)
    scheduled: list[tuple[float, int, int]] = field(default_factory=list)  # (due, place, id)
    held: dict[str, dict[int, _Task]] = field(default_factory=dict)  # by worker
    sessions: dict[str, tuple[int, float]] = field(default_factory=dict)  # producer -> (seq, when seen)
    announced: dict[str, tuple[str, float]] = field(default_factory=dict)  # worker -> (JSON, until when)
    answers: dict[int, tuple[bytes, float]] = field(default_factory=dict)  # id -> (data, until when)
    onces: dict[str, tuple[int, bool, float | None]] = field(default_factory=dict)  # key -> (id, begun, until when)
    answered: int = 0  # how many have been stored
    grace: Grace = field(default_factory=Grace)
    paused: bool = False
    bounds: Bounds = DEAD_LETTERS
    # Of the ready tasks that are fair, as `ready`; and the place that each tenant was given last, by priority.
    fair: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # priority -> (place, id)
    turns: dict[int, dict[str, int]] = field(default_factory=dict)
    tail: int = 0  # the last place that was given

    def next_place(self, task: _Task | None = None) -> int:
        """The place of a task that becomes ready: behind all, or, if it is fair, where it is its tenant's turn."""
        if task is None or task.tenant is None:
            self.tail += 1
            return self.tail
        turns, fair = self.turns.setdefault(task.priority, {}), self.fair.setdefault(task.priority, [])
        while fair and not self._is_ready(*fair[0]):
            heapq.heappop(fair)
        if not fair:
            turns.clear()
        place = max(fair[0][0] if fair else self.tail + 1, turns.get(task.tenant, 0) + 1)
        turns[task.tenant] = place
        self.tail = max(self.tail, place)
        return place

    def _is_ready(self, place: int, id: int) -> bool:
        task = self.tasks.get(id)
        return task is not None and task.state == "ready" and task.place == place

    keys: MemoryKeys = field(default_factory=MemoryKeys)

    def reserve(self, n: int, ms: int) -> int:
        """The first of `n` new ids."""
        last = max(self.last_id, ms << 11)
        self.last_id = last + n
        return last + 1

    def put(self, task: _Task, delay: float, now: float) -> None:
        """Make a task ready, or due later."""
        task.worker, task.nonce = "", 0
        if delay > 0:
            task.state, task.at = "scheduled", now + delay
            heapq.heappush(self.scheduled, (task.at, task.place, task.id))
        else:
            task.state, task.at = "ready", 0.0
            heapq.heappush(self.ready, (-task.priority, task.place, task.id))
            if task.tenant is not None and task.attempt == 0:
                heapq.heappush(self.fair.setdefault(task.priority, []), (task.place, task.id))

    def release(self, task: _Task) -> None:
        """It is not held any more."""
        mine = self.held[task.worker]
        del mine[task.id]
        if not mine:
            del self.held[task.worker]

    def bury(self, task: _Task, reason: str, now: float) -> None:
        task.state, task.at, task.reason, task.worker, task.nonce = "dead", now, reason, "", 0

    def answer(self, id: int, answer: Answer | None, now: float) -> None:
        """Store the answer of a task, if there is one."""
        if answer is not None:
            self.answers[id] = (answer.data, now + answer.ttl)
            self.answered += 1

    def holder(self, key: str, now: float) -> int | None:
        """The id of the task that holds a key; None if it is free."""
        id, begun, until = self.onces.get(key, (0, False, None))
        if until is not None:
            return id if until > now else None
        task = self.tasks.get(id)
        if task is None or task.state == "dead" or (begun and task.attempt > 0):
            return None
        return id

    def promote(self, now: float) -> None:
        """Make ready what is due."""
        while self.scheduled and self.scheduled[0][0] <= now:
            at, _, id = heapq.heappop(self.scheduled)
            task = self.tasks.get(id)
            if task is not None and task.state == "scheduled" and task.at == at:
                task.place = self.next_place(task if task.attempt == 0 else None)
                self.put(task, 0.0, now)

    def next_ready(self) -> _Task | None:
        """The task that is served next, left where it is; None if none is."""
        while self.ready and not self.paused:
            _, place, id = self.ready[0]
            if self._is_ready(place, id):
                return self.tasks[id]
            heapq.heappop(self.ready)
        return None

    def next_due(self) -> float:
        """When the next scheduled task is due; inf if none is to be served."""
        while self.scheduled and not self.paused:
            at, _, id = self.scheduled[0]
            task = self.tasks.get(id)
            if task is not None and task.state == "scheduled" and task.at == at:
                return at
            heapq.heappop(self.scheduled)
        return float("inf")


class _Store:
    def __init__(self) -> None:
        self.process = os.getpid()
        self.changed = threading.Condition()
        self.queues: dict[str, _Queue] = {}
        self.claims: dict[str, tuple[int, float]] = {}  # worker -> (the number of its last claim, when)
        self.orders: dict[tuple[str, str], tuple[str, float]] = {}  # (worker, id) -> (JSON, until when)


_stores: dict[str, _Store] = {}
_stores_lock = threading.Lock()


class MemoryBroker(Broker):
    """Keeps all in this process.

    Args:
        url: ``memory://``, or ``memory://name``. Brokers of one name share one store.

    Raises:
        ConfigError: When the URL has more than a name.
    """

    scheme: ClassVar[str] = "memory"

    def __init__(self, url: str = "memory://") -> None:
        parts = urlsplit(url)
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ConfigError(f"{masked(url)!r}: a store in memory has a name at most: memory://name")
        self._name = parts.netloc
        self._woken = False  # for the next wait
        self._wakes = 0  # for all that are under way
        with _stores_lock:
            store = _stores.get(self._name)
            if store is None:
                store = _stores[self._name] = _Store()
        self._store = store

    def _now(self) -> float:
        if os.getpid() != self._store.process:
            # A copy of the store, in which a task would wait for ever.
            raise BrokerError(
                f"{self!r} lives in process {self._store.process}, and this is a fork of it; "
                "use a store that processes share: sqlite:///tasks.db"
            )
        return time.monotonic()

    def _milliseconds(self) -> int:
        return time.time_ns() // 1_000_000

    def _queue(self, name: str) -> _Queue:
        queue = self._store.queues.get(name)
        if queue is None:
            queue = self._store.queues[name] = _Queue(name)
        return queue

    # -- producing -------------------------------------------------------------------------------------------------

    def reserve_ids(self, queue: str, n: int) -> int:
        self._now()
        with self._store.changed:
            return self._queue(queue).reserve(n, self._milliseconds())

    def clock(self, queue: str) -> float:
        self._now()
        return self._milliseconds() / 1000

    def enqueue(self, queue: str, messages: Sequence[Message], session: str, seq: int) -> None:
        now = self._now()
        with self._store.changed:
            found = self._queue(queue)
            if found.sessions.get(session, (0, 0.0))[0] >= seq:
                return
            tasks: dict[int, _Task] = {}  # all are made before one is stored: a header may raise
            for message in messages:
                if message.id in found.tasks or message.id in tasks:
                    raise BrokerError(f"queue {queue!r} has a task {message.id} already; take ids from reserve_ids()")
                tasks[message.id] = _Task(
                    message.id,
                    message.header(),
                    message.payload,
                    message.priority,
                    message.max_deliveries,
                    found.next_place(),
                    message.tenant,
                )
            found.sessions[session] = (seq, now)
            found.used = True
            found.tasks.update(tasks)
            for message in messages:
                if message.tenant is not None and message.delay <= 0:
                    tasks[message.id].place = found.next_place(tasks[message.id])
                found.put(tasks[message.id], message.delay, now)
            self._store.changed.notify_all()

    def enqueue_once(self, queue: str, message: Message, once: Once, session: str, seq: int) -> int:
        now = self._now()
        with self._store.changed:
            found = self._queue(queue)
            if found.sessions.get(session, (0, 0.0))[0] >= seq:
                return message.id
            held = found.holder(once.key, now)
            if held is not None and not once.replace:
                return held
            MemoryBroker.enqueue(self, queue, [message], session, seq)
            if held is not None and held in found.tasks and found.tasks[held].state in ("scheduled", "ready"):
                del found.tasks[held]
            found.onces[once.key] = (message.id, once.begun, None if once.period is None else now + once.period)
            return message.id

    # -- working ---------------------------------------------------------------------------------------------------

    def claim(self, queues: Sequence[str], worker: str, seq: int, nonce: int, limit: int, lease: float) -> list[Claim]:
        return tasks_among(self, worker, self._claim(queues, worker, seq, nonce, limit, lease))

    def _claim(self, queues: Sequence[str], worker: str, seq: int, nonce: int, limit: int, lease: float) -> list[Claim]:
        now = self._now()
        with self._store.changed:
            if self._store.claims.get(worker, (0, 0.0))[0] >= seq:
                return [claim for claim in self._held(worker, queues) if claim.nonce == nonce]
            self._store.claims[worker] = (seq, now)
            claims: list[Claim] = []
            for name in queues:
                found = self._queue(name)
                found.promote(now)
                while len(claims) < limit and (task := found.next_ready()) is not None:
                    heapq.heappop(found.ready)
                    task.state, task.at, task.worker, task.nonce = "running", now + lease, worker, nonce
                    task.delivery += 1
                    task.attempt += 1
                    found.held.setdefault(worker, {})[task.id] = task
                    claims.append(_claim(name, task))
            return claims

    def settle(self, worker: str, settlements: Sequence[Settlement]) -> list[bool]:
        now = self._now()
        with self._store.changed:
            accepted = [self._settle(settlement, now) for settlement in settlements]
            self._store.changed.notify_all()
            return accepted

    def _settle(self, settlement: Settlement, now: float) -> bool:
        ref, action, delay, reason, answer, note = settlement
        queue = self._queue(ref.queue)
        task = self._claimed(ref)
        if task is None:
            return False
        queue.release(task)
        if action in ("done", "dead"):
            queue.answer(task.id, answer, now)
        if note:
            task.note(note)
        if action == "done":
            del queue.tasks[task.id]
        elif action == "dead":
            queue.bury(task, reason, now)
        else:
            if action == "back":
                task.attempt -= 1
            else:
                task.place = queue.next_place()
            queue.put(task, delay, now)
        return True

    def _claimed(self, ref: Ref) -> _Task | None:
        task = self._queue(ref.queue).tasks.get(ref.id)
        if task is None or task.state != "running" or (task.delivery, task.nonce) != (ref.delivery, ref.nonce):
            return None
        return task

    def renew(self, worker: str, queues: Sequence[str], refs: Sequence[Ref], lease: float) -> Renewal:
        now = self._now()
        with self._store.changed:
            held, lost = [], []
            for ref in refs:
                task = self._claimed(ref)
                if task is None or task.worker != worker:
                    lost.append(ref)
                else:
                    task.at = now + lease
                    held.append(ref)
            known = set(refs)
            unknown = [claim for claim in self._held(worker, queues) if claim.ref not in known]
        return Renewal(held, lost, tasks_among(self, worker, unknown))

    def held(self, worker: str, queues: Sequence[str]) -> list[Claim]:
        self._now()
        with self._store.changed:
            found = self._held(worker, queues)
        return tasks_among(self, worker, found)

    def _held(self, worker: str, queues: Sequence[str]) -> list[Claim]:
        names = dict.fromkeys(queues)
        return [_claim(name, task) for name in names for task in self._queue(name).held.get(worker, {}).values()]

    def wait(self, queues: Sequence[str], timeout: float) -> None:
        deadline = self._now() + timeout
        with self._store.changed:
            wakes = self._wakes
            while not self._woken and self._wakes == wakes:
                now = time.monotonic()
                found = [self._queue(name) for name in queues]
                until = min([deadline, *(queue.next_due() for queue in found)])
                if until <= now or any(queue.next_ready() is not None for queue in found):
                    break
                self._store.changed.wait(until - now)
            self._woken = False

    def wake(self, queues: Sequence[str]) -> None:
        if os.getpid() != self._store.process:
            return  # nobody waits in a fork, where the lock may be held for ever
        with self._store.changed:
            self._woken = True  # also for a wait that is about to begin
            self._wakes += 1
            self._store.changed.notify_all()

    # -- answers ---------------------------------------------------------------------------------------------------

    def put_result(self, queue: str, id: int, answer: Answer) -> None:
        now = self._now()
        with self._store.changed:
            self._queue(queue).answer(id, answer, now)
            self._store.changed.notify_all()

    def get_results(self, queue: str, ids: Sequence[int]) -> dict[int, bytes]:
        now = self._now()
        with self._store.changed:
            found = self._queue(queue).answers
            return {id: found[id][0] for id in ids if id in found and found[id][1] > now}

    def listen(self, queue: str) -> Listener:
        self._now()
        return _MemoryListener(self._store.changed, self._queue(queue))

    # -- small values ----------------------------------------------------------------------------------------------

    def get_keys(self, queue: str, names: Sequence[str]) -> dict[str, Stored]:
        now = self._now()
        with self._store.changed:
            return self._queue(queue).keys.get(names, now)

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
        now = self._now()
        keys.checked(name, value)
        with self._store.changed:
            found = self._queue(queue)
            fresh = found.reserve(1, self._milliseconds())
            return found.keys.put(name, value, ttl, version, fresh, keep_version, now)

    def add_key(self, queue: str, name: str, by: int, ttl: float | None = None) -> int:
        now = self._now()
        keys.checked(name)
        keys.bounded(name, by)
        with self._store.changed:
            found = self._queue(queue)
            return found.keys.add(name, by, ttl, found.reserve(1, self._milliseconds()), now)

    def list_keys(self, queue: str, prefix: str, limit: int = 1000) -> list[str]:
        now = self._now()
        with self._store.changed:
            return self._queue(queue).keys.list(prefix, limit, now)

    # -- pausing ---------------------------------------------------------------------------------------------------

    def pause(self, queue: str) -> None:
        self._now()
        with self._store.changed:
            self._queue(queue).paused = True

    def resume(self, queue: str) -> None:
        self._now()
        with self._store.changed:
            self._queue(queue).paused = False
            self._store.changed.notify_all()

    def paused(self, queue: str) -> bool:
        self._now()
        with self._store.changed:
            return self._queue(queue).paused

    # -- repairing -------------------------------------------------------------------------------------------------

    def sweep(self, queue: str, lease: float = LEASE) -> Swept:
        now = self._now()
        with self._store.changed:
            found = self._queue(queue)
            found.grace, before = found.grace.sweep(now, lease)
            if before is None:
                return Swept(0, 0, True, not any(found.held.values()))
            returned = dead = 0
            for task in [task for mine in found.held.values() for task in mine.values() if task.at < before]:
                task.note(attempts.lost(task.attempt, task.worker, time.time()))
                found.release(task)
                task.lost += 1
                if task.attempt >= task.max_deliveries:
                    times = task.delivery % LIFE
                    found.bury(task, f"poison: delivered {times} times, and its worker was lost again", now)
                    dead += 1
                    continue
                if task.lost > 1:
                    task.place = found.next_place()
                found.put(task, 0.0, now)
                returned += 1
            self._tidy(found, now)
            self._store.changed.notify_all()
            return Swept(returned, dead, False, not any(found.held.values()))

    def _tidy(self, queue: _Queue, now: float) -> None:
        dead = sorted((task for task in queue.tasks.values() if task.state == "dead"), key=_newest_first)
        for index, task in enumerate(dead):
            if index >= queue.bounds.most or task.at < now - queue.bounds.age:
                del queue.tasks[task.id]
        unseen = now - PRODUCER_AGE
        queue.keys.forget(now)
        queue.answers = {id: it for id, it in queue.answers.items() if it[1] > now}
        queue.onces = {key: it for key, it in queue.onces.items() if queue.holder(key, now) is not None}
        queue.sessions = {name: it for name, it in queue.sessions.items() if it[1] >= unseen}
        queue.announced = {name: it for name, it in queue.announced.items() if it[1] >= now}
        self._store.claims = {name: it for name, it in self._store.claims.items() if it[1] >= unseen}

    # -- looking and tidying ---------------------------------------------------------------------------------------

    def queues(self) -> list[str]:
        self._now()
        with self._store.changed:
            return sorted(name for name, queue in self._store.queues.items() if queue.used)

    def counts(self, queue: str) -> Counts:
        now = self._now()
        with self._store.changed:
            found = self._queue(queue)
            found.promote(now)
            states = [task.state for task in found.tasks.values()]
            return Counts(*(states.count(state) for state in ("scheduled", "ready", "running", "dead")))

    def peek(
        self, queue: str, state: State, limit: int = 100, after: Entry | None = None, *, payloads: bool = True
    ) -> list[Entry]:
        now = self._now()
        with self._store.changed:
            found = self._queue(queue)
            found.promote(now)
            tasks = [task for task in found.tasks.values() if task.state == state]
            place = _PLACES[state]
            if after is not None:
                tasks = [task for task in tasks if place(task) > after.place]
            tasks.sort(key=place)
            return [task.entry(now, payload=payloads)._replace(place=place(task)) for task in tasks[:limit]]

    def get(self, queue: str, id: int) -> Entry | None:
        now = self._now()
        with self._store.changed:
            found = self._queue(queue)
            found.promote(now)
            task = found.tasks.get(id)
            return task.entry(now) if task is not None else None

    def remove(self, queue: str, id: int, answer: Answer | None = None, *, dead: bool = True) -> bool:
        now = self._now()
        with self._store.changed:
            found = self._queue(queue)
            task = found.tasks.get(id)
            if task is None or task.state == "running" or (task.state == "dead" and not dead):
                return False
            del found.tasks[id]
            found.answer(id, answer, now)
            self._store.changed.notify_all()
            return True

    def reschedule(self, queue: str, id: int, delay: float) -> bool:
        now = self._now()
        with self._store.changed:
            found = self._queue(queue)
            task = found.tasks.get(id)
            if task is None or task.state not in ("scheduled", "ready"):
                return False
            task.place = found.next_place()
            found.put(task, delay, now)
            self._store.changed.notify_all()
            return True

    def purge(self, queue: str, states: Sequence[State] = ("scheduled", "ready", "dead")) -> int:
        now = self._now()
        if "running" in states:
            raise ValueError("running tasks can't be purged: stop their workers first")
        with self._store.changed:
            found = self._queue(queue)
            found.promote(now)
            gone = [id for id, task in found.tasks.items() if task.state in states]
            for id in gone:
                del found.tasks[id]
            return len(gone)

    # -- dead letters ----------------------------------------------------------------------------------------------

    def revive(self, queue: str, ids: Sequence[int]) -> list[int]:
        now = self._now()
        with self._store.changed:
            found = self._queue(queue)
            letters = _letters(found, ids)
            for task in letters:
                task.attempt = task.lost = 0
                task.delivery = next_life(task.delivery)
                task.reason, task.notes = "", ()
                task.place = found.next_place()
                found.answers.pop(task.id, None)
                found.put(task, 0.0, now)
            self._store.changed.notify_all()
            return [task.id for task in letters]

    def drop(self, queue: str, ids: Sequence[int]) -> list[int]:
        self._now()
        with self._store.changed:
            found = self._queue(queue)
            letters = _letters(found, ids)
            for task in letters:
                del found.tasks[task.id]
            return [task.id for task in letters]

    def bound(self, queue: str, bounds: Bounds) -> None:
        self._now()
        with self._store.changed:
            self._queue(queue).bounds = bounds

    # -- workers and people ----------------------------------------------------------------------------------------

    def announce(
        self, worker: str, queues: Sequence[str], info: Mapping[str, Any] | None, ttl: float
    ) -> list[Mapping[str, Any]]:
        now = self._now()
        until = now + ttl
        text = json.dumps(info)  # so that what the caller does to it later does not matter
        with self._store.changed:
            for name in queues:
                announced = self._queue(name).announced
                if info is None:
                    announced.pop(worker, None)
                else:
                    announced[worker] = (text, until)
            orders = self._store.orders
            mine = [orders.pop(key) for key in list(orders) if key[0] == worker]
            return [json.loads(order) for order, end in mine if end > now]

    def workers(self, queue: str) -> list[WorkerInfo]:
        now = self._now()
        with self._store.changed:
            announced = self._queue(queue).announced
            there = sorted((worker, text) for worker, (text, until) in announced.items() if until > now)
            return [WorkerInfo(worker, json.loads(text)) for worker, text in there]

    def ask(self, worker: str, queue: str, order: Mapping[str, Any], ttl: float) -> None:
        now = self._now()
        text = json.dumps(order)
        with self._store.changed:
            self._store.orders = {key: it for key, it in self._store.orders.items() if it[1] > now}
            self._store.orders[worker, order["id"]] = (text, now + ttl)

    # -- itself ----------------------------------------------------------------------------------------------------

    def check(self) -> list[str]:
        self._now()
        return ["what is in memory is gone with this process; a file keeps it: sqlite:///tasks.db"]

    def spec(self) -> str | None:
        return None

    def close(self) -> None:
        self.wake(())

    def __repr__(self) -> str:
        return f"MemoryBroker('memory://{self._name}')"


class _MemoryListener(Listener):
    def __init__(self, changed: threading.Condition, queue: _Queue) -> None:
        self._changed = changed
        self._queue = queue
        self._heard = queue.answered
        self._closed = False

    def wait(self, timeout: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._queue.answered != self._heard, timeout)
            before, self._heard = self._heard, self._queue.answered
            return self._heard != before

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _letters(queue: _Queue, ids: Sequence[int]) -> list[_Task]:
    """Those of the ids that are dead letters, each once."""
    found = [queue.tasks[id] for id in dict.fromkeys(ids) if id in queue.tasks]
    return [task for task in found if task.state == "dead"]


def _newest_first(task: _Task) -> tuple[float, int]:
    return -task.at, -task.id


def _by_priority(task: _Task) -> tuple[int, int, int]:
    return -task.priority, task.place, task.id


_PLACES: dict[State, Callable[[_Task], tuple[float, ...]]] = {
    "scheduled": lambda task: (task.at, task.place, task.id),
    "ready": _by_priority,
    "running": _by_priority,
    "dead": _newest_first,
}


def _claim(queue: str, task: _Task) -> Claim:
    return Claim(queue, task.id, task.delivery, task.nonce, task.attempt, task.header, task.payload)
