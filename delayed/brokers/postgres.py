"""The broker on PostgreSQL 13 or later.

Everything that changes tasks is a function in the database, and so one round trip and one transaction: see
``sql/postgres_1.sql`` for the tables and for what each function does.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from delayed.brokers import keys, postgres_keys
from delayed.brokers import postgres_look as look
from delayed.brokers.base import DEAD_LETTERS, LEASE, LETTERS_LOOK, PRODUCER_AGE, Broker, Listener
from delayed.brokers.odd import tasks_among
from delayed.brokers.postgres_join import PostgresJoined, joinable, task_transaction
from delayed.brokers.postgres_link import Link
from delayed.brokers.postgres_listen import PostgresListener
from delayed.brokers.postgres_wait import Waiter
from delayed.errors import BrokerError, ConfigError
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

PURGE_CHUNK = 10_000  # rows that one transaction removes at most, so that others get their turn
TRIM_CHUNK, TRIMS = 2000, 20  # dead letters that one transaction removes at most, and such transactions in one sweep
OLD_TRANSACTION = 3600  # seconds
ENQUEUE_MAX = 900_000_000  # bytes; the protocol's messages end at 1 GB

_RESERVE = "SELECT @.delayed_reserve(%s::text, %s::int)"
_CLOCK = b"SELECT extract(epoch FROM clock_timestamp())::float8"
_MESSAGES = """
        %(session)s::uuid, %(seq)s::bigint, %(queue)s::text, %(ids)b::bigint[], %(priorities)b::int[],
        %(delays)b::float8[], %(most)b::int[], %(headers)b::bytea[], %(payloads)b::bytea[]
"""
_ENQUEUE = f"SELECT @.delayed_enqueue({_MESSAGES})"
_ENQUEUE_FAIR = f"SELECT @.delayed_enqueue_fair({_MESSAGES}, %(tenants)s::uuid[])"
_ENQUEUE_ONCE = """
    SELECT @.delayed_enqueue_once(
        %(session)s::uuid, %(seq)s::bigint, %(queue)s::text,
        %(key)s::uuid, %(begun)s::boolean, %(period)s::float8, %(replace)s::boolean,
        %(id)s::bigint, %(priority)s::int, %(delay)s::float8, %(most)s::int, %(header)b::bytea, %(payload)b::bytea,
        %(tenant)s::uuid
    )
"""
_COLUMNS = "o_queue, o_id, o_delivery, o_attempt, o_priority, o_place, o_header, o_payload"
_TURN = """
        %(worker)s::text, %(queues_0)s::text[], %(ids_0)b::bigint[], %(deliveries_0)b::int[], %(nonces_0)b::bigint[],
        %(queues_1)s::text[], %(ids_1)b::bigint[], %(deliveries_1)b::int[], %(nonces_1)b::bigint[],
        %(actions)s::text[], %(delays)b::float8[], %(reasons)s::text[], %(notes)b::bytea[],
        %(queues)s::text[], %(seq)s::bigint, %(nonce)s::bigint, %(room)s::int, %(lease)s::float8
"""
_WORK = f"SELECT {_COLUMNS} FROM @.delayed_work({_TURN})"
_WORK_ANSWERED = f"""
    SELECT {_COLUMNS} FROM @.delayed_work_answered(
        {_TURN},
        %(queues_2)s::text[], %(ids_2)b::bigint[], %(deliveries_2)b::int[], %(nonces_2)b::bigint[],
        %(ttls)b::float8[], %(answers)b::bytea[]
    )
"""
_RENEW = """
    SELECT o_queue, o_id, o_delivery, o_nonce FROM @.delayed_renew(
        %(worker)s::text, %(queues)s::text[], %(queues_0)s::text[], %(ids_0)b::bigint[], %(deliveries_0)b::int[],
        %(nonces_0)b::bigint[], %(lease)s::float8
    )
"""
_HELD = """
    SELECT o_queue, o_id, o_delivery, o_nonce, o_attempt, o_header, o_payload
    FROM @.delayed_held(%s::text, %s::text[])
"""
_SWEEP = f"""
    SELECT returned, dead, waits, surplus, (
        SELECT t.worker FROM @.delayed_task t
        WHERE t.queue = (SELECT q.number FROM @.delayed_queue q WHERE q.name = %(queue)s::text) AND t.state = 2
        ORDER BY t.worker LIMIT 1 -- so that the planner takes the index, and does not read all tasks of all queues
    ) IS NULL FROM @.delayed_sweep(
        %(queue)s::text, %(lease)s::float8, {DEAD_LETTERS.most}, {DEAD_LETTERS.age}, {PRODUCER_AGE}
    ), @.delayed_forget(), {postgres_keys.FORGET}, @.delayed_tidy_once(%(queue)s::text),
    @.delayed_surplus(%(queue)s::text, {DEAD_LETTERS.most}, {DEAD_LETTERS.age}, {LETTERS_LOOK}) AS surplus
"""
_TRIM = f"""
    SELECT @.delayed_trim(%(queue)s::text, {DEAD_LETTERS.most}, {DEAD_LETTERS.age}, {TRIM_CHUNK})
"""
_SETTINGS = """
    SELECT current_setting('fsync'), current_setting('synchronous_commit'), current_setting('autovacuum'),
        coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::int
    FROM pg_stat_activity WHERE backend_type = 'client backend' AND datname = current_database()
"""


class PostgresBroker(Broker):
    """Tasks in tables of a PostgreSQL database; rows are gone when their tasks are done.

    Args:
        conn: ``postgresql://user@host/database``, a :class:`psycopg.Connection`, of which only the way to connect is
            used, or a ``psycopg_pool.ConnectionPool``, which is used as long as the process is not forked. Options of
            the URL, besides libpq's: ``schema=``, where the tables are (default: ``delayed``, made at the first use);
            ``listen=no``, to poll instead of LISTEN.

    Raises:
        ConfigError: When the URL is wrong.
    """

    scheme: ClassVar[str] = "postgresql"

    def __init__(self, conn: Any) -> None:
        self._link = Link(conn)
        self._waiter = Waiter(self._link)
        self._sql = functools.cache(self._link.schema.sql)
        self._keys = postgres_keys.PostgresKeys(self._link, self._sql)

    # -- producing ---------------------------------------------------------------------------------------------

    def reserve_ids(self, queue: str, n: int) -> int:
        return int(self._link.run(self._sql(_RESERVE), (_checked(queue), n))[0][0])

    def clock(self, queue: str) -> float:
        return round(float(self._link.run(_CLOCK, ())[0][0]), 3)

    def enqueue(self, queue: str, messages: Sequence[Message], session: str, seq: int) -> None:
        self._link.run(*self._enqueue(session, seq, queue, messages))

    def _enqueue(
        self, session: str | None, seq: int, queue: str, messages: Sequence[Message]
    ) -> tuple[bytes, dict[str, Any]]:
        """The statement that stores messages, and its values."""
        headers = [message.header() for message in messages]
        size = sum(len(header) + len(message.payload) for header, message in zip(headers, messages, strict=True))
        if size > ENQUEUE_MAX:
            raise BrokerError(
                f"{len(messages)} tasks of {size / 1e6:,.0f} MB are more than PostgreSQL takes at once "
                f"({ENQUEUE_MAX / 1e6:,.0f} MB): enqueue fewer at a time, or keep the data elsewhere"
            )
        values = {
            "session": session,
            "seq": seq,
            "queue": _checked(queue),
            "ids": [message.id for message in messages],
            "priorities": [message.priority for message in messages],
            "delays": [max(float(message.delay), 0.0) for message in messages],
            "most": [message.max_deliveries for message in messages],
            "headers": headers,
            "payloads": [message.payload for message in messages],
        }
        tenants = [message.tenant for message in messages]
        if any(tenants):
            return self._sql(_ENQUEUE_FAIR), {**values, "tenants": tenants}
        return self._sql(_ENQUEUE), values

    def enqueue_once(self, queue: str, message: Message, once: Once, session: str, seq: int) -> int:
        return int(self._link.run(*self._enqueue_once(session, seq, queue, message, once))[0][0])

    def _enqueue_once(
        self, session: str | None, seq: int, queue: str, message: Message, once: Once
    ) -> tuple[bytes, dict[str, Any]]:
        """The statement that stores a message unless its key is held, and its values."""
        return self._sql(_ENQUEUE_ONCE), {
            "session": session,
            "seq": seq,
            "queue": _checked(queue),
            **once._asdict(),
            "id": message.id,
            "priority": message.priority,
            "delay": max(float(message.delay), 0.0),
            "most": message.max_deliveries,
            "header": message.header(),
            "payload": message.payload,
            "tenant": message.tenant,
        }

    def join(self, conn: Any) -> PostgresJoined:
        return self._joined(joinable(self._link, conn))

    def _joined(self, conn: Any) -> PostgresJoined:
        return PostgresJoined(self._link, conn, self.reserve_ids, self.clock, self._enqueue, self._enqueue_once)

    # -- working -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self, ref: Ref, answer: Answer | None = None) -> Iterator[PostgresJoined]:
        with task_transaction(self._link, ref, _signed(ref.nonce), self._joined, answer) as found:
            yield found

    def claim(self, queues: Sequence[str], worker: str, seq: int, nonce: int, limit: int, lease: float) -> list[Claim]:
        return self.settle_and_claim(worker, (), queues, seq, nonce, limit, lease)[1]

    def settle(self, worker: str, settlements: Sequence[Settlement]) -> list[bool]:
        return self.settle_and_claim(worker, settlements, (), 0, 0, 0, 0.0)[0]

    def settle_and_claim(
        self,
        worker: str,
        settlements: Sequence[Settlement],
        queues: Sequence[str],
        seq: int,
        nonce: int,
        limit: int,
        lease: float,
    ) -> tuple[list[bool], list[Claim]]:
        ended = [settlement for settlement in settlements if settlement.action == "done"]
        others = [settlement for settlement in settlements if settlement.action != "done"]
        values: dict[str, Any] = {
            "worker": worker,
            "queues": list(dict.fromkeys(queues)),
            "seq": seq,
            "nonce": _signed(nonce),
            "room": limit,
            "lease": lease,
            "actions": [settlement.action for settlement in others],
            "delays": [max(float(settlement.delay), 0.0) for settlement in others],
            "reasons": [_text(settlement.reason) for settlement in others],
            "notes": [settlement.note for settlement in others],
        }
        for number, part in enumerate((ended, others)):
            values.update(_tokens([settlement.ref for settlement in part], f"_{number}"))
        statement = _WORK
        answered = [it for it in settlements if it.answer is not None and it.action in ("done", "dead")]
        if answered:
            statement = _WORK_ANSWERED
            values.update(_tokens([settlement.ref for settlement in answered], "_2"))
            answers_of = [settlement.answer for settlement in answered if settlement.answer is not None]
            values["ttls"] = [float(answer.ttl) for answer in answers_of]
            values["answers"] = [answer.data for answer in answers_of]
        rows = self._link.run(self._sql(statement), values)
        ends = [(row[0], token) for row in rows if row[1] is None and row[6] for token in row[6].split(b",")]
        answers = [True] * len(settlements) if len(ends) == len(settlements) else _among(ends, settlements)
        claims = _claims([row for row in rows if row[1] is not None], queues, nonce)
        if limit > 0:
            self._waiter.note_claim(len(claims))
        return answers, tasks_among(self, worker, claims)

    def renew(self, worker: str, queues: Sequence[str], refs: Sequence[Ref], lease: float) -> Renewal:
        values = {"worker": worker, "queues": list(queues), "lease": lease, **_tokens(refs, "_0")}
        rows = self._link.run(self._sql(_RENEW), values)
        there = {Ref(queue, id, delivery, _unsigned(nonce)) for queue, id, delivery, nonce in rows}
        known = set(refs)
        unknown: list[Claim] = []
        if not there <= known:
            everywhere = list(dict.fromkeys([*queues, *[ref.queue for ref in refs]]))
            unknown = [claim for claim in self.held(worker, everywhere) if claim.ref not in known]
        held = [ref for ref in refs if ref in there]
        return Renewal(held, [ref for ref in refs if ref not in there], unknown)

    def held(self, worker: str, queues: Sequence[str]) -> list[Claim]:
        rows = self._link.run(self._sql(_HELD), (worker, list(queues)))
        found = [
            Claim(queue, id, delivery, _unsigned(nonce), attempt, header, payload)
            for queue, id, delivery, nonce, attempt, header, payload in rows
        ]
        return tasks_among(self, worker, found)

    def wait(self, queues: Sequence[str], timeout: float) -> None:
        self._waiter.sleep(queues, timeout)

    def wake(self, queues: Sequence[str]) -> None:
        self._waiter.wake()

    # -- answers -----------------------------------------------------------------------------------------------

    def put_result(self, queue: str, id: int, answer: Answer) -> None:
        self._link.run(self._sql(look.PUT_ANSWER), _answer_values(_checked(queue), id, answer))

    def get_results(self, queue: str, ids: Sequence[int]) -> dict[int, bytes]:
        return dict(self._link.run(self._sql(look.GET_ANSWERS), {"queue": queue, "ids": list(ids)}))

    def listen(self, queue: str) -> Listener:
        return PostgresListener(self._link, _checked(queue))

    # -- small values ------------------------------------------------------------------------------------------

    def get_keys(self, queue: str, names: Sequence[str]) -> dict[str, Stored]:
        return self._keys.get(queue, names)

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
        return self._keys.put(_checked(queue), keys.checked(name, value), value, ttl, version, keep_version)

    def add_key(self, queue: str, name: str, by: int, ttl: float | None = None) -> int:
        return self._keys.add(_checked(queue), keys.checked(name), by, ttl)

    def list_keys(self, queue: str, prefix: str, limit: int = 1000) -> list[str]:
        return self._keys.list(queue, prefix, limit)

    # -- pausing -----------------------------------------------------------------------------------------------

    def pause(self, queue: str) -> None:
        self._link.run(self._sql(look.PAUSE), {"queue": _checked(queue), "paused": True})

    def resume(self, queue: str) -> None:
        self._link.run(self._sql(look.PAUSE), {"queue": _checked(queue), "paused": False})

    def paused(self, queue: str) -> bool:
        return bool(self._link.run(self._sql(look.PAUSED), {"queue": queue}))

    # -- repairing ---------------------------------------------------------------------------------------------

    def sweep(self, queue: str, lease: float = LEASE) -> Swept:
        ((returned, dead, grace, surplus, idle),) = self._link.run(self._sql(_SWEEP), {"queue": queue, "lease": lease})
        for _ in range(TRIMS if surplus else 0):
            ((removed,),) = self._link.run(self._sql(_TRIM), {"queue": queue})
            if removed < TRIM_CHUNK:
                break
        return Swept(returned, dead, grace, idle)

    # -- looking and tidying -----------------------------------------------------------------------------------

    def queues(self) -> list[str]:
        return [name for (name,) in self._link.run(self._sql(look.QUEUES))]

    def counts(self, queue: str) -> Counts:
        return Counts(*self._link.run(self._sql(look.COUNTS), {"queue": queue})[0])

    def peek(
        self, queue: str, state: State, limit: int = 100, after: Entry | None = None, *, payloads: bool = True
    ) -> list[Entry]:
        statement = self._sql(look.peek(state, first=after is None, payloads=payloads))
        values = {"queue": queue, "limit": limit, **look.place(after)}
        return [look.entry(row, at) for *row, at in self._link.run(statement, values)]

    def get(self, queue: str, id: int) -> Entry | None:
        rows = self._link.run(self._sql(look.GET), {"queue": queue, "id": id})
        return look.entry(rows[0]) if rows else None

    def remove(self, queue: str, id: int, answer: Answer | None = None, *, dead: bool = True) -> bool:
        if answer is not None:
            values = {**_answer_values(queue, id, answer), "dead": dead}
            return bool(self._link.run(self._sql(look.REMOVE_ANSWERED), values))
        return self._link.change(self._sql(look.REMOVE), {"queue": queue, "id": id, "dead": dead})[1] > 0

    def reschedule(self, queue: str, id: int, delay: float) -> bool:
        return bool(self._link.run(self._sql(look.RESCHEDULE), {"queue": queue, "id": id, "delay": delay}))

    def purge(self, queue: str, states: Sequence[State] = ("scheduled", "ready", "dead")) -> int:
        if "running" in states:
            raise ValueError("running tasks can't be purged: stop their workers, or wait until they have ended")
        removed = 0
        for statement in [statement for state in dict.fromkeys(states) for statement in look.purges(state)]:
            chunk = PURGE_CHUNK
            while chunk == PURGE_CHUNK:
                chunk = self._link.change(self._sql(statement), {"queue": queue, "limit": PURGE_CHUNK})[1]
                removed += chunk
        return removed

    # -- dead letters ------------------------------------------------------------------------------------------

    def revive(self, queue: str, ids: Sequence[int]) -> list[int]:
        return self._letters(look.REVIVE, queue, ids)

    def drop(self, queue: str, ids: Sequence[int]) -> list[int]:
        return self._letters(look.DROP, queue, ids)

    def _letters(self, statement: str, queue: str, ids: Sequence[int]) -> list[int]:
        wanted = list(dict.fromkeys(ids))
        gone: set[int] = set()
        for start in range(0, len(wanted), PURGE_CHUNK):
            part = wanted[start : start + PURGE_CHUNK]
            gone.update(id for (id,) in self._link.run(self._sql(statement), {"queue": queue, "ids": part}))
        return [id for id in wanted if id in gone]

    def bound(self, queue: str, bounds: Bounds) -> None:
        values = {"queue": _checked(queue), "most": bounds.most, "age": float(bounds.age)}
        self._link.run(self._sql(look.BOUND), values)

    # -- workers and people ------------------------------------------------------------------------------------

    def announce(
        self, worker: str, queues: Sequence[str], info: Mapping[str, Any] | None, ttl: float
    ) -> list[Mapping[str, Any]]:
        values = {"worker": worker, "queues": list(queues), "ttl": ttl, "info": json.dumps(info)}
        rows = self._link.run(self._sql(look.GOODBYE if info is None else look.ANNOUNCE), values)
        return [json.loads(what) for what, holds in rows if holds]

    def workers(self, queue: str) -> list[WorkerInfo]:
        rows = self._link.run(self._sql(look.WORKERS), {"queue": queue})
        return [WorkerInfo(worker, json.loads(info)) for worker, info in rows]

    def ask(self, worker: str, queue: str, order: Mapping[str, Any], ttl: float) -> None:
        values = {"worker": worker, "id": order["id"], "what": json.dumps(order), "ttl": ttl}
        self._link.run(self._sql(look.ASK), values)

    # -- itself ------------------------------------------------------------------------------------------------

    def check(self) -> list[str]:
        ((fsync, commit, autovacuum, oldest),) = self._link.run(_SETTINGS.encode())
        where = self._link.shown
        warnings = []
        if fsync == "off":
            warnings.append(f"{where} does not sync its files: a power cut may destroy the database; set fsync to on")
        if commit == "off":
            warnings.append(
                f"{where} commits without waiting for the disk: a crash of the server may lose the last tasks; "
                "set synchronous_commit to on"
            )
        if autovacuum == "off":
            warnings.append(
                f"{where} never cleans its tables, and those of the queues grow with every task; set autovacuum to on"
            )
        if oldest > OLD_TRANSACTION:
            warnings.append(
                f"{where} has a transaction that is {oldest // 3600} hours old, and nothing that was deleted since can "
                "be cleaned: queues get slow; find it in pg_stat_activity by xact_start, and end it"
            )
        return warnings

    def spec(self) -> str | None:
        return self._link.url

    def schema(self) -> str | None:
        return self._link.schema.script()

    def close(self) -> None:
        self._waiter.close()
        self._link.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._link.shown!r})"


def _tokens(refs: Sequence[Ref], suffix: str) -> dict[str, Any]:
    queues, ids, deliveries, nonces = map(list, zip(*refs, strict=True)) if refs else ([], [], [], [])
    return {
        f"queues{suffix}": queues,
        f"ids{suffix}": ids,
        f"deliveries{suffix}": deliveries,
        f"nonces{suffix}": [_signed(nonce) for nonce in nonces],
    }


def _among(ends: Sequence[tuple[str, bytes]], settlements: Sequence[Settlement]) -> list[bool]:
    """Which settlements are among the claims that have ended, as the store names them."""
    left = set(ends)
    answers = []
    for ref, *_ in settlements:
        token = (ref.queue, b"%d/%d/%d" % (ref.id, ref.delivery, _signed(ref.nonce)))
        answers.append(token in left)
        left.discard(token)  # a claim ends once
    return answers


def _answer_values(queue: str, id: int, answer: Answer) -> dict[str, Any]:
    return {"queue": queue, "id": id, "ttl": float(answer.ttl), "data": answer.data}


def _claims(rows: Sequence[tuple[Any, ...]], queues: Sequence[str], nonce: int) -> list[Claim]:
    """The rows of a claim in the order in which they are to be served."""
    turns = {queue: turn for turn, queue in enumerate(dict.fromkeys(queues))}
    ordered = sorted(rows, key=lambda row: (turns[row[0]], -row[4], row[5], row[1]))
    return [
        Claim(queue, id, delivery, nonce, attempt, header, payload)
        for queue, id, delivery, attempt, _, _, header, payload in ordered
    ]


def _checked(queue: str) -> str:
    try:
        if b"\0" not in queue.encode():
            return queue
    except UnicodeEncodeError:
        pass
    raise ConfigError(f"the queue name {queue!r} has characters that PostgreSQL can't store")


def _text(text: str) -> str:
    """As PostgreSQL can store it."""
    return text.replace("\0", "\\0").encode("utf-8", "replace").decode("utf-8")


def _unsigned(nonce: int) -> int:
    return nonce + (1 << 64) if nonce < 0 else nonce


def _signed(nonce: int) -> int:
    return nonce - (1 << 64) if nonce >= 1 << 63 else nonce
