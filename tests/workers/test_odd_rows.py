"""A real worker on a store in which somebody has written what is no task."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from delayed import PreforkedWorker, Queue
from delayed.brokers.sqlite import SQLiteBroker
from delayed.delay import delay
from delayed.message import Claim
from tests.brokers.test_odd_rows import SQLITE
from tests.workers import tasks
from tests.workers.conftest import Bench, Ledger


def spoil(url: str, id: int, change: str) -> None:
    db = sqlite3.connect(url.removeprefix("sqlite:///"))
    with db:
        assert db.execute(f"UPDATE OR IGNORE delayed_task SET {change} WHERE id = ?", (id,)).rowcount <= 1
    db.close()


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
def test_what_is_no_task_harms_neither_a_worker_nor_its_neighbours(bench: Bench, mode: str) -> None:
    bench.put(tasks.mark, "first")
    changes = [change for change in SQLITE if change != "id = -5"]  # the last of them takes that id
    for number, change in enumerate(changes):
        spoil(bench.url, bench.put(tasks.mark, f"odd {change}"), change)
        bench.put(tasks.mark, number)

    bench.burst(mode)

    assert sorted(bench.ledger.lines) == sorted(["first", *map(str, range(len(changes)))])
    assert bench.settled()
    assert bench.queue.broker.counts(bench.queue.name).dead == sum(SQLITE[change] for change in changes)
    assert bench.log().count("is no task") == len(changes)
    for word in ("Traceback", "can't reach", "lost their worker", "was refused"):
        assert word not in bench.log()


class Careless(SQLiteBroker):
    """A broker that hands out whatever it finds."""

    def _tasks(self, worker: str, claims: list[Claim]) -> list[Claim]:
        return claims


@pytest.mark.parametrize("change", ["id = -5", "id = 'abc'", "header = 5", "delivery = -3", "attempt = 1 << 40"])
def test_a_worker_runs_nothing_else_of_a_broker_that_does_not_look(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(tmp_path / "ledger")
    url = f"sqlite:///{tmp_path}/tasks.db"
    queue = Queue("q", Careless(url))
    for word in ("first", "odd", "last"):
        task = delay(queue)(tasks.mark)(str(ledger.path), word)
        if word == "odd":
            spoil(url, task.id, change)

    PreforkedWorker(queue, burst=True).run()

    assert ledger.lines == ["first", "last"]
    assert "handed out what is no task" in caplog.text
    queue.broker.close()
