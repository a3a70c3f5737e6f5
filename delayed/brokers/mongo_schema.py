"""The collections in MongoDB and their indexes, made on first use.

``delayed_tasks`` holds a document for each task:

    q queue · id · s state and queue (``r/name``) · p priority · o place · at · d deliveries · a attempts · m most
    deliveries · l losses · h header · b payload · w worker · n nonce · r reason · v notes of its attempts, a list ·
    f tenant, if it is fair · and while it is staged: t session, c number, g delay, e place if it is fair, u the name of
    its key if it is unique; and of one whose answer is kept: y answer, gone until when, t for how long

`s` begins with a letter: **p**repared (not enqueued yet, see `mongo_enqueue.py`), **l**ater, **r**eady, **h**eld,
**d**ead, or **a**nswer: what is kept of a task that has ended, see `mongo_answers.py`. `at` is when a later one is due,
when the first lease of a held one ends, and when a dead one died. `o` is a timestamp of the server's logical clock,
which it never gives twice: the order of arrival; of a fair one it is what `mongo_fair.py` says.

Beside them, because one command changes them together with tasks, are the sessions of producers (``s/…``), the numbers
of claimers (``c/…``) and the keys of unique tasks (``u/…``, see `mongo_once.py`). Only the first two have a field
`seen`, and so only those are forgotten with time: a session has it once its last batch is published. And because one
stream shall tell of both, so is what pauses a queue (``q/…``).

``delayed_keys`` holds small values, see `mongo_keys.py`.
"""

from __future__ import annotations

from typing import Any

from pymongo import IndexModel
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from delayed.brokers.base import PRODUCER_AGE
from delayed.errors import ConfigError

SCHEMA = 4
LEAST = 4  # the oldest version that may use the collections as this one leaves them

_READY = IndexModel(
    [("s", 1), ("p", -1), ("o", 1)], name="ready", partialFilterExpression={"s": {"$gte": "r/", "$lt": "r0"}}
)
_TIMED = IndexModel([("s", 1), ("at", 1), ("o", 1)], name="timed", partialFilterExpression={"at": {"$exists": True}})
_HELD = IndexModel([("w", 1), ("n", 1)], name="held", partialFilterExpression={"w": {"$exists": True}})
_BY_ID = IndexModel([("q", 1), ("id", 1)], name="by_id", partialFilterExpression={"q": {"$exists": True}})
_SEEN = IndexModel(
    [("seen", 1)],
    name="seen",
    expireAfterSeconds=int(PRODUCER_AGE),
    partialFilterExpression={"seen": {"$exists": True}},
)
_ENDED = IndexModel([("end", 1)], name="ended", expireAfterSeconds=int(PRODUCER_AGE))
_OPEN = IndexModel([("session", 1)], name="open", partialFilterExpression={"session": {"$exists": True}})
_GONE = IndexModel([("until", 1)], name="gone", expireAfterSeconds=0)
_FORGOTTEN = IndexModel(
    [("gone", 1)], name="forgotten", expireAfterSeconds=0, partialFilterExpression={"gone": {"$exists": True}}
)
_FAIR = IndexModel(
    [("s", 1), ("p", 1), ("a", 1), ("o", 1)], name="fair", partialFilterExpression={"f": {"$exists": True}}
)
_TENANT = IndexModel(
    [("s", 1), ("f", 1), ("p", 1), ("a", 1), ("o", 1)], name="tenant", partialFilterExpression={"f": {"$exists": True}}
)
_OF_QUEUE = IndexModel([("q", 1), ("w", 1)], name="of_queue")


def prepare(database: Database[dict[str, Any]], name: str) -> None:
    """Make what is not there yet.

    Raises:
        ConfigError: When a later version has made it, and says that this one can't use it.
    """
    found = database["delayed_meta"].find_one({"_id": "schema"})
    version = found["version"] if found else 0
    if found and version > SCHEMA and found.get("least", version) > SCHEMA:
        raise ConfigError(
            f"{name} has tables of version {version}, and this version of delayed knows {SCHEMA}: upgrade delayed here"
        )
    if version >= SCHEMA:
        return
    database["delayed_tasks"].create_indexes([_READY, _TIMED, _HELD, _BY_ID, _SEEN, _FORGOTTEN, _FAIR, _TENANT])
    database["delayed_leases"].create_indexes([_ENDED, _OPEN])
    database["delayed_workers"].create_indexes([_GONE, _OF_QUEUE])
    database["delayed_keys"].create_indexes([_FORGOTTEN])
    try:
        database["delayed_queues"].find_one()
        database["delayed_meta"].update_one(
            {"_id": "schema"}, {"$set": {"version": SCHEMA, "least": LEAST}}, upsert=True
        )
    except DuplicateKeyError:  # another process did the same at the same time
        pass
