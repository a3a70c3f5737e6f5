"""The broker on Redis 6.2 or later, and what speaks its protocol: Valkey, a Redis Cluster, a master behind Sentinel.

Every method that changes something is one Lua script, and so atomic: see ``lua/common.lua`` for the keys of a queue and
each ``lua/*.lua`` for what it takes and returns. A worker's usual turn, settling a batch and claiming the next, is one
round trip (``lua/work.lua``).
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from delayed.brokers import keys
from delayed.brokers._redis_client import Call, RedisClient, Script
from delayed.brokers._redis_listen import RedisListener
from delayed.brokers._redis_stored import Claims, Ready, split, stored
from delayed.brokers._redis_wait import Waiter
from delayed.brokers.base import (
    DEAD_LETTERS,
    LEASE,
    PRODUCER_AGE,
    WAIT_TIMEOUT,
    Broker,
    Listener,
)
from delayed.brokers.odd import log as log_odd
from delayed.clock import now
from delayed.errors import BrokerError, ConfigError
from delayed.message import (
    DEFAULT_MAX_DELIVERIES,
    LIFE,
    STATES,
    Answer,
    Bounds,
    Claim,
    Counts,
    Entry,
    Message,
    Once,
    Ref,
    Renewal,
    Series,
    Settlement,
    State,
    Stored,
    Swept,
    WorkerInfo,
)

MIN_VERSION = (6, 2)  # LPOP with a count, ZADD GT
QUEUES = b"delayed_queues"  # the set of all queue names; on a cluster it lies elsewhere than the queues
SEEN_INTERVAL = PRODUCER_AGE / 12  # seconds after which a producer has its session noted again, ...
SEEN_MAX = 1000  # ... of which so many are remembered
NAME_INTERVAL = 60.0  # seconds after which a producer writes a queue's name again, should it have been flushed
SETTLE_MAX = 1000  # settlements per script, so that none is long
CLAIM_MAX = 2000  # claims per script; large messages end it sooner
SWEEP_MAX = 400  # tasks returned per sweep, in some 5 ms
UNKNOWN_MAX = 1000  # unknown claims per renewal and queue; the next one finds the rest
PURGE_PAGE = 1000
LETTERS_MAX = 1000  # dead letters per script
GET_MAX = 500  # answers that are fetched at once

_SUFFIXES = {
    "READY": "",
    "PRIOR": "_prior",
    "ID": "_id",
    "NOTI": "_noti",
    "SCHEDULED": "_enqueued",
    "CLAIMED": "_dequeued",
    "MSG": "_msg",
    "CLAIM": "_claim",
    "LAST": "_last",
    "HELD": "_held",
    "PROD": "_prod",
    "PRODT": "_prodt",
    "META": "_meta",
    "DEAD": "_dead",
    "DEADMSG": "_dead_msg",
    "WORKERS": "_workers",
    "WORKINFO": "_workinfo",
    "ORDERS": "_orders",
    "KEYVAL": "_keys",
    "KEYNAME": "_keys_names",
    "KEYEND": "_keys_ends",
    "ONCE": "_once",
    "FAIR": "_fair",
}
_script = functools.cache(Script)


def _are_plain(messages: Sequence[Message]) -> bool:
    return all(map(_is_plain, (messages.model,) if isinstance(messages, Series) else messages))


def _is_plain(message: Message) -> bool:
    """Whether it may be claimed at once, in the order in which it comes."""
    return not message.priority and message.delay <= 0 and message.tenant is None


def _ms(seconds: float) -> int:
    """Milliseconds; what is more than nothing stays more than nothing."""
    return max(round(seconds * 1000), 1) if seconds > 0 else 0


_DEAD_LIMITS = (DEAD_LETTERS.most, _ms(DEAD_LETTERS.age))
_ACTIONS = {"done": b"d", "retry": b"r", "back": b"b", "dead": b"x"}


class RedisBroker(Broker):
    """See :class:`Broker`.

    Args:
        conn: a URL (``redis://``, ``rediss://`` for TLS, ``unix://``, with redis-py's options; ``?cluster=1`` for a
            cluster, ``?sentinel=name`` for the master of that name, with the sentinels as hosts, ``&sentinel_ssl=no``
            where these speak no TLS), a ``redis.Redis``, or a ``redis.RedisCluster``. A client's own settings for
            retries and answers do not matter.
    """

    scheme: ClassVar[str] = "redis"

    def __init__(self, conn: Any) -> None:
        self._client = RedisClient(conn)
        self.works_meanwhile = not self._client.cluster
        self._waiter = Waiter(self._client)
        self._named: dict[str, float] = {}  # queue -> until when its name counts as written, monotonic
        self._seen: dict[tuple[str, str], float] = {}  # queue, producer session -> until when it counts as noted
        self._due: dict[str, float | None] = {}  # queue -> when its first scheduled task is due; None: there is none
        self._call = functools.cache(self._make_call)

    # -- keys and scripts --------------------------------------------------------------------------------------

    def _key(self, queue: str, name: str) -> bytes:
        base = queue
        if self._client.cluster:
            if queue.startswith("}"):
                raise ConfigError(f"the queue name {queue!r} begins with a brace, which can't be on a Redis Cluster")
            base = f"{{{queue}}}"  # what is in braces decides where a key lies: all of a queue lie together
        return (base + _SUFFIXES[name]).encode()

    def _make_call(self, script: str, queue: str) -> Call:
        found = _script(script)
        return Call(found, [self._key(queue, name) for name in found.keys])

    def _answer_key(self, queue: str, id: int) -> bytes:
        return b"%b_answer:%d" % (self._key(queue, "READY"), id)

    def _call_with(self, script: str, queue: str, *answer_keys: bytes) -> Call:
        """A call whose last keys are those of answers."""
        found = _script(script)
        return Call(found, [*(self._key(queue, name) for name in found.keys if name != "ANSWER"), *answer_keys])

    def _run(self, script: str, queue: str, *args: bytes | int) -> Any:
        return self._client.run(self._call(script, queue), args)

    # -- producing ---------------------------------------------------------------------------------------------

    def reserve_ids(self, queue: str, n: int) -> int:
        return int(self._run("reserve_ids", queue, n))

    def clock(self, queue: str) -> float:
        return int(self._run("clock", queue)) / 1000

    def prepare(self, queue: str, messages: Sequence[Message]) -> Sequence[Message]:
        ready = _are_plain(messages) and not self._client.cluster
        return Ready.of(messages) if ready else super().prepare(queue, messages)

    def enqueue(self, queue: str, messages: Sequence[Message], session: str, seq: int) -> None:
        if not messages:
            return
        self._name(queue)
        packed = messages.packed if isinstance(messages, Ready) else None
        if packed is not None or _are_plain(messages):
            # What the store knows of a session is of use if no answer comes: then it may be another store, or an old
            # copy of it, that is asked next.
            until = self._seen.pop((queue, session), 0.0)
            at = now()
            args = stored(messages) if packed is None else ()
            head = (session.encode(), seq, int(until < at))
            stored_now = self._client.run(self._call("enqueue_plain", queue), (*head, *args), packed)
            if until < at:
                until = at + SEEN_INTERVAL
            if stored_now:  # else nothing was noted
                if len(self._seen) >= SEEN_MAX:
                    self._seen.clear()
                self._seen[queue, session] = until
            return
        plain = [each for each in messages if _is_plain(each)]
        others = [each for each in messages if not _is_plain(each)]
        args = [session.encode(), seq, len(plain), *stored(plain), *stored(others)]
        for message in others:
            args += (_ms(message.delay), message.priority, (message.tenant or "").encode())
        self._run("enqueue", queue, *args)

    def enqueue_once(self, queue: str, message: Message, once: Once, session: str, seq: int) -> int:
        self._name(queue)
        rule = b"b" if once.begun else b"d"
        args = (session.encode(), seq, *stored((message,)), _ms(message.delay), message.priority)
        hold = (once.key.encode(), rule if once.period is None else _ms(once.period), int(once.replace))
        return int(self._run("enqueue_once", queue, *args, *hold, (message.tenant or "").encode()))

    def _name(self, queue: str) -> None:
        """Note the name of a queue in the store, if that was not done just now."""
        if self._named.get(queue, 0.0) < time.monotonic():
            self._client.command(b"SADD", QUEUES, queue.encode())
            self._named[queue] = time.monotonic() + NAME_INTERVAL

    # -- working -----------------------------------------------------------------------------------------------

    def claim(self, queues: Sequence[str], worker: str, seq: int, nonce: int, limit: int, lease: float) -> list[Claim]:
        return list(self.settle_and_claim(worker, (), queues, seq, nonce, limit, lease)[1])

    def settle(self, worker: str, settlements: Sequence[Settlement]) -> list[bool]:
        return self.settle_and_claim(worker, settlements, (), 0, 0, 0, LEASE)[0]

    def settle_and_claim(
        self,
        worker: str,
        settlements: Sequence[Settlement],
        queues: Sequence[str],
        seq: int,
        nonce: int,
        limit: int,
        lease: float,
    ) -> tuple[list[bool], Sequence[Claim]]:
        accepted = [False] * len(settlements)
        claims = Claims()
        parts: dict[str, Sequence[int]] = {}
        names = {ref[0] for ref, *_ in settlements}
        if len(names) == 1:
            parts[names.pop()] = range(len(settlements))
        else:
            several: dict[str, list[int]] = {}
            for index, settlement in enumerate(settlements):
                several.setdefault(settlement.ref.queue, []).append(index)
            parts.update(several)
        head = (worker.encode(), seq, nonce)
        for queue in dict.fromkeys((*queues, *parts)):
            part = parts.get(queue, ())
            while len(part) > SETTLE_MAX:
                self._work(queue, head, settlements, part[:SETTLE_MAX], 0, lease, accepted, claims)
                part = part[SETTLE_MAX:]
            room = min(limit - len(claims), CLAIM_MAX) if queue in queues else 0
            if part or room > 0:
                self._work(queue, head, settlements, part, max(room, 0), lease, accepted, claims)
        return accepted, claims

    def _work(
        self,
        queue: str,
        head: tuple[bytes, int, int],
        settlements: Sequence[Settlement],
        part: Sequence[int],
        limit: int,
        lease: float,
        accepted: list[bool],
        claims: Claims,
    ) -> None:
        """One call of the script for one queue; the results go into `accepted` and `claims`."""
        args: list[bytes | int] = []
        answers: list[bytes | int] = []
        answer_keys: list[bytes] = []
        # Nearly all are done, and were claimed together: one argument for all of those, for each costs on both sides.
        done: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        order: list[int] = []
        for index in part:
            (_, id, delivery, token), action, delay, reason, answer, note = settlements[index]
            if answer is not None and action in ("done", "dead"):
                answer_keys.append(self._answer_key(queue, id))
                answers += (len(order) + 1, _ms(answer.ttl), answer.data)
            elif action == "done":
                group = done.get((delivery, token))
                if group is None:
                    group = done[delivery, token] = [], []
                group[0].append(index)
                group[1].append(id)
                continue
            order.append(index)
            args.append(b"%d|%d|" % (delivery, token))
            if action == "done":
                args.append(b"d")
            else:
                detail = reason.encode("utf-8", "replace") if action == "dead" else b"%d" % _ms(delay)
                args.append(b"%b%b\n%b" % (_ACTIONS[action], note, detail))
            args.append(id)
        for (delivery, token), (indexes, ids) in done.items():
            order += indexes
            args += (b"%d|%d|" % (delivery, token), b"d", ",".join(map(str, ids)).encode())
        call = self._call("work", queue) if not answers else self._call_with("work", queue, *answer_keys)
        turn = (*head, limit, _ms(lease), *_DEAD_LIMITS)
        answer = self._client.run(call, (*turn, len(answer_keys), *answers, *args) if part else turn)
        for index, verdict in zip(order, answer[0], strict=True):
            accepted[index] = verdict == 49  # "1"
        self._add_claims(claims, queue, head[2], answer)

    def _add_claims(self, claims: Claims, queue: str, nonce: int, answer: Sequence[Any]) -> None:
        """Add those in an answer of the script, and note what else it says."""
        self._note_due(queue, answer[1])
        if len(answer) > 7:
            _log_odd(queue, answer[7])
        claims.add(queue, nonce, answer)

    def renew(self, worker: str, queues: Sequence[str], refs: Sequence[Ref], lease: float) -> Renewal:
        renewal = Renewal([], [], [])
        parts: dict[str, list[Ref]] = {queue: [] for queue in queues}
        for ref in refs:
            parts.setdefault(ref.queue, []).append(ref)
        for queue, part in parts.items():
            args: list[bytes | int] = [worker.encode(), _ms(lease), UNKNOWN_MAX]
            for ref in part:
                args.append(ref.id)
                args.append(b"%d|%d|" % (ref.delivery, ref.nonce))
            verdicts, ids, deliveries, nonces, attempts, odd, *messages = self._run("renew", queue, *args)
            _log_odd(queue, odd)
            for ref, verdict in zip(part, verdicts, strict=True):
                (renewal.held if verdict == 49 else renewal.lost).append(ref)
            for id, delivery, nonce, attempt, message in zip(
                ids.split(), deliveries.split(), nonces.split(), attempts.split(), messages, strict=True
            ):
                claim = Claim(queue, int(id), int(delivery), int(nonce), int(attempt), *split(message))
                renewal.unknown.append(claim)
        return renewal

    def held(self, worker: str, queues: Sequence[str]) -> list[Claim]:
        claims: list[Claim] = []
        for queue in queues:
            page = self.renew(worker, [queue], (), 0.0).unknown  # a lease of 0 renews nothing
            found = page
            while page:
                page = self.renew(worker, [queue], [claim.ref for claim in found], 0.0).unknown
                found += page
            claims += found
        return claims

    def wait(self, queues: Sequence[str], timeout: float) -> None:
        self._sleep(queues, timeout)

    def wait_and_claim(
        self, queues: Sequence[str], timeout: float, worker: str, seq: int, nonce: int, limit: int, lease: float
    ) -> Sequence[Claim] | None:
        if self._client.cluster or len(queues) != 1:  # several scripts would claim several times the limit
            self._sleep(queues, timeout)
            return None
        (queue,) = queues
        args = (worker.encode(), seq, nonce, min(limit, CLAIM_MAX), _ms(lease), *_DEAD_LIMITS)
        answer = self._sleep(queues, timeout, self._client.pack(self._call("work", queue), args))
        if answer is None:
            return None
        claims = Claims()
        self._add_claims(claims, queue, nonce, answer)
        return claims

    def _sleep(self, queues: Sequence[str], timeout: float, script: bytes = b"") -> Any:
        """Wait; the answer of `script`, which is run right after, or None."""
        end = time.monotonic() + min(timeout, WAIT_TIMEOUT)
        keys = {self._key(queue, "NOTI"): queue for queue in queues}
        while True:
            until = end
            for queue in queues:
                due = self._next_due(queue)
                until = until if due is None else min(until, due)
            left = until - time.monotonic()
            if left <= 0:
                for queue in queues:  # what is due now has been said; who claims nothing shall not spin
                    self._due.pop(queue, None)
                return None
            token, answer = self._waiter.sleep(list(keys), left, until < end, script)
            if token is None or token[1] != b"s" or answer is not None:
                return answer
            self._due.pop(keys[token[0]], None)  # the schedule has changed: look again, sleep on

    def _note_due(self, queue: str, ms: int) -> None:
        self._due[queue] = None if ms < 0 else time.monotonic() + ms / 1000

    def _next_due(self, queue: str) -> float | None:
        if queue not in self._due:
            self._note_due(queue, self._run("due", queue))
        return self._due[queue]

    def wake(self, queues: Sequence[str]) -> None:
        self._waiter.wake()

    # -- answers -----------------------------------------------------------------------------------------------

    def put_result(self, queue: str, id: int, answer: Answer) -> None:
        call = self._call_with("put_result", queue, self._answer_key(queue, id))
        self._client.run(call, (_ms(answer.ttl), answer.data))

    def get_results(self, queue: str, ids: Sequence[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for start in range(0, len(ids), GET_MAX):
            part = ids[start : start + GET_MAX]
            answers = self._client.command(b"MGET", *[self._answer_key(queue, id) for id in part])
            found.update((id, data) for id, data in zip(part, answers, strict=True) if data is not None)
        return found

    def listen(self, queue: str) -> Listener:
        return RedisListener(self._client, self._key(queue, "READY"))

    # -- small values ------------------------------------------------------------------------------------------

    def get_keys(self, queue: str, names: Sequence[str]) -> dict[str, Stored]:
        found = {}
        for start in range(0, len(names), GET_MAX):
            part = names[start : start + GET_MAX]
            rows = self._run("get_keys", queue, *[name.encode() for name in part])
            for name, (version, value, left) in ((name, row) for name, row in zip(part, rows, strict=True) if row):
                found[name] = Stored(value, int(version), None if left < 0 else left / 1000)
        return found

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
        kept = (0, b"") if value is None else (1, value)
        wanted = b"" if version is None else b"%d" % version
        end = 0 if ttl is None else max(_ms(ttl), 1)
        return int(self._run("put_key", queue, name.encode(), *kept, end, wanted, int(keep_version)))

    def add_key(self, queue: str, name: str, by: int, ttl: float | None = None) -> int:
        keys.checked(name)
        keys.bounded(name, by)
        end = 0 if ttl is None else max(_ms(ttl), 1)
        total, *odd = self._run("add_key", queue, name.encode(), by, end)
        if odd:
            raise keys.no_number(name, odd[0]) if len(odd) == 1 else keys.too_large(name, odd[1].decode())
        return int(total)

    def list_keys(self, queue: str, prefix: str, limit: int = 1000) -> list[str]:
        return [name.decode() for name in self._run("list_keys", queue, prefix.encode(), limit)]

    # -- pausing -----------------------------------------------------------------------------------------------

    def pause(self, queue: str) -> None:
        self._run("pause", queue, 1)

    def resume(self, queue: str) -> None:
        self._run("pause", queue, 0)

    def paused(self, queue: str) -> bool:
        return bool(self._client.command(b"HEXISTS", self._key(queue, "META"), b"paused"))

    # -- repairing ---------------------------------------------------------------------------------------------

    def sweep(self, queue: str, lease: float = LEASE) -> Swept:
        limits = (*_DEAD_LIMITS, _ms(PRODUCER_AGE), DEFAULT_MAX_DELIVERIES)
        returned, dead, grace, claimed = self._run("sweep", queue, _ms(lease), SWEEP_MAX, *limits)
        return Swept(returned, dead, bool(grace), not claimed)

    # -- looking and tidying -----------------------------------------------------------------------------------

    def queues(self) -> list[str]:
        return sorted(name.decode() for name in self._client.command(b"SMEMBERS", QUEUES))

    def counts(self, queue: str) -> Counts:
        return Counts(*self._run("counts", queue))

    def peek(
        self, queue: str, state: State, limit: int = 100, after: Entry | None = None, *, payloads: bool = True
    ) -> list[Entry]:
        if state not in STATES:
            raise ValueError(f"unknown state {state!r}; there are {', '.join(STATES)}")
        place = after.place if after is not None else ()
        now, *rows = self._run("peek", queue, state.encode(), limit, int(payloads), *place)
        found = [_entry(now, state, *rows[at : at + 4]) for at in range(3, len(rows), 4)]
        return [*found[:-1], found[-1]._replace(place=tuple(rows[:3]))] if found else []

    def get(self, queue: str, id: int) -> Entry | None:
        now, *row = self._run("get", queue, id)
        if not row:
            return None
        state, *rest = row
        return _entry(now, state.decode(), str(id).encode(), *rest)

    def remove(self, queue: str, id: int, answer: Answer | None = None, *, dead: bool = True) -> bool:
        call = self._call_with("remove", queue, self._answer_key(queue, id))
        kept = (_ms(answer.ttl), answer.data) if answer is not None else (0,)
        return bool(self._client.run(call, (id, int(dead), *kept)))

    def reschedule(self, queue: str, id: int, delay: float) -> bool:
        return bool(self._run("reschedule", queue, id, _ms(delay)))

    def purge(self, queue: str, states: Sequence[State] = ("scheduled", "ready", "dead")) -> int:
        unknown = [state for state in states if state not in STATES or state == "running"]
        if unknown:
            raise ValueError(f"can't purge {unknown[0]!r}: only scheduled, ready and dead messages")
        total = 0
        for state in states:
            removed = PURGE_PAGE
            while removed >= PURGE_PAGE:
                removed = self._run("purge", queue, state.encode(), PURGE_PAGE)
                total += removed
        return total

    # -- dead letters ------------------------------------------------------------------------------------------

    def revive(self, queue: str, ids: Sequence[int]) -> list[int]:
        return self._letters(queue, ids, revive=True)

    def drop(self, queue: str, ids: Sequence[int]) -> list[int]:
        return self._letters(queue, ids, revive=False)

    def _letters(self, queue: str, ids: Sequence[int], *, revive: bool) -> list[int]:
        found: list[int] = []
        while ids:
            part = ids[:LETTERS_MAX]
            answers = [self._answer_key(queue, id) for id in part] if revive else []
            looked, *letters = map(int, self._client.run(self._call_with("revive", queue, *answers), part))
            found += letters
            ids = ids[looked:]
        return found

    def bound(self, queue: str, bounds: Bounds) -> None:
        self._run("bound", queue, bounds.most, _ms(bounds.age))

    # -- workers and people ------------------------------------------------------------------------------------

    def announce(
        self, worker: str, queues: Sequence[str], info: Mapping[str, Any] | None, ttl: float
    ) -> list[Mapping[str, Any]]:
        text = b"" if info is None else json.dumps(info, separators=(",", ":")).encode()
        orders: list[bytes] = []
        for queue in queues:
            orders += self._run("announce", queue, worker.encode(), _ms(ttl), text)
        return [json.loads(order) for order in orders]

    def workers(self, queue: str) -> list[WorkerInfo]:
        rows = self._run("workers", queue)
        return [WorkerInfo(rows[at].decode(), json.loads(rows[at + 1])) for at in range(0, len(rows), 2)]

    def ask(self, worker: str, queue: str, order: Mapping[str, Any], ttl: float) -> None:
        self._run("ask", queue, worker.encode(), order["id"].encode(), json.dumps(order).encode(), _ms(ttl))

    # -- itself ------------------------------------------------------------------------------------------------

    def check(self) -> list[str]:
        info = _fields(self._client.ask(b"INFO"))
        version = info.get("redis_version", "0")
        if tuple(int(part) for part in version.split(".")[:2]) < MIN_VERSION:
            raise BrokerError(f"{self._client.shown} is Redis {version}; 6.2 or later is needed: upgrade the server")
        where = self._client.shown
        warnings = []
        policy = info.get("maxmemory_policy", "noeviction")
        if policy.startswith("allkeys") and info.get("maxmemory") != "0":  # others need a time to live: tasks have none
            warnings.append(
                f"{where} may throw tasks away when it is full: its maxmemory-policy is {policy}; "
                "set it to noeviction, or give the tasks a Redis of their own"
            )
        if info.get("aof_enabled") == "0":
            warnings.append(
                f"{where} keeps no append-only file: a restart loses the tasks since its last snapshot; "
                "set appendonly to yes"
            )
        elif self._setting("appendfsync") == "no":
            warnings.append(
                f"{where} never syncs its append-only file: a power cut may lose half a minute of tasks; "
                "set appendfsync to everysec or always"
            )
        elif self._setting("no-appendfsync-on-rewrite") == "yes":
            warnings.append(
                f"{where} does not sync its append-only file while it is rewritten: a power cut then may lose half a "
                "minute of tasks; set no-appendfsync-on-rewrite to no"
            )
        if int(info.get("connected_slaves", "0")) and self._setting("min-replicas-to-write") == "0":
            warnings.append(
                f"{where} takes tasks even while no replica gets them: a failover may lose them; "
                "set min-replicas-to-write to 1"
            )
        return warnings

    def _setting(self, name: str) -> str | None:
        """A setting of the server; None where it does not tell, as managed ones do not."""
        with contextlib.suppress(BrokerError):
            answer = self._client.ask(b"CONFIG", b"GET", name.encode())
            pair = [*answer.popitem()] if isinstance(answer, dict) else answer  # RESP3 has dictionaries
            return str(pair[1], "utf-8") if pair else None
        return None

    def spec(self) -> str | None:
        return self._client.url

    def close(self) -> None:
        self._waiter.close()
        self._client.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._client.shown!r})"


def _log_odd(queue: str, told: Sequence[bytes]) -> None:
    for line in told:
        end, why, id = line.decode("utf-8", "replace").split("|", 2)
        log_odd(queue, id, f"no task: {why}", dead=end == "dead")


def _entry(now: int, state: State, id: bytes, message: bytes, record: bytes, score: bytes) -> Entry:
    worker = reason = ""
    delivery = attempt = b"0"
    notes = b""
    if state == "dead":
        delivery, attempt, size, notes_size, rest = record.split(b"|", 4)
        reason, rest = rest[: int(size)].decode("utf-8", "replace"), rest[int(size) :]
        notes, message = rest[: int(notes_size)], rest[int(notes_size) :]
    elif record:
        delivery, _, attempt, _, rest = record.split(b"|", 4)
        noted, bar, owner = rest.rpartition(b"\n|")
        if bar:
            notes = noted[noted.index(b"\n") :] + b"\n"
        else:
            owner = rest.partition(b"|")[2]
        worker = owner.decode("utf-8", "replace")
    header, payload = split(message)
    parsed = Message.glimpse(int(id) if id.isdigit() else 0, header, payload)
    due = max(float(score) - now, 0.0) / 1000 if state in ("scheduled", "running") else 0.0
    died = (now - float(score)) / 1000 if state == "dead" else 0.0
    return Entry(
        message=parsed,
        state=state,
        attempt=int(attempt),
        delivery=int(delivery) % LIFE,
        worker=worker,
        due=due,
        reason=reason,
        died=died,
        header=header,
        notes=tuple(notes[1:-1].split(b"\n")) if notes else (),
    )


def _fields(info: bytes) -> dict[str, str]:
    """The answer of INFO as a dictionary."""
    lines = (line.partition(":") for line in info.decode("utf-8", "replace").splitlines() if not line.startswith("#"))
    return {name: value for name, _, value in lines}
