"""A task that writes into its child's channel, or shuts it, harms neither the worker nor what others run."""

from __future__ import annotations

import re
import socket

import pytest

from tests.workers import intruders, tasks
from tests.workers.conftest import Bench, fork_server_of, wait_for

pytestmark = pytest.mark.parametrize("bench", ["sqlite"], indirect=True)


def test_garbage_in_a_channel_is_told_of_once_and_passed_by(bench: Bench, mode: str) -> None:
    words = [f"good {number}" for number in range(60)]
    for number, word in enumerate(words):
        bench.put(tasks.mark, word)
        if number % 15 == 7:
            bench.put(intruders.send_garbage)
    worker = bench.start(mode, processes=2)
    server = fork_server_of(worker)

    wait_for(bench.settled)

    assert worker.poll() is None and fork_server_of(worker) == server
    assert sorted(bench.ledger.find("good")) == sorted(word.split()[1] for word in words)
    assert len(bench.ledger.find("sent")) == 4
    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)
    told = re.findall(r" ERROR .* child (\d+) sends what is no report", bench.log())
    assert 1 <= len(told) == len(set(told)) <= 4
    assert len([line for line in bench.log().splitlines() if " ERROR " in line or "Traceback" in line]) == len(told)


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_channel_that_is_shut_is_replaced(bench: Bench, mode: str, how: int) -> None:
    words = [f"good {number}" for number in range(30)]
    for number, word in enumerate(words):
        bench.put(tasks.mark, word)
        if number % 10 == 5:
            bench.put(intruders.shut, int(how))
    worker = bench.start(mode, processes=2)

    wait_for(bench.settled)
    bench.put(tasks.mark, "last")
    wait_for(lambda: "last" in bench.ledger.lines and bench.settled())

    assert sorted(bench.ledger.find("good")) == sorted(word.split()[1] for word in words)
    assert len(bench.ledger.find("shut")) == 3
    worker.terminate()
    assert worker.wait(10) == 0
    assert "Traceback" not in bench.log()


def test_a_flooded_channel_holds_up_nobodys_deadline(bench: Bench, mode: str) -> None:
    bench.put(intruders.flood, "error sleep_until")
    bench.put(intruders.sleep_until, "flooding", timeout=0.5)
    worker = bench.start(mode, processes=2, error_handler="tests.workers.tasks:on_error")

    wait_for(bench.settled)

    assert worker.poll() is None
    assert bench.ledger.find("flooded") == [""]
    assert len(bench.ledger.find("error")) == 1
