"""Transactions in MongoDB: enqueueing in the caller's, and ending a claim in one of a task's own."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pymongo import UpdateOne
from pymongo.client_session import ClientSession
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference

from delayed.brokers import mongo_answers as answers
from delayed.brokers import mongo_sessions as sessions
from delayed.brokers.base import Joined
from delayed.brokers.mongo_client import DURABLE, REFUSED, MongoAccess, Opened, translate
from delayed.brokers.mongo_enqueue import documents, take_turns
from delayed.brokers.mongo_once import join_once
from delayed.brokers.mongo_tasks import holding, token
from delayed.errors import BrokerError, BrokerUnavailable, ConfigError, TaskLost, Unsupported
from delayed.message import Answer, Message, Once, Ref

Document = dict[str, Any]

COMMIT_TIMEOUT = 15.0  # seconds for which a commit without an answer is sent again
COMMIT_PAUSE = 0.1  # seconds before that
NO_SUCH_TRANSACTION = 251
TRANSIENT = "TransientTransactionError"  # the label of errors after which the whole transaction is worth another try


class MongoJoined(Joined):
    """A transaction of a session.

    Args:
        access: the broker's database.
        session: in a transaction.
        reserve: reserves ids outside of it: inside it would have everybody else wait for its end.
        clock: tells the time, which in it stands still.
        note: notes outside of it that a queue is used.
    """

    def __init__(
        self,
        access: MongoAccess,
        session: ClientSession,
        reserve: Callable[[str, int], int],
        clock: Callable[[str], float],
        note: Callable[[str], None],
    ) -> None:
        self.connection: Any = session
        self._access = access
        self._reserve = reserve
        self._clock = clock
        self._note = note

    def reserve_ids(self, queue: str, n: int) -> int:
        return self._reserve(queue, n)

    def clock(self, queue: str) -> float:
        return self._clock(queue)

    def enqueue(self, queue: str, messages: Sequence[Message]) -> None:
        """See :meth:`Joined.enqueue`.

        Raises:
            pymongo.errors.PyMongoError: One with the label TransientTransactionError, as the driver raised it.
        """
        self._enqueue(queue, messages, None)

    def enqueue_once(self, queue: str, message: Message, once: Once) -> int:
        """See :meth:`enqueue`."""
        return self._enqueue(queue, [message], once)

    def _enqueue(self, queue: str, messages: Sequence[Message], once: Once | None) -> int:
        """Store messages; with `once` the only one, if its key is free. The id of who holds that, else of the first."""
        session = self.connection
        if not session.in_transaction:
            raise BrokerError("not enqueued: the session's transaction is over, and the tasks were to be a part of it")
        self._note(queue)
        rows = documents(queue, messages)
        with self._access.use() as opened:
            tasks = session.client.get_database(self._access.database)[opened.tasks.name]
        later: list[Any] = []
        try:
            if once is not None:
                other = join_once(tasks, queue, messages[0], once, session)
                if other is not None:
                    return other
            take_turns(tasks, queue, rows, session)
            for row in rows:
                row["o"] = row.pop("e", row["o"])
                delay = row.pop("g")
                if delay:
                    row["s"] = "l/" + queue
                    due: list[Document] = [{"$set": {"at": {"$add": ["$$NOW", delay]}}}]
                    later.append(UpdateOne({"_id": row["_id"]}, due))
            tasks.insert_many(rows, session=session)
            if later:
                tasks.bulk_write(later, session=session)
        except REFUSED as error:
            if isinstance(error, PyMongoError) and error.has_error_label(TRANSIENT):
                raise  # as it is: the driver's with_transaction begins again if it sees this
            raise translate(self._access.name, error) from error
        return messages[0].id

    def leave(self) -> None:
        """Nothing is left to do: the change streams tell of the commit."""


def check_session(access: MongoAccess, opened: Opened, conn: Any) -> ClientSession:
    """`conn`, if it is a session in a transaction.

    Raises:
        ConfigError: When it is not.
        Unsupported: When the server has no transactions.
    """
    if not isinstance(conn, ClientSession):
        kind = type(conn)
        raise ConfigError(
            f"tasks of {access.name} can be enqueued in the transaction of a pymongo ClientSession, not of a "
            f"{kind.__module__}.{kind.__qualname__}: with client.start_session() as session, "
            "session.start_transaction(): …"
        )
    check_transactions(access, opened)
    if not conn.in_transaction:
        raise ConfigError("the session is in no transaction: with session.start_transaction(): …")
    client = conn.client
    known = _same.setdefault(opened.client, weakref.WeakSet())
    if client is not opened.client and client not in known:
        theirs, ours = client.admin.command("hello"), opened.client.admin.command("hello")
        if theirs.get("setName") != ours.get("setName") or not _members(theirs) & _members(ours):
            raise ConfigError(
                f"the queue is in {access.name}, and the session belongs to a client of another server: one "
                "transaction can't hold both"
            )
        known.add(client)
    return conn


# For the client of a broker, those that were found to belong to the same deployment.
_same: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Any]] = weakref.WeakKeyDictionary()


def _members(hello: Document) -> set[str]:
    return set(hello.get("hosts", ())) or {"a cluster"}  # which a router does not name


def check_transactions(access: MongoAccess, opened: Opened) -> None:
    if not opened.transactions:
        raise Unsupported(
            f"{access.name} is a standalone mongod, which has no transactions: start it with --replSet rs0 and "
            "call rs.initiate() once; a replica set of one is enough"
        )


@contextlib.contextmanager
def ending(access: MongoAccess, ref: Ref, answer: Answer | None = None) -> Iterator[ClientSession]:
    """A transaction that ends a claim when it commits; see :meth:`Broker.transaction`."""
    with access.use() as opened:
        check_transactions(access, opened)
        session = opened.client.start_session()
    with session:
        try:
            with _failing(access, opened, ref):
                session.start_transaction(ReadConcern("snapshot"), DURABLE, ReadPreference.PRIMARY)
                if opened.tasks.find_one(token(ref), {"_id": 1}, session=session) is None:
                    raise _lost(ref)
                number = sessions.number(session)
                sessions.note(opened.leases, ref, session)
            with _failing(access, opened, ref, theirs=True):
                yield session
            if not session.in_transaction or sessions.number(session) != number:
                raise BrokerError(
                    f"{access.name}: a commit or an abort inside current.transaction() has ended it early; what was "
                    "committed stays, and the task is not ended by it"
                )
            with _failing(access, opened, ref):
                # The last write: who changes the task's document from here to the commit aborts it.
                if answer is not None:
                    change = answers.becomes(ref.queue, answer)
                    ended = opened.tasks.update_one(token(ref), change, session=session).matched_count
                else:
                    ended = opened.tasks.delete_one(token(ref), session=session).deleted_count
                if not ended:
                    raise _lost(ref)
                _commit(access, session)
        except BaseException:
            with contextlib.suppress(PyMongoError):
                if session.in_transaction:
                    session.abort_transaction()
            _forget(opened, ref, session, ended=False)
            raise
        _forget(opened, ref, session, ended=True)


def _forget(opened: Opened, ref: Ref, session: ClientSession, *, ended: bool) -> None:
    try:
        sessions.forget(opened.leases, ref, ended=ended)
    except PyMongoError:
        sessions.discard(session)
    except BaseException:
        sessions.discard(session)
        raise


def _lost(ref: Ref) -> TaskLost:
    return TaskLost(f"the claim of task {ref.id} does not hold any more; nothing of its transaction is kept")


def _commit(access: MongoAccess, session: ClientSession) -> None:
    deadline = time.monotonic() + COMMIT_TIMEOUT
    while True:
        try:
            session.commit_transaction()
            return
        except PyMongoError as error:
            # With the same transaction number: the server answers what has become of it, and does nothing twice.
            if not error.has_error_label("UnknownTransactionCommitResult"):
                raise
            if time.monotonic() > deadline:
                raise BrokerUnavailable(
                    f"{translate(access.name, error)}; the transaction may be committed or not"
                ) from error
        time.sleep(COMMIT_PAUSE)


@contextlib.contextmanager
def _failing(access: MongoAccess, opened: Opened, ref: Ref, *, theirs: bool = False) -> Iterator[None]:
    """Errors of the driver in a transaction that is not committed. Those of the task's own writes (`theirs`) are for
    the task, but for those that say: another time.
    """
    try:
        yield
    except PyMongoError as error:
        transient = error.has_error_label(TRANSIENT)
        if theirs and not transient:
            raise
        if transient:  # most often somebody has written the same; or the claim, and then it has gone to another
            with contextlib.suppress(PyMongoError):
                if not holding(opened.tasks, [ref]):
                    raise _lost(ref) from error
        raise _unavailable(access, error) from error


def _unavailable(access: MongoAccess, error: PyMongoError) -> BrokerError | ConfigError:
    translated = translate(access.name, error)
    if isinstance(translated, BrokerUnavailable) or error.has_error_label(TRANSIENT):
        hint = ""
        if getattr(error, "code", None) == NO_SUCH_TRANSACTION:
            hint = (
                " (the server has ended it before: because of a conflict, a duplicate key or another error in it that "
                "was caught and not raised, because its claim was over, or because it took longer than "
                "transactionLifetimeLimitSeconds, 60 by default)"
            )
        return BrokerUnavailable(f"{translated}; nothing was committed{hint}", sent=False)
    return translated
