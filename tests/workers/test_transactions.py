"""Tasks that commit their own writes together with their end: whatever is killed, the effects happen once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from delayed import TaskError, current
from delayed.message import Settlement
from delayed.retry import Retry
from tests.bank import Bank, bank_at
from tests.workers import tasks, transfers
from tests.workers.conftest import Bench, children_of, fork_servers_of, wait_for

TRANSACTIONAL = ["sqlite", "postgres", "mongodb"]
transactional = pytest.mark.parametrize("bench", TRANSACTIONAL, indirect=True)


@pytest.fixture
def bank(bench: Bench) -> Bank:
    bench.queue.broker.check()
    bank = bank_at(bench.url, f"bank_{bench.queue.name.replace('-', '_')}")
    bank.open()
    return bank


def put(bench: Bench, bank: Bank, inside: str = "", after: str = "", retry: int = 3) -> int:
    return bench.put(transfers.transfer_and, bench.url, bank.name, 1, inside, after, retry=Retry.of(retry))


def test_outside_a_task_there_is_none() -> None:
    for name in ("id", "queue", "attempt", "key", "time_left", "deadline", "fencing_token"):
        with pytest.raises(TaskError, match="no task runs here"):
            getattr(current, name)
    with pytest.raises(TaskError, match="no task runs here"), current.transaction():
        pass
    assert repr(current) == "<current: no task>"


def test_a_task_knows_itself(bench: Bench, mode: str) -> None:
    name = bench.queue.name
    id = bench.put(transfers.tell, timeout=50)
    named = bench.put(transfers.tell, key="order 7", timeout=float("inf"))
    bench.burst(mode)

    assert bench.ledger.find("about") == [f"{id} {name} 1 {name}:{id} 1", f"{named} {name} 1 order 7 1"]
    with_limit, without = (line.split() for line in bench.ledger.find("left"))
    assert 45 < float(with_limit[0]) < 50
    assert abs(time.time() + 45 - float(with_limit[1])) < 20
    assert without == ["None", "None"]


@pytest.mark.parametrize("bench", ["redis"], indirect=True)
def test_redis_says_what_to_do_instead(bench: Bench) -> None:
    put_id = bench.put(transfers.transfer, bench.url, "bank", 1)
    bench.burst()

    assert f"task {put_id}" in bench.log()
    assert "current.key" in bench.log()


@transactional
def test_a_transaction_ends_its_task(bench: Bench, bank: Bank, mode: str) -> None:
    put(bench, bank)
    bench.burst(mode)

    bank.check([1])
    assert bench.ledger.lines == ["begin 1", "end"]
    assert bench.settled()
    assert "refused" not in bench.log()


@transactional
def test_what_a_task_executes_inherits_nothing(bench: Bench, mode: str) -> None:
    """Not even where the task asks for it, and amid a transaction, when its process has most open."""
    bench.put(transfers.list_inherited, timeout=10.0)
    bench.burst(mode)

    assert bench.ledger.lines == ["0 1 2"]


@transactional
def test_a_child_that_has_had_a_transaction_runs_the_next_task(bench: Bench, bank: Bank) -> None:
    """Even where the driver keeps threads."""
    bench.put(tasks.mark_pid)
    put(bench, bank)
    bench.put(tasks.mark_pid)
    bench.burst()

    before, _, _, after = bench.ledger.lines
    assert before == after


@transactional
@pytest.mark.parametrize("inside", ["raise", "kill"])
def test_what_ends_inside_is_undone_and_tried_again(bench: Bench, bank: Bank, mode: str, inside: str) -> None:
    put(bench, bank, inside=inside)
    bench.burst(mode)

    bank.check([1])
    assert bench.ledger.lines == ["begin 1", "begin 2", "end"]


@transactional
def test_what_hangs_inside_is_killed_undone_and_tried_again(bench: Bench, bank: Bank, mode: str) -> None:
    # Long enough for the second run to load a driver and to connect on a busy machine.
    bench.put(transfers.transfer_and, bench.url, bank.name, 1, "hang", "", timeout=3.0, retry=Retry.of(3))
    bench.burst(mode)

    bank.check([1])
    assert bench.ledger.lines == ["begin 1", "begin 2", "end"]
    assert "timed out" in bench.log()


@transactional
@pytest.mark.parametrize(("after", "word"), [("raise", "raised ValueError"), ("kill", "killed by signal 9")])
def test_what_ends_after_its_transaction_is_done(bench: Bench, bank: Bank, mode: str, after: str, word: str) -> None:
    put(bench, bank, after=after)
    bench.burst(mode)

    bank.check([1])
    assert bench.ledger.lines == ["begin 1"]
    assert bench.settled()
    assert word in bench.log()
    assert "its transaction had committed, so it is done" in bench.log()


@transactional
def test_after_its_transaction_a_task_may_take_its_time(bench: Bench, bank: Bank, mode: str) -> None:
    put(bench, bank, after="nap")
    bench.burst(mode, lease=1.0)

    bank.check([1])
    assert bench.ledger.lines == ["begin 1", "end"]
    assert "lost" not in bench.log()


@transactional
def test_a_task_has_one_transaction(bench: Bench, bank: Bank) -> None:
    bench.put(transfers.transfer_twice, bench.url, bank.name)
    bench.burst()

    bank.check([1])
    assert "has a committed transaction already" in bench.log()


@transactional
def test_follow_ups_come_with_the_commit(bench: Bench, bank: Bank, mode: str) -> None:
    put(bench, bank, inside="enqueue")
    bench.burst(mode)

    assert bench.ledger.lines == ["begin 1", "end", "follow-up"]


@transactional
def test_follow_ups_go_with_the_rollback(bench: Bench, bank: Bank, mode: str) -> None:
    put(bench, bank, inside="enqueue and raise", retry=0)
    bench.burst(mode)

    bank.check([])
    assert bench.ledger.lines == ["begin 1"]


@transactional
def test_a_task_whose_claim_is_lost_commits_nothing(bench: Bench, bank: Bank, mode: str) -> None:
    broker, name = bench.queue.broker, bench.queue.name
    id = bench.put(transfers.transfer_late, bench.url, bank.name, 1)
    bench.start(mode, lease=30.0)
    wait_for(lambda: bench.ledger.find("begin"))
    entry = broker.get(name, id)
    assert entry is not None
    (claim,) = broker.held(entry.worker, [name])

    assert broker.settle(entry.worker, [Settlement(claim.ref, "dead", reason="taken away")]) == [True]
    Path(f"{bench.ledger.path}.go").touch()

    wait_for(lambda: "lost" in bench.log())
    bank.check([])
    assert bench.ledger.lines == ["begin 1"]
    assert broker.counts(name) == (0, 0, 0, 1)


@transactional
def test_random_deaths_of_anybody_apply_each_transfer_once(bench: Bench, bank: Bank, mode: str) -> None:
    total = 150 if mode == "forked" or bench.url.startswith("mongodb") else 600  # there, who meets another fails
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    for number in range(total):
        bench.put(transfers.transfer, bench.url, bank.name, number, retry=Retry.of(-1))
    deadline = time.monotonic() + 45
    kills = 0
    workers = [bench.start(mode, processes=2) for _ in range(2)]

    while not bench.settled() and time.monotonic() < deadline:
        time.sleep(dice.uniform(0.0, 0.1))
        victim = dice.randrange(2)
        if kills < 40:
            kills += kill_one(workers[victim], dice)
        if workers[victim].poll() is not None:
            workers[victim] = bench.start(mode, processes=2)

    assert bench.settled(), f"seed {seed}: {bench.queue.broker.counts(bench.queue.name)}"
    bank.check(list(range(total)))


def kill_one(worker: subprocess.Popen[str], dice: random.Random) -> int:
    """Kill the monitor, the fork server or a child of a worker; how many that was."""
    servers = fork_servers_of(worker.pid)
    children = [child for server in servers for child in children_of(server)]
    victims = dice.choice([[worker.pid], servers, children, children, children])
    if not victims or worker.poll() is not None:
        return 0
    try:
        os.kill(dice.choice(victims), signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return 1
