"""Tasks that are not run because they had not begun in time."""

from __future__ import annotations

import pytest

from delayed import ConfigError, Queue, Retry, Task, TaskFailed, delayed
from delayed.retry import constant
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


def test_ids_of_a_block_do_not_make_a_task_older_than_it_is(queue: Queue) -> None:
    """Producers reserve ids ahead, and those tell the time of then."""
    for _ in range(20):
        queue.enqueue(Task.create(tasks.mark, ("ledger",)))
    until = queue.broker.clock(queue.name) + 0.3
    wait_for(lambda: queue.broker.clock(queue.name) > until)
    before = queue.broker.clock(queue.name)

    one = queue.enqueue(Task.create(tasks.mark, ("ledger",), expires=0.2))
    many = queue.enqueue_many([Task.create(tasks.mark, ("ledger",), expires=0.2) for _ in range(3)])
    later = queue.enqueue(Task.create(tasks.mark, ("ledger",)))

    assert all((id >> 11) / 1000 >= before for id in (one, *many))
    assert [one, *many, later] == sorted([one, *many, later])


@pytest.mark.parametrize("expires", [0, -1, "soon", True])
def test_what_is_no_duration_is_refused(queue: Queue, expires: object) -> None:
    with pytest.raises(ConfigError, match="expires must be a duration"):
        delayed(queue, expires=expires)
