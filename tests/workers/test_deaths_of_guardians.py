"""Monitor and fork server are killed at random moments: no task is lost, none runs twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from delayed.task import Task
from tests.workers import tasks
from tests.workers.conftest import Bench, alive, children_of, fork_server_of, fork_servers_of, wait_for


def test_a_fork_server_is_replaced_and_its_children_finish(bench: Bench, mode: str) -> None:
    bench.put(tasks.nap, "long", 1.0)
    worker = bench.start(mode)
    wait_for(lambda: bench.ledger.find("begin"))

    os.kill(fork_server_of(worker), signal.SIGKILL)
    bench.put(tasks.mark, "after")

    wait_for(bench.settled)
    assert bench.ledger.find("begin long") == bench.ledger.find("begin long")[:1]
    assert bench.ledger.find("end") == ["long"]
    assert "after" in bench.ledger.lines
    assert worker.poll() is None


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
def test_a_child_that_its_fork_server_could_not_report_keeps_its_seat(bench: Bench) -> None:
    """Else there would be two in one seat, and one's death would be taken for that of the other's task."""
    worker = bench.start(preload=["tests.workers.untold"])
    wait_for((bench.folder / "ledger.untold").exists)
    for number in range(4):
        bench.put(tasks.nap, str(number), 0.2)

    wait_for(bench.settled)
    assert sorted(bench.ledger.find("end")) == ["0", "1", "2", "3"]
    assert len(bench.ledger.find("begin")) == 4
    (server,) = fork_servers_of(worker.pid)
    wait_for(lambda: [*children_of(worker.pid)] == [server] and len(children_of(server)) == 1)
    assert worker.poll() is None


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
def test_a_child_that_comes_when_its_fork_server_is_dead_goes_and_is_buried(bench: Bench) -> None:
    worker = bench.start(preload=["tests.workers.strays"])
    sign = bench.folder / "ledger.stray"
    stray = int(wait_for(lambda: sign.exists() and sign.read_text()))
    bench.put(tasks.mark, "after")

    wait_for(bench.settled)
    assert bench.ledger.lines == ["after"]
    wait_for(lambda: not Path(f"/proc/{stray}").exists())
    assert worker.poll() is None


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
@pytest.mark.parametrize("kind", ["forked", "preforked"])
def test_daemons_whose_fork_server_was_killed_end_with_the_child_of_their_task(bench: Bench, kind: str) -> None:
    worker = bench.start(kind)
    bench.put(tasks.fork_daemons_and_wait)
    wait_for(lambda: bench.ledger.find("begin"))
    daemons = [int(pid) for pid in bench.ledger.find("daemon")]
    server = fork_server_of(worker)

    os.kill(server, signal.SIGKILL)

    wait_for(lambda: [pid for pid in fork_servers_of(worker.pid) if pid != server])
    assert all(alive(pid) for pid in daemons), "their task may need them"
    open(f"{bench.ledger.path}.end", "w").close()
    wait_for(lambda: not Path(f"/proc/{daemons[-1]}").exists(), 5.0)
    assert all(alive(pid) for pid in daemons[:-1])
    open(f"{bench.ledger.path}.go", "w").close()
    wait_for(bench.settled)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in daemons), 5.0)
    assert len(daemons) == 4
    assert worker.poll() is None


def test_a_fork_server_stands_in_for_its_monitor(bench: Bench, mode: str) -> None:
    bench.put(tasks.nap, "long", 1.5)
    bench.put(tasks.nap, "next", 0.0)
    worker = bench.start(mode)
    wait_for(lambda: bench.ledger.find("begin"))
    server = fork_server_of(worker)

    worker.kill()

    wait_for(lambda: not alive(server), 10.0)
    assert bench.ledger.find("end") == ["long"]
    counts = bench.queue.broker.counts(bench.queue.name)
    assert (counts.ready, counts.running) == (1, 0), "the running one is settled, the other given back"
    assert bench.queue.broker.peek(bench.queue.name, "ready")[0].attempt == 0


def test_a_monitor_that_fails_by_itself_leaves_its_tasks_to_the_fork_server(bench: Bench, mode: str) -> None:
    sign = bench.folder / "fail"
    bench.put(tasks.nap, "long", 1.5)
    bench.put(tasks.nap, "next", 0.0)
    worker = bench.start(mode, lease=60.0, fails_at=str(sign))
    wait_for(lambda: bench.ledger.find("begin"))
    server = fork_server_of(worker)

    sign.touch()

    assert worker.wait(10) == 1
    wait_for(lambda: not alive(server), 10.0)
    assert "RuntimeError: told to fail" in bench.log()
    assert bench.ledger.find("end") == ["long"]
    counts = bench.queue.broker.counts(bench.queue.name)
    assert (counts.ready, counts.running) == (1, 0), "the running one is settled, the other given back"


def test_the_stand_in_keeps_deadlines(bench: Bench, mode: str) -> None:
    id = bench.put(tasks.begin_and_be_stuck, timeout=1.0, retry={"max": 1, "delay": 600.0})
    worker = bench.start(mode)
    wait_for(lambda: bench.ledger.lines)  # it is claimed before, and then may be given back
    server = fork_server_of(worker)
    wait_for(lambda: children_of(server))

    worker.kill()

    wait_for(lambda: not alive(server), 10.0)
    wait_for(lambda: bench.queue.broker.counts(bench.queue.name) == (1, 0, 0, 0))
    assert "timed out (limit 1 s)" in bench.log()
    (attempt,) = bench.queue.handle(id).attempts
    assert str(attempt.verdict).startswith("timed out (limit 1 s)")


def test_when_both_die_the_children_die_and_the_tasks_run_again(bench: Bench, mode: str) -> None:
    bench.put(tasks.stuck_in_c, timeout=2.0)
    worker = bench.start(mode, lease=1.0)
    server = fork_server_of(worker)
    children = wait_for(lambda: children_of(server))
    wait_for(lambda: bench.queue.broker.counts(bench.queue.name).running == 1)

    os.kill(server, signal.SIGSTOP)  # so that it can't stand in before it dies
    worker.kill()
    os.kill(server, signal.SIGKILL)

    wait_for(lambda: not any(alive(pid) for pid in children), 2.0)
    bench.start(mode, lease=1.0)
    wait_for(bench.settled)
    wait_for(lambda: "timed out" in bench.log(1))  # which is written a moment later


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
@pytest.mark.parametrize("mode", ["preforked", "async"])
def test_a_worker_of_which_nothing_is_left_is_missed_at_once_on_sqlite(bench: Bench, mode: str) -> None:
    bench.put(tasks.nap, "long", 2.0)
    worker = bench.start(mode, lease=60.0)
    wait_for(lambda: bench.ledger.find("begin"))
    server = fork_server_of(worker)
    files = Path(f"{bench.folder}/tasks.db-wake")
    assert len(list(files.glob("worker-*"))) == 1

    os.kill(server, signal.SIGKILL)
    worker.kill()
    second = bench.start(mode, lease=60.0)

    wait_for(lambda: len(bench.ledger.find("begin")) == 2, 10.0)
    wait_for(bench.settled)
    second.terminate()
    assert second.wait(10) == 0
    assert list(files.glob("worker-*")) == []


def test_random_deaths_of_monitors_and_fork_servers_lose_and_repeat_nothing(bench: Bench, mode: str) -> None:
    total = 300 if mode == "forked" else 6000
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    bench.queue.enqueue_many([Task.create(tasks.mark, (str(bench.ledger.path), number)) for number in range(total)])
    deadline = time.monotonic() + 45
    kills = 0
    # A stand-in may be kept waiting by MongoDB for ten seconds, on a machine that is busy with other tests.
    start = partial(bench.start, mode, processes=2, lease=15.0)
    workers = [start() for _ in range(2)]

    while not bench.settled() and time.monotonic() < deadline:
        time.sleep(dice.uniform(0.0, 0.2))
        victim = dice.randrange(2)
        servers = [pid for pid in fork_servers_of(workers[victim].pid) if children_of(pid)]
        if kills < 8 and servers:  # until a fork server has children, its monitor is the only guardian
            kills += 1
            killed = dice.choice([workers[victim].pid, *servers])
            os.kill(killed, signal.SIGKILL)
            # The next one is not to be killed while this one still dies: without any guardian the children die too.
            if killed == workers[victim].pid:
                workers[victim].wait(20)
                workers[victim] = start()
            else:
                wait_for(lambda victim=victim, killed=killed: killed not in fork_servers_of(workers[victim].pid))

    assert kills
    assert bench.settled(), f"seed {seed}: {bench.queue.broker.counts(bench.queue.name)}"
    ran = sorted(map(int, bench.ledger.lines))
    lost = sorted(set(range(total)) - set(ran))
    twice = sorted(number for number, times in Counter(ran).items() if times > 1)
    assert (lost, twice) == ([], []), f"seed {seed}"
