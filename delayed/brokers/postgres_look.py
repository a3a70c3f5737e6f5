"""Looking at the tasks in PostgreSQL, and removing them: statements, in which ``@.`` stands for the schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from delayed.message import LIFE, STATES, Entry, Message, State

# With clock_timestamp(), which differs from row to row, no index would be of use for a time.
_NUMBER = "queue = (SELECT number FROM @.delayed_queue WHERE name = %(queue)s)"
_READY = f"{_NUMBER} AND state = 1"
_DUE = f"{_NUMBER} AND state = 0 AND at <= statement_timestamp()"  # ready too, but no claim has come by to say so
_WHERE: Mapping[State, list[str]] = {
    "scheduled": [f"{_NUMBER} AND state = 0 AND at > statement_timestamp()"],
    "ready": [_READY, _DUE],
    "running": [f"{_NUMBER} AND state = 2"],
    "dead": [f"{_NUMBER} AND state = 3"],
}
_ORDER: Mapping[State, str] = {
    "scheduled": "at, id",
    "ready": "priority DESC, state DESC, turn, id",
    "running": "priority DESC, place, id",
    "dead": "at DESC, id DESC",
}
# Where a row is in that order, as numbers; and what is behind those numbers.
_MICROSECONDS = "(extract(epoch FROM at) * 1000000)::bigint"
_INSTANT = "'epoch'::timestamptz + %({0})s::bigint * interval '1 microsecond'"
_PLACE: Mapping[State, str] = {
    "scheduled": f"{_MICROSECONDS}, id",
    "ready": "priority, state, turn, id",
    "running": "-priority, place, id",
    "dead": f"{_MICROSECONDS}, id",
}
_BEHIND: Mapping[State, str] = {
    "scheduled": f"(at, id) > ({_INSTANT.format('a')}, %(b)s::bigint)",
    "running": "(-priority, place, id) > (%(a)s::bigint, %(b)s::bigint, %(c)s::bigint)",
    "dead": f"(at, id) < ({_INSTANT.format('a')}, %(b)s::bigint)",
}
_COLUMNS = """
    id, state, attempt, delivery, worker, reason, header, notes, {payload},
    extract(epoch FROM CASE state WHEN 1 THEN clock_timestamp() WHEN 2 THEN lease_end ELSE at END
        - clock_timestamp())::float8
"""
# In three parts, for each of which there is an index or few rows: what is ready of the last one's priority, what is
# ready of a lower one, and what is due. (That has no index by priority, for whoever claims makes it ready.)
_READY_PART = (
    "SELECT * FROM (SELECT *, {turn} AS turn FROM @.delayed_task WHERE {where} ORDER BY {order} LIMIT %(limit)s) AS p"
)
_SAME = "priority = %(a)s::int AND (%(b)s::int = 1 AND (place, id) > (%(c)s::bigint, %(d)s::bigint))"
_LATER_DUE = f"%(b)s::int = 1 OR (at, id) > ({_INSTANT.format('c')}, %(d)s::bigint)"
_READY_FROM = " UNION ALL ".join(
    (
        _READY_PART.format(turn="place", where=f"{_READY} AND {_SAME}", order="place, id"),
        _READY_PART.format(turn="place", where=f"{_READY} AND priority < %(a)s::int", order="priority DESC, place, id"),
        _READY_PART.format(
            turn=_MICROSECONDS,
            where=f"{_DUE} AND (priority < %(a)s::int OR (priority = %(a)s::int AND ({_LATER_DUE})))",
            order="priority DESC, at, id",
        ),
    )
)

COUNTS = "SELECT " + ", ".join(
    "(" + " + ".join(f"(SELECT count(*) FROM @.delayed_task WHERE {where})" for where in _WHERE[state]) + ")::bigint"
    for state in STATES
)
GET = f"SELECT {_COLUMNS.format(payload='payload')} FROM @.delayed_task WHERE {_NUMBER} AND id = %(id)s"
REMOVE = f"""
    DELETE FROM @.delayed_task
    WHERE {_NUMBER} AND id = %(id)s AND (state + 0 < 2 OR (state + 0 = 3 AND %(dead)s::boolean))
"""
PUT_ANSWER = "SELECT @.delayed_put_answer(%(queue)s::text, %(id)s::bigint, %(ttl)s::float8, %(data)b::bytea)"
REMOVE_ANSWERED = f"""
    WITH gone AS ({REMOVE} RETURNING id)
    SELECT @.delayed_put_answer(%(queue)s::text, id, %(ttl)s::float8, %(data)b::bytea) FROM gone
"""
RESCHEDULE = f"""
    WITH moved AS (
        UPDATE @.delayed_task SET
            state = CASE WHEN %(delay)s::float8 > 0 THEN 0 ELSE 1 END,
            at = clock_timestamp() + %(delay)s::float8 * interval '1 second',
            tenant = CASE WHEN %(delay)s::float8 > 0 THEN tenant END,
            place = nextval('@.delayed_place') << 20
        WHERE {_NUMBER} AND id = %(id)s::bigint AND state + 0 < 2
        RETURNING id
    )
    SELECT @.delayed_ring(%(queue)s::text, false) FROM moved
"""
GET_ANSWERS = f"""
    SELECT id, data FROM @.delayed_answer
    WHERE id = ANY (%(ids)b::bigint[]) AND {_NUMBER} AND until > clock_timestamp()
"""
REVIVE = "SELECT o_id FROM @.delayed_revive(%(queue)s::text, %(ids)b::bigint[])"
DROP = f"DELETE FROM @.delayed_task WHERE {_NUMBER} AND id = ANY (%(ids)b::bigint[]) AND state + 0 = 3 RETURNING id"
BOUND = "SELECT @.delayed_bound(%(queue)s::text, %(most)s::int, %(age)s::float8)"
QUEUES = "SELECT name FROM @.delayed_queue WHERE counter > 0 ORDER BY name"
PAUSE = "SELECT @.delayed_pause(%(queue)s::text, %(paused)s::boolean)"
PAUSED = "SELECT 1 FROM @.delayed_queue WHERE name = %(queue)s AND paused"
_ORDERS = "DELETE FROM @.delayed_order WHERE worker = %(worker)s RETURNING what, until > clock_timestamp()"
ANNOUNCE = f"""
    WITH announced AS (
        INSERT INTO @.delayed_announcement
        SELECT DISTINCT x, %(worker)s::text, %(info)s::text, clock_timestamp() + %(ttl)s::float8 * interval '1 second'
        FROM unnest(%(queues)s::text[]) AS x ORDER BY x
        ON CONFLICT (queue, worker) DO UPDATE SET info = excluded.info, until = excluded.until
    )
    {_ORDERS}
"""
GOODBYE = f"""
    WITH gone AS (
        DELETE FROM @.delayed_announcement WHERE worker = %(worker)s AND queue = ANY (%(queues)s::text[])
    )
    {_ORDERS}
"""
ASK = """
    INSERT INTO @.delayed_order
    VALUES (%(worker)s, %(id)s, %(what)s, clock_timestamp() + %(ttl)s::float8 * interval '1 second')
    ON CONFLICT (worker, id) DO UPDATE SET what = excluded.what, until = excluded.until
"""
WORKERS = """
    SELECT worker, info FROM @.delayed_announcement
    WHERE queue = %(queue)s AND until > clock_timestamp() ORDER BY worker
"""


def peek(state: State, *, first: bool, payloads: bool) -> str:
    """The statement that lists one state; values: queue, limit, and those of :func:`place`.

    Args:
        first: whether it begins with the first one, and not behind a place.
    """
    check(state)
    if state == "ready":
        source = f"({_READY_FROM}) AS t"
    else:
        source = f"@.delayed_task WHERE {_WHERE[state][0]}{'' if first else f' AND {_BEHIND[state]}'}"
    columns = _COLUMNS.format(payload="payload" if payloads else "''::bytea")
    mark = f"ARRAY[{_PLACE[state]}]::bigint[]"
    return f"SELECT {columns}, {mark} FROM {source} ORDER BY {_ORDER[state]} LIMIT %(limit)s"


def place(after: Entry | None) -> dict[str, int]:
    """The values that tell :func:`peek` where to go on; before all that are ready, if that is None."""
    return dict(zip("abcd", (1 << 20, 1, 0, 0) if after is None else after.place, strict=False))


def purges(state: State) -> list[str]:
    """The statements that remove up to `limit` tasks of one state each; all of them have to be run."""
    check(state)
    return [
        f"DELETE FROM @.delayed_task WHERE ctid = ANY (ARRAY("
        f"SELECT ctid FROM @.delayed_task WHERE {where} LIMIT %(limit)s FOR UPDATE SKIP LOCKED))"
        for where in _WHERE[state]
    ]


def check(state: State) -> None:
    """Raise ValueError when there is no such state."""
    if state not in STATES:
        raise ValueError(f"no state {state!r}; it can be {', '.join(STATES)}")


def entry(row: Sequence[Any], place: Any = None) -> Entry:
    """What a row of :func:`peek`, without its place, or of :data:`GET` says."""
    id, number, attempt, delivery, worker, reason, header, notes, payload, due = row
    state: State = STATES[number]
    if state == "scheduled" and due <= 0:
        state = "ready"
    left = due if state in ("scheduled", "running") else 0.0
    died = -due if state == "dead" else 0.0
    message = Message.glimpse(id, header, payload)
    return Entry(message, state, attempt, delivery % LIFE, worker, left, reason, died, header, tuple(notes), place)
