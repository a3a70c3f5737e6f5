"""Looking at a queue page by page, on every broker, while tasks come and go."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from delayed import letters
from delayed.letters import walk
from delayed.message import Entry, Settlement, State
from tests.brokers.patience import eventually
from tests.brokers.test_conformance import Bench, ids


@pytest.fixture
def bench(broker: object, queue: str) -> Bench:
    return Bench(broker, queue)  # type: ignore[arg-type]


def numbers(entries: list[Entry]) -> list[int]:
    return [entry.message.id for entry in entries]


def paged(bench: Bench, state: State, size: int) -> list[int]:
    """The ids of one state, in pages of this size."""
    found: list[int] = []
    last = None
    while page := bench.broker.peek(bench.queue, state, size, last, payloads=False):
        found += numbers(page)
        last = page[-1]
    return found


def bury(bench: Bench, n: int) -> list[int]:
    """So many tasks that are dead, all at once."""
    bench.put(n, priority=100)
    claims = bench.claim(n)
    bench.broker.settle("w", [Settlement(claim.ref, "dead", reason="why") for claim in claims])
    return ids(claims)


def fill(bench: Bench, state: State) -> None:
    """Seven or more of one state, most of which have the same time or place."""
    if state == "ready":
        bench.put(5)
        bench.put(2, priority=3)
        bench.put(3, priority=-3)
        for tenant in "abc":
            bench.put(2, tenant=tenant * 32)
    elif state == "scheduled":
        bench.put(7, delay=1000.0)
        bench.put(2, delay=500.0)
    elif state == "running":
        bench.put(7)
        bench.put(2, priority=3)
        bench.claim(9)
    else:
        for n in (5, 1, 3):
            bury(bench, n)


@pytest.mark.parametrize("state", ["ready", "scheduled", "running", "dead"])
def test_pages_of_any_size_are_the_whole_in_its_order(bench: Bench, state: State) -> None:
    fill(bench, state)
    whole = numbers(bench.broker.peek(bench.queue, state))

    assert len(set(whole)) == len(whole) >= 9
    for size in (1, 2, 3, 8, len(whole)):
        assert paged(bench, state, size) == whole


def test_pages_follow_the_order_of_service(bench: Bench) -> None:
    normal, high = bench.put(5), bench.put(2, priority=3)

    assert paged(bench, "ready", 3) == high + normal


def test_what_is_due_is_on_the_pages_of_what_is_ready(bench: Bench) -> None:
    early = bench.put(3, delay=0.001) + bench.put(2, delay=0.001, priority=2)
    low, high = bench.put(3, priority=-1), bench.put(2, priority=1)
    eventually(lambda: len(bench.broker.peek(bench.queue, "ready")) == 10)

    for size in (1, 2, 3, 10):
        found = paged(bench, "ready", size)
        assert sorted(found) == sorted(early + low + high)
        assert [id for id in found if id in high + low] == high + low


@pytest.mark.parametrize("state", ["ready", "scheduled", "dead"])
def test_who_goes_meanwhile_takes_nobody_along(bench: Bench, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some go after each page: one before it, its last one, and one behind it; and others come."""
    for name in ("PAGE", "PAGE_MAX"):
        monkeypatch.setattr(letters, name, 3)
    put: dict[State, Callable[[int], list[int]]] = {
        "ready": bench.put,
        "scheduled": lambda n: bench.put(n, delay=1000.0),
        "dead": lambda n: bury(bench, n),
    }
    put[state](24)
    whole = numbers(bench.broker.peek(bench.queue, state))
    dice = random.Random(1)
    found: list[int] = []
    gone: set[int] = set()

    for number, entry in enumerate(walk(bench.broker, bench.queue, state), 1):
        found.append(entry.message.id)
        if number % 3 == 0 and len(found) < 18:
            behind = [id for id in whole if id not in found and id not in gone]
            for id in (dice.choice(found), found[-1], dice.choice(behind)):
                gone.add(id)
                bench.broker.remove(bench.queue, id)
            put[state](1)

    stayed = [id for id in whole if id not in gone]
    assert [id for id in found if id in stayed] == stayed
    assert len(found) == len(set(found))


def test_who_is_served_meanwhile_takes_nobody_along(bench: Bench) -> None:
    some = bench.put(12)
    page = bench.broker.peek(bench.queue, "ready", 5)

    bench.broker.settle("w", [Settlement(claim.ref, "done") for claim in bench.claim(7)])

    assert numbers(bench.broker.peek(bench.queue, "ready", 5, page[-1])) == some[7:]


def test_who_comes_back_to_the_front_moves_nobody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAGE", "PAGE_MAX"):
        monkeypatch.setattr(letters, name, 3)
    some = bench.put(12)
    claims = bench.claim(2)
    found: list[int] = []

    for entry in walk(bench.broker, bench.queue, "ready"):
        found.append(entry.message.id)
        if len(found) == 6:
            bench.broker.settle("w", [Settlement(claim.ref, "back") for claim in claims])

    assert found == some[2:]


def test_a_walk_ends_where_it_was_to(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAGE", "PAGE_MAX"):
        monkeypatch.setattr(letters, name, 3)
    some = bench.put(8)

    for most in (0, 1, 3, 7, 8, 9):
        assert numbers(list(walk(bench.broker, bench.queue, "ready", most))) == some[:most]
