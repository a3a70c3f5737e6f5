"""Tasks of which only so many run at once, or begin in a while, over all workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from delayed import Limit
from delayed.delay import Call
from delayed.options import Options
from tests.workers import following
from tests.workers.conftest import Bench, fork_server_of, wait_for

two_stores = pytest.mark.parametrize("bench", ["sqlite", "redis"], indirect=True)
sqlite_only = pytest.mark.parametrize("bench", ["sqlite"], indirect=True)


def call(bench: Bench, func: Callable[..., Any], **options: Any) -> Call[..., Any]:
    return Call(func, bench.queue, Options().updated(options))


@two_stores
def test_no_more_than_that_run_at_once_in_all_workers_together(bench: Bench) -> None:
    for _ in range(2):
        fork_server_of(bench.start(processes=4, preload=["tests.workers.following"]))
    start = time.monotonic()

    call(bench, following.occupy, at_once=2).map([0.03] * 60)
    wait_for(lambda: len(bench.ledger.find("out")) == 60)

    took = time.monotonic() - start
    events = [(float(line), 1) for line in bench.ledger.find("in")]
    out = [line.split() for line in bench.ledger.find("out")]
    running, most = 0, 0
    for _, change in sorted(events + [(float(at), -1) for at, _ in out]):
        running += change
        most = max(most, running)
    assert most == 2
    assert {attempt for _, attempt in out} == {"1"}, "to wait is not charged"
    assert took < 4 * 60 * 0.03 / 2, "twice is ideal, and the machine may be busy"
    wait_for(lambda: bench.settled() and bench.queue.broker.list_keys(bench.queue.name, "limit:") == [])


@two_stores
def test_a_worker_that_dies_inside_leaves_its_places(bench: Bench) -> None:
    worker = bench.start(processes=2, lease=1.0)
    limit = Limit(at_once=2, name="shared")
    call(bench, following.hold_first, limit=limit).starmap([(), ()])
    wait_for(lambda: len(bench.ledger.find("held")) == 2)
    plain = call(bench, following.plain, limit=limit).delay()
    bench.start(processes=2, lease=1.0)
    wait_for(lambda: plain.status == "scheduled")

    server = fork_server_of(worker)
    os.kill(server, signal.SIGSTOP)  # so that it can't stand in before it dies
    worker.kill()
    os.kill(server, signal.SIGKILL)

    wait_for(bench.settled)
    assert sorted(bench.ledger.lines) == ["again 2", "again 2", "held", "held", "plain"]


@sqlite_only
def test_a_stand_in_wakes_the_next_one(bench: Bench) -> None:
    worker = bench.start(processes=1)
    limit = Limit(at_once=1, name="shared")
    call(bench, following.wait_for_file, limit=limit).delay(1)
    wait_for(lambda: bench.ledger.find("begin"))
    bench.start(processes=1)
    plain = call(bench, following.plain, limit=limit).delay()
    wait_for(lambda: plain.status == "scheduled")
    fork_server_of(worker)

    worker.kill()
    open(f"{bench.ledger.path}.go", "w").close()

    wait_for(bench.settled)
    assert bench.ledger.lines == ["begin 1", "plain"]


@sqlite_only
def test_they_begin_as_often_as_that_and_no_more_often(bench: Bench) -> None:
    for _ in range(2):
        fork_server_of(bench.start(processes=2, preload=["tests.workers.following"]))

    call(bench, following.begin, rate="20/s").map(range(30))
    wait_for(bench.settled)

    times = sorted(float(line) for line in bench.ledger.find("at"))
    assert len(times) == 30
    windows = [sum(start <= at < start + 0.5 for at in times) for start in times]
    assert max(windows) <= 10 + 6, "a task may be late on a busy machine; 20 would be twice as often"
    assert 1.2 < times[-1] - times[0] < 4.0, "1.45 s is ideal"
