"""Limits: of memory for a child and for a worker, of memory and CPU for a task."""

from __future__ import annotations

import os
import re
import signal

import pytest

from tests.workers import tasks
from tests.workers.conftest import Bench, alive, fork_server_of, wait_for

CPU_BOUND = 50.0  # seconds within which a few seconds of CPU are to be had, on a machine that is busy with others
HANDLER = "tests.workers.tasks:on_error"

ALONE = pytest.mark.parametrize("mode", ["forked", "preforked"])  # children that run one task at a time
SHARED = pytest.mark.parametrize("mode", ["threaded", "async"])

pytestmark = pytest.mark.parametrize("bench", ["sqlite", "redis"], indirect=True)


# -- of a child --------------------------------------------------------------------------------------------------------


def test_a_child_that_uses_too_much_memory_is_killed(bench: Bench, mode: str) -> None:
    bench.put(tasks.hoard, 150)
    bench.put(tasks.mark, "next")

    bench.burst(mode, kill_memory="100M", error_handler=HANDLER)

    (error,) = bench.ledger.find("error hoard")
    found = re.match(r"\| 9 \| None \| killed by its worker: it used (\d+) MB of memory, limit 100 MB after", error)
    assert found is not None, error
    assert 100 <= int(found[1]) < 250
    (stack,) = bench.ledger.find("stack")
    assert "in hoard" in stack
    assert "in hoard" in bench.log()
    assert "next" in bench.ledger.lines
    assert bench.ledger.find("end hoard") == []


def test_being_killed_for_its_memory_is_charged_and_retried(bench: Bench, mode: str) -> None:
    bench.put(tasks.hoard, 150, retry={"max": 1, "delay": 0.05})

    bench.burst(mode, kill_memory="100M", error_handler=HANDLER)

    assert len(bench.ledger.find("error hoard")) == 2


def test_what_a_task_started_counts_too(bench: Bench, mode: str) -> None:
    bench.put(tasks.hoard_in_subprocess, 150)

    bench.burst(mode, kill_memory="100M", error_handler=HANDLER)

    (error,) = bench.ledger.find("error hoard_in_subprocess")
    assert "killed by its worker: it used" in error
    wait_for(lambda: not any(alive(int(pid)) for pid in bench.ledger.find("started")))


def test_what_was_preloaded_is_shared_and_counts_once(bench: Bench, mode: str) -> None:
    """200 MB, in the fork server and in at least three children."""
    bench.put(tasks.nap, "long", 1.5)

    bench.burst(mode, kill_memory="180M", processes=3, preload=["tests.workers.large"], error_handler=HANDLER)

    assert bench.ledger.find("end") == ["long"]
    assert bench.ledger.find("error") == []


def test_a_handler_that_uses_too_much_memory_is_killed_with_its_child(bench: Bench, mode: str) -> None:
    bench.put(tasks.mark, "done")
    bench.put(tasks.mark, "next")

    bench.burst(mode, kill_memory="100M", success_handler="tests.workers.tasks:hoard_in_handler")

    assert bench.ledger.find("done") == [""], "what it handled stands"
    assert bench.ledger.find("next") == [""]
    assert bench.ledger.find("handler") == ["done"]
    assert re.search(r"child \d+ is killed in a handler: it used \d+ MB of memory, limit 100 MB", bench.log())
    assert bench.settled()


@SHARED
def test_a_child_of_many_tasks_that_uses_too_much_memory_runs_each_alone(bench: Bench, mode: str) -> None:
    """Nobody can tell which of them it was, so none is charged before."""
    lanes = {"threaded": "threads", "async": "concurrency"}[mode]
    bench.start(mode, kill_memory="100M", error_handler=HANDLER, **{lanes: 3})
    bench.put(tasks.nap, "patient", 3.0)
    bench.put(tasks.hoard, 150)

    wait_for(lambda: bench.settled() and bench.ledger.find("error"))

    (error,) = bench.ledger.find("error")
    assert error.startswith("hoard | 9 | None | killed by its worker: it used"), error
    assert len(bench.ledger.find("begin patient")) == 2
    assert bench.ledger.find("end") == ["patient"]
    assert "killed by its worker: it used" in bench.log().partition("while it ran 2 tasks")[0]


def test_a_stand_in_minds_the_memory_as_well(bench: Bench, mode: str) -> None:
    worker = bench.start(mode, kill_memory="100M")
    fork_server_of(worker)
    bench.put(tasks.hoard_when_told, 150, str(bench.folder / "now"))
    wait_for(lambda: bench.ledger.find("begin"))
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: "stands in" in bench.log())

    (bench.folder / "now").touch()

    wait_for(bench.settled)
    assert "killed by its worker: it used" in bench.log()
    assert bench.ledger.find("end") == []


# -- of a task ---------------------------------------------------------------------------------------------------------


@ALONE
def test_a_task_that_allocates_more_than_it_may_gets_a_memory_error(bench: Bench, mode: str) -> None:
    bench.put(tasks.allocate, 40, memory="64M")
    bench.put(tasks.allocate, 100, memory="64M")
    bench.put(tasks.allocate, 101)

    bench.burst(mode, error_handler=HANDLER)

    assert bench.ledger.find("allocated") == ["40", "101"], "the limit is the one task's"
    (error,) = bench.ledger.find("error allocate")
    assert error.startswith("| None | MemoryError | raised MemoryError; its limit was 64 MB of memory after"), error


@ALONE
def test_a_memory_error_is_retried(bench: Bench, mode: str) -> None:
    bench.put(tasks.allocate, 100, memory="64M", retry={"max": 2, "delay": 0.05})

    bench.burst(mode, error_handler=HANDLER)

    assert len(bench.ledger.find("error allocate")) == 3


@ALONE
def test_native_code_that_crashes_at_the_limit_is_told_apart(bench: Bench, mode: str) -> None:
    bench.put(tasks.allocate_or_abort, 100, memory="64M")
    bench.put(tasks.allocate_or_abort, 100)

    bench.burst(mode, error_handler=HANDLER)

    (error,) = bench.ledger.find("error")
    assert "killed by signal 6 (SIGABRT), not by its worker" in error
    assert "; its limit was 64 MB of memory" in error
    assert bench.ledger.find("allocated") == ["100"]


def test_what_a_preforked_child_has_already_is_not_the_task_s(bench: Bench) -> None:
    bench.put(tasks.leak, 100_000_000)
    bench.put(tasks.allocate, 40, memory="64M")

    bench.burst("preforked", error_handler=HANDLER)

    assert bench.ledger.find("allocated") == ["40"]


@ALONE
def test_a_task_whose_cpu_time_is_used_up_is_stopped_where_it_is(bench: Bench, mode: str) -> None:
    bench.put(tasks.burn_and_tidy_up, cpu=1)
    bench.put(tasks.burn, 0.3, cpu=1)

    bench.burst(mode, CPU_BOUND, error_handler=HANDLER)

    (error,) = bench.ledger.find("error burn_and_tidy_up")
    assert error.startswith("| None | TaskTimeout | used its 1 s of CPU after"), error
    assert "tidied" in bench.ledger.lines
    (stack,) = bench.ledger.find("stack")
    assert "in burn_and_tidy_up" in stack
    assert "in burn_and_tidy_up" in bench.log()
    assert "raised ValueError: burnt" in bench.ledger.find("error burn |")[0]


def test_a_task_that_waits_uses_no_cpu_time(bench: Bench) -> None:
    bench.put(tasks.nap, "long", 2.5, cpu=1)

    bench.burst()

    assert bench.ledger.find("end") == ["long"]


def test_cpu_time_counts_for_each_task_by_itself(bench: Bench) -> None:
    for _ in range(3):
        bench.put(tasks.burn, 0.8, cpu=1)

    bench.burst("preforked", CPU_BOUND, error_handler=HANDLER)

    errors = bench.ledger.find("error burn")
    assert len(errors) == 3
    assert all("raised ValueError: burnt" in error for error in errors), errors


@ALONE
def test_a_task_that_uses_up_its_cpu_time_in_c_code_is_killed(bench: Bench, mode: str) -> None:
    bench.put(tasks.stuck_in_c, cpu=1)

    bench.burst(mode, CPU_BOUND, error_handler=HANDLER)

    (error,) = bench.ledger.find("error")
    assert error.startswith("stuck_in_c | 9 | TaskTimeout | used its 1 s of CPU, and was killed by signal 9"), error
    (stack,) = bench.ledger.find("stack")
    assert "in stuck_in_c" in stack


def test_a_child_whose_limits_a_task_has_lowered_for_good_is_replaced(bench: Bench) -> None:
    bench.put(tasks.lower_hard_limit, 200, memory="64M")
    bench.put(tasks.allocate, 300)

    bench.burst("preforked", error_handler=HANDLER)

    assert bench.ledger.find("error") == []
    assert bench.ledger.find("allocated") == ["300"]


@SHARED
def test_a_process_of_several_tasks_can_not_hold_limits_of_one(bench: Bench, mode: str) -> None:
    id = bench.put(tasks.mark, "limited", memory="64M", cpu=2)
    bench.put(tasks.mark, "other")
    worker = bench.start(mode, error_handler=HANDLER)
    wait_for(lambda: bench.ledger.find("error") and "other" in bench.ledger.lines)
    worker.terminate()
    assert worker.wait(10) == 0

    (error,) = bench.ledger.find("error")
    assert "refused: this worker can't hold a task to limits of its own (memory, cpu): its tasks share" in error
    assert "limited" not in bench.ledger.lines
    (entry,) = bench.queue.broker.peek(bench.queue.name, "scheduled")
    assert entry.message.id == id
    bench.start("preforked")  # takes it when the pause is over
    wait_for(lambda: "limited" in bench.ledger.lines)


def test_where_limits_can_not_be_held_the_task_is_left_to_others(bench: Bench) -> None:
    id = bench.put(tasks.mark, "limited", memory="64M", cpu=2)
    bench.put(tasks.mark, "other")
    worker = bench.start(preload=["tests.workers.elsewhere"], error_handler=HANDLER)
    wait_for(lambda: bench.ledger.find("error"))
    worker.terminate()
    assert worker.wait(10) == 0

    (error,) = bench.ledger.find("error")
    assert "LimitsRefused | refused: this worker can't hold a task to limits of its own (memory, cpu): linux" in error
    assert "other" in bench.ledger.lines
    assert "limited" not in bench.ledger.lines
    (entry,) = bench.queue.broker.peek(bench.queue.name, "scheduled")
    assert entry.message.id == id
    assert 3 < entry.due <= 5


# -- of a worker -------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_too_large_finishes_what_runs_and_leaves(bench: Bench, mode: str) -> None:
    worker = bench.start(mode, worker_memory="150M", shutdown_timeout=0.2, impatient=True)
    bench.put(tasks.hoard_for, 200, 2.0)
    bench.put(tasks.mark, "kept")

    assert worker.wait(20) == 4, bench.log()
    assert bench.ledger.find("end hoard") == [""]
    assert re.search(r"uses \d+ MB of memory, limit 150 MB: it finishes what runs, and leaves", bench.log())
    assert bench.queue.broker.counts(bench.queue.name).running == 0


def test_a_worker_that_is_too_large_works_all_the_same_for_a_while(bench: Bench) -> None:
    bench.put(tasks.mark, "done")

    bench.burst(worker_memory="1M")

    assert bench.ledger.lines == ["done"]
