"""The attempts of a task: a short note of each that ended is kept beside its message until the task ends.

A note is one line of JSON: the number of the attempt, when it ended, the worker, and its verdict without traceback and
stack, which are in the worker's log. Brokers keep the last 20 and never read them; of an attempt whose worker was lost
their sweep makes one itself. An attempt without a note was in somebody's hands who said nothing of its end.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from delayed.message import NOTE_MAX, NOTES_MAX, Claim, Entry, Settlement
from delayed.seals import ENCRYPTED
from delayed.worker import verdict
from delayed.worker.verdict import Verdict

if TYPE_CHECKING:
    import datetime

TEXT_MAX = 300  # characters of an exception's text that a note has; fewer if they take too many bytes
NAME_MAX = 100  # ... of the exception's type, of the limit, and of the worker


WORKER_LOST = Verdict(verdict.LOST, text="its worker was lost")


class Attempt(NamedTuple):
    """One run of a task, and how it ended.

    Attributes:
        attempt: its number: 1 for the first that counts.
        ended: when it ended, by its worker's clock, or was found lost, by the store's or the sweeper's; in UTC. None if
            nobody told.
        verdict: how it ended; without traceback and stack, and of the text 300 characters. ``lost`` if nobody told.
        worker: the id of its worker; "" if nobody told.
    """

    attempt: int
    ended: datetime.datetime | None
    verdict: Verdict
    worker: str


def noted(claim: Claim, settlement: Settlement, found: Verdict, worker: str) -> Settlement:
    """The settlement with a note of how the attempt ended, if the task stays in the store after a charged attempt."""
    if settlement.action not in ("retry", "dead"):
        return settlement
    if claim.payload[3:4] == bytes((ENCRYPTED,)):  # what it raised may say what nobody but its worker shall read
        found = found._replace(text="")
    return settlement._replace(note=_note(claim.attempt, found, worker, time.time()))


def lost(attempt: int, worker: str, at: float) -> bytes:
    """The note of an attempt whose worker was lost; those sweeps that are no Python write the same.

    Args:
        at: when that was found, unix time.
    """
    return _note(attempt, WORKER_LOST, worker, at)


def _note(attempt: int, found: Verdict, worker: str, at: float) -> bytes:
    short = found._replace(
        type=found.type[:NAME_MAX],
        text=found.text[:TEXT_MAX],
        limit=found.limit[:NAME_MAX],
        wall=round(found.wall, 6),
        cpu=round(found.cpu, 6),
        traceback="",
        stack="",
        arguments="",
    )
    told = {"attempt": attempt, "ended": round(at, 3), "worker": worker[:NAME_MAX]}
    while True:
        # JSON has no newline within a text. What is no character, as in a file's name that is no UTF-8, becomes a "?".
        words = json.dumps(told | short.fields(), separators=(",", ":"), ensure_ascii=False)
        note = words.encode("utf-8", "replace")
        if len(note) <= NOTE_MAX or not (short.text or short.type):
            return note
        short = short._replace(text=short.text[:-20]) if short.text else short._replace(type="")


def attempts_of(entry: Entry) -> list[Attempt]:
    """The attempts of a stored task that have ended, oldest first: the last 20 of them."""
    told = {attempt.attempt: attempt for attempt in map(_read, entry.notes) if attempt is not None}
    last = entry.attempt - (entry.state == "running")
    return [told.get(number) or _untold(number) for number in range(max(last - NOTES_MAX, 0) + 1, last + 1)]


def _untold(number: int) -> Attempt:
    return Attempt(number, None, Verdict(verdict.LOST, text="its worker told nothing of its end"), "")


def _read(note: bytes) -> Attempt | None:
    """The attempt of a note; None if it is none: whoever can write to the store can write anything."""
    import datetime

    try:
        fields: dict[str, Any] = json.loads(note)
        number, ended, worker = (fields.pop(name) for name in ("attempt", "ended", "worker"))
        moment = datetime.datetime.fromtimestamp(ended, datetime.UTC)
        found = Verdict.of(fields)
    except Exception:
        return None
    return Attempt(number, moment, found, worker) if type(number) is int and type(worker) is str else None
