"""Tasks that are not run because they had not begun in time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from delayed import ConfigError, Queue, Retry, Task, TaskFailed, delayed
from delayed.delay import Call
from delayed.options import Options
from delayed.retry import constant
from tests import functions
from tests.workers import hooks, retries, tasks
from tests.workers.conftest import Bench, fork_server_of, wait_for
from tests.workers.test_hooks import path


@pytest.fixture
def queue() -> Queue:
    return Queue("default", "memory://expiry")


def let_expire(bench: Bench, seconds: float) -> None:
    """Wait until what was enqueued just now, with that many seconds, has expired by the store's clock."""
    until = bench.queue.broker.clock(bench.queue.name) + seconds
    wait_for(lambda: bench.queue.broker.clock(bench.queue.name) > until)


def test_a_task_that_has_not_begun_in_time_is_not_run(bench: Bench, mode: str) -> None:
    bench.put(tasks.mark, "late", expires=0.05)
    bench.put(tasks.mark, "in time", expires=60.0)
    bench.put(tasks.mark, "whenever")
    let_expire(bench, 0.05)

    bench.burst(mode)

    assert sorted(bench.ledger.lines) == ["in time", "whenever"]
    assert bench.log().count("expired: it had not begun in time; it is not run") == 1
    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)


def test_hooks_hear_of_it_and_handlers_do_not(bench: Bench, mode: str) -> None:
    bench.put(tasks.mark, "late", expires=0.05)
    let_expire(bench, 0.05)

    bench.burst(mode, hooks=path(hooks.Everything), error_handler="tests.workers.tasks:on_error")

    told = [line for line in bench.ledger.lines if "mark" in line and not line.startswith("in ")]
    assert told == ["expired mark 1 expired", "after mark 1 expired"]
    assert bench.ledger.find("error") == []


def test_a_task_that_has_begun_is_retried_however_late(bench: Bench, mode: str) -> None:
    func = retries.fail_async if mode == "async" else retries.fail
    worker = bench.start(mode, preload=["tests.workers.retries"])
    fork_server_of(worker)
    bench.put(func, "VeryBusy", expires=4.0, retry=Retry(1, backoff=constant(5), jitter=False))

    wait_for(bench.settled)

    assert bench.ledger.find("run") == ["1", "2"]


def test_a_task_that_expires_while_its_worker_is_busy_is_not_run(bench: Bench) -> None:
    bench.put(tasks.nap, "first", 3.0)
    worker = bench.start("forked", processes=1)
    wait_for(lambda: bench.ledger.find("begin"))
    bench.put(tasks.mark, "late", expires=0.5)

    wait_for(bench.settled)

    assert bench.ledger.find("late") == []
    assert "expired" in bench.log()
    worker.terminate()


def test_whoever_waits_for_its_answer_hears_of_it(bench: Bench, mode: str) -> None:
    id = bench.put(tasks.mark, "late", expires=0.05, keep="1m")
    let_expire(bench, 0.05)

    bench.burst(mode)

    handle = bench.queue.handle(id)
    with pytest.raises(TaskFailed, match="expired: it had not begun in time"):
        handle.result(timeout=10)
    assert handle.verdict is not None and handle.verdict.kind == "expired"


def test_a_task_that_was_taken_by_hand_expires_too(queue: Queue) -> None:
    late = queue.enqueue(Task.create(tasks.mark, ("ledger",), expires=0.001))
    until = queue.broker.clock(queue.name) + 0.001
    wait_for(lambda: queue.broker.clock(queue.name) > until)
    soon = queue.enqueue(Task.create(tasks.mark, ("ledger",), expires=60.0))

    taken = queue.dequeue()

    assert taken is not None and taken.id == soon != late
    assert taken.expires == 60.0
    assert queue.release(taken)
    assert queue.broker.counts(queue.name) == (0, 0, 0, 0)


def test_ids_that_are_ahead_of_the_clock_keep_nothing_from_expiring(queue: Queue) -> None:
    queue.broker.reserve_ids(queue.name, 3_600_000 << 11)
    late = [Task.create(tasks.mark, ("ledger",), expires=0.001) for _ in range(3)]
    queue.enqueue(late[0])
    queue.enqueue_many(late[1:])
    until = queue.broker.clock(queue.name) + 0.002
    wait_for(lambda: queue.broker.clock(queue.name) > until)
    soon = queue.enqueue_many([Task.create(tasks.mark, ("ledger",), expires=60.0)])

    taken = queue.dequeue()

    assert taken is not None and [taken.id] == soon
    assert queue.release(taken)
    assert queue.broker.counts(queue.name) == (0, 0, 0, 0)


def test_what_expires_before_it_is_due_is_refused(queue: Queue) -> None:
    brief = Call(functions.add, queue, Options(expires=2.0))

    with pytest.raises(ConfigError, match="would never run: it expires 2 s after its enqueue, and is due 3 s after"):
        brief.after("3s").delay(1, 2)
    with pytest.raises(ConfigError, match="would never run"):
        brief.at(datetime.now(UTC) + timedelta(seconds=3)).delay(1, 2)

    assert queue.len() == 0


@pytest.mark.parametrize("expires", [0, -1, "soon", True])
def test_what_is_no_duration_is_refused(queue: Queue, expires: object) -> None:
    with pytest.raises(ConfigError, match="expires must be a duration"):
        delayed(queue, expires=expires)
