"""What a task can raise to say how it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from delayed import ConfigError, GiveBack, Reject, RetireChild, RetryLater, StopWorkers, TaskControl, TaskFailed
from tests.workers import hooks, tasks
from tests.workers.conftest import Bench, children_of, fork_server_of, wait_for
from tests.workers.test_hooks import path, told

COUNTED = {"max": 1, "delay": 100.0}  # the delay that the task asks for counts, not this one


def asking(mode: str) -> Any:
    """The task that raises: a coroutine where that makes a difference."""
    return hooks.ask_async if mode == "async" else hooks.ask


def test_a_task_that_asks_to_run_later_is_not_charged(bench: Bench, mode: str) -> None:
    bench.put(asking(mode), "RetryLater", 0.1, "not ready", kwargs={"times": 3})

    bench.burst(mode)

    assert bench.ledger.find("ask RetryLater") == ["1"] * 4, "its attempt is always the first"
    assert bench.ledger.find("granted") == ["RetryLater"]
    assert bench.ledger.find("swallowed") == []
    assert "put itself off: not ready" in bench.log()
    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)


def test_a_task_waits_for_as_long_as_it_asked_for(bench: Bench) -> None:
    bench.put(hooks.ask, "RetryLater", 50.0)
    bench.start()

    (entry,) = wait_for(lambda: bench.queue.broker.peek(bench.queue.name, "scheduled"))

    assert 30 < entry.due <= 51
    assert entry.attempt == 0


def test_a_task_that_asks_for_a_counted_retry_fails_when_its_retries_are_used_up(bench: Bench, mode: str) -> None:
    bench.put(asking(mode), "RetryLater", 0.1, kwargs={"count": True, "times": 9}, retry=COUNTED)

    bench.burst(mode, hooks=path(hooks.Everything))

    assert bench.ledger.find("ask RetryLater") == ["1", "2"]
    assert [line.partition(" ")[0] for line in told(bench, asking(mode).__name__)] == [
        "before", "retry", "after", "before", "exhausted", "after",
    ]  # fmt: skip
    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)


def test_a_task_that_gives_itself_back_is_not_charged(bench: Bench, mode: str) -> None:
    bench.put(asking(mode), "GiveBack", "not here")
    bench.put(tasks.mark, "next")

    bench.burst(mode)

    assert bench.ledger.lines == ["ask GiveBack 1", "next", "ask GiveBack 1", "granted GiveBack"]
    assert "gave itself back: not here" in bench.log()


def test_a_task_that_always_gives_itself_back_is_dead_in_the_end(bench: Bench) -> None:
    id = bench.put(hooks.ask, "GiveBack", "not here", kwargs={"times": 99}, max_deliveries=2, keep="1m")

    bench.burst()

    assert len(bench.ledger.find("ask")) == 2
    (entry,) = bench.queue.broker.peek(bench.queue.name, "dead")
    assert "max_deliveries" in entry.reason
    with pytest.raises(TaskFailed, match="gave itself back: not here"):
        bench.queue.handle(id).result(timeout=5)


def test_a_task_may_put_itself_off_as_often_as_it_likes(bench: Bench) -> None:
    bench.put(hooks.ask, "RetryLater", 0.01, kwargs={"times": 5}, max_deliveries=2)

    bench.burst()

    assert len(bench.ledger.find("ask")) == 6
    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)


def test_a_rejected_task_is_a_dead_letter_with_the_reason(bench: Bench, mode: str) -> None:
    bench.put(asking(mode), "Reject", "the address is wrong", retry=3)

    bench.burst(mode)

    assert bench.ledger.find("ask Reject") == ["1"]
    (entry,) = bench.queue.broker.peek(bench.queue.name, "dead")
    assert entry.reason == "the address is wrong"
    assert "was rejected: the address is wrong" in bench.log()


def test_a_task_may_retire_its_process(bench: Bench, mode: str) -> None:
    bench.put(asking(mode), "RetireChild")
    for _ in range(3):
        bench.put(hooks.give, 1)
    bench.put(asking(mode), "RetireChild", kwargs={"times": 9})
    bench.put(hooks.give, 1)

    bench.burst(mode, hooks=path(hooks.Everything))

    pids = [line.split()[0] for line in bench.ledger.find("task")]
    assert len(pids) == 4
    assert len(set(pids)) == (4 if mode == "forked" else 2)
    assert len(bench.ledger.find("ask")) == 2, "a task that retires its process is done"
    assert told(bench, asking(mode).__name__).count("success 1 RetireChild('')") == 2
    assert sorted(bench.ledger.find("start")) == sorted(line.split()[0] for line in bench.ledger.find("stop"))


def test_a_task_may_stop_its_worker(bench: Bench, mode: str) -> None:
    bench.put(tasks.nap, "beside", 1.0)
    bench.put(asking(mode), "StopWorkers", "enough")
    worker = bench.start(mode, processes=2)
    wait_for(lambda: bench.ledger.find("ask"))
    for number in range(3):
        bench.put(tasks.mark, number)

    assert worker.wait(15) == 0
    assert bench.ledger.find("end") == ["beside"], "what runs beside it finishes"
    assert bench.queue.broker.counts(bench.queue.name).running == 0
    assert len(bench.ledger.find("ask")) == 1


def test_two_tasks_that_stop_their_worker_do_not_end_a_third(bench: Bench) -> None:
    bench.put(tasks.nap, "beside", 1.5)
    bench.put(hooks.ask, "StopWorkers", kwargs={"times": 9})
    bench.put(hooks.ask, "StopWorkers", kwargs={"times": 9})
    worker = bench.start("threaded", threads=3)

    assert worker.wait(15) == 0
    assert bench.ledger.find("end") == ["beside"]


def supervised(bench: Bench, workers: int) -> subprocess.Popen[str]:
    """A supervisor whose workers have all started."""
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "delayed", "worker", "--url", bench.url, "--queue", bench.queue.name,
         "--mode", "preforked", "--processes", "1", "--workers", str(workers)],
        env={**os.environ, "LEDGER": str(bench.ledger.path)},
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )  # fmt: skip
    bench.workers.append(supervisor)
    wait_for(lambda: len(bench.queue.broker.workers(bench.queue.name)) == workers)
    return supervisor


def test_a_task_may_stop_all_workers_of_its_supervisor(bench: Bench) -> None:
    supervisor = supervised(bench, 2)

    bench.put(hooks.ask, "StopWorkers")

    _, log = supervisor.communicate(timeout=20)
    assert supervisor.returncode == 0, log
    assert "has stopped it, and with it all others here" in log
    assert bench.queue.broker.workers(bench.queue.name) == []


def test_two_workers_that_stop_their_supervisor_do_not_end_the_task_of_a_third(bench: Bench) -> None:
    supervisor = supervised(bench, 3)
    bench.put(tasks.nap, "beside", 3.0)
    wait_for(lambda: bench.ledger.find("begin"))

    for _ in range(2):
        bench.put(hooks.stop_in_turn)

    _, log = supervisor.communicate(timeout=25)
    assert supervisor.returncode == 0, log
    assert bench.ledger.find("end") == ["beside"]


@pytest.mark.parametrize("one_lane", ["forked", "preforked"])
def test_what_a_task_asked_for_stands_though_its_child_can_not_tell_it(bench: Bench, one_lane: str) -> None:
    bench.put(hooks.ask_without_descriptors, "RetryLater", 50.0)
    bench.start(one_lane)

    (entry,) = wait_for(lambda: bench.queue.broker.peek(bench.queue.name, "scheduled"))

    assert 30 < entry.due <= 51
    assert entry.attempt == 0


def test_what_a_task_asked_for_is_kept_when_its_monitor_dies(bench: Bench) -> None:
    bench.put(hooks.ask_when_monitor_is_gone, "RetryLater", 50.0)
    worker = bench.start("preforked", lease=30.0)
    wait_for(lambda: bench.ledger.find("waits"))
    fork_server = fork_server_of(worker)

    worker.kill()
    worker.wait()

    (entry,) = wait_for(lambda: bench.queue.broker.peek(bench.queue.name, "scheduled"))
    assert 30 < entry.due <= 51
    wait_for(lambda: not children_of(fork_server))


def test_the_error_handler_hears_of_failures_only(bench: Bench, mode: str) -> None:
    for wish in ("RetireChild", "GiveBack", "Reject"):
        bench.put(asking(mode), wish)

    bench.burst(mode, error_handler="tests.workers.tasks:on_error")

    (error,) = bench.ledger.find("error")
    assert "| Reject |" in error


@pytest.mark.parametrize("kind", [RetryLater, GiveBack, Reject, RetireChild, StopWorkers])
def test_an_except_exception_does_not_swallow_them(kind: type[TaskControl]) -> None:
    assert issubclass(kind, TaskControl)
    assert not issubclass(kind, Exception)


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), 1e12, "30x", True, None])
def test_a_delay_that_makes_no_sense_is_refused(delay: object) -> None:
    with pytest.raises(ConfigError, match="the delay of RetryLater"):
        RetryLater(delay)  # type: ignore[arg-type]
