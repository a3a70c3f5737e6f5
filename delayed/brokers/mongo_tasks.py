"""The transitions of a task in MongoDB. The documents are described in `mongo_schema.py`.

Each is a conditional write of one document; what takes several finds out afterwards which it got.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bson.binary import Binary
from bson.int64 import Int64
from bson.min_key import MinKey
from bson.timestamp import Timestamp
from pymongo import DeleteMany, DeleteOne, UpdateMany, UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError

from delayed.brokers import mongo_answers as answers
from delayed.brokers import mongo_fair as fair
from delayed.brokers import odd
from delayed.brokers.mongo_enqueue import DUPLICATE, milliseconds
from delayed.message import NOTES_MAX, Claim, Ref, Settlement, is_task

Document = dict[str, Any]
Tasks = Collection[Document]

PROMOTE_MAX = 500  # scheduled tasks that one look makes ready at most
PROMOTE_LOOK = 5000  # those of them that have been due for longest whose priorities it compares
CLAIM_BYTES = 32 << 20  # bytes after which a claim takes no more tasks
REASON_MAX = 20_000  # characters of what a task died of
MOST = (1 << 31) - 1  # tasks that the server is asked for
TRIES = 12  # looks for candidates in one claim, should others be quicker
DELETE_CHUNK = 10_000
AT_END = {"o": {"$type": "timestamp"}}  # the place behind all others
LET_GO = {"w": "", "n": ""}
_NAMED = {"q": 1, "id": 1, "d": 1, "n": 1}
_TOKEN = {"_id": 0, **_NAMED}


# -- claiming --------------------------------------------------------------------------------------------------


def promote(tasks: Tasks, queue: str) -> int:
    """Make scheduled tasks that are due ready, those with the highest priority first; how many of them were seen."""
    found = tasks.aggregate(
        [
            {"$match": {"s": "l/" + queue, "at": {"$exists": True}, **_past("$at")}},
            {"$sort": {"at": 1, "o": 1}},
            {"$limit": PROMOTE_LOOK},
            {"$project": {"p": 1, "at": 1, "o": 1, "a": 1, "f": 1}},
            {"$sort": {"p": -1, "at": 1, "o": 1}},
            {"$limit": PROMOTE_MAX},
            {"$project": {"p": 1, "f": {"$cond": [{"$eq": ["$a", 0]}, "$f", "$$REMOVE"]}}},
        ]
    )
    due = list(found)
    if due:
        ready: Document = {"$set": {"s": "r/" + queue}, "$unset": {"at": ""}, "$currentDate": AT_END}
        steps = [UpdateOne({"_id": row["_id"], "s": "l/" + queue}, ready) for row in due]
        for number, at in fair.place(tasks, queue, due).items():
            fairly = {"$set": {"s": "r/" + queue, "o": at}, "$unset": {"at": ""}}
            steps[number] = UpdateOne({"_id": due[number]["_id"], "s": "l/" + queue}, fairly)
        tasks.bulk_write(steps)
    return len(due)


def occupied(tasks: Tasks, queues: Sequence[str]) -> set[str]:
    """Those of the queues that have scheduled or ready tasks. The server reads one key of its indexes for each.

    First it is asked for the scheduled ones, for these become ready.
    """
    found: set[str] = set()
    for state, more in (("l/", {"at": {"$gte": MinKey()}}), ("r/", {})):
        names = {state + queue: queue for queue in queues}
        rows = tasks.aggregate([{"$match": {"s": {"$in": list(names)}, **more}}, {"$group": {"_id": "$s"}}])
        found |= {names[row["_id"]] for row in rows if isinstance(row["_id"], str) and row["_id"] in names}
    return found


def _past(field: str) -> Document:
    return {"$expr": {"$lte": [field, "$$NOW"]}}


class Claiming:
    """One claim call: takes tasks of several queues until it has `limit`.

    Args:
        seq, nonce: of the call. The number is noted in the same command as the first tasks are taken with, before them.
    """

    def __init__(self, tasks: Tasks, worker: str, seq: int, nonce: int, limit: int, lease: float) -> None:
        self._tasks = tasks
        self._worker = worker
        self._seq = seq
        self._nonce = nonce
        self._limit = min(limit, MOST)
        self._lease = round(lease * 1000)
        self._room = CLAIM_BYTES
        self._noted = False
        self.claims: list[Claim] = []

    @property
    def wants_more(self) -> bool:
        return self._left > 0 and self._room > 0

    @property
    def _left(self) -> int:
        return self._limit - len(self.claims)

    def take(self, queue: str) -> bool:
        """Take what is ready in one queue; False if this call has been made before."""
        for attempt in range(TRIES):
            if not self.wants_more:
                break
            # Many who ask for the same few get in each other's way: who came too late looks further on.
            skip = random.randrange(attempt * self._limit * 2) if attempt > 1 else 0
            rows = self._candidates(queue, skip)
            if not rows and not skip:
                break
            if rows and not self._take(queue, rows):
                return False
        return True

    def _candidates(self, queue: str, skip: int) -> list[Document]:
        while True:
            rows, strange = self._look(queue, skip)
            for row in strange:  # before it is taken: the server refuses to count with what is no number
                put_away(self._tasks, queue, row)
            if rows or not strange:
                return rows

    def _look(self, queue: str, skip: int) -> tuple[list[Document], list[Document]]:
        """What is ready: tasks, and what is none."""
        rows: list[Document] = []
        strange: list[Document] = []
        ready, n = {"s": "r/" + queue}, self._left
        found = self._tasks.find(ready, batch_size=n).sort([("p", -1), ("o", 1)]).skip(skip).limit(n)  # not 101 first
        with found:
            for row in found:
                if not _is_sound(row, queue):
                    strange.append(row)
                    continue
                rows.append(row)
                self._room -= len(row["h"]) + len(row["b"])
                if self._room < 0:
                    break
        return rows, strange

    def _take(self, queue: str, rows: Sequence[Document]) -> bool:
        # `d` rises with every claim: with it in the condition, what was read is what is taken.
        groups: dict[int, list[Document]] = defaultdict(list)
        for row in rows:
            groups[row["d"]].append(row)
        step: list[Document] = [
            {
                "$set": {
                    "s": {"$literal": "h/" + queue},
                    "w": {"$literal": self._worker},
                    "n": signed(self._nonce),
                    "d": {"$add": ["$d", 1]},
                    "a": {"$add": ["$a", 1]},
                    "at": {"$add": ["$$NOW", self._lease]},
                }
            }
        ]
        takes = [
            UpdateMany({"_id": {"$in": [row["_id"] for row in group]}, "s": "r/" + queue, "d": d}, step)
            for d, group in groups.items()
        ]
        fresh, taken = self._write(takes)
        if not fresh:
            return False
        if taken == len(rows):
            for row in rows:
                row["d"] += 1
                row["a"] += 1
                row["n"] = signed(self._nonce)
            mine = list(rows)
        else:
            wanted = [row["_id"] for row in rows]
            mine = list(
                self._tasks.find(
                    {"w": self._worker, "n": signed(self._nonce), "_id": {"$in": wanted}, "s": "h/" + queue}
                ).sort([("p", -1), ("o", 1)])
            )
        self.claims += [claim_of(row) for row in mine]
        return True

    def _write(self, takes: list[UpdateMany]) -> tuple[bool, int]:
        """Whether this call is new, and how many tasks were taken."""
        steps: list[Any] = list(takes)
        if not self._noted:
            steps.insert(0, _note(self._worker, self._seq))
        try:
            result = self._tasks.bulk_write(steps, ordered=True)
        except BulkWriteError as error:
            failure = (error.details["writeErrors"] or [{}])[0]
            if self._noted or failure.get("code") != DUPLICATE or failure.get("index") != 0:
                raise
            return False, 0
        taken = result.matched_count - (0 if self._noted or result.upserted_count else 1)
        self._noted = True
        return True, taken


def _note(worker: str, seq: int) -> UpdateOne:
    """Fails where the number was noted before: it then tries to insert the document a second time."""
    return UpdateOne(
        {"_id": "c/" + worker, "seq": {"$lt": seq}},
        {"$set": {"seq": seq}, "$currentDate": {"seen": True}},
        upsert=True,
    )


def delete(tasks: Tasks, where: Document) -> int:
    """Delete tasks in a state, how many that were. In chunks: one command that deletes millions takes longer than
    anybody waits for an answer."""
    removed, seen = 0, DELETE_CHUNK
    while seen == DELETE_CHUNK:
        found = [row["_id"] for row in tasks.find(where, {"_id": 1}).limit(DELETE_CHUNK)]
        seen = len(found)
        if found:
            removed += tasks.delete_many({"_id": {"$in": found}, "s": where["s"]}).deleted_count
    return removed


def was_noted(tasks: Tasks, worker: str, seq: int) -> bool:
    found = tasks.find_one({"_id": "c/" + worker})
    return found is not None and bool(found["seq"] >= seq)


def reschedule(tasks: Tasks, queue: str, id: int, delay: float) -> bool:
    """See :meth:`Broker.reschedule`. Of a task that is moved from later to sooner nobody hears before its wait ends."""
    which = {"q": queue, "id": Int64(id), "s": {"$in": ["l/" + queue, "r/" + queue]}}
    change: Any = {"$set": {"s": "r/" + queue}, "$unset": {"at": "", "f": ""}, "$currentDate": AT_END}
    if delay > 0:
        change = [{"$set": {"s": {"$literal": "l/" + queue}, "at": {"$add": ["$$NOW", milliseconds(delay)]}}}]
    return tasks.update_one(which, change).matched_count == 1


def held(tasks: Tasks, queues: Iterable[str], worker: str, nonce: int | None = None) -> list[Claim]:
    """All that `worker` holds in the queues, in their order; only of the claim call `nonce`, if given."""
    names = list(dict.fromkeys(queues))
    which: Document = {"w": worker, "s": {"$in": ["h/" + queue for queue in names]}}
    if nonce is not None:
        which["n"] = signed(nonce)
    rows = []
    for row in tasks.find(which):
        if _is_sound(row, queue := str(row["s"])[2:]):
            rows.append(row)
        else:
            put_away(tasks, queue, row)
    rows.sort(key=lambda row: (names.index(row["q"]), -row["p"], row["o"].as_datetime(), row["o"].inc))
    return [claim_of(row) for row in rows]


def held_refs(tasks: Tasks, queues: Iterable[str], worker: str) -> set[Ref]:
    """As :func:`held`, without the messages."""
    names = ["h/" + queue for queue in queues]
    return {ref_of(row) for row in tasks.find({"w": worker, "s": {"$in": names}}, _TOKEN)}


def claim_of(row: Mapping[str, Any]) -> Claim:
    return Claim(*ref_of(row), _plain(row.get("a")), _plain(row.get("h")), _plain(row.get("b")))


def ref_of(row: Mapping[str, Any]) -> Ref:
    nonce = _plain(row.get("n", 0))
    return Ref(row["q"], _plain(row.get("id")), _plain(row.get("d")), unsigned(nonce) if type(nonce) is int else nonce)


def _plain(value: Any) -> Any:
    """A number or bytes of the driver's as ours; anything else as it is."""
    return int(value) if type(value) is Int64 else bytes(value) if type(value) is Binary else value


# -- what is no task -------------------------------------------------------------------------------------------


def _is_sound(row: Mapping[str, Any], queue: str) -> bool:
    """Whether a document that is ready or held is a task that can be claimed, or was."""
    return (
        row.get("q") == queue
        and is_task(_as_claimed(row))
        and type(row.get("o")) is Timestamp
        and all(isinstance(row.get(name), int) for name in "pml")
        and isinstance(row.get("v", []), list)
    )


def _as_claimed(row: Mapping[str, Any]) -> Claim:
    """The claim of a document; one that is ready counts its next delivery."""
    claim = claim_of(row)
    if "w" in row or type(claim.delivery) is not int or type(claim.attempt) is not int:
        return claim
    return claim._replace(delivery=claim.delivery + 1, attempt=claim.attempt + 1)


def put_away(tasks: Tasks, queue: str, row: Mapping[str, Any]) -> None:
    """Make a dead letter of a document that is no task, or remove it where nobody could name the letter."""
    which = {"_id": row["_id"], "s": row["s"]}
    claim = _as_claimed({"q": queue, **row})
    if row.get("q") == queue and type(claim.id) is int and type(claim.delivery) is int:
        reason = f"no task: {odd.fault(claim)}"
        dead = {"$set": {"s": "d/" + queue, "r": reason}, "$unset": LET_GO, "$currentDate": {"at": True, **AT_END}}
        tasks.update_one(which, dead)
        odd.log(queue, claim.id, reason, dead=True)
    elif tasks.delete_one(which).deleted_count:
        odd.log(queue, claim.id, f"no task: {odd.fault(claim)}", dead=False)


def name_of(ref: Ref) -> str:
    """The name of a claim in ``delayed_leases``."""
    return f"{ref.queue}/{ref.id}/{ref.delivery}/{ref.nonce:x}"


def signed(nonce: int) -> Int64:
    return Int64(nonce - (1 << 64) if nonce >= 1 << 63 else nonce)


def unsigned(nonce: int) -> int:
    return int(nonce) + (1 << 64) if nonce < 0 else int(nonce)


# -- settling --------------------------------------------------------------------------------------------------


def token(ref: Ref) -> Document:
    """What finds the task of a claim, as long as the claim holds."""
    return {"q": ref.queue, "id": Int64(ref.id), "s": "h/" + ref.queue, "d": ref.delivery, "n": signed(ref.nonce)}


def settle(tasks: Tasks, settlements: Sequence[Settlement]) -> list[bool]:
    """End claims; for each whether it was accepted.

    The server only tells how many documents a command has changed. So of several it is looked up before which hold.
    """
    if len(settlements) == 1:
        return [_write(tasks, [_step(settlements[0])]) == 1]
    found = holding(tasks, [settlement.ref for settlement in settlements])
    there = set(found)
    todo = {settlement.ref: settlement for settlement in settlements if settlement.ref in there}
    if todo and _write(tasks, _steps(todo.values(), found)) != len(todo):
        # Some were lost in this very moment. Where a task went tells whose it was.
        there = {ref for ref, settlement in todo.items() if _looks_settled(tasks, settlement)}
    if len(there) < len(settlements):
        # Whoever hears that his claim is over may take that for good: so this waits, as any write does that changes
        # nothing, until what was found can't be rolled back any more.
        tasks.delete_one({"_id": None})
    accepted = []
    for settlement in settlements:
        accepted.append(settlement.ref in there)
        there.discard(settlement.ref)  # once
    return accepted


def holding(tasks: Tasks, refs: Iterable[Ref]) -> dict[Ref, Any]:
    """Those of the claims that hold, and the names of their documents."""
    wanted: dict[str, dict[Ref, None]] = defaultdict(dict)
    for ref in refs:
        wanted[ref.queue][ref] = None
    there: dict[Ref, Any] = {}
    for queue, of_queue in wanted.items():
        which = {"q": queue, "id": {"$in": [Int64(ref.id) for ref in of_queue]}, "s": "h/" + queue}
        named = {ref_of(row): row["_id"] for row in tasks.find(which, _NAMED, batch_size=len(of_queue) + 1)}
        there |= {ref: name for ref, name in named.items() if ref in of_queue}
    return there


def _write(tasks: Tasks, steps: Sequence[Any]) -> int:
    result = tasks.bulk_write(steps, ordered=False)
    return result.deleted_count + result.matched_count


def _steps(settlements: Iterable[Settlement], found: Mapping[Ref, Any]) -> list[Any]:
    """What ends these claims. Those of one claim call that are done are deleted together, which takes the server two
    thirds of the time. (The driver does not send that again by itself, as it does for one; who asked has to anyway.)
    """
    done: dict[tuple[str, int, int], list[Any]] = defaultdict(list)
    steps = []
    for settlement in settlements:
        ref = settlement.ref
        if settlement.action == "done" and settlement.answer is None:
            done[ref.queue, ref.delivery, ref.nonce].append(found[ref])
        else:
            steps.append(_step(settlement))
    for (queue, delivery, nonce), names in done.items():
        steps.append(DeleteMany({"_id": {"$in": names}, "s": "h/" + queue, "d": delivery, "n": signed(nonce)}))
    return steps


def _step(settlement: Settlement) -> Any:
    ref, action, delay, reason, answer, note = settlement
    which = token(ref)
    if action == "done":
        if answer is None:
            return DeleteOne(which)
        return UpdateOne(which, answers.becomes(ref.queue, answer))
    if action == "dead":
        now = {"$currentDate": {"at": True, **AT_END}}
        clean = reason.encode("utf-8", "replace").decode()[:REASON_MAX]
        beside = answers.beside(answer) if answer is not None else {}
        dead = {"$set": {"s": "d/" + ref.queue, "r": clean, **beside}, "$unset": LET_GO, **now}
        return UpdateOne(which, dead | noted(note))
    if delay > 0:
        later: Document = {"s": {"$literal": "l/" + ref.queue}, "at": {"$add": ["$$NOW", milliseconds(delay)]}}
        if action == "back":
            later["a"] = {"$subtract": ["$a", 1]}
        if note:
            last = {"$slice": [{"$ifNull": ["$v", []]}, 1 - NOTES_MAX]}
            later["v"] = {"$concatArrays": [last, [{"$literal": note}]]}
        return UpdateOne(which, [{"$set": later}, {"$unset": list(LET_GO)}])
    ready: Document = {"$set": {"s": "r/" + ref.queue}, "$unset": {**LET_GO, "at": ""}}
    place: Document = {"$inc": {"a": -1}} if action == "back" else {"$currentDate": AT_END}
    return UpdateOne(which, ready | place | noted(note))


def noted(note: bytes) -> Document:
    """Adds to the notes of a task; the oldest go."""
    return {"$push": {"v": {"$each": [note], "$slice": -NOTES_MAX}}} if note else {}


def _looks_settled(tasks: Tasks, settlement: Settlement) -> bool:
    ref, action, delay, *_ = settlement
    row = tasks.find_one({"q": ref.queue, "id": Int64(ref.id)}, {"s": 1, "d": 1})
    if row is None or action == "done":
        return row is None or (row["s"] == "a/" + ref.queue and row["d"] == ref.delivery)
    state = "d" if action == "dead" else "l" if delay > 0 else "r"
    return bool(row["d"] > ref.delivery or row["s"] == f"{state}/{ref.queue}")
