"""Storing messages in MongoDB: all or none, and once however often they are sent, without a transaction.

A transaction would take two or three round trips, does not exist on a standalone, and one whose client is cut off keeps
its documents locked for a minute. Instead, one command (or two, if there are many tasks: the second once the first is
replicated) does for each attempt, in this order:

1. *stage* the tasks, under a new random batch name, in a state in which nobody looks for them;
2. *commit*: raise the number of the producer's session and note the batch there, if the number is lower. This is one
   document, and so the moment at which all of them are enqueued;
3. *publish* the batch: its tasks become ready, or scheduled by the clock of now;
4. note when the session was *seen*. It is forgotten an hour after that, and so never while something is to be done.

The command ends at its first error. Wherever it is cut short, whoever comes next sees what to do:

- before 2: nothing is enqueued. A resend stages its own batch; the sweeper throws this one away when the session has
  got that far without it, or after an hour.
- between 2 and 3: all are enqueued, and not one of them can have run. A resend fails in 2, finds the batch of the
  session, and publishes it; and if no resend comes the sweeper does.
- after 3: a resend fails in 2, and publishes what is no longer staged: nothing.

A late first attempt that arrives after its resend fails in 2, too, and takes its own batch away, or else the sweeper
does: a session goes on to the next number only when this one is published, or has failed for good. A server that loses
the end of its journal, or a new primary that misses the last writes, has done a beginning of these, in this order.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Sequence
from typing import Any

from bson import ObjectId
from bson.int64 import Int64
from bson.timestamp import Timestamp
from pymongo import InsertOne, UpdateMany, UpdateOne
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from delayed.brokers import mongo_fair as fair
from delayed.brokers.base import PRODUCER_AGE
from delayed.errors import BrokerError, BrokerUnavailable
from delayed.logger import logger
from delayed.message import Message

Document = dict[str, Any]

DUPLICATE = 11000
MAX_DOCUMENT = 16 << 20
ROOM = 1 << 14  # bytes of a document that are kept for what is not the message
SMALL = 16  # messages that go in the one command; more are inserted before, which takes less time for each
SMALL_BYTES = 8 << 20  # which they have at most, for the driver makes several commands of what is larger
EPOCH = datetime.datetime(1970, 1, 1)
MAX_DELAY = 100 * 365 * 86_400_000  # milliseconds; much later the driver has no dates, and then the server has none

# Whether a task is scheduled is written in it, so that a sweeper can publish what it has not staged.
PUBLISH: list[Document] = [
    {
        "$set": {
            "s": {"$concat": [{"$cond": [{"$gt": ["$g", 0]}, "l/", "r/"]}, "$q"]},
            "at": {"$cond": [{"$gt": ["$g", 0]}, {"$add": ["$$NOW", {"$min": ["$g", MAX_DELAY]}]}, "$$REMOVE"]},
            "o": {"$ifNull": ["$e", "$o"]},
        }
    },
    {"$unset": ["g", "t", "c", "u", "e"]},
]


def documents(queue: str, messages: Sequence[Message]) -> list[Document]:
    """The messages as documents in no state yet.

    Raises:
        BrokerError: When one is too large for MongoDB.
    """
    found = []
    for message in messages:
        header = message.header()
        size = len(header) + len(message.payload)
        if size > MAX_DOCUMENT - ROOM:
            raise BrokerError(
                f"{message.func} with id {message.id} takes {size} bytes, and MongoDB takes at most "
                f"{MAX_DOCUMENT - ROOM} in one document: store the data elsewhere, and pass its name; nothing of this "
                "call was enqueued"
            )
        found.append(
            {
                "_id": ObjectId(),
                "q": queue,
                "id": Int64(message.id),
                "s": "r/" + queue,
                "p": message.priority,
                "o": Timestamp(0, 0),  # the server puts its own there
                "d": 0,
                "a": 0,
                "m": message.max_deliveries,
                "l": 0,
                "g": milliseconds(message.delay),
                "h": header,
                "b": message.payload,
                **({"f": message.tenant} if message.tenant is not None else {}),
            }
        )
    return found


def take_turns(
    tasks: Collection[Document], queue: str, rows: Sequence[Document], session: ClientSession | None = None
) -> None:
    """Note in those of the documents which are fair, and not for later, what place they get when they are published."""
    if any("f" in row for row in rows):
        ready = [row for row in rows if not row["g"]]
        for number, at in fair.place(tasks, queue, ready, session).items():
            ready[number]["e"] = at


def milliseconds(delay: float) -> int:
    """A delay in seconds as it is stored: 0 for none, and at most 100 years."""
    return round(min(delay * 1000, MAX_DELAY)) if delay > 0 else 0


def enqueue(tasks: Collection[Document], queue: str, messages: Sequence[Message], session: str, seq: int) -> None:
    """Store all messages or none, unless this session has sent them before."""
    batch = "p/" + os.urandom(12).hex()
    rows = documents(queue, messages)
    take_turns(tasks, queue, rows)
    for row in rows:
        row |= {"s": batch, "at": EPOCH, "t": session, "c": seq}
    commit = UpdateOne(
        {"_id": "s/" + session, "seq": {"$lt": seq}},
        {"$set": {"seq": seq, "batch": batch}, "$unset": {"seen": ""}},
        upsert=True,
    )
    steps: list[Any] = [upsert(row) for row in rows]
    staged = len(steps)
    try:
        if len(rows) > SMALL or sum(len(row["h"]) + len(row["b"]) for row in rows) > SMALL_BYTES:
            # A call of its own: the driver goes on with the next command of a call after one that was not replicated
            # in time, and then a new primary could have the commit without the tasks.
            tasks.bulk_write([InsertOne(row) for row in rows], ordered=True)
            steps, staged = [], 0
        tasks.bulk_write([*steps, commit, *finish(session, batch)], ordered=True)
    except OperationFailure as error:
        if isinstance(error, BulkWriteError):
            if not error.details["writeErrors"]:
                raise
            failure = error.details["writeErrors"][0]
            if failure["index"] > staged:
                raise BrokerUnavailable(f"enqueued, but not published yet: {failure.get('errmsg')}") from error
        # Whatever it was: where an earlier attempt has done it, it is done.
        if not _is_resend(tasks, session, seq):
            raise
        with contextlib.suppress(PyMongoError):  # then a sweeper does
            tasks.delete_many({"s": batch, "at": EPOCH})


def _is_resend(tasks: Collection[Document], session: str, seq: int) -> bool:
    """Whether this was committed before; it is then finished."""
    try:
        found = tasks.find_one({"_id": "s/" + session})
        if found is not None and found["seq"] == seq:
            tasks.bulk_write(finish(session, found["batch"]), ordered=True)
        return found is not None and bool(found["seq"] >= seq)
    except PyMongoError as error:  # no other of our errors: those say that nothing is stored
        text = str(error).partition(", full error:")[0]
        raise BrokerUnavailable(f"enqueued or not, and not published yet: {text}") from error


def upsert(row: Document) -> UpdateOne:
    """What inserts a document, and has the server put its own time there; again does nothing."""
    rest = {name: value for name, value in row.items() if name not in ("_id", "o")}
    return UpdateOne(
        {"_id": row["_id"]}, {"$setOnInsert": rest, "$currentDate": {"o": {"$type": "timestamp"}}}, upsert=True
    )


def finish(session: str, batch: str) -> list[Any]:
    """What publishes a batch that is committed; again does nothing."""
    return [
        UpdateMany({"s": batch, "at": EPOCH}, PUBLISH),
        UpdateOne({"_id": "s/" + session, "batch": batch}, {"$currentDate": {"seen": True}}),
    ]


def repair(tasks: Collection[Document], complete: Callable[[str, str], bool]) -> None:
    """Publish the batches that were committed and not published, and throw away those that never will be.

    That is known of a batch when its session has got its number, or a later one, from another. What the server refuses
    for one batch must not keep the others waiting, nor the sweep.

    Args:
        complete: does the same for the batch of a unique task, given the name of its key; False if it was not
            committed. See `mongo_once.py`.
    """
    numbered = {"s": {"$gte": "p/", "$lt": "p0"}, "at": EPOCH, "t": {"$type": "string"}}
    batches: Document = {"_id": "$s", "key": {"$first": "$u"}, "first": {"$min": "$o"}}
    batches |= {"session": {"$first": "$t"}, "seq": {"$first": "$c"}}
    rows = list(tasks.aggregate([{"$match": numbered}, {"$group": batches}, {"$addFields": {"now": "$$NOW"}}]))
    if not rows:
        return
    # All at once: there are many where producers are cut off again and again. And nothing that a failover may undo.
    names = list({"s/" + row["session"] for row in rows})
    durable = tasks.with_options(read_concern=ReadConcern("majority"))
    sessions = {row["_id"]: row for row in durable.find({"_id": {"$in": names}}, {"seq": 1, "batch": 1})}
    useless = []
    for row in rows:
        session, batch = row["session"], row["_id"]
        found = sessions.get("s/" + session, {})
        if found.get("batch") == batch:
            run(tasks, session, finish(session, batch))
        elif row["key"] is not None and complete(row["key"], batch):
            continue
        elif _is_past(found.get("seq"), row["seq"]) or _is_old(row["first"], row["now"]):
            useless.append(batch)
    if useless:
        tasks.delete_many({"s": {"$in": useless}, "at": EPOCH})


def _is_past(session: Any, number: Any) -> bool:
    """Whether a session has got as far as this number. Both come from documents, which may have anything there."""
    return isinstance(session, int) and isinstance(number, int) and session >= number


def _is_old(staged: Any, now: datetime.datetime) -> bool:
    return isinstance(staged, Timestamp) and (now - EPOCH).total_seconds() - staged.time > PRODUCER_AGE


def tidy(tasks: Collection[Document]) -> None:
    """Let the sessions be forgotten with time whose last batch was published, and that not noted."""
    unnoted = {"_id": {"$gte": "s/", "$lt": "s0"}, "batch": {"$exists": True}, "seen": {"$exists": False}}
    for row in list(tasks.find(unnoted, {"batch": 1})):
        session = row["_id"].removeprefix("s/")
        run(tasks, session, finish(session, row["batch"]))


def run(tasks: Collection[Document], session: str, steps: Sequence[Any]) -> None:
    """Do what is left of an enqueue; what the server refuses is logged, for there will be another sweep."""
    try:
        tasks.bulk_write(steps, ordered=True)
    except OperationFailure as error:
        logger.warning("A batch of tasks of the session %s is not published yet: %s", session, error)
