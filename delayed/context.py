"""What a running task can know of itself, and do: the object ``current``.

Children load this for every task, so it loads little itself: what a transaction needs comes with the first one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from delayed import tracing
from delayed.errors import ConfigError, TaskError
from delayed.message import Message, Ref

if TYPE_CHECKING:
    from delayed.brokers import Broker

# How far a task's own transaction is.
NO_TRANSACTION, OPEN, COMMITTED = range(3)


class Run:
    """One run of a task, as its child knows it.

    Args:
        message: the task's message.
        ref: its claim.
        attempt: 1 for the first run that counts.
        begun: when it began, by :func:`time.monotonic`.
        url: of the store; None if no other process can open it.
        note: told how far the task's transaction is, before it goes there; and, with two arguments more, how far the
            task itself says that it is: the part that is done, and a text.
    """

    __slots__ = ("attempt", "begun", "message", "note", "progress", "ref", "state", "url")

    def __init__(
        self,
        message: Message,
        ref: Ref,
        attempt: int,
        begun: float,
        url: str | None,
        note: Callable[..., None],
    ) -> None:
        self.message = message
        self.ref = ref
        self.attempt = attempt
        self.begun = begun
        self.url = url
        self.note = note
        self.state = NO_TRANSACTION
        self.progress: float | None = None

    def go(self, state: int) -> None:
        self.state = state
        self.note(state)


run: Run | None = None  # the run that this process is in, if it does one at a time
here: ContextVar[Run | None] = ContextVar("delayed_run", default=None)  # ... else the one that this context is in


def _run() -> Run:
    found = run if run is not None else here.get()
    if found is None:
        raise TaskError("no task runs here: `current` has a meaning only while a worker runs a task in this process")
    return found


def _trace() -> str | None:
    found = run if run is not None else here.get()
    return None if found is None or found.message.trace is None else tracing.valid(found.message.trace)


tracing.of_task = _trace


class Current:
    """The task that runs in this process. There is one object of it: ``delayed.current``.

    Raises:
        TaskError: By every attribute, where no task runs.
    """

    @property
    def id(self) -> int:
        """Its number, unique in its queue; the same in each of its runs."""
        return _run().ref.id

    @property
    def queue(self) -> str:
        """The name of the queue that it came from."""
        return _run().ref.queue

    @property
    def attempt(self) -> int:
        """1 for its first run, 2 for the first retry. A run that was given back is not counted."""
        return _run().attempt

    @property
    def key(self) -> str:
        """An idempotency key for outside services: the same in each run of this task, and of no other.

        It is the option `key` of the call if there is one, else made of the queue's name and the id.
        """
        found = _run()
        return found.message.key or f"{found.ref.queue}:{found.ref.id}"

    @property
    def trace(self) -> str | None:
        """The W3C ``traceparent`` that it was enqueued with; None if it has none. See :func:`delayed.trace`."""
        _run()
        return _trace()

    @property
    def fencing_token(self) -> int:
        """A number that is higher in each later run of this task: a write that carries it can be refused where one
        with a higher number has been before.
        """
        return _run().ref.delivery

    @property
    def time_left(self) -> float | None:
        """Seconds until it is stopped, 0 at least; None if it has no limit."""
        found = _run()
        if found.message.timeout is None:
            return None
        return max(0.0, found.begun + found.message.timeout - time.monotonic())

    @property
    def deadline(self) -> float | None:
        """When it is stopped, as unix time by this host's clock; None if it has no limit."""
        left = self.time_left
        return None if left is None else time.time() + left

    @property
    def progress(self) -> float | None:
        """How far this run says that it is, from 0 to 1; None if it has not said. Set it to say so."""
        return _run().progress

    @progress.setter
    def progress(self, done: float) -> None:
        self.report(done)

    def report(self, done: float, text: str = "") -> None:
        """Say how far this run is, for ``handle.progress``; it is passed on twice a second, however often it is said.

        Args:
            done: the part that is done, from 0 to 1.
            text: what it is at, in words; some 380 bytes of it are shown.

        Raises:
            ConfigError: When `done` is no number from 0 to 1.
        """
        found = _run()
        if not isinstance(done, (int, float)) or isinstance(done, bool) or not 0 <= done <= 1:
            raise ConfigError(f"progress is a number from 0 to 1, not {done!r}")
        found.progress = float(done)
        found.note(found.state, found.progress, str(text).encode(errors="replace"))

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """A transaction in the queue's database that commits together with the end of this task: exactly once.

        >>> with current.transaction() as tx:
        ...     tx.execute("UPDATE account SET balance = balance - 10 WHERE id = 1")
        ...     receipt.delay(1)

        What is written through `tx`, what is enqueued in the block to queues in the same store, and the end of the
        task become true at one moment, when the block ends, or not at all: when the block raises, when the process is
        killed, or when the task's claim was lost meanwhile. A run may be repeated; what it does in here is not.
        After the block the task is done, whatever the rest of the function does; there is one such block in a task.

        Returns:
            A connection of its own to the queue's database, in a transaction: a :class:`sqlite3.Connection`, a
            ``psycopg.Connection``, or on MongoDB a ``ClientSession`` (``tx.client[db][collection]``, `session=tx`).

        Raises:
            TaskLost: When the claim does not hold any more; nothing is kept. It is no ``Exception``, so that no
                ``except Exception`` in the task takes it for a failure of its own.
            BrokerUnavailable: When the store can't be reached; nothing is kept.
            Unsupported: When the store has no transactions (Redis).
            TaskError: When this task has, or had, such a transaction already.
        """
        found = _run()
        if found.state != NO_TRANSACTION:
            raise TaskError(
                f"task {found.ref.id} has {'an open' if found.state == OPEN else 'a committed'} transaction already: "
                "a task ends once, so put everything into one block"
            )
        from delayed import transactions

        answer = None
        if found.message.keep is not None:
            from delayed.answers import committed

            answer = committed(found.message.keep)
        broker = broker_at(found.url)
        found.go(OPEN)
        try:
            with broker.transaction(found.ref, answer) as joined, transactions.open(broker, joined):
                yield joined.connection
        except BaseException:
            found.go(NO_TRANSACTION)
            raise
        found.go(COMMITTED)

    def __repr__(self) -> str:
        found = run if run is not None else here.get()
        if found is None:
            return "<current: no task>"
        return f"<current: task {found.ref.id} of queue {found.ref.queue}, attempt {found.attempt}>"


current = Current()

_brokers: dict[str, Broker] = {}


def threads() -> tuple[str, ...]:
    """What the names of the threads begin with that the transactions of tasks leave here for the next one."""
    return tuple(start for broker in _brokers.values() for start in broker.threads)


def broker_at(url: str | None) -> Broker:
    """This process's own connection to the store at `url`, kept for the next task."""
    if url is None:
        raise TaskError("this worker's store can't be opened by another process, so a task can have no transaction")
    from delayed.brokers import broker_for

    if url not in _brokers:
        _brokers[url] = broker_for(url)
    return _brokers[url]
