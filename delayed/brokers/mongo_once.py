"""Unique tasks in MongoDB: storing one unless another holds its key, without a transaction.

For each key there is a document in ``delayed_tasks``, named ``u/queue/key``, that says who holds it:

    queue · holder, the id of the task · batch that it was stored in, another for each holder · begun, whether it holds
    the key only until its first run · until when, if it is for a period (ms) · t session and c number of its enqueue ·
    was, the id of the task that it replaces

A task is stored as others are (see `mongo_enqueue.py`), but the moment at which it is enqueued is the write of this
document, on the condition that it is still as it was read. One command does, in this order:

1. *stage* the task;
2. *guard*: fail if the session has this number already, and so the task was stored by another attempt;
3. *commit*: name task and batch in the document of the key;
4. remove the task that is replaced, if it waits;
5. note the number in the session;
6. *publish* the task, and note when the session was *seen*.

The command ends at its first error. Wherever it is cut short, whoever comes next sees what to do:

- before 3: nothing is enqueued, and the number is not used. The sweeper throws the task away when it is, or after an
  hour.
- after 3: the task is enqueued, and nobody can have taken it yet. The document of the key tells so: whoever wants the
  key, a resend, or the sweeper does the rest, each step of which may be repeated. A key never goes to another before
  that is done. So when a task can be run, its session has its number, and a resend does nothing.

So a key whose task is neither staged nor there is free: its task has ended. Of two who come at once one fails in 3, and
looks again after a pause that grows. A first attempt that arrives after its resend fails in 2, or in 3.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from bson.int64 import Int64
from pymongo import DeleteOne, UpdateOne
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, PyMongoError

from delayed.brokers.mongo_client import unsent
from delayed.brokers.mongo_enqueue import DUPLICATE, EPOCH, documents, finish, milliseconds, run, take_turns, upsert
from delayed.errors import BrokerUnavailable
from delayed.message import Message, Once

Document = dict[str, Any]
Tasks = Collection[Document]

PATIENCE = 2.0  # seconds that a call tries to come before others with the same key; its caller may call again
PAUSE = (0.008, 0.03)  # seconds between two looks: at first, and at most
STUCK = 3  # looks that find the same task committed and not published; whoever finds it once more publishes it
LOOK, PAGES = 1000, 10  # keys that a sweep looks at together, and how often it does in a minute
OFTEN, NEIGHBOURS = 16, 64  # one enqueue in so many looks at so many keys: those that are over must not grow unbounded
_GUARD, _COMMIT = 1, 2  # where these steps are in the command


def enqueue_once(name: str, tasks: Tasks, queue: str, message: Message, once: Once, session: str, seq: int) -> int:
    """Store a message unless its key is held, or this session has sent it before; the id of who holds the key.

    Args:
        name: the store's, for errors.
    """
    (row,) = documents(queue, [message])
    row |= {"s": "p/" + os.urandom(12).hex(), "at": EPOCH, "t": session, "c": seq, "u": _name(queue, once)}
    holder, beaten = _contend(name, tasks, queue, row, message, once)
    if beaten:
        with contextlib.suppress(PyMongoError):  # then a sweeper does
            tasks.delete_many({"s": row["s"], "at": EPOCH})
    if holder is None:
        raise BrokerUnavailable(f"{name}: too many want the key of {message.func} at once", sent=False)
    return holder


def _contend(
    name: str, tasks: Tasks, queue: str, row: Document, message: Message, once: Once
) -> tuple[int | None, bool]:
    """The id of who holds the key, None if others were quicker again and again; and whether the task is staged only."""
    key, session, seq = row["u"], row["t"], row["c"]
    beaten = False
    found_stuck: Counter[str] = Counter()
    pause, end = PAUSE[0], time.monotonic() + PATIENCE
    with unsent(name):
        take_turns(tasks, queue, (row,))
    while True:
        with unsent(name):
            found = {
                each["_id"]: each
                for each in tasks.aggregate([{"$match": {"_id": {"$in": [key, "s/" + session]}}}, _OVER])
            }
            sent = found.get("s/" + session)
            if sent is not None and sent["seq"] >= seq:
                if sent["seq"] == seq:
                    tasks.bulk_write(finish(session, sent["batch"]), ordered=True)
                return message.id, beaten
            held = found.get(key)
            state, is_held = _holder(tasks, held)
            if held is not None and state == "p":
                # Who has committed it is about to do the rest; if all others did it for him, nobody would get through.
                found_stuck[held["batch"]] += 1
                if held.get("t") == session or found_stuck[held["batch"]] > STUCK:
                    _finish(tasks, held)
                    continue
            elif held is not None and is_held and not once.replace:
                # It may be taken for good, so this waits until what was found can't be rolled back any more.
                tasks.delete_one({"_id": None})
                return int(held["holder"]), beaten
        if state != "p":
            if _store(tasks, row, _document(row["s"], queue, message, once, (session, seq), held, state), held):
                if random.randrange(OFTEN) == 0:
                    with contextlib.suppress(PyMongoError):  # then another does
                        forget(tasks, key, "u0", NEIGHBOURS)
                return message.id, False
            beaten = True
        if time.monotonic() + pause > end:
            return None, beaten
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, PAUSE[1])


def join_once(tasks: Tasks, queue: str, message: Message, once: Once, session: ClientSession) -> int | None:
    """Take the key for a message in a transaction, and remove what it replaces; the id of who holds the key, None if
    the message does now.
    """
    held = _look(tasks, _name(queue, once), session)
    state, is_held = _holder(tasks, held, session)
    if held is not None and is_held and not once.replace:
        return int(held["holder"])
    change = _document("p/" + os.urandom(12).hex(), queue, message, once, None, held, state)
    tasks.update_one({"_id": change["_id"]}, _replacement(change), upsert=True, session=session)
    if "was" in change:
        tasks.delete_one(_waiting(queue, change["was"]), session=session)
    return None


def complete(tasks: Tasks, name: str, batch: str) -> bool:
    """Do the rest for a task that is staged in this batch for the key of that name; False if it is not enqueued."""
    held = _look(tasks, name)
    if held is None or held["batch"] != batch:
        return False
    run(tasks, held["t"], _rest(held))
    return True


def tidy(tasks: Tasks, queues: Collection[Document], queue: str) -> None:
    """Forget keys that are not held any more: of some of them, and at the next call of those that follow."""
    row = queues.find_one({"_id": queue}, {"once": 1}) or {}
    first = after = row.get("once", f"u/{queue}/")
    for _ in range(PAGES):
        after = forget(tasks, after, f"u/{queue}0", LOOK)
        if not after:
            break
    after = after or f"u/{queue}/"
    if after != first:
        queues.update_one({"_id": queue}, {"$set": {"once": after}})


def forget(tasks: Tasks, after: str, end: str, n: int) -> str:
    """Forget those of `n` keys that are not held; the last of them, "" if they were fewer."""
    steps: list[Document] = [{"$match": {"_id": {"$gt": after, "$lt": end}}}, {"$sort": {"_id": 1}}, {"$limit": n}]
    rows = list(tasks.aggregate([*steps, _OVER]))
    holders: dict[str, list[Int64]] = defaultdict(list)
    for row in rows:
        holders[row["queue"]].append(row["holder"])
    there: dict[tuple[str, int], list[Document]] = defaultdict(list)
    for queue, ids in holders.items():
        for task in tasks.find({"q": queue, "id": {"$in": ids}}, {"q": 1, "id": 1, "s": 1, "a": 1}):
            there[task["q"], task["id"]].append(task)
    free = []
    for row in rows:
        state, is_held = _judge(row, there[row["queue"], row["holder"]])
        if not is_held and state != "p":
            free.append(DeleteOne({"_id": row["_id"], "batch": row["batch"]}))
    if free:
        tasks.bulk_write(free, ordered=False)
    return str(rows[-1]["_id"]) if len(rows) == n else ""


# -- parts -----------------------------------------------------------------------------------------------------

_OVER: Document = {"$addFields": {"over": {"$lte": ["$until", "$$NOW"]}}}


def _name(queue: str, once: Once) -> str:
    return f"u/{queue}/{once.key}"


def _look(tasks: Tasks, name: str, session: ClientSession | None = None) -> Document | None:
    """The document of a key, and whether its time is over."""
    return next(iter(tasks.aggregate([{"$match": {"_id": name}}, _OVER], session=session)), None)


def _holder(tasks: Tasks, held: Document | None, session: ClientSession | None = None) -> tuple[str, bool]:
    """The letter of the state that the task of a key is in, "" if it is not there; and whether it holds the key."""
    if held is None:
        return "", False
    which = {"q": held["queue"], "id": held["holder"]}
    return _judge(held, list(tasks.find(which, {"s": 1, "a": 1}, session=session)))


def _judge(held: Document, found: Sequence[Document]) -> tuple[str, bool]:
    """:func:`_holder`, given what there is of that id: also what earlier attempts have staged, and answers."""
    for row in found:
        state = "p" if row["s"] == held["batch"] else row["s"][:1]
        if state == "p" or (state in "lrh" and row["s"][1:] == "/" + held["queue"]):
            break
    else:
        row, state = {}, ""
    if "until" in held:
        return state, not held["over"]
    return state, bool(state) and not (held["begun"] and row.get("a", 0) > 0)


def _document(
    batch: str,
    queue: str,
    message: Message,
    once: Once,
    sent: tuple[str, int] | None,
    held: Document | None,
    state: str,
) -> Document:
    """The document of a key that is to be held by a message, but for its time."""
    document: Document = {
        "_id": _name(queue, once),
        "queue": queue,
        "holder": Int64(message.id),
        "batch": batch,
        "begun": once.begun,
    }
    if once.period is not None:
        document["period"] = max(milliseconds(once.period), 1)
    if sent is not None:
        document["t"], document["c"] = sent
    if held is not None and once.replace and state in ("l", "r"):
        document["was"] = held["holder"]
    return document


def _replacement(document: Document) -> list[Document]:
    fields: Document = {name: {"$literal": value} for name, value in document.items()}
    if "period" in document:
        fields["until"] = {"$add": ["$$NOW", document["period"]]}
    return [{"$replaceWith": fields}]


def _store(tasks: Tasks, row: Document, document: Document, held: Document | None) -> bool:
    """Stage the task, unless an earlier try has, and take the key with this document, if it is still as it was; whether
    it was.
    """
    session, seq = document["t"], document["c"]
    which = {"_id": document["_id"], "batch": held["batch"] if held is not None else ""}
    steps = [
        upsert(row),
        UpdateOne(
            {"_id": "s/" + session, "seq": {"$lt": seq}},
            {"$setOnInsert": {"seq": 0}, "$currentDate": {"seen": True}},
            upsert=True,
        ),
        UpdateOne(which, _replacement(document), upsert=True),
        *_rest(document),
    ]
    try:
        tasks.bulk_write(steps, ordered=True)
        return True
    except BulkWriteError as error:
        failure = (error.details["writeErrors"] or [{}])[0]
        index = failure.get("index", -1)
        if index > _COMMIT:
            raise BrokerUnavailable(f"enqueued, but not published yet: {failure.get('errmsg')}") from error
        if index not in (_GUARD, _COMMIT) or failure.get("code") != DUPLICATE:
            raise
        return False


def _rest(document: Document) -> list[Any]:
    """What follows the commit."""
    batch, session, seq = document["batch"], document["t"], document["c"]
    steps: list[Any] = []
    if "was" in document:
        steps.append(DeleteOne(_waiting(document["queue"], document["was"])))
    noted = {"$set": {"seq": seq, "batch": batch}, "$unset": {"seen": ""}}
    return [*steps, UpdateOne({"_id": "s/" + session, "seq": {"$lt": seq}}, noted), *finish(session, batch)]


def _finish(tasks: Tasks, document: Document) -> None:
    if "t" in document:
        tasks.bulk_write(_rest(document), ordered=True)


def _waiting(queue: str, id: int) -> Document:
    return {"q": queue, "id": id, "s": {"$in": ["l/" + queue, "r/" + queue]}}
