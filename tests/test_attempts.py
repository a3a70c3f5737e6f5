"""The attempts of a task: what is noted of them, and what is made of the notes."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from delayed import Attempt, Queue, TaskHandle
from delayed.attempts import attempts_of, noted
from delayed.delay import delay_with_params
from delayed.message import NOTE_MAX, NOTES_MAX, Action, Claim, Settlement
from delayed.worker import verdict
from delayed.worker.verdict import Verdict
from tests import functions

RAISED = Verdict(verdict.RAISED, type="ValueError", text="no luck", wall=0.25, cpu=0.125, rss=1 << 20, timeout=3.0)


@pytest.fixture
def handle(queue: Queue) -> TaskHandle[Any]:
    return delay_with_params(queue)(retry=50)(functions.add)(1, 2)


class Hands:
    """A worker by hand."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.seq = 0

    def take(self) -> Claim:
        self.seq += 1
        (claim,) = self.queue.broker.claim([self.queue.name], "w", self.seq, self.seq, 1, 15.0)
        return claim

    def end(self, found: Verdict | None, action: Action = "retry") -> None:
        claim = self.take()
        ended = Settlement(claim.ref, action, reason="why" if action == "dead" else "")
        assert self.queue.broker.settle("w", [noted(claim, ended, found, "worker:1") if found else ended]) == [True]


def note_of(found: Verdict, **claimed: Any) -> bytes:
    claim = Claim("q", 1, 1, 1, **{"attempt": 1, "header": b"", "payload": b"", **claimed})
    return noted(claim, Settlement(claim.ref, "retry"), found, "worker:1").note


@pytest.fixture
def hands(queue: Queue) -> Hands:
    return Hands(queue)


def test_a_task_tells_how_its_attempts_ended(handle: TaskHandle[Any], hands: Hands) -> None:
    before = time.time()
    assert handle.attempts == []
    hands.end(RAISED._replace(traceback="a secret traceback", stack="a stack", arguments="(1, 2)"))
    hands.end(Verdict(verdict.KILLED, signal=9, out_of_memory=True, wall=1.5))
    hands.end(Verdict(verdict.STOPPED), "back")
    hands.end(RAISED, "dead")

    first, second, third = handle.attempts

    assert isinstance(first, Attempt)
    assert [each.attempt for each in (first, second, third)] == [1, 2, 3]
    assert first.verdict == RAISED
    assert str(first.verdict) == "raised ValueError: no luck after 0.25 s (CPU 0.125 s, 1 MB)"
    assert str(second.verdict).startswith("killed by signal 9 (SIGKILL): out of memory")
    assert first.worker == "worker:1"
    assert first.ended is not None and before - 1 < first.ended.timestamp() < time.time() + 1
    assert str(first.ended.tzinfo) == "UTC"
    letter = hands.queue.dead.get(handle.id)
    assert letter is not None and attempts_of(letter) == [first, second, third]


def test_an_attempt_that_nobody_told_of_is_lost(handle: TaskHandle[Any], hands: Hands) -> None:
    hands.end(RAISED)
    hands.end(None)
    hands.end(RAISED)
    hands.take()  # which runs, and is no end

    found = handle.attempts

    assert [each.verdict.kind for each in found] == ["raised", "lost", "raised"]
    assert found[1] == (2, None, found[1].verdict, "")
    assert str(found[1].verdict) == "lost: its worker told nothing of its end"


def test_the_last_attempts_are_told(handle: TaskHandle[Any], hands: Hands) -> None:
    for number in range(NOTES_MAX + 5):
        hands.end(RAISED._replace(text=str(number)) if number != 10 else None)

    found = handle.attempts

    assert [each.attempt for each in found] == list(range(6, NOTES_MAX + 6))
    assert [each.verdict.kind for each in found] == ["raised"] * 5 + ["lost"] + ["raised"] * 14
    assert found[-1].verdict.text == str(NOTES_MAX + 4)


@pytest.mark.parametrize("junk", [b"", b"null", b"[]", b"{}", b"\xff", b'{"attempt":1,"ended":1e300,"worker":""}'])
def test_what_is_no_note_tells_nothing(handle: TaskHandle[Any], hands: Hands, junk: bytes) -> None:
    claim = hands.take()
    hands.queue.broker.settle("w", [Settlement(claim.ref, "retry", note=junk)])

    assert [each.verdict.kind for each in handle.attempts] == ["lost"]


@pytest.mark.parametrize("wrong", [{"code": 99}, {"text": 5}, {"attempt": "1"}, {"worker": 1}, {"later": 1}])
def test_a_forged_note_tells_nothing(handle: TaskHandle[Any], hands: Hands, wrong: dict[str, Any]) -> None:
    claim = hands.take()
    note = json.dumps(json.loads(note_of(RAISED)) | wrong).encode()
    hands.queue.broker.settle("w", [Settlement(claim.ref, "retry", note=note)])

    assert [each.verdict.kind for each in handle.attempts] == ["lost"]


@pytest.mark.parametrize("text", ["x" * 5000, "ж" * 5000, "\n\0\x1b[2J" * 500, "\ud800" * 500, "😀|" * 900])
def test_a_note_is_one_short_line_whatever_was_raised(text: str) -> None:
    note = note_of(Verdict(verdict.RAISED, type="package.Class" * 500, text=text, limit=text, traceback=text))

    assert len(note) <= NOTE_MAX
    assert b"\n" not in note
    fields = json.loads(note)
    assert text.encode("utf-8", "replace").decode().startswith(fields["text"])
    assert 0 < len(fields["text"]) <= 300


def test_of_an_encrypted_task_no_text_is_noted() -> None:
    secret = RAISED._replace(text="no such patient: Ada")

    assert b"Ada" in note_of(secret, payload=b"\1\1\0\1 signed")
    assert b"Ada" not in (note := note_of(secret, payload=b"\1\1\0\2 encrypted"))
    assert json.loads(note)["type"] == "ValueError"


def test_what_goes_back_uncharged_or_is_done_has_no_note() -> None:
    claim = Claim("q", 1, 1, 1, 1, b"", b"")

    for action in ("done", "back"):
        assert noted(claim, Settlement(claim.ref, action), RAISED, "w").note == b""  # type: ignore[arg-type]
