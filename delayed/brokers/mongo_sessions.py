"""The open transactions of tasks in MongoDB, which have to be ended by others when their process dies.

The server does not notice that a client is gone: for a minute (transactionLifetimeLimitSeconds) its transaction stays,
and whoever writes what it has written is refused, the next run of the task first of all. So each is noted beside the
lease of its claim, and who ends a claim whose run did not end its transaction kills its session.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError, OperationFailure
from pymongo.write_concern import WriteConcern

from delayed.brokers.mongo_client import Opened
from delayed.brokers.mongo_tasks import holding, name_of
from delayed.message import Ref

Document = dict[str, Any]

SECOND_LOOK = 1000  # milliseconds
QUICK = WriteConcern(w=1)  # for notes: one that is lost costs little


def note(leases: Collection[Document], ref: Ref, session: ClientSession) -> None:
    """Note that the claim has a transaction in this session."""
    id = session.session_id["id"]
    quick = leases.with_options(write_concern=QUICK)
    step: list[Document] = [{"$set": {"session": id, "end": {"$ifNull": ["$end", "$$NOW"]}}}]
    for _ in range(3):
        with contextlib.suppress(DuplicateKeyError):  # a renewal made the document in that very moment
            quick.update_one({"_id": name_of(ref)}, step, upsert=True)
            return


def forget(leases: Collection[Document], ref: Ref, *, ended: bool) -> None:
    """Note that the transaction is over, and maybe its claim."""
    quick = leases.with_options(write_concern=QUICK)
    if ended:
        quick.delete_one({"_id": name_of(ref)})
    else:
        quick.update_one({"_id": name_of(ref)}, {"$unset": {"session": ""}})


def number(session: ClientSession) -> int:
    """Of its transaction; each has another. The session has to have sent something, and the driver only knows it
    inside.
    """
    return int(getattr(_inner(session), "transaction_id", 0))


def discard(session: ClientSession) -> None:
    """Have the driver give it to nobody else when it ends: whoever finds a note of it may kill it."""
    inner = _inner(session)
    if inner is not None:
        inner.mark_dirty()


def _inner(session: ClientSession) -> Any:
    return getattr(session, "_server_session", None)


def kill(opened: Opened, refs: Iterable[Ref]) -> None:
    """Abort what the runs of these claims have left open."""
    names = [name_of(ref) for ref in refs]
    if names:
        noted = opened.leases.find({"_id": {"$in": names}, "session": {"$exists": True}}, {"session": 1})
        _kill(opened, [row["session"] for row in noted])


def sweep(opened: Opened) -> None:
    """Abort what was left open by runs whose claims have ended without :func:`kill`, as that of a killed one which is
    not tried again.

    Who has just committed needs a moment to say so, and his session may serve another transaction by then: so only what
    a second look still finds.
    """
    noted = list(opened.leases.find({"session": {"$exists": True}}, {"session": 1}))
    if not noted:
        return
    refs = {row["_id"]: _ref(row["_id"]) for row in noted}
    there = holding(opened.tasks, refs.values())
    gone = [name for name, ref in refs.items() if ref not in there]
    suspect = {"_id": {"$in": gone}, "suspect": {"$exists": True}}
    late: Document = {"$expr": {"$lt": ["$suspect", {"$subtract": ["$$NOW", SECOND_LOOK]}]}}
    found = list(opened.leases.find({**suspect, **late}, {"session": 1}))
    if found:
        _kill(opened, [row["session"] for row in found if "session" in row])
        opened.leases.delete_many({"_id": {"$in": [row["_id"] for row in found]}})
    opened.leases.update_many(
        {"_id": {"$in": gone}, "session": {"$exists": True}, "suspect": {"$exists": False}},
        {"$currentDate": {"suspect": True}},
    )


def _kill(opened: Opened, ids: Sequence[Any]) -> None:
    if ids:
        with contextlib.suppress(OperationFailure):  # then it takes a minute
            opened.client.admin.command("killSessions", [{"id": id} for id in ids])


def _ref(name: str) -> Ref:
    queue, id, delivery, nonce = name.rsplit("/", 3)
    return Ref(queue, int(id), int(delivery), int(nonce, 16))
