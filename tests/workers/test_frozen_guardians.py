"""Who is stopped, and not dead, holds nobody up: the other guardian takes his place."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.workers import tasks
from tests.workers.conftest import Bench, alive, children_of, fork_server_of, wait_for


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
def test_a_fork_server_stands_in_for_a_frozen_monitor(bench: Bench, mode: str) -> None:
    bench.put(tasks.nap, "long", 2.5)
    bench.put(tasks.nap, "next", 0.0)
    worker = bench.start(mode)
    wait_for(lambda: bench.ledger.find("begin"))
    server = fork_server_of(worker)

    worker.send_signal(signal.SIGSTOP)

    assert worker.wait(10) == -signal.SIGKILL
    wait_for(lambda: not alive(server), 10.0)
    assert bench.ledger.find("end") == ["long"]
    counts = bench.queue.broker.counts(bench.queue.name)
    assert (counts.ready, counts.running) == (1, 0), "the running one is settled, the other given back"
    assert "frozen for" in bench.log()


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
def test_what_ended_is_settled_for_a_frozen_monitor_when_no_child_is_left(bench: Bench) -> None:
    bench.put(tasks.nap, "long", 0.5)
    worker = bench.start("forked")
    wait_for(lambda: bench.ledger.find("begin"))
    server = fork_server_of(worker)

    worker.send_signal(signal.SIGSTOP)
    wait_for(lambda: bench.ledger.find("end"))
    for child in children_of(server):  # those that would have had the next tasks
        os.kill(child, signal.SIGKILL)

    assert worker.wait(10) == -signal.SIGKILL
    wait_for(bench.settled)
    assert bench.ledger.find("end") == ["long"]
    assert "frozen for" in bench.log()


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
def test_a_frozen_monitor_without_tasks_is_left_alone(bench: Bench) -> None:
    worker = bench.start("preforked")
    bench.put(tasks.mark, "first")
    wait_for(bench.settled)

    worker.send_signal(signal.SIGSTOP)
    time.sleep(2.5)  # longer than it may be silent with tasks
    worker.send_signal(signal.SIGCONT)
    bench.put(tasks.mark, "second")

    wait_for(lambda: "second" in bench.ledger.lines)
    assert worker.poll() is None


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
def test_a_worker_that_was_stopped_as_a_whole_goes_on(bench: Bench) -> None:
    bench.put(tasks.nap, "long", 1.0)
    worker = bench.start("preforked", lease=6.0)
    wait_for(lambda: bench.ledger.find("begin"))
    server = fork_server_of(worker)
    pids = [worker.pid, server, *children_of(server)]

    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4.0)  # longer than one of them alone may be silent, shorter than what is left of the lease
    for pid in reversed(pids):
        os.kill(pid, signal.SIGCONT)

    wait_for(bench.settled)
    assert bench.ledger.find("end") == ["long"]
    assert worker.poll() is None
    assert "frozen for" not in bench.log()


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
def test_a_child_that_was_frozen_before_it_began_is_replaced(bench: Bench, mode: str) -> None:
    bench.put(tasks.mark, "first")
    worker = bench.start(mode)
    wait_for(bench.settled)
    children = wait_for(lambda: children_of(fork_server_of(worker)))
    for child in children:
        os.kill(child, signal.SIGSTOP)

    for number in range(3):
        bench.put(tasks.mark, number)

    wait_for(bench.settled)
    assert sorted(bench.ledger.lines) == ["0", "1", "2", "first"]
    assert not alive(children[0])
    assert "has begun nothing" in bench.log()


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
def test_a_frozen_fork_server_is_replaced(bench: Bench) -> None:
    worker = bench.start("forked")
    bench.put(tasks.mark, "first")
    wait_for(bench.settled)
    server = fork_server_of(worker)

    os.kill(server, signal.SIGSTOP)
    for number in range(5):  # more than there are children ready
        bench.put(tasks.mark, number)

    wait_for(bench.settled)
    assert not alive(server)
    assert {str(number) for number in range(5)} <= set(bench.ledger.lines)
    assert worker.poll() is None
