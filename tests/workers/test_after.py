"""Tasks that run when others have returned, and are given their results. Nobody looks for that but who is woken."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from delayed import Group, Queue, Retry, TaskFailed
from delayed.delay import Call
from delayed.options import Options
from tests.workers import following
from tests.workers.conftest import Bench, fork_server_of, wait_for

BOUND = 15.0
two_stores = pytest.mark.parametrize("bench", ["sqlite", "redis"], indirect=True)
sqlite_only = pytest.mark.parametrize("bench", ["sqlite"], indirect=True)


def call(bench: Bench, func: Callable[..., Any], **options: Any) -> Call[..., Any]:
    return Call(func, bench.queue, Options().updated({"keep": "1h", **options}))


def test_a_chain_passes_results_on(bench: Bench, mode: str) -> None:
    bench.start(mode, processes=2)
    first = call(bench, following.give).delay(1)
    second = first.then(call(bench, following.add), 10)

    third = second.then(call(bench, following.add), value=100)

    assert third.result(BOUND) == 111
    assert bench.ledger.lines == ["give 1", "add 1 10 1", "add 11 100 1"], "each once, in its first attempt"
    wait_for(bench.settled)


@two_stores
def test_what_follows_waits_however_long_and_is_woken(bench: Bench) -> None:
    bench.start(processes=2)
    first = call(bench, following.wait_for_file).delay(1)
    second = first.then(call(bench, following.add))
    third = call(bench, following.plain, after=[first, second]).delay()
    wait_for(lambda: (first.status, second.status, third.status) == ("running", "scheduled", "scheduled"))

    open(f"{bench.ledger.path}.go", "w").close()

    assert third.result(BOUND) == "plain"
    assert bench.ledger.lines == ["begin 1", "add 1 1 1", "plain"]


@two_stores
def test_a_group_comes_together(bench: Bench) -> None:
    bench.start(processes=2)
    group: Group[int] = call(bench, following.give).map(range(20))

    last = group.then(call(bench, following.total), start=1000)

    assert last.result(BOUND) == 1190
    assert bench.ledger.find("total") == ["20 1"]


@sqlite_only
def test_a_large_result_is_passed_and_to_a_retry_again(bench: Bench) -> None:
    bench.start()
    first = call(bench, following.give_large).delay(300_000)

    second = first.then(call(bench, following.length_of, retry=Retry(1, delay=0)))

    assert second.result(BOUND) == 300_000
    assert bench.ledger.lines == ["length 1", "length 2"]


@sqlite_only
def test_results_that_are_plain_data_become_what_is_annotated_in_sealed_queues_too(
    bench: Bench,
) -> None:
    codec: dict[str, Any] = {"serializer": "json", "secret": "0123456789abcdef", "allow": ["tests.*"]}
    one, other = (Queue(name, bench.url, **codec) for name in ("one", "other"))
    options = Options().updated({"keep": "1h"})
    bench.start(queues={"one": codec, "other": codec})

    orders = Call(following.make_order, one, options).map([7, 8])
    last = orders.then(Call(following.order_total, other, options), Decimal("0.1"))

    assert last.result(BOUND) == "done"
    assert bench.ledger.find("orders") == ["['Order', 'Order'] Decimal"]
    one.broker.close()
    other.broker.close()


@sqlite_only
def test_what_follows_a_failure_fails_without_being_run(bench: Bench) -> None:
    bench.start(error_handler="tests.workers.tasks:on_error")
    failing = call(bench, following.fail).delay()
    second = failing.then(call(bench, following.add))
    third = second.then(call(bench, following.add, retry=5))

    with pytest.raises(TaskFailed, match=f"not run: it was to run after task {second.id}, which not run") as caught:
        third.result(BOUND)

    assert caught.value.verdict is not None and caught.value.verdict.kind == "not run"
    with pytest.raises(TaskFailed, match=rf"after task {failing.id}, which raised KeyError: 'key'"):
        second.result(BOUND)
    wait_for(lambda: len(bench.ledger.find("error")) == 3)
    assert bench.ledger.find("add") == []
    assert bench.settled()


@sqlite_only
def test_what_can_not_run_any_more_is_kept_where_failures_are(bench: Bench) -> None:
    gone = bench.queue.handle(12345)
    call(bench, following.plain, after=gone).delay()

    bench.burst(dead_letters=True)

    (letter,) = bench.queue.dead
    assert "it was to run after task 12345, which is gone, or its answer is not kept any more" in letter.reason


@two_stores
def test_the_death_of_a_worker_in_between_changes_nothing(bench: Bench) -> None:
    first_worker = bench.start(processes=2, lease=1.0)
    first = call(bench, following.wait_for_file, retry=1).delay(1)
    second = first.then(call(bench, following.add))
    wait_for(lambda: (first.status, second.status) == ("running", "scheduled"))

    server = fork_server_of(first_worker)
    os.kill(server, signal.SIGSTOP)  # so that it can't stand in before it dies
    first_worker.kill()
    os.kill(server, signal.SIGKILL)
    open(f"{bench.ledger.path}.go", "w").close()
    bench.start(lease=1.0)

    assert second.result(BOUND) == 2
    assert bench.ledger.find("add") == ["1 1 1"]


@sqlite_only
def test_a_stand_in_wakes_who_waits(bench: Bench) -> None:
    monitor = bench.start(processes=1)
    first = call(bench, following.wait_for_file).delay(1)
    second = first.then(call(bench, following.add))
    wait_for(lambda: bench.ledger.find("begin"))
    bench.start(processes=1)
    wait_for(lambda: (first.status, second.status) == ("running", "scheduled"))
    fork_server_of(monitor)

    os.kill(monitor.pid, signal.SIGKILL)
    open(f"{bench.ledger.path}.go", "w").close()

    assert second.result(BOUND) == 2
    assert bench.ledger.find("begin") == ["1"]
