"""Enqueueing in a PostgreSQL transaction that is not the broker's, and the transaction that ends a task."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from delayed.brokers.base import Joined
from delayed.brokers.postgres_link import Link
from delayed.brokers.postgres_look import PUT_ANSWER
from delayed.brokers.unwrap import driver_connection
from delayed.errors import BrokerError, BrokerUnavailable, ConfigError, TaskLost
from delayed.message import Answer, Message, Once, Ref

COMMIT_DOUBT = 20.0  # seconds that the outcome of a commit is asked for after its answer was lost

Enqueue = Callable[[str | None, int, str, Sequence[Message]], tuple[bytes, dict[str, Any]]]
EnqueueOnce = Callable[[str | None, int, str, Message, Once], tuple[bytes, dict[str, Any]]]


class PostgresJoined(Joined):
    """A transaction on a connection to the broker's database.

    Args:
        connection: psycopg's.
        reserve: reserves ids, in another transaction: the counter is locked until its own ends.
        clock: tells the time.
        enqueue, enqueue_once: make the statements that enqueue.
    """

    def __init__(
        self,
        link: Link,
        connection: psycopg.Connection[Any],
        reserve: Callable[[str, int], int],
        clock: Callable[[str], float],
        enqueue: Enqueue,
        enqueue_once: EnqueueOnce,
    ) -> None:
        self.connection: psycopg.Connection[Any] = connection
        self._link = link
        self._reserve = reserve
        self._clock = clock
        self._enqueue = enqueue
        self._enqueue_once = enqueue_once

    def reserve_ids(self, queue: str, n: int) -> int:
        return self._reserve(queue, n)

    def clock(self, queue: str) -> float:
        return self._clock(queue)

    def enqueue(self, queue: str, messages: Sequence[Message]) -> None:
        statement, values = self._enqueue(None, 0, queue, messages)
        with self._link.errors():
            psycopg.Cursor(self.connection).execute(statement, values, prepare=False)

    def enqueue_once(self, queue: str, message: Message, once: Once) -> int:
        statement, values = self._enqueue_once(None, 0, queue, message, once)
        with self._link.errors():
            cursor = psycopg.Cursor(self.connection, row_factory=tuple_row)
            rows = cursor.execute(statement, values, prepare=False).fetchall()
        return int(rows[0][0])

    def leave(self) -> None:
        """Nothing: the server wakes who waits when it commits."""


def joinable(link: Link, conn: Any) -> psycopg.Connection[Any]:
    """The connection of the driver's that `conn` is or works on, once it is known to be to the same database.

    Raises:
        ConfigError: When it is not.
    """
    found = driver_connection(conn)
    if not isinstance(found, psycopg.Connection):
        kind = type(found)
        name = f"{kind.__module__}.{kind.__qualname__}"
        hint = ""
        if name.startswith("psycopg2."):
            hint = "; with SQLAlchemy, write postgresql+psycopg:// for psycopg 3"
        elif "Async" in name or name.startswith("asyncpg."):
            hint = "; use a synchronous connection for the part that enqueues"
        raise ConfigError(
            f"tasks of {link.shown} can be enqueued in the transaction of a psycopg.Connection, not of a {name}{hint}"
        )
    ((ours,),) = link.run(link.schema.sql("SELECT store::text FROM @.delayed_meta"))
    cursor = psycopg.Cursor(found, row_factory=tuple_row)  # whatever the rows of its owner look like
    with link.errors():
        there = "SELECT FROM pg_tables WHERE schemaname = %s AND tablename = 'delayed_meta'"
        rows = cursor.execute(there, (link.schema.name,), prepare=False).fetchall()
        if rows:
            same = link.schema.sql("SELECT store = %s::text::uuid FROM @.delayed_meta")
            rows = cursor.execute(same, (ours,), prepare=False).fetchall()
            if not rows:
                raise ConfigError(
                    f"{link.shown}: this transaction began before the tables of the queues were made, and can't see "
                    "them; begin another"
                )
    if rows != [(True,)]:
        raise ConfigError(
            f"the queue is in {link.shown}, and the connection is to another database ({found.info.dbname} on "
            f"{found.info.host or 'this host'}): one transaction can't hold both"
        )
    return found


@contextlib.contextmanager
def task_transaction(
    link: Link,
    ref: Ref,
    nonce: int,
    joined: Callable[[psycopg.Connection[Any]], PostgresJoined],
    answer: Answer | None = None,
) -> Iterator[PostgresJoined]:
    """See :meth:`Broker.transaction`. The row of the task is locked for the moment of the commit only, so that the
    claim can be renewed as long as the block runs.
    """
    token = {"queue": ref.queue, "id": ref.id, "delivery": ref.delivery, "nonce": nonce}
    where = (
        "queue = (SELECT number FROM @.delayed_queue WHERE name = %(queue)s) AND id = %(id)s AND state = 2 "
        "AND delivery = %(delivery)s AND nonce = %(nonce)s"
    )
    look = link.schema.sql(f"SELECT pg_current_xact_id()::text FROM @.delayed_task WHERE {where}")
    end = link.schema.sql(f"DELETE FROM @.delayed_task WHERE {where} AND pg_current_xact_id()::text = %(number)s")
    lost = TaskLost(f"the claim of task {ref.id} does not hold any more; nothing of its transaction is kept")
    early = BrokerError(
        f"{link.shown}: a COMMIT or ROLLBACK inside current.transaction() has ended it early; what was committed "
        "stays, and the task is not ended by it"
    )
    with link.lend() as conn:
        number = ""
        ended = False
        try:
            with conn.transaction():
                with link.errors(sent=False):
                    rows = psycopg.Cursor(conn, row_factory=tuple_row).execute(look, token, prepare=False).fetchall()
                if not rows:
                    raise lost
                ((number,),) = rows
                conn.bounded = False
                yield joined(conn)
                conn.bounded = True
                if conn.info.transaction_status == TransactionStatus.IDLE:
                    raise early
                with link.errors(sent=False):
                    cursor = psycopg.Cursor(conn, row_factory=tuple_row)
                    if cursor.execute(end, {**token, "number": number}, prepare=False).rowcount != 1:
                        same = cursor.execute("SELECT pg_current_xact_id()::text", prepare=False).fetchall() == rows
                        raise lost if same else early
                    if answer is not None:
                        values = {"queue": ref.queue, "id": ref.id, "ttl": float(answer.ttl), "data": answer.data}
                        cursor.execute(link.schema.sql(PUT_ANSWER), values, prepare=False)
                ended = True
            if not ended:  # psycopg.Rollback, which goes no further
                raise BrokerError(f"{link.shown}: rolled back by the block; the task is not ended")
        except psycopg.Error as error:
            conn.bounded = True
            if not ended:  # the block's own
                raise
            if error.sqlstate and not error.sqlstate.startswith(("08", "57")):  # a deferred constraint, for instance
                raise
            _look_up(link, number, error)


def _look_up(link: Link, number: str, error: psycopg.Error) -> None:
    """Return if the transaction of that number was committed, though its answer was lost.

    Raises:
        BrokerUnavailable: When it was not, or when nobody can say.
    """
    deadline = time.monotonic() + COMMIT_DOUBT
    status = "unknown"
    while time.monotonic() < deadline:
        try:
            ((status,),) = link.run(b"SELECT pg_xact_status(%s::text::xid8)", (number,))
        except BrokerUnavailable:
            status = "unknown"
        if status == "committed":
            return
        if status == "aborted":
            raise BrokerUnavailable(f"{link.shown}: not committed: {error}", sent=False) from error
        time.sleep(0.05)
    raise BrokerUnavailable(f"{link.shown}: the answer of the commit was lost, and its outcome is {status}") from error
