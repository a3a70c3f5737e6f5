"""What settlements note of a task's attempts, on every broker."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from delayed.attempts import WORKER_LOST, attempts_of, noted
from delayed.brokers import Broker
from delayed.message import NOTE_MAX, NOTES_MAX, Action, Answer, Claim, Settlement
from delayed.worker import verdict
from delayed.worker.verdict import Verdict
from tests.brokers.test_conformance import Bench


@pytest.fixture
def bench(broker: Broker, queue: str) -> Bench:
    return Bench(broker, queue)


def end(bench: Bench, claim: Claim, action: Action, note: bytes = b"", delay: float = 0.0, **more: Answer) -> bool:
    (accepted,) = bench.broker.settle("w", [Settlement(claim.ref, action, delay, "why|2|", note=note, **more)])
    return accepted


def notes(bench: Bench, id: int) -> Sequence[bytes]:
    entry = bench.broker.get(bench.queue, id)
    assert entry is not None
    return entry.notes


def test_notes_stay_with_a_task_over_retries_claims_and_give_backs(bench: Bench) -> None:
    (id,) = bench.put(priority=3)
    strange = b'{"|":"\xc3\xbc \xff\x00 \\n",\r"1|2|3|0|0|w":[]}'

    (claim,) = bench.claim()
    assert end(bench, claim, "retry", strange)
    assert notes(bench, id) == (strange,)
    (claim,) = bench.claim()
    assert (claim.attempt, notes(bench, id)) == (2, (strange,))
    assert end(bench, claim, "back")
    (claim,) = bench.claim()
    assert (claim.attempt, claim.delivery) == (2, 3)
    assert end(bench, claim, "retry", b"second", 0.001)
    assert notes(bench, id) == (strange, b"second")
    assert bench.broker.reschedule(bench.queue, id, 0.0)
    (claim,) = bench.claim()
    assert bench.broker.renew("w", [bench.queue], [claim.ref], 15.0).held == [claim.ref]
    assert bench.broker.held("w", [bench.queue]) == [claim]
    assert end(bench, claim, "retry", delay=100.0)  # without a note
    (entry,) = bench.broker.peek(bench.queue, "scheduled")

    assert entry.notes == (strange, b"second")
    assert (entry.attempt, entry.worker, entry.message.priority) == (3, "", 3)


def test_the_last_notes_are_kept(bench: Bench) -> None:
    (id,) = bench.put()
    written = [b"%d " % number + b"x" * (NOTE_MAX - 3) for number in range(NOTES_MAX + 3)]

    for note in written[:-1]:
        (claim,) = bench.claim()
        assert end(bench, claim, "retry", note)
    assert notes(bench, id) == tuple(written[-NOTES_MAX - 1 : -1])
    (claim,) = bench.claim()
    assert end(bench, claim, "retry", written[-1], 100.0)

    assert notes(bench, id) == tuple(written[-NOTES_MAX:])


def test_a_dead_letter_has_its_notes_until_it_is_revived(bench: Bench) -> None:
    first, second = bench.put(2, payload=b"\n|payload\n")
    for claim in bench.claim():
        assert end(bench, claim, "retry", b"one of %d" % claim.id)
    for claim in bench.claim():
        assert end(bench, claim, "dead", b"two|", answer=Answer(b"answer", 60.0))

    letters = bench.broker.peek(bench.queue, "dead")
    bare = bench.broker.peek(bench.queue, "dead", payloads=False)

    assert {letter.message.id: letter.notes for letter in letters} == {
        first: (b"one of %d" % first, b"two|"),
        second: (b"one of %d" % second, b"two|"),
    }
    assert [letter.notes for letter in bare] == [letter.notes for letter in letters]
    assert {letter.message.payload for letter in letters} == {b"\n|payload\n"}
    assert {letter.reason for letter in letters} == {"why|2|"}
    assert bench.broker.revive(bench.queue, [first]) == [first]
    assert notes(bench, first) == ()
    (claim,) = bench.claim()
    assert (claim.id, claim.payload, claim.attempt) == (first, b"\n|payload\n", 1)
    assert notes(bench, second) == (b"one of %d" % second, b"two|")


def note_of(claim: Claim, found: Verdict) -> bytes:
    return noted(claim, Settlement(claim.ref, "retry"), found, "w").note


def test_who_lost_his_claim_notes_nothing(bench: Bench) -> None:
    (id,) = bench.put()
    (old,) = bench.claim(worker="w1")
    end(bench, old, "retry", b"first")
    (claim,) = bench.claim()

    assert not end(bench, old, "retry", b"late")
    assert not end(bench, claim._replace(nonce=claim.nonce ^ 1), "dead", b"forged")

    assert notes(bench, id) == (b"first",)


def test_a_sweep_notes_who_was_lost(bench: Bench) -> None:
    begun = time.time()
    ids = bench.put(2, max_deliveries=3)
    for claim in bench.claim():
        end(bench, claim, "retry", note_of(claim, Verdict(verdict.RAISED, type="ValueError", text="no")))

    for worker in ("host:1|ü", "host:2"):
        assert len(bench.claim(lease=0.3, worker=worker)) == 2
        bench.sweep_until_returned(2, 0.3)

    assert bench.counts().dead == 2
    for entry in bench.broker.peek(bench.queue, "dead"):
        told = attempts_of(entry)
        assert entry.message.id in ids
        assert [(each.attempt, each.verdict.kind, each.worker) for each in told] == [
            (1, "raised", "w"),
            (2, "lost", "host:1|ü"),
            (3, "lost", "host:2"),
        ]
        assert told[1].verdict == told[2].verdict == WORKER_LOST
        assert [each.ended is not None and -5 < each.ended.timestamp() - begun < 60 for each in told] == [True] * 3


def test_many_notes_go_in_one_batch_with_other_ends(bench: Bench) -> None:
    ids = bench.put(40)
    actions: list[Action] = ["done", "retry", "back", "dead"]
    claims = bench.claim()
    ends = [
        Settlement(claim.ref, actions[number % 4], note=b"note %d" % number if number % 4 in (1, 3) else b"")
        for number, claim in enumerate(claims)
    ]

    assert all(bench.broker.settle("w", ends))

    for number, id in enumerate(ids):
        entry = bench.broker.get(bench.queue, id)
        assert (entry is None) == (number % 4 == 0)
        if entry is not None:
            assert entry.notes == ((b"note %d" % number,) if number % 4 in (1, 3) else ())


def test_notes_are_gone_with_their_task(bench: Bench) -> None:
    (claim,) = (bench.put(), bench.claim())[1]
    end(bench, claim, "retry", b"first")
    (claim,) = bench.claim()
    assert end(bench, claim, "done", answer=Answer(b"answer", 60.0))

    assert bench.broker.get(bench.queue, claim.id) is None
    assert bench.broker.get_results(bench.queue, [claim.id]) == {claim.id: b"answer"}
