"""What workers do with tasks that behave."""

from __future__ import annotations

import os
import signal
from math import inf

import pytest

from tests.workers import tasks
from tests.workers.conftest import Bench, alive, fork_server_of, wait_for
from tests.workers.deaths import exhausts_descriptors


def test_each_task_runs_once_and_nothing_is_left(bench: Bench, mode: str) -> None:
    for number in range(30):
        bench.put(tasks.mark, number)

    bench.burst(mode)

    assert sorted(map(int, bench.ledger.lines)) == list(range(30))
    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)


def test_tasks_run_in_the_order_in_which_they_were_enqueued(bench: Bench, mode: str) -> None:
    for number in range(20):
        bench.put(tasks.mark, number)

    bench.burst(mode)

    assert bench.ledger.lines == [str(number) for number in range(20)]


def test_kinds_of_functions(bench: Bench, mode: str) -> None:
    bench.put(tasks.mark_async, "async")
    bench.put(tasks.Methods.static)
    bench.put(tasks.Methods.of_class)

    bench.burst(mode)

    assert bench.ledger.lines == ["async", "static", "class Methods"]


def test_a_large_payload_arrives_whole(bench: Bench, mode: str) -> None:
    bench.put(tasks.size, b"x" * 3_000_000)

    bench.burst(mode)

    assert bench.ledger.lines == ["size 3000000"]


def test_a_forked_child_runs_one_task_and_a_preforked_one_many(bench: Bench, mode: str) -> None:
    for _ in range(5):
        bench.put(tasks.mark_pid)

    bench.burst(mode)

    assert len(set(bench.ledger.lines)) == (5 if mode == "forked" else 1)


def test_processes_run_at_once(bench: Bench, mode: str) -> None:
    for number in range(4):
        bench.put(tasks.nap, number, 1.0)
    worker = bench.start(mode, processes=4)

    wait_for(lambda: len(bench.ledger.find("begin")) == 4)

    assert bench.ledger.find("end") == []
    worker.terminate()
    assert worker.wait(10) == 0
    assert len(bench.ledger.find("end")) == 4, "SIGTERM lets running tasks finish"


def test_no_more_than_the_processes_run_at_once(bench: Bench, mode: str) -> None:
    for number in range(6):
        bench.put(tasks.nap, number, 0.1)

    bench.burst(mode, processes=2)

    running = most = 0
    for line in bench.ledger.lines:
        running += 1 if line.startswith("begin") else -1
        most = max(most, running)
    assert most == 2


def test_a_failed_task_is_retried_as_often_as_it_may(bench: Bench, mode: str) -> None:
    bench.put(tasks.fail_until, "a", 2, retry={"max": 2, "delay": 0.05})
    bench.put(tasks.fail_until, "b", 9, retry={"max": 2, "delay": 0.05})

    bench.burst(mode)

    assert bench.ledger.find("try a") == [""] * 3
    assert bench.ledger.find("done") == ["a"]
    assert bench.ledger.find("try b") == [""] * 3
    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)


def test_a_child_is_replaced_after_max_tasks(bench: Bench) -> None:
    for _ in range(6):
        bench.put(tasks.mark_pid)

    bench.burst("preforked", max_tasks=2)

    assert len(set(bench.ledger.lines)) == 3


def test_a_child_that_has_grown_is_replaced(bench: Bench) -> None:
    for _ in range(3):
        bench.put(tasks.leak, 30_000_000)

    bench.burst("preforked", max_memory=20_000_000)

    assert len(set(bench.ledger.lines)) == 3


def test_a_child_that_can_open_no_file_any_more_is_replaced(bench: Bench) -> None:
    bench.put(tasks.mark_pid)
    bench.put(exhausts_descriptors.die)
    bench.put(tasks.mark_pid)

    bench.burst("preforked")

    assert len(set(bench.ledger.lines)) == 2


def test_what_waits_behind_a_long_task_is_given_back_at_once(bench: Bench) -> None:
    for _ in range(50):  # the worker learns that tasks are short
        bench.put(tasks.mark, "short")
    bench.start()
    wait_for(lambda: len(bench.ledger.lines) == 50)
    bench.put(tasks.nap, "long", 8.0)
    for number in range(20):
        bench.put(tasks.mark, "behind", number)
    wait_for(lambda: bench.ledger.find("begin long"))

    bench.start()

    wait_for(lambda: len(bench.ledger.find("behind")) == 20, 6.0)
    assert bench.ledger.find("end long") == []


@pytest.mark.parametrize(("number", "patience"), [(signal.SIGTERM, 20.0), (signal.SIGINT, inf)])
def test_a_worker_that_is_told_to_stop_gives_back_what_has_not_begun(
    bench: Bench, mode: str, number: signal.Signals, patience: float
) -> None:
    bench.put(tasks.nap, "first", 0.5)
    for word in range(5):
        bench.put(tasks.nap, word, 0.5)
    worker = bench.start(mode, shutdown_timeout=patience)
    wait_for(lambda: bench.ledger.find("begin first"))

    worker.send_signal(number)

    assert worker.wait(10) == 0
    assert bench.ledger.find("end") == ["first"]
    assert bench.log().count("s to finish") == 1
    assert bench.queue.broker.counts(bench.queue.name).ready == 5
    entries = bench.queue.broker.peek(bench.queue.name, "ready")
    assert [entry.attempt for entry in entries] == [0] * 5, "giving back charges nothing"


def test_tasks_that_do_not_finish_in_time_are_stopped_and_given_back(bench: Bench, mode: str) -> None:
    bench.put(tasks.tidy_up)
    bench.put(tasks.stuck_stubborn)
    worker = bench.start(mode, processes=2, shutdown_timeout=0.3)
    wait_for(lambda: len(bench.queue.broker.peek(bench.queue.name, "running")) == 2)
    wait_for(lambda: len(bench.queue.broker.workers(bench.queue.name)) == 1)
    children = [int(pid) for pid in _children(fork_server_of(worker))]

    worker.terminate()

    assert worker.wait(10) == 0
    entries = bench.queue.broker.peek(bench.queue.name, "ready")
    assert [entry.attempt for entry in entries] == [0, 0]
    assert not any(alive(pid) for pid in children)


def test_a_second_signal_stops_at_once(bench: Bench, mode: str) -> None:
    bench.put(tasks.nap, "long", 30.0)
    worker = bench.start(mode)
    wait_for(lambda: bench.ledger.find("begin"))

    worker.terminate()
    wait_for(lambda: "nothing more is taken" in bench.log())
    worker.terminate()

    assert worker.wait(5) == 0
    assert bench.queue.broker.counts(bench.queue.name).ready == 1


def test_sighup_finishes_what_runs_and_takes_nothing_more(bench: Bench, mode: str) -> None:
    bench.put(tasks.nap, "first", 1.0)
    bench.put(tasks.nap, "second", 1.0)
    worker = bench.start(mode, shutdown_timeout=0.1)
    wait_for(lambda: bench.ledger.find("begin"))

    worker.send_signal(signal.SIGHUP)

    assert worker.wait(10) == 0
    assert bench.ledger.find("end") == ["first"]
    assert bench.queue.broker.counts(bench.queue.name).ready == 1


def test_signals_to_the_whole_group_do_not_interrupt_tasks(bench: Bench, mode: str) -> None:
    bench.put(tasks.nap, "task", 0.5)
    worker = bench.start(mode)
    wait_for(lambda: bench.ledger.find("begin"))

    os.killpg(worker.pid, signal.SIGINT)

    assert worker.wait(10) == 0
    assert bench.ledger.find("end") == ["task"]


def _children(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


def test_exit_handlers_of_a_child_run_when_its_worker_leaves(bench: Bench) -> None:
    bench.put(tasks.register_exit)

    bench.burst("preforked")

    assert bench.ledger.lines == ["exit handler"]


def test_what_a_task_printed_is_not_lost_when_its_worker_leaves(bench: Bench, mode: str) -> None:
    bench.put(tasks.say, "spoken")

    bench.burst(mode)

    assert "spoken" in bench.log().splitlines()
