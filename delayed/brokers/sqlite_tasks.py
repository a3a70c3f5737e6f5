"""The transitions of a task in a SQLite file: statements, and the functions that run them in a caller's transaction.

Queues go by their numbers, times are milliseconds by the file's clock, and nonces are stored as signed numbers.
"""

from __future__ import annotations

import sqlite3
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from delayed import attempts
from delayed.brokers.base import DEAD_LETTERS, PRODUCER_AGE
from delayed.brokers.grace import Grace
from delayed.brokers.sqlite_fair import Turns
from delayed.message import LIFE, NOTES_MAX, Bounds, Claim, Message, Ref, Settlement, next_life

PROMOTE_MAX = 1000  # scheduled tasks that one claim makes ready at most, of each queue
SWEEP_MAX = 10_000  # lost tasks that one sweep returns at most
ROOM = 4 << 20  # bytes of messages that a step changes before it ends: on a full disk there is little room for its log
SLICE = 4  # tasks that are claimed before it is seen how large they are; then twice as many each time

# A column takes what it is given. What is not of its kind is read as NULL: text, for instance, may be none that can be
# decoded, and then no row of the answer could be read.
_ID = "CASE typeof(id) WHEN 'integer' THEN id END"
_HEADER = "CASE typeof(header) WHEN 'blob' THEN header END"
_NOTES = "CASE typeof(notes) WHEN 'blob' THEN notes ELSE x'' END"
_PAYLOAD = "CASE typeof(payload) WHEN 'blob' THEN payload END"

Executor = sqlite3.Connection | sqlite3.Cursor

# The partial indexes of the schema are used only where a statement says the state as a number.
_ANY_READY = """
    SELECT 1 FROM delayed_queue AS q
    WHERE q.number = ? AND NOT q.paused AND EXISTS (SELECT 1 FROM delayed_task WHERE queue = q.number AND state = 1)
"""
_PAUSED = "SELECT paused FROM delayed_queue WHERE number = ?"
_NEXT_DUE = "SELECT at FROM delayed_task WHERE queue = ? AND state = 0 ORDER BY at LIMIT 1"

_RESERVE = "UPDATE delayed_queue SET counter = max(counter, ?) + ? WHERE number = ? RETURNING counter"
_NEW_SEQ = """
    INSERT INTO delayed_producer VALUES (?, ?, ?)
    ON CONFLICT DO UPDATE SET seq = excluded.seq, seen = excluded.seen WHERE seq < excluded.seq
    RETURNING 1
"""
_INSERT = """
    INSERT INTO delayed_task (queue, id, state, priority, place, at, max_deliveries, header, payload, tenant)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_DUE = """
    SELECT seat, priority, CASE attempt WHEN 0 THEN tenant END FROM delayed_task
    WHERE queue = ? AND state = 0 AND at <= ? ORDER BY at, seat LIMIT ?
"""
_PROMOTE = "UPDATE delayed_task SET state = 1, place = ? WHERE seat = ?"
_TAKE = f"""
    UPDATE delayed_task
    SET state = 2, worker = ?, nonce = ?, at = ?, delivery = delivery + 1, attempt = attempt + 1
    WHERE seat IN (SELECT seat FROM delayed_task WHERE queue = ? AND state = 1 ORDER BY priority DESC, place LIMIT ?)
    RETURNING -priority, place + 0, seat, {_ID}, delivery, attempt, {_HEADER}, {_PAYLOAD}
"""
_RESCHEDULE = """
    UPDATE delayed_task SET state = :state, at = :at, place = :place, tenant = CASE :state WHEN 0 THEN tenant END
    WHERE queue = :queue AND id = :id AND state IN (0, 1)
"""
_HELD = f"""
    SELECT {_ID}, delivery, nonce, attempt, {_HEADER}, {_PAYLOAD} FROM delayed_task
    WHERE queue = ? AND state = 2 AND worker = ? ORDER BY priority DESC, place
"""
_REMOVE_ODD = "DELETE FROM delayed_task WHERE queue = ? AND state = 2 AND worker = ? AND typeof(id) <> 'integer'"
_HELD_TOKENS = "SELECT id, delivery, nonce FROM delayed_task WHERE queue = ? AND state = 2 AND worker = ?"

_SEEN = "SELECT seq FROM delayed_claimer WHERE worker = ?"
_RENEW = "UPDATE delayed_task SET at = ? WHERE queue = ? AND id = ? AND state = 2 AND delivery = ? AND nonce = ?"

_CLAIM = "WHERE queue = ? AND id = ? AND state = 2 AND delivery = ? AND nonce = ?"
_DONE = f"DELETE FROM delayed_task {_CLAIM}"
_END = "UPDATE delayed_task SET worker = '', nonce = 0,"
_RETRY = f"{_END} state = 1, place = ?, at = 0 {_CLAIM}"
_RETRY_LATER = f"{_END} state = 0, at = ? {_CLAIM}"
_BACK = f"{_END} state = 1, at = 0, attempt = attempt - 1 {_CLAIM}"
_BACK_LATER = f"{_END} state = 0, at = ?, attempt = attempt - 1 {_CLAIM}"
_DEAD = f"{_END} state = 3, at = ?, reason = ? {_CLAIM}"

# Goes from worker to worker, so that the claims whose lease has not ended are never looked at.
_EXPIRE = "UPDATE delayed_task SET at = 0 WHERE queue = ? AND state = 2 AND worker = ?"
CERTAIN = 1  # ms: only those whose worker is known to be gone have leases that ended before
_EXPIRED = f"""
    WITH RECURSIVE holder (worker) AS (
        SELECT min(worker) FROM delayed_task WHERE queue = :queue AND state = 2
        UNION ALL
        SELECT (SELECT min(worker) FROM delayed_task WHERE queue = :queue AND state = 2 AND worker > holder.worker)
        FROM holder WHERE holder.worker IS NOT NULL
    )
    SELECT seat, delivery, max_deliveries, lost, attempt + 0, CAST(task.worker AS BLOB), {_NOTES}, length(payload)
    FROM holder CROSS JOIN delayed_task AS task
    WHERE task.queue = :queue AND task.state = 2 AND task.worker = holder.worker AND task.at < :before
    LIMIT :limit
"""
_LOST_FIRST = f"{_END} state = 1, at = 0, lost = 1, notes = ? WHERE seat = ?"
_LOST_AGAIN = f"{_END} state = 1, at = 0, lost = lost + 1, place = ?, notes = ? WHERE seat = ?"
_LOST_DEAD = f"{_END} state = 3, at = ?, lost = lost + 1, reason = ?, notes = ? WHERE seat = ?"
_LETTER = "SELECT seat, id, delivery FROM delayed_task WHERE queue = ? AND id = ? AND state = 3"
_REVIVE = """
    UPDATE delayed_task
    SET state = 1, at = 0, place = ?, tenant = NULL, attempt = 0, delivery = ?, lost = 0, reason = '', notes = x''
    WHERE seat = ?
"""
_DROP = "DELETE FROM delayed_task WHERE queue = ? AND id = ? AND state = 3"
_TIDY_DEAD = """
    DELETE FROM delayed_task WHERE seat IN (
        SELECT seat FROM delayed_task WHERE queue = :queue AND state = 3 AND at < :before
        UNION
        SELECT seat FROM (
            SELECT seat FROM delayed_task WHERE queue = :queue AND state = 3
            ORDER BY at DESC, seat DESC LIMIT -1 OFFSET :keep
        )
    )
"""


# -- producing -------------------------------------------------------------------------------------------------


def reserve_ids(db: Executor, number: int, n: int, now: int) -> int:
    """The first of `n` new ids."""
    (last,) = db.execute(_RESERVE, (now << 11, n, number)).fetchall()[0]
    return int(last) - n + 1


def insert(db: Executor, number: int, messages: Sequence[Message], session: str, seq: int, now: int) -> None:
    """Store the messages, unless this session has sent them before."""
    if note_enqueue(db, session, seq, now):
        store(db, number, messages, now)


def note_enqueue(db: Executor, session: str, seq: int, now: int) -> bool:
    """Note the number of a session's enqueue; False if it was noted before."""
    return bool(db.execute(_NEW_SEQ, (session, seq, now)).fetchall())


def store(db: Executor, number: int, messages: Sequence[Message], now: int) -> None:
    """Store the messages."""
    rows = []
    first = _places(db, number, len(messages))
    turns = Turns(db, number, first) if any(message.tenant for message in messages) else None
    for place, message in enumerate(messages, first):
        state, at = (0, now + round(message.delay * 1000)) if message.delay > 0 else (1, 0)
        if turns is not None and message.tenant is not None and state == 1:
            place = turns.place(message.priority, message.tenant)
        header, tenant = message.header(), message.tenant
        most, payload = message.max_deliveries, message.payload
        rows.append((number, message.id, state, message.priority, place, at, most, header, payload, tenant))
    db.executemany(_INSERT, rows)


def _places(db: Executor, number: int, n: int) -> int:
    """The first of `n` new places at the end of the queue."""
    (tail,) = db.execute(
        "UPDATE delayed_queue SET tail = tail + ?, used = 1 WHERE number = ? RETURNING tail", (n, number)
    ).fetchall()[0]
    return int(tail) - n + 1


# -- claiming --------------------------------------------------------------------------------------------------


def has_ready(db: sqlite3.Connection, number: int) -> bool:
    """Whether the queue has something to claim now; a paused one has not."""
    return bool(db.execute(_ANY_READY, (number,)).fetchall())


def next_due(db: sqlite3.Connection, number: int, now: int) -> float:
    """Seconds until the queue has something to claim, as far as is known now: 0 if it has, inf if nothing waits."""
    if has_ready(db, number):
        return 0.0
    if is_paused(db, number):
        return float("inf")
    due = db.execute(_NEXT_DUE, (number,)).fetchall()
    return max(0.0, (due[0][0] - now) / 1000) if due else float("inf")


def was_claimed(db: sqlite3.Connection, worker: str, seq: int) -> bool:
    """Whether the worker's claim of this number has been made before."""
    last = db.execute(_SEEN, (worker,)).fetchall()
    return bool(last) and last[0][0] >= seq


def take(
    db: sqlite3.Connection, queues: Sequence[tuple[str, int]], worker: str, nonce: int, limit: int, now: int, end: int
) -> list[Claim]:
    """Claim up to `limit` tasks of the queues (name, number), with a lease that ends at `end`.

    Large ones are claimed a few at a time, because what changes is written anew as a whole.
    """
    claims: list[Claim] = []
    size, step = 0, SLICE
    for name, number in queues:
        if len(claims) >= limit or size >= ROOM:
            break
        if is_paused(db, number):
            continue
        due = db.execute(_DUE, (number, now, PROMOTE_MAX)).fetchall()
        if due:
            _promote(db, number, due)
        while (asked := min(step, limit - len(claims))) and size < ROOM:
            rows = db.execute(_TAKE, (worker, _signed(nonce), end, number, asked)).fetchall()
            rows.sort()  # by priority, then place, then seat, which no two share
            claims += [
                Claim(name, id, delivery, nonce, attempt, header, payload)
                for _, _, _, id, delivery, attempt, header, payload in rows
            ]
            if len(rows) < asked:
                break
            size += sum(len(row[-1] or b"") for row in rows)
            step *= 2
    return claims


def _promote(db: sqlite3.Connection, number: int, due: Sequence[tuple[int, int, str | None]]) -> None:
    """Make tasks that are due (seat, priority, tenant) ready."""
    first = _places(db, number, len(due))
    turns = Turns(db, number, first)
    rows = [
        (place if tenant is None else turns.place(priority, tenant), seat)
        for place, (seat, priority, tenant) in enumerate(due, first)
    ]
    db.executemany(_PROMOTE, rows)


def note_claim(db: sqlite3.Connection, worker: str, seq: int, now: int) -> None:
    db.execute("INSERT OR REPLACE INTO delayed_claimer VALUES (?, ?, ?)", (worker, seq, now))


def held(db: sqlite3.Connection, queues: Sequence[tuple[str, int]], worker: str) -> list[Claim]:
    """All that `worker` holds in the queues (name, number)."""
    return [
        Claim(name, id, delivery, _unsigned(nonce), attempt, header, payload)
        for name, number in queues
        for id, delivery, nonce, attempt, header, payload in db.execute(_HELD, (number, worker)).fetchall()
    ]


def held_refs(db: sqlite3.Connection, queues: Sequence[tuple[str, int]], worker: str) -> set[Ref]:
    """As :func:`held`, without the messages."""
    return {
        Ref(name, id, delivery, _unsigned(nonce))
        for name, number in queues
        for id, delivery, nonce in db.execute(_HELD_TOKENS, (number, worker)).fetchall()
    }


def remove_odd(db: sqlite3.Connection, number: int, worker: str) -> None:
    """Remove what `worker` holds in the queue and no claim can name, for its id is no number."""
    db.execute(_REMOVE_ODD, (number, worker))


def renew(db: sqlite3.Connection, numbers: Mapping[str, int], refs: Sequence[Ref], end: int) -> None:
    db.executemany(_RENEW, [(end, *_token(numbers, ref)) for ref in refs])


def reschedule(db: sqlite3.Connection, number: int, id: int, delay: float, now: int) -> bool:
    """Let a task that waits become due after so many seconds; False if there is none."""
    state, at = (0, now + round(delay * 1000)) if delay > 0 else (1, 0)
    values = {"state": state, "at": at, "place": _places(db, number, 1), "queue": number, "id": id}
    return db.execute(_RESCHEDULE, values).rowcount > 0


# -- pausing ---------------------------------------------------------------------------------------------------


def is_paused(db: sqlite3.Connection, number: int) -> bool:
    return bool(db.execute(_PAUSED, (number,)).fetchall()[0][0])


def pause(db: sqlite3.Connection, number: int, paused: bool) -> None:
    db.execute("UPDATE delayed_queue SET paused = ? WHERE number = ?", (int(paused), number))


# -- settling --------------------------------------------------------------------------------------------------


def settle(
    db: sqlite3.Connection, numbers: Mapping[str, int], settlements: Sequence[Settlement], now: int
) -> list[bool]:
    """End claims; for each whether it was accepted.

    All of one kind go through in one call of the driver, which tells only how many rows it changed in total. If that
    is not every one, they are taken back and made again one by one.
    """
    steps = [_step(db, numbers, settlement, now) for settlement in settlements]
    for settlement in settlements:
        if settlement.note:
            _note(db, _token(numbers, settlement.ref), settlement.note)
    kinds: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for statement, values in steps:
        kinds[statement].append(values)
    db.execute("SAVEPOINT settle")
    changed = sum(db.executemany(statement, rows).rowcount for statement, rows in kinds.items())
    if changed == len(steps):
        accepted = [True] * len(steps)
    else:
        db.execute("ROLLBACK TO settle")
        accepted = [db.execute(statement, values).rowcount == 1 for statement, values in steps]
    db.execute("RELEASE settle")
    return accepted


def _step(
    db: sqlite3.Connection, numbers: Mapping[str, int], settlement: Settlement, now: int
) -> tuple[str, tuple[Any, ...]]:
    ref, action, delay, reason, _, _ = settlement
    token = _token(numbers, ref)
    if action == "done":
        return _DONE, token
    if action == "dead":
        return _DEAD, (now, reason.encode("utf-8", "replace").decode(), *token)
    if delay > 0:
        return _RETRY_LATER if action == "retry" else _BACK_LATER, (now + round(delay * 1000), *token)
    return (_RETRY, (_places(db, token[0], 1), *token)) if action == "retry" else (_BACK, token)


def _note(db: sqlite3.Connection, token: tuple[int, int, int, int], note: bytes) -> None:
    """Add to the notes of a task, if the claim holds; the oldest go."""
    for (notes,) in db.execute(f"SELECT {_NOTES} FROM delayed_task {_CLAIM}", token).fetchall():
        db.execute(f"UPDATE delayed_task SET notes = ? {_CLAIM}", (_with_note(notes, note), *token))


def _with_note(notes: bytes, note: bytes) -> bytes:
    return b"\n".join([*notes.split(b"\n"), note][-NOTES_MAX:]) if notes else note


def _token(numbers: Mapping[str, int], ref: Ref) -> tuple[int, int, int, int]:
    return numbers[ref.queue], ref.id, ref.delivery, _signed(ref.nonce)


def _signed(nonce: int) -> int:
    return nonce - (1 << 64) if nonce >= 1 << 63 else nonce


def _unsigned(nonce: int) -> int:
    return nonce + (1 << 64) if nonce < 0 else nonce


def holds(db: sqlite3.Connection, numbers: Mapping[str, int], ref: Ref) -> bool:
    """Whether a claim holds."""
    return bool(db.execute(f"SELECT 1 FROM delayed_task {_CLAIM}", _token(numbers, ref)).fetchall())


# -- sweeping --------------------------------------------------------------------------------------------------


def grace(db: sqlite3.Connection, number: int) -> Grace:
    """What is known of the sweeps of the queue, in ms."""
    (row,) = db.execute("SELECT swept, grace, outage FROM delayed_queue WHERE number = ?", (number,)).fetchall()
    return Grace(*row)


def note_sweep(db: sqlite3.Connection, number: int, now: int, grace: Grace) -> None:
    values = (grace.swept, round(grace.until), grace.outage, number)
    db.execute("UPDATE delayed_queue SET swept = ?, grace = ?, outage = ? WHERE number = ?", values)
    db.execute("UPDATE delayed_meta SET seen = max(seen, ?)", (now,))


def expire(db: sqlite3.Connection, workers: Sequence[str]) -> None:
    """End the leases of workers that are gone."""
    numbers = db.execute("SELECT number FROM delayed_queue").fetchall()
    db.executemany(_EXPIRE, [(number, worker) for (number,) in numbers for worker in workers])


def has_lost(db: sqlite3.Connection, number: int, before: float) -> bool:
    return bool(db.execute(_EXPIRED, {"queue": number, "before": before, "limit": 1}).fetchall())


def return_lost(db: sqlite3.Connection, number: int, now: int, before: float) -> tuple[int, int]:
    """End the claims whose lease has ended before then; how many tasks are ready again, and how many dead."""
    first: list[tuple[bytes, int]] = []
    again: list[tuple[int, bytes, int]] = []
    dead: list[tuple[int, str, bytes, int]] = []
    room = ROOM
    for seat, delivery, max_deliveries, losses, attempt, worker, old_notes, size in db.execute(
        _EXPIRED, {"queue": number, "before": before, "limit": SWEEP_MAX}
    ).fetchall():
        if room <= 0:
            break  # the next sweep goes on
        room -= size or 0
        notes = _with_note(old_notes, attempts.lost(attempt, worker.decode(errors="replace"), time.time()))
        if attempt >= max_deliveries:
            dead.append((now, f"poison: delivered {delivery % LIFE} times, and its worker was lost again", notes, seat))
        elif losses:
            again.append((_places(db, number, 1), notes, seat))
        else:
            first.append((notes, seat))
    db.executemany(_LOST_FIRST, first)
    db.executemany(_LOST_AGAIN, again)
    db.executemany(_LOST_DEAD, dead)
    return len(first) + len(again), len(dead)


def tidy(db: sqlite3.Connection, number: int, now: int) -> None:
    """Forget old dead letters, producer sessions, claim numbers, announcements and orders."""
    most, age = db.execute("SELECT dead_most, dead_age FROM delayed_queue WHERE number = ?", (number,)).fetchall()[0]
    before = now - (round(DEAD_LETTERS.age * 1000) if age is None else age)
    keep = DEAD_LETTERS.most if most is None else most
    db.execute(_TIDY_DEAD, {"queue": number, "before": before, "keep": keep})
    unseen = (now - round(PRODUCER_AGE * 1000),)
    db.execute("DELETE FROM delayed_producer WHERE seen < ?", unseen)
    db.execute("DELETE FROM delayed_claimer WHERE seen < ?", unseen)
    db.execute("DELETE FROM delayed_announcement WHERE until < ?", (now,))
    db.execute("DELETE FROM delayed_order WHERE until < ?", (now,))


# -- dead letters ----------------------------------------------------------------------------------------------


def revive(db: sqlite3.Connection, number: int, ids: Sequence[int]) -> list[int]:
    """Make dead letters ready again; those that there were."""
    found: list[tuple[int, int, int]] = []
    for id in dict.fromkeys(ids):
        found += db.execute(_LETTER, (number, id)).fetchall()
    if found:
        places = range(_places(db, number, len(found)), 1 << 63)
        rows = [(place, next_life(delivery), seat) for place, (seat, _, delivery) in zip(places, found, strict=False)]
        db.executemany(_REVIVE, rows)
        db.executemany("DELETE FROM delayed_answer WHERE queue = ? AND id = ?", [(number, id) for _, id, _ in found])
    return [id for _, id, _ in found]


def drop(db: sqlite3.Connection, number: int, ids: Sequence[int]) -> list[int]:
    """Remove dead letters; those that there were."""
    return [id for id in dict.fromkeys(ids) if db.execute(_DROP, (number, id)).rowcount]


def bound(db: sqlite3.Connection, number: int, bounds: Bounds) -> None:
    """Set the bounds of the queue's dead letters."""
    values = (bounds.most, round(bounds.age * 1000), number)
    db.execute("UPDATE delayed_queue SET dead_most = ?, dead_age = ? WHERE number = ?", values)
