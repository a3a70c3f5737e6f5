"""The short form of ``make crashpoints``: some of its points; and that it finds a fault."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from delayed.functions import path_of
from tests.chaos import broken, points, syscalls
from tests.chaos.crash_scenes import POSITIONS
from tests.chaos.crashpoints import POINTS, prime, run
from tests.chaos.points import Outcome, Point, Table
from tests.chaos.stores import Store, open_store

pytestmark = pytest.mark.timeout(120)

AT_REDIS = [
    Point("enqueue", "producer", "delivered", "redis"),
    Point("cancel", "producer", "after-effect", "redis"),
    Point("claim", "monitor", "after-effect", "redis"),
    Point("settle", "monitor", "before", "redis"),
]
CALLS = [
    Point("pwrite64#20", "courier", "", "sqlite"),
    Point("sendto#2", "child", "", "sqlite"),
    Point("pwrite64#2", "starting-sweeper", "", "sqlite"),
]


@pytest.fixture(scope="module")
def redis() -> Iterator[Store]:
    with open_store("redis") as store:
        prime(store)
        yield store


@pytest.fixture
def sqlite() -> Iterator[Store]:
    if why := syscalls.missing():
        pytest.skip(why)
    with open_store("sqlite") as store:
        yield store


@pytest.mark.parametrize("point", AT_REDIS, ids=str)
def test_a_role_may_die_at_any_point_of_a_request(point: Point, redis: Store, tmp_path: Path) -> None:
    assert point in POINTS
    outcome = run(point, redis, tmp_path)

    assert (outcome.reached, outcome.findings) == (True, [])


@pytest.mark.parametrize("point", CALLS, ids=str)
def test_a_process_may_die_before_any_of_its_system_calls(point: Point, sqlite: Store, tmp_path: Path) -> None:
    outcome = run(point, sqlite, tmp_path)

    assert (outcome.reached, outcome.findings) == (True, [])


def test_a_broker_that_takes_tasks_out_first_loses_what_was_not_handed_over(sqlite: Store, tmp_path: Path) -> None:
    outcome = run(Point("sendto#1", "courier", "", "sqlite"), sqlite, tmp_path, broker=path_of(broken.AckFirst))

    assert outcome.reached
    assert any(words.startswith("lost") for words in outcome.findings), outcome.findings


def test_the_tables_say_what_became_of_each_point(tmp_path: Path) -> None:
    outcomes = {Point("claim", "monitor", position, "redis"): Outcome() for position in POSITIONS}
    outcomes[Point("claim", "monitor", "delivered", "redis")].findings.append("lost: one")
    outcomes[Point("fsync#1", "courier", "", "sqlite")] = Outcome(reached=False)
    document = tmp_path / "document.md"
    document.write_text(f"before\n{points.MARKS[0]}old\n{points.MARKS[1]}after\n")

    points.merge(Table.of(outcomes, {("courier", "sqlite"): 30}), document)

    text = document.read_text()
    assert "| claim | monitor | ok, ok, FAILED |" in text
    assert "| courier | sqlite | 30 | 1 | 0 | 1 |" in text
    assert "3 crash points, 2 of them passed." in text
    assert (text.startswith("before\n"), text.endswith("after\n"), "old" in text) == (True, True, False)


def test_rows_that_were_not_tried_stay_in_the_tables_as_they_are(tmp_path: Path) -> None:
    old = Table(
        {("claim", "monitor"): {"redis": "ok, ok, FAILED", "postgres": "ok, ok, ok"}},
        {("child", "sqlite"): [9, 9, 8, 1]},
    )
    document = tmp_path / "document.md"
    document.write_text(f"{points.MARKS[0]}{old}\n{points.MARKS[1]}")
    outcomes = {Point("claim", "monitor", position, "redis"): Outcome() for position in POSITIONS}
    outcomes[Point("fsync#1", "courier", "", "sqlite")] = Outcome()

    points.merge(Table.of(outcomes, {("courier", "sqlite"): 30, ("child", "sqlite"): 20}), document)

    text = document.read_text()
    assert "| claim | monitor | ok, ok, ok | ok, ok, ok |" in text
    assert "| child | sqlite | 9 | 9 | 8 | 1 |" in text
    assert "| courier | sqlite | 30 | 1 | 1 | 0 |" in text
    assert "15 crash points, 15 of them passed." in text


def test_points_are_chosen_by_their_words() -> None:
    chosen = points.chosen(POINTS, ["redis"], ["settle", "stand-in", "before"])

    assert [str(it) for it in chosen] == ["settle stand-in before redis", "settle with an answer stand-in before redis"]
