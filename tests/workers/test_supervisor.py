"""A supervisor and its workers, as processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest

from delayed import ConfigError, PreforkedWorker, Queue, Supervisor
from delayed.attempts import WORKER_LOST, attempts_of
from delayed.retry import Retry
from tests.workers import lanes, tasks
from tests.workers.conftest import Bench, alive, children_of, fork_servers_of, wait_for

pytestmark = pytest.mark.parametrize("bench", ["sqlite", "redis"], indirect=True)

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(bench: Bench, tmp_path: Path) -> Iterator[Start]:
    """Starts a supervisor."""
    started: list[subprocess.Popen[str]] = []

    def starter(workers: int = 2, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        options = {"mode": "preforked", "kill_timeout": 0.5, "lease": 60.0, **options}
        with open(tmp_path / "supervisor.log", "w") as log:
            command = [bench.url, bench.queue.name, str(workers), json.dumps(options)]
            supervisor = subprocess.Popen(
                [sys.executable, "-m", "tests.workers.supervise", *command],
                stdout=log,
                stderr=log,
                start_new_session=True,
                text=True,
                env={**os.environ, "LEDGER": str(bench.ledger.path), **(env or {})},
            )
        started.append(supervisor)
        return supervisor

    yield starter
    for supervisor in started:
        if supervisor.poll() is None:
            supervisor.terminate()
            try:
                supervisor.wait(1)
            except subprocess.TimeoutExpired:
                supervisor.terminate()
        supervisor.wait(30)


def log_of(bench: Bench) -> str:
    return (bench.folder / "supervisor.log").read_text()


def ready(supervisor: subprocess.Popen[str], n: int) -> list[int]:
    """The pids of the workers, once each has its fork server and children."""

    def found() -> list[int]:
        pids = children_of(supervisor.pid)
        good = [pid for pid in pids if any(children_of(server) for server in fork_servers_of(pid))]
        return good if len(good) == len(pids) == n else []

    pids: list[int] = wait_for(found)
    return pids


def test_it_keeps_its_workers_alive(bench: Bench, start: Start) -> None:
    supervisor = start(2)
    first, second = ready(supervisor, 2)
    os.kill(first, signal.SIGKILL)

    wait_for(lambda: first not in children_of(supervisor.pid))
    assert second in ready(supervisor, 2)
    bench.put(tasks.mark, "x")
    wait_for(lambda: bench.ledger.lines == ["x"])
    assert "was killed by signal 9" in log_of(bench)


@pytest.mark.parametrize("mode", ["threaded", "async"])
def test_its_workers_have_the_lanes_that_were_asked_for(bench: Bench, start: Start, mode: str) -> None:
    option = {"threaded": "threads", "async": "concurrency"}[mode]
    start(2, mode=mode, **{option: 3})
    for number in range(6):
        bench.put(lanes.meet_async, number, 6)

    wait_for(bench.settled)
    assert len(bench.ledger.find("met")) == 6


def test_what_had_ended_is_settled_when_all_who_could_have_are_dead(bench: Bench, start: Start) -> None:
    id = bench.put(tasks.nap, "long", 0.5, keep="1m")
    supervisor = start(workers=1, lease=12.0, success_handler="tests.workers.tasks:on_success")
    wait_for(lambda: bench.ledger.find("begin"))
    (worker,) = children_of(supervisor.pid)
    (server,) = fork_servers_of(worker)

    os.kill(worker, signal.SIGSTOP)
    wait_for(lambda: bench.ledger.find("success"))  # which is called when the child has noted the end
    os.kill(server, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)

    wait_for(bench.settled)
    assert len(bench.ledger.find("begin")) == 1
    assert bench.queue.handle(id).status == "done"
    wait_for(lambda: "of its tasks 1 had ended, and 0 are back" in log_of(bench))


def test_nobody_is_quicker_than_the_supervisor_with_what_had_ended(bench: Bench, start: Start) -> None:
    """On SQLite others see that no process of the worker is left, and return its tasks."""
    bench.put(tasks.nap, "long", 0.5)
    supervisor = start(workers=1, success_handler="tests.workers.tasks:on_success")
    wait_for(lambda: bench.ledger.find("begin"))
    (worker,) = children_of(supervisor.pid)
    (server,) = fork_servers_of(worker)
    children = children_of(server)
    supervisor.send_signal(signal.SIGSTOP)
    os.kill(worker, signal.SIGSTOP)
    wait_for(lambda: bench.ledger.find("success"))
    os.kill(server, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, [server, *children])))

    assert bench.queue.broker.sweep(bench.queue.name).returned == 0
    supervisor.send_signal(signal.SIGCONT)
    wait_for(bench.settled)
    assert len(bench.ledger.find("begin")) == 1
    wait_for(lambda: "of its tasks 1 had ended, and 0 are back" in log_of(bench))


def test_the_tasks_of_a_dead_worker_go_back_at_once(bench: Bench, start: Start) -> None:
    """Its lease would hold for a minute."""
    supervisor = start(1)
    (worker,) = ready(supervisor, 1)
    bench.put(tasks.begin_and_be_stuck, retry=Retry.of(0))
    wait_for(lambda: len(bench.ledger.find("begin")) == 1)
    (server,) = fork_servers_of(worker)
    children = children_of(server)

    for pid in (worker, server):
        os.kill(pid, signal.SIGKILL)

    wait_for(lambda: len(bench.ledger.find("begin")) == 2, 10.0)
    assert not any(map(alive, children))
    wait_for(lambda: "of its tasks 0 had ended, and 1 are back" in log_of(bench))


def test_while_a_stand_in_serves_its_tasks_are_left_alone(bench: Bench, start: Start) -> None:
    supervisor = start(1)
    (worker,) = ready(supervisor, 1)
    bench.put(tasks.nap, "long", 1.0)
    wait_for(lambda: bench.ledger.find("begin"))
    os.kill(worker, signal.SIGKILL)

    wait_for(bench.settled)
    assert len(bench.ledger.find("begin")) == 1
    assert "are back" not in log_of(bench)


def test_what_always_kills_its_worker_is_dead_in_the_end(bench: Bench, start: Start) -> None:
    bench.put(tasks.kill_everybody, max_deliveries=2)
    start(1)
    wait_for(lambda: bench.queue.broker.counts(bench.queue.name).dead)

    (entry,) = bench.queue.broker.peek(bench.queue.name, "dead")
    assert "poison: delivered 2 times" in entry.reason
    (told,) = attempts_of(entry)  # the first was given back, uncharged
    assert told.verdict == WORKER_LOST and told.worker


def test_what_has_put_itself_off_again_and_again_is_not_dead_at_the_first_loss(bench: Bench, start: Start) -> None:
    bench.put(tasks.put_off_and_kill_everybody, 4, max_deliveries=3)
    start(1)

    wait_for(lambda: bench.ledger.find("end") or bench.queue.broker.counts(bench.queue.name).dead)
    assert bench.ledger.find("begin") == ["1"] * 5 + ["2"]


@pytest.mark.parametrize(("number", "patience"), [(signal.SIGTERM, 20.0), (signal.SIGINT, inf)])
def test_it_stops_all_and_lets_what_runs_finish(bench: Bench, start: Start, number: int, patience: float) -> None:
    supervisor = start(2, shutdown_timeout=patience)
    workers = ready(supervisor, 2)
    bench.put(tasks.nap, "one", 0.7)
    bench.put(tasks.nap, "two", 0.7)
    wait_for(lambda: len(bench.ledger.find("begin")) == 2)

    supervisor.send_signal(number)

    assert supervisor.wait(10) == 0
    assert sorted(bench.ledger.find("end")) == ["one", "two"]
    assert not any(map(alive, workers))


def test_a_second_signal_stops_at_once_and_gives_back(bench: Bench, start: Start) -> None:
    supervisor = start(1)
    ready(supervisor, 1)
    bench.put(tasks.nap, "long", 30.0)
    wait_for(lambda: bench.ledger.find("begin"))
    supervisor.terminate()
    wait_for(lambda: "running tasks have" in log_of(bench))
    supervisor.terminate()

    assert supervisor.wait(10) == 0
    assert bench.queue.broker.counts(bench.queue.name).ready == 1


def test_a_renewal_replaces_one_after_another_and_loses_nothing(bench: Bench, start: Start) -> None:
    supervisor = start(2)
    before = ready(supervisor, 2)
    supervisor.send_signal(signal.SIGHUP)
    number = fewest = 0
    seen: set[int] = set(before)
    deadline = time.monotonic() + 20

    while set(before) & set(children_of(supervisor.pid)):
        assert time.monotonic() < deadline
        bench.put(tasks.mark, number)
        number += 1
        pids = children_of(supervisor.pid)
        seen.update(pids)
        fewest = max(fewest, 2 - len(pids))
        time.sleep(0.01)

    assert len(ready(supervisor, 2)) == 2
    assert fewest <= 0, "a successor starts before its predecessor leaves"
    assert len(seen) == 4
    wait_for(bench.settled)
    assert sorted(map(int, bench.ledger.lines)) == list(range(number))
    assert "died" not in log_of(bench)


def test_a_worker_that_uses_too_much_memory_is_renewed(bench: Bench, start: Start) -> None:
    supervisor = start(2, worker_memory="150M", max_tasks=100)
    before = ready(supervisor, 2)
    bench.put(tasks.leak, 200_000_000)
    bench.put(tasks.nap, "long", 1.0)

    wait_for(lambda: len(set(before) - set(children_of(supervisor.pid))) == 1)
    after = ready(supervisor, 2)

    assert len(set(before) & set(after)) == 1, "the other one is left alone"
    wait_for(bench.settled)
    assert bench.ledger.find("end") == ["long"]
    (words,) = re.findall(r"worker \d \(pid \d+\) uses (\d+) MB of memory, limit 150 MB; it is renewed", log_of(bench))
    assert 150 <= int(words) < 320
    assert "died" not in log_of(bench)
    assert "finishes what runs, and leaves" not in log_of(bench), "the supervisor is the one who minds it"


def test_when_it_is_killed_its_workers_finish_and_leave(bench: Bench, start: Start) -> None:
    supervisor = start(2)
    workers = ready(supervisor, 2)
    below = [*workers, *[server for worker in workers for server in fork_servers_of(worker)]]
    bench.put(tasks.nap, "long", 0.7)
    wait_for(lambda: bench.ledger.find("begin"))

    supervisor.kill()

    wait_for(lambda: not any(map(alive, below)), 10.0)
    assert bench.ledger.find("end") == ["long"]
    assert bench.settled()


def test_a_crash_loop_ends_it(bench: Bench, start: Start) -> None:
    supervisor = start(2, preload=["tests.workers.no_such_module"])

    assert supervisor.wait(30) == 3
    assert "crash loop: worker" in log_of(bench)
    assert "no_such_module" in log_of(bench)


def test_a_burst_ends_when_all_is_done(bench: Bench, start: Start) -> None:
    for number in range(50):
        bench.put(tasks.mark, number)
    supervisor = start(2, burst=True)

    assert supervisor.wait(20) == 0
    assert sorted(map(int, bench.ledger.lines)) == list(range(50))


def test_systemd_is_told(bench: Bench, start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10.0)
        supervisor = start(1, env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert sock.recv(100) == b"READY=1"
        supervisor.terminate()
        assert sock.recv(100) == b"STOPPING=1"
        assert supervisor.wait(10) == 0


def test_bad_settings_are_told(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="workers must be"):
        Supervisor(PreforkedWorker(bench.queue), 0)
    with pytest.raises(ConfigError, match="no other process can open"):
        Supervisor(PreforkedWorker(Queue("q", "memory://x")))
