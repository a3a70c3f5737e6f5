"""The contract of a broker: the plug for one kind of store, and the only code that knows it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from delayed.errors import Unsupported
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

LEASE = 15.0  # seconds a claim holds without being renewed
RENEW_INTERVAL = 5.0  # seconds between renewals
SWEEP_INTERVAL = 2.0  # seconds between sweeps, per sweeper
WAIT_TIMEOUT = 6.0  # seconds a wait lasts at most, so that a lost wake-up costs no more
LETTERS_LOOK = 50_000  # dead letters that a look for surplus ones passes over at most, on the average
DEAD_LETTERS = Bounds()  # of the dead letters of a queue that asks for nothing else
PRODUCER_AGE = 3600.0  # seconds after which an unseen producer session is forgotten


class Joined(ABC):
    """A transaction on the caller's own connection, in which tasks are enqueued: they come and go with it.

    Attributes:
        connection: the driver's connection (or session) whose transaction it is.
    """

    connection: Any

    @abstractmethod
    def reserve_ids(self, queue: str, n: int) -> int:
        """As :meth:`Broker.reserve_ids`. Ids that were reserved in a transaction that is rolled back are lost."""

    @abstractmethod
    def clock(self, queue: str) -> float:
        """As :meth:`Broker.clock`: the time of now, not of when the transaction began."""

    @abstractmethod
    def enqueue(self, queue: str, messages: Sequence[Message]) -> None:
        """Store all messages in this transaction, or none. Whoever waits for them is woken by its commit.

        There is no session and no number: what has no answer is rolled back with all the rest.

        Raises:
            BrokerError: When the store refuses, or can't be reached; the caller's transaction is then as broken as
                the driver left it.
        """

    @abstractmethod
    def enqueue_once(self, queue: str, message: Message, once: Once) -> int:
        """As :meth:`Broker.enqueue_once`, in this transaction."""

    @abstractmethod
    def leave(self) -> None:
        """Nothing more will be enqueued through this object. It neither commits nor rolls back."""


class Listener(ABC):
    """Hears of the answers that are stored in one queue. For one thread; :meth:`close` may be called from any."""

    @abstractmethod
    def wait(self, timeout: float) -> bool:
        """Return True when an answer may have been stored since this was made, or since the last wait; False after
        `timeout` seconds, or sooner when it was closed. A hint: where the store tells nobody, it is True every while.

        Raises:
            BrokerUnavailable: When the store can't be reached; then another listener is needed.
        """

    @abstractmethod
    def close(self) -> None:
        """Close its connection, if it has one, and end the wait."""


class Broker(ABC):
    """One store. Every method is one atomic step, may be called from any thread and from any process that holds
    the object (connections are opened lazily, one set per process), and may be sent again with the same arguments
    when its answer was lost.

    All times are the store's own clock; what crosses the border are durations in seconds. Errors of the driver
    come out as :class:`BrokerUnavailable` (later, with the same arguments) or :class:`BrokerError`, the cause kept.
    A broker makes one attempt, and ends it when its caller's time is over (see `deadline.py`); whoever calls decides
    how long to go on.
    """

    scheme: ClassVar[str]
    works_meanwhile = False  # whether settle_and_claim() calls deadline.idle() when it has asked its store
    # What the names of the threads begin with that the driver keeps running: a process that has only those left over
    # from a task's transaction can run the next task.
    threads: ClassVar[tuple[str, ...]] = ()
    answer_max: ClassVar[int] = 256 << 20  # bytes that an answer may have
    sweep_interval: ClassVar[float] = SWEEP_INTERVAL  # seconds between the sweeps of a worker

    # -- producing ---------------------------------------------------------------------------------------------

    @abstractmethod
    def reserve_ids(self, queue: str, n: int) -> int:
        """Reserve `n` ids and return the first; the others follow it.

        The counter becomes ``max(counter, milliseconds of the store's clock << 11) + n``, so that ids never go
        backwards when a store loses its last second. Ids stay below 2**53. They do not tell the time: the counter is
        ahead of the clock when that was set back, or very many were reserved.
        """

    @abstractmethod
    def clock(self, queue: str) -> float:
        """What the clock of the store that holds this queue shows, in unix seconds, to the millisecond."""

    def prepare(self, queue: str, messages: Sequence[Message]) -> Sequence[Message]:
        """The same messages, with what can be done of :meth:`enqueue` before it is their turn, for who has the time. It
        asks the store nothing.
        """
        return list(messages)  # each is made now, and once

    @abstractmethod
    def enqueue(self, queue: str, messages: Sequence[Message], session: str, seq: int) -> None:
        """Store all messages or none.

        Args:
            messages: as they are, or as :meth:`prepare` returned them.
            session: 32 hex digits that name one producer; it has one enqueue under way at a time.
            seq: 1, 2, 3 … for the enqueues of that session. If the store has seen this number (or a later one)
                of the session, nothing is stored and the call succeeds: it is a resend.

        Raises:
            BrokerFull: When the store has no room; nothing was stored.
        """

    @abstractmethod
    def enqueue_once(self, queue: str, message: Message, once: Once, session: str, seq: int) -> int:
        """Store one message unless another task holds its key; with ``once.replace`` in its place, see :class:`Once`.

        Args:
            session, seq: as of :meth:`enqueue`. If nothing is stored the number is not used up, and sent again the
                request is decided anew.

        Returns:
            The id of the task that holds the key now: the message's own if it is stored, by this call or by one before
            of which this is a resend; else that of the other task.

        Raises:
            BrokerFull: When the store has no room; nothing was stored.
        """

    def join(self, conn: Any) -> Joined:
        """Enqueue through a connection (or session) of the caller's, as a part of its transaction.

        A transaction that `conn` is in is joined; where it is in none, the driver's own rules say when one begins and
        ends. It is never committed or rolled back here.

        Args:
            conn: the driver's connection, or an object of SQLAlchemy or Django that holds one.

        Raises:
            Unsupported: When this kind of store has no transactions that others can write in.
            ConfigError: When `conn` is not a connection to such a store.
        """
        raise Unsupported(
            f"{self!r} has no transactions that an enqueue could be a part of. PostgreSQL, MongoDB and SQLite have; "
            "here, enqueue after your own commit"
        )

    # -- working -----------------------------------------------------------------------------------------------

    def transaction(self, ref: Ref, answer: Answer | None = None) -> AbstractContextManager[Joined]:
        """A transaction of this broker's own, on a connection that nothing else uses, which ends the claim `ref` as
        ``done`` when it commits, with `answer` as what is kept of it (None: nothing).

        It begins with a look whether the claim holds. After the block the claim is ended and the transaction
        committed; if the block raises, all is rolled back, and the claim is as before. Other claims can be renewed
        and settled meanwhile (on SQLite they wait).

        Raises:
            TaskLost: When the claim does not hold, at the beginning or at the end; all is rolled back.
            BrokerUnavailable: When the store can't be reached, and certainly nothing was committed. A commit whose
                answer is lost is looked up.
            Unsupported: When this kind of store has no such transactions.
        """
        raise Unsupported(
            f"{self!r} has no transactions in which a task's own writes and its end could be one. PostgreSQL, MongoDB "
            "and SQLite have; here, give current.key to the outside service as an idempotency key, or compare "
            "current.fencing_token in your own writes"
        )

    @abstractmethod
    def claim(self, queues: Sequence[str], worker: str, seq: int, nonce: int, limit: int, lease: float) -> list[Claim]:
        """Take up to `limit` due messages under a lease of `lease` seconds, in one atomic step per queue.

        Queues are served in the order given; within one, the highest priority first, then the oldest. Each claim
        has delivery and attempt one higher than before. From a paused queue nothing is taken.

        Args:
            worker: the claimer's id, unique per start.
            seq: 1, 2, 3 … for the claims of this worker. Sent again with the seq of its last claim, the call
                claims nothing and returns what that claim got and still holds.
            nonce: 64 random bits, new with every `seq`.
        """

    @abstractmethod
    def settle(self, worker: str, settlements: Sequence[Settlement]) -> list[bool]:
        """End claims. For each: True if accepted, False if the claim did not hold any more (and nothing was done).

        A settlement that is sent again after a lost answer is refused if the first one took effect; the caller,
        who knows that he sent it before, takes that for a yes.
        """

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
        """Settle, then claim; in one round trip where the store can."""
        accepted = self.settle(worker, settlements) if settlements else []
        return accepted, self.claim(queues, worker, seq, nonce, limit, lease) if limit else []

    @abstractmethod
    def renew(self, worker: str, queues: Sequence[str], refs: Sequence[Ref], lease: float) -> Renewal:
        """Renew the leases of `refs` for `lease` seconds from now, and say what else this worker holds.

        Args:
            queues: the worker's queues, in which to look for claims that it does not know.
        """

    def alive(self, worker: str) -> AbstractContextManager[int]:
        """While the block lasts, `worker` lives as long as any process has the descriptor that this gives: where this
        store can tell that none has, its tasks need not wait for the end of their leases. -1: it can't, and goes by
        the leases.
        """
        return nullcontext(-1)

    @abstractmethod
    def held(self, worker: str, queues: Sequence[str]) -> list[Claim]:
        """Every claim that the store holds for `worker`: what a stand-in takes over."""

    @abstractmethod
    def wait(self, queues: Sequence[str], timeout: float) -> None:
        """Return when something may be claimable, or after `timeout` seconds.

        A hint: it may return too early, and other waiters may be quicker. Scheduled tasks that come due end the
        wait too. A paused queue counts as empty; its :meth:`resume` ends the wait. :meth:`close` from another thread
        ends it at once.
        """

    def wait_and_claim(
        self, queues: Sequence[str], timeout: float, worker: str, seq: int, nonce: int, limit: int, lease: float
    ) -> Sequence[Claim] | None:
        """:meth:`wait`, then :meth:`claim`, without a round trip between them where the store can.

        Returns:
            What was claimed; None if no claim was made, so that the caller has to.
        """
        self.wait(queues, timeout)
        return None

    @abstractmethod
    def wake(self, queues: Sequence[str]) -> None:
        """End the :meth:`wait` of this object in this process, if one is under way. Never blocks."""

    # -- answers -----------------------------------------------------------------------------------------------

    @abstractmethod
    def put_result(self, queue: str, id: int, answer: Answer) -> None:
        """Store an answer in the place of what is there, whether or not there is such a task.

        For who knows that nobody else has the task: :meth:`settle` stores an answer only if the claim holds.
        """

    @abstractmethod
    def get_results(self, queue: str, ids: Sequence[int]) -> dict[int, bytes]:
        """The answers of these tasks, as far as there are any (still)."""

    @abstractmethod
    def listen(self, queue: str) -> Listener:
        """A listener that hears of every answer which is stored in this queue from now on.

        Raises:
            BrokerUnavailable: When the store can't be reached.
        """

    # -- small values ------------------------------------------------------------------------------------------
    #
    # Of 64 KB at most, under names of 1 to 500 characters. A purge leaves them alone. The library's own names begin
    # with a word and a colon, users' with "key:". One whose time is over counts as not there.

    @abstractmethod
    def get_keys(self, queue: str, names: Sequence[str]) -> dict[str, Stored]:
        """What is kept under these names, as far as there is something."""

    @abstractmethod
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
        """Keep a value under a name, in the place of what is there, or remove that.

        Sent again after a lost answer, what has a `version` is refused if the first one took effect; so the caller
        looks what is there: his own value, if it is one that nobody else puts. With `keep_version` it is not refused.

        Args:
            value: None: remove what is there.
            ttl: seconds, counted by the store's clock from now, after which it is forgotten; None: it has no end.
            version: do it only if this is the version of what is there; 0: only if there is nothing; None: in any case.
            keep_version: whether what is there keeps its version. A value that is new has a new one nevertheless.

        Returns:
            The version that it has now, or that it had before it was removed; 0 if nothing was done: it was refused, or
            there was nothing to remove. A new version is made as ids are, see :meth:`reserve_ids`, and is higher than
            all that this name had, also before it was removed.

        Raises:
            ConfigError: When the name or the value is too long.
            BrokerFull: When the store has no room.
        """

    @abstractmethod
    def add_key(self, queue: str, name: str, by: int, ttl: float | None = None) -> int:
        """Count: add `by` to the whole number that is kept under a name, as text such as ``-7``; where there is none,
        it begins with 0. It has a new version then.

        Not to be sent again after a lost answer, for nobody remembers the first one: whoever has to, compares versions
        with :meth:`put_key` instead.

        Args:
            by: less than 2**53, above or below 0.
            ttl: seconds after which it is forgotten, if this call made it; what was there keeps its end. None: it has
                no end.

        Returns:
            The sum.

        Raises:
            BrokerError: When what is there is no number, or the sum is not between -(2**53) and 2**53.
            BrokerFull: When the store has no room.
        """

    @abstractmethod
    def list_keys(self, queue: str, prefix: str, limit: int = 1000) -> list[str]:
        """The first `limit` names that begin with `prefix`, sorted by their characters' numbers. Costs what it returns,
        however many others there are.
        """

    # -- pausing -----------------------------------------------------------------------------------------------

    @abstractmethod
    def pause(self, queue: str) -> None:
        """Let nothing be claimed from this queue until :meth:`resume`. All else goes on: what is claimed already is
        run, renewed and settled, and what is enqueued waits.

        A claim that is under way in another process at this moment may still get something.
        """

    @abstractmethod
    def resume(self, queue: str) -> None:
        """End a pause, and wake who waits for the queue."""

    @abstractmethod
    def paused(self, queue: str) -> bool:
        """Whether the queue is paused."""

    # -- repairing ---------------------------------------------------------------------------------------------

    @abstractmethod
    def sweep(self, queue: str, lease: float = LEASE) -> Swept:
        """Return the tasks whose lease has ended, and repair the queue. Safe from many sweepers at once.

        A task goes back to the front of its queue the first time, to the back from the second (so that one that
        kills its workers can't starve the others), and is dead after as many attempts as its `max_deliveries`, which
        leaves out the deliveries that were given back. It stays charged.
        After a gap in sweeping longer than half a lease (an outage, a clock that jumped) nothing is returned for
        one lease: every worker gets the time to renew. It gets that after each outage, however soon it follows the one
        before; what nobody renews is returned all the same when the store has been there for two leases in total (see
        `grace.py`). Before the first sweep there is no gap.
        Wake-ups are repaired; dead letters beyond the queue's bounds, old answers and producer sessions are forgotten.
        """

    # -- looking and tidying -----------------------------------------------------------------------------------

    @abstractmethod
    def queues(self) -> list[str]:
        """The names of the queues that have ever had a task in this store, sorted."""

    @abstractmethod
    def counts(self, queue: str) -> Counts:
        """How many messages are in each state."""

    @abstractmethod
    def peek(
        self, queue: str, state: State, limit: int = 100, after: Entry | None = None, *, payloads: bool = True
    ) -> list[Entry]:
        """Messages of one state, in the order in which they will be served (dead: newest first).

        Args:
            after: only those behind this one, the last that such a call has given, wherever it is now: what has kept
                its place meanwhile is neither missed nor given again, and no page costs more than the first. Where it
                is gone, Redis begins again with the first of the ready ones: its list has no places. None: from the
                first one on.
            payloads: whether to fetch the payloads; else they are empty, and so the largest of messages cost little.
        """

    @abstractmethod
    def get(self, queue: str, id: int) -> Entry | None:
        """One message, or None if the queue has no such task (any more)."""

    @abstractmethod
    def remove(self, queue: str, id: int, answer: Answer | None = None, *, dead: bool = True) -> bool:
        """Remove a scheduled, ready or dead message. False if there is none, or if it is running.

        Args:
            answer: what is kept of it, stored in the same step if it was removed; None: nothing is stored.
            dead: whether a dead message is removed too.
        """

    @abstractmethod
    def reschedule(self, queue: str, id: int, delay: float) -> bool:
        """Let a scheduled or ready message become due `delay` seconds from now; 0: it is ready, behind what waits.

        Returns:
            False if there is none such: it runs, it is dead, or it is gone.
        """

    @abstractmethod
    def purge(self, queue: str, states: Sequence[State] = ("scheduled", "ready", "dead")) -> int:
        """Remove the messages of these states, return how many. What runs is left alone even if asked for:
        ``running`` is refused with ValueError.
        """

    # -- dead letters ------------------------------------------------------------------------------------------

    @abstractmethod
    def revive(self, queue: str, ids: Sequence[int]) -> list[int]:
        """Make dead letters ready again, in this order behind what waits: with the same id, header and payload, to the
        byte, as if they had never been claimed. An answer that is kept of one is forgotten. Each is one atomic step.

        Returns:
            The ids of those that were dead letters. Sent again after a lost answer, it leaves out what it revived.

        Raises:
            BrokerFull: When the store has no room.
        """

    @abstractmethod
    def drop(self, queue: str, ids: Sequence[int]) -> list[int]:
        """Remove dead letters, and return the ids of those that there were. Nothing but dead letters is removed."""

    @abstractmethod
    def bound(self, queue: str, bounds: Bounds) -> None:
        """Keep so many dead letters of this queue, and for so long, from the next :meth:`sweep` on, whoever makes it,
        and until somebody says otherwise. Without it, these are 10,000 and 30 days.
        """

    # -- workers and people ------------------------------------------------------------------------------------

    @abstractmethod
    def announce(
        self, worker: str, queues: Sequence[str], info: Mapping[str, Any] | None, ttl: float
    ) -> list[Mapping[str, Any]]:
        """Say that `worker` lives, for `ttl` seconds, with `info` (plain data) to show. None says goodbye.

        For people only: nothing is decided by it.

        Returns:
            The orders that wait for this worker, see :meth:`ask`. They are removed: when the answer is lost, so are
            they, and whoever asked asks again.
        """

    @abstractmethod
    def workers(self, queue: str) -> list[WorkerInfo]:
        """The workers that announced themselves on `queue` and whose announcement still holds."""

    @abstractmethod
    def ask(self, worker: str, queue: str, order: Mapping[str, Any], ttl: float) -> None:
        """Leave an order for a worker, which gets it with its next :meth:`announce`. It may be lost, so whoever asks
        looks whether it was obeyed, and asks again: the worker obeys an order of one id once.

        Args:
            queue: one of the worker's.
            order: plain data with a random text as its ``id``. An order that waits is replaced by one of the same id.
            ttl: seconds after which an order that nobody has fetched is forgotten.
        """

    # -- itself ------------------------------------------------------------------------------------------------

    @abstractmethod
    def check(self) -> list[str]:
        """Reach the store, and return warnings about its settings, each a sentence with the way out.

        Raises:
            BrokerUnavailable: When the store can't be reached.
        """

    def schema(self) -> str | None:
        """The SQL that makes its tables from nothing, for those who run it themselves; None if none has to be run.

        Nobody has to: they are made at the first use, where the user may.
        """
        return None

    @abstractmethod
    def spec(self) -> str | None:
        """A URL that opens the same store in another process; None if there is none (memory, foreign clients)."""

    def same_store(self, other: Broker) -> bool:
        """Whether `other` is on the same store, so that one transaction may hold tasks of both."""
        if self is other:
            return True
        url = self.spec()
        return url is not None and url == other.spec()

    @abstractmethod
    def close(self) -> None:
        """Close this process's connections. The object may be used again, and then opens new ones."""

    @abstractmethod
    def __repr__(self) -> str:
        """The class and the store's URL, without its password."""
