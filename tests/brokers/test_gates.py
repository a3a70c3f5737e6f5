"""Gates, as couriers ask them, on every broker: tasks that wait for others, and limits."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

import pytest

from delayed import answers, waits
from delayed.brokers import Broker
from delayed.message import Answer, Settlement
from delayed.worker import gates, gifts, limiter, verdict
from delayed.worker.courier import Held
from delayed.worker.gates import Gates
from delayed.worker.verdict import Verdict
from tests.brokers.patience import eventually
from tests.brokers.test_conformance import LEASE, Bench, ids, in_threads

BOUND = 10.0


@pytest.fixture(autouse=True)
def nobody_comes_by_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WAIT", "LONG_WAIT"):
        monkeypatch.setattr(gates, name, (1000.0, 1000.0))


class Courier:
    """As much of one as gates need."""

    def __init__(self, broker: Broker, queue: str) -> None:
        self.bench = Bench(broker, queue)
        self.gates = Gates(broker)
        self.name = secrets.token_hex(8)

    def take(self, limit: int = 100, lease: float = LEASE) -> list[Held]:
        """Claim; what may be handed out. The rest goes back."""
        claimed = [Held(claim, 0.0, 0) for claim in self.bench.claim(limit, lease, self.name)]
        shut = self.gates.ask(claimed)
        self.settle(*[end for _, end in shut])
        return [held for held in claimed if held not in [each for each, _ in shut]]

    def settle(self, *settlements: Settlement) -> None:
        assert all(self.bench.broker.settle(self.name, settlements))
        self.gates.ended(settlements)
        while self.gates.busy:
            self.gates.work()

    def end(self, held: Held, found: Verdict | None = None, body: bytes = b"", action: Any = "done") -> None:
        answer = Answer(answers.pack(found, body), 60.0) if found is not None else None
        self.settle(Settlement(held.claim.ref, action, answer=answer))


@pytest.fixture
def courier(broker: Broker, queue: str) -> Courier:
    return Courier(broker, queue)


@pytest.fixture
def other(open_broker: Callable[[], Broker], queue: str) -> Courier:
    return Courier(open_broker(), queue)


RETURNED = Verdict(verdict.RETURNED)
FAILED = Verdict(verdict.RAISED, "KeyError", "'key'")


def taken(held: list[Held]) -> list[int]:
    return ids([each.claim for each in held])


def after(courier: Courier, *others: int, passing: int = 0, **options: Any) -> int:
    found: dict[str, Any] = {"after": {courier.bench.queue: list(others)}}
    if passing:
        found["with"] = passing
    return courier.bench.put(gates=found, **options)[0]


# -- what waits for others -----------------------------------------------------------------------------------------


def test_a_task_waits_for_another_uncharged_and_is_woken(courier: Courier) -> None:
    (first,) = courier.bench.put(keep=60.0)
    second = after(courier, first)
    (held,) = courier.take()
    assert held.claim.id == first
    assert courier.bench.counts() == (1, 0, 1, 0), "the other one waits"

    courier.end(held, RETURNED)

    (held,) = courier.take()
    assert (held.claim.id, held.claim.attempt, held.blocked, held.gift) == (second, 1, "", b"")
    assert courier.bench.broker.list_keys(courier.bench.queue, waits.PREFIX) == [], "nothing is left of it"


def test_results_are_passed_in_order(courier: Courier) -> None:
    some = courier.bench.put(3, keep=60.0)
    order = [some[2], some[0], some[1]]
    last = after(courier, *order, passing=gifts.RESULTS)
    held = courier.take()
    assert taken(held) == some
    for number, each in enumerate(held):
        courier.end(each, RETURNED, b"result %d" % number)

    (held_last,) = courier.take()

    assert held_last.claim.id == last
    queue = courier.bench.queue
    expected = [(queue, id, b"result %d" % some.index(id)) for id in order]
    assert held_last.gift == gifts.pack(gifts.RESULTS, expected)


def test_an_end_between_two_looks_is_not_missed(courier: Courier, other: Courier) -> None:
    """The answer is stored after the task was asked for, and before it is back, when nobody can wake it."""
    (first,) = courier.bench.put(keep=60.0)
    second = after(courier, first)
    (running,) = courier.take(1)
    claimed = [Held(claim, 0.0, 0) for claim in other.bench.claim(1, worker=other.name)]
    ((_, back),) = other.gates.ask(claimed)

    courier.end(running, RETURNED)
    other.settle(back)

    assert taken(courier.take()) == [second]


def test_nothing_stays_of_a_note_that_comes_when_there_is_an_answer(
    courier: Courier, other: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = courier.bench.put(keep=60.0)
    second = after(courier, first)
    (running,) = courier.take(1)
    note = waits.note

    def note_late(*args: Any) -> None:
        courier.end(running, RETURNED)
        note(*args)

    monkeypatch.setattr(waits, "note", note_late)

    assert other.take() == []

    assert keys(courier) == []
    assert taken(courier.take()) == [second]


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("failed", "raised KeyError: 'key'"),
        ("gone", "is gone"),
        ("dead", "is a dead letter: why"),
        ("unkept", "keeps no"),
    ],
)
def test_a_task_is_told_why_it_can_not_run(courier: Courier, what: str, why: str) -> None:
    (first,) = courier.bench.put(keep=None if what == "unkept" else 60.0)
    (held,) = courier.take()
    if what == "failed":
        courier.end(held, FAILED)
    elif what == "gone":
        courier.end(held)
    elif what == "dead":
        courier.settle(Settlement(held.claim.ref, "dead", reason="why"))
    second = after(courier, first)

    (found,) = courier.take()

    assert found.claim.id == second and found.claim.attempt == 1
    assert found.blocked.startswith(f"it was to run after task {first}, which {why}")
    assert found.begin_by < 0, "so that it is not begun"


def test_what_was_cancelled_wakes_who_waits_for_it(courier: Courier) -> None:
    from delayed import Queue

    queue = Queue(courier.bench.queue, "memory://")
    queue._broker = courier.bench.broker
    (first,) = courier.bench.put(keep=60.0, delay=100.0)
    second = after(courier, first)
    assert courier.take() == []

    assert queue.cancel(first)

    (held,) = courier.take()
    assert held.claim.id == second and "cancelled" in held.blocked


def test_what_is_not_final_is_waited_for(courier: Courier) -> None:
    (first,) = courier.bench.put(keep=60.0)
    second = after(courier, first)
    (running,) = courier.take()
    queue, broker = courier.bench.queue, courier.bench.broker
    courier.settle(Settlement(running.claim.ref, "done", answer=answers.committed(60.0)))
    assert courier.take() == []
    assert courier.bench.counts() == (1, 0, 0, 0), "it does not come again and again"

    broker.put_result(queue, first, Answer(answers.pack(RETURNED), 60.0))
    courier.gates.answered((queue, first))
    courier.gates.work()

    assert taken(courier.take()) == [second]


def test_what_loses_its_workers_again_and_again_is_dead_however_often_it_has_waited(courier: Courier) -> None:
    (id,) = courier.bench.put(gates={"limit": ["x", 1, None], "runs": 2}, max_deliveries=2**31 - 1)
    for attempt in (1, 2):
        (held,) = courier.take()
        assert held.claim.attempt == attempt
        courier.settle(Settlement(held.claim.ref, "retry"))

    assert courier.take() == []

    entry = courier.bench.broker.get(courier.bench.queue, id)
    assert entry is not None and entry.state == "dead" and entry.reason.startswith("poison")


def test_an_answer_that_can_not_be_read_is_no_good_end(courier: Courier) -> None:
    (first,) = courier.bench.put(keep=60.0)
    after(courier, first)
    (held,) = courier.take()
    courier.settle(Settlement(held.claim.ref, "done", answer=Answer(b"garbage", 60.0)))

    (found,) = courier.take()

    assert "can't be read" in found.blocked


def test_what_others_have_written_there_wakes_nobody(courier: Courier) -> None:
    queue, broker = courier.bench.queue, courier.bench.broker
    (first,) = courier.bench.put(keep=60.0)
    for garbage in (
        b"\xff",
        b"[",
        b"{}",
        b"[1]",
        b'[["{}", 1]]',
        b'[["q", %d]]' % 10**30,
        b'[["q", "1"]]',
        b"[[[], {}]]",
    ):
        broker.put_key(queue, f"waits:{first}", garbage)
        waits.wake(broker, [(queue, first)])
        assert broker.list_keys(queue, "waits:") == []
    broker.put_key(queue, f"waits:{first}", b"garbage")
    second = after(courier, first)

    (held,) = courier.take()
    courier.end(held, RETURNED)

    assert taken(courier.take()) == [second]


# -- limits --------------------------------------------------------------------------------------------------------


def limited(courier: Courier, n: int, at_once: int | None = None, spacing: float | None = None, **options: Any) -> Any:
    name = options.pop("name", "limit")
    return courier.bench.put(n, gates={"limit": [name, at_once, spacing], "runs": 11}, **options)


def keys(courier: Courier) -> list[str]:
    return courier.bench.broker.list_keys(courier.bench.queue, "")


def test_no_more_than_that_are_handed_out_and_who_ends_wakes_the_next(courier: Courier, other: Courier) -> None:
    some = limited(courier, 5, at_once=2)
    first, second = courier.take()
    assert taken([first, second]) == some[:2] and other.take() == []
    assert courier.bench.counts() == (3, 0, 2, 0)

    courier.end(first)
    (third,) = other.take()
    assert (third.claim.id, third.claim.attempt) == (some[2], 1)
    assert courier.take() == []
    courier.end(second)
    other.end(third)

    assert taken(courier.take()) == some[3:]


@pytest.mark.parametrize("action", ["retry", "back", "dead"])
def test_however_a_task_ends_it_leaves(courier: Courier, action: Any) -> None:
    _, second = limited(courier, 2, at_once=1)
    (held,) = courier.take()

    courier.settle(Settlement(held.claim.ref, action, delay=0.0 if action == "dead" else 100.0))

    assert taken(courier.take()) == [second]


def test_nothing_is_kept_of_a_limit_that_nobody_uses(courier: Courier) -> None:
    limited(courier, 3, at_once=1)
    for _ in range(3):
        (held,) = courier.take()
        assert keys(courier) == ["limit:limit"]
        courier.end(held)

    assert keys(courier) == []
    assert courier.bench.counts() == (0, 0, 0, 0)


def test_each_name_is_a_limit_of_its_own(courier: Courier) -> None:
    some = [limited(courier, 2, at_once=1, name=name)[0] for name in "abc"]

    assert taken(courier.take()) == some


def test_a_place_between_two_looks_is_not_missed(courier: Courier, other: Courier) -> None:
    _, second = limited(courier, 2, at_once=1)
    (running,) = courier.take(1)
    claimed = [Held(claim, 0.0, 0) for claim in other.bench.claim(1, worker=other.name)]
    ((_, back),) = other.gates.ask(claimed)

    courier.end(running)
    other.settle(back)

    assert taken(courier.take()) == [second]


def test_there_are_never_more_and_all_get_through(courier: Courier, open_broker: Callable[[], Broker]) -> None:
    some = limited(courier, 40, at_once=3)
    couriers = [Courier(open_broker(), courier.bench.queue) for _ in range(4)]
    running: set[int] = set()
    most = [0]
    done: list[int] = []
    deadline = time.monotonic() + BOUND

    def work(number: int) -> None:
        while len(done) < len(some):
            assert time.monotonic() < deadline
            for held in couriers[number].take(5):
                running.add(held.claim.id)
                most[0] = max(most[0], len(running))
                time.sleep(0.001)
                running.remove(held.claim.id)
                couriers[number].end(held)
                done.append(held.claim.id)

    in_threads(4, work)

    assert sorted(done) == some
    assert most[0] <= 3


def test_who_is_not_noted_is_found_all_the_same(courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter, "WAITING_MAX", 4)
    monkeypatch.setattr(limiter, "FEW", 2)
    some = limited(courier, 20, at_once=2)
    done: list[int] = []
    running = courier.take()

    while running:
        courier.end(running.pop())
        done.append(len(running))
        running += courier.take()

    assert len(done) == len(some)
    assert courier.bench.counts() == (0, 0, 0, 0) and keys(courier) == []


def test_a_lost_task_takes_its_own_place_again(courier: Courier, other: Courier) -> None:
    first, second = limited(courier, 2, at_once=1)
    assert taken(courier.take(1, lease=0.2)) == [first]

    courier.bench.sweep_until_returned(1, 0.2)

    (held,) = other.take()
    assert (held.claim.id, held.claim.attempt) == (first, 2)
    other.end(held)
    assert taken(other.take()) == [second]


def test_who_is_gone_without_a_word_is_found_to_be(courier: Courier, other: Courier) -> None:
    _, _, third = limited(courier, 3, at_once=2)
    held, _ = courier.take(2)
    assert courier.bench.end(held.claim, worker=courier.name), "as a guardian that knows no gates"
    assert courier.bench.broker.reschedule(courier.bench.queue, third, 0.0) is True

    assert taken(other.take()) == [third]


def test_what_others_have_written_there_is_made_anew(courier: Courier) -> None:
    kinds = (b'{"in": 3}', b'{"in": [[1]]}', b'{"in": [[%d, 1]]}' % 10**30, b'{"in": [["1", 1]]}', b'{"wait": [-5]}')
    for garbage in (b"", b"{", b"[]", *kinds, b'{"next": "soon"}', b'{"line": 1e999}', b"\xff"):
        (id,) = limited(courier, 1, at_once=1, spacing=0.001)
        courier.bench.broker.put_key(courier.bench.queue, "limit:limit", garbage)

        (held,) = courier.take()

        assert held.claim.id == id
        courier.end(held)


def test_each_gets_its_turn_and_waits_for_it_once(courier: Courier, other: Courier) -> None:
    some = limited(courier, 3, spacing=0.6)
    start = time.monotonic()

    begun: list[tuple[int, float, int]] = []
    while len(begun) < 3:
        assert time.monotonic() < start + BOUND
        for each in (courier, other):
            for held in each.take(2):
                begun.append((held.claim.id, time.monotonic() - start, held.claim.delivery))
        courier.bench.broker.wait([courier.bench.queue], 0.1)

    assert [(id, delivery) for id, _, delivery in begun] == [(some[0], 1), (some[1], 2), (some[2], 2)]
    assert begun[1][1] > 0.55 and begun[2][1] > 1.15


def test_a_turn_that_comes_too_early_is_waited_for_still(courier: Courier) -> None:
    first, second = limited(courier, 2, spacing=100.0)
    assert taken(courier.take()) == [first]
    assert courier.bench.broker.reschedule(courier.bench.queue, second, 0.0)

    assert courier.take() == []

    entry = courier.bench.broker.get(courier.bench.queue, second)
    assert entry is not None and entry.state == "scheduled" and 95 < entry.due <= 100


def test_a_line_is_kept_for_as_long_as_it_is(courier: Courier) -> None:
    limited(courier, 2, spacing=100_000.0)
    courier.take()

    stored = courier.bench.broker.get_keys(courier.bench.queue, ["limit:limit"])["limit:limit"]

    assert stored.left is not None and stored.left > 200_000


def test_turns_that_come_late_are_not_taken_all_at_once(courier: Courier) -> None:
    some = limited(courier, 6, spacing=0.1)
    courier.take()
    eventually(lambda: courier.bench.counts() == (0, 5, 1, 0))  # nobody was there when it was their turn

    held = courier.take()

    assert taken(held) == some[1:3], "one whose turn it is, and one who is late"
    assert courier.bench.counts() == (3, 0, 3, 0)


def test_who_waits_for_its_turn_takes_no_place(courier: Courier) -> None:
    limited(courier, 2, at_once=1, spacing=5.0)
    (held,) = courier.take()
    courier.end(held)
    assert courier.take() == []
    (key,) = [name for name in keys(courier) if name.startswith("limit:")]
    stored = courier.bench.broker.get_keys(courier.bench.queue, [key])[key]
    assert b'"in"' not in stored.value and stored.left is not None
