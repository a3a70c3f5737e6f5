"""The commands that show and stop what runs, as a person types them: real workers, on a file and on Redis."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from delayed.brokers import Broker, broker_for
from tests.servers.redis import RedisServer
from tests.test_cli import Terminal, eventually, only_line

APP = """
import collections, itertools, re, time
from delayed import Queue, delayed

queue = Queue("letters")
other = Queue("parcels")

@delayed(queue, retry=3)
def hold(word: str, seconds: float = 60.0) -> None:
    try:
        time.sleep(seconds)
    finally:
        with open("held", "a") as file:
            file.write(word + "\\n")

@delayed(queue, timeout=None)
def match() -> None:
    re.match(r"(a+)+$", "a" * 40 + "b")

@delayed(queue, timeout=None, retry=3)
def stuck() -> None:
    collections.deque(itertools.repeat(0), maxlen=0)

@delayed(other)
def pack(name: str) -> None:
    with open("packed", "a") as file:
        file.write(name + "\\n")
"""


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of these tests' own: the commands look at all queues of a store."""
    with RedisServer(tmp_path_factory.mktemp("redis-live")) as server:
        yield server


@pytest.fixture(params=["redis"])  # the other commands are tested on a file, and the orders themselves on both
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path)
    opened.write("app.py", APP)
    if request.param == "redis":
        import redis

        opened.url = request.getfixturevalue("own_redis").url
        opened.environ["DELAYED_URL"] = opened.url
        with redis.Redis.from_url(opened.url) as client:
            client.flushdb()
    yield opened
    opened.close()


@pytest.fixture
def mode(request: pytest.FixtureRequest) -> str:
    """One kind of worker on each store; `tests/workers/test_orders.py` has all of them."""
    return {"sqlite": "forked", "redis": "preforked"}[request.node.callspec.params["terminal"]]


@pytest.fixture
def broker(terminal: Terminal) -> Iterator[Broker]:
    broker = broker_for(terminal.url)
    yield broker
    broker.close()


def enqueue(terminal: Terminal, call: str) -> int:
    """Enqueue from another process; the task's id."""
    done = subprocess.run(
        [sys.executable, "-c", f"import app; print(app.{call}.id)"],
        cwd=terminal.folder, env=terminal.environ, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    return int(done.stdout)


def running(terminal: Terminal, broker: Broker, id: int, queue: str = "letters") -> Any:
    """Wait until a worker says that it runs this task; what it says of itself."""

    def look() -> Any:
        for worker in broker.workers(queue):
            if any(task["id"] == id for task in worker.info["running"]):
                return worker
        return None

    return eventually(look, f"task {id} runs")


def serve(terminal: Terminal, *options: str) -> subprocess.Popen[str]:
    return terminal.start("worker", "app", "--processes", "1", "--kill-timeout", "0.5", *options)


# -- workers and status --------------------------------------------------------------------------------------------


def test_workers_are_shown_with_what_they_run(terminal: Terminal, broker: Broker, mode: str) -> None:
    assert "no worker serves a queue" in terminal.run("workers").stdout
    id = enqueue(terminal, "hold.delay('a')")
    process = serve(terminal, "--mode", mode)
    running(terminal, broker, id)

    shown = terminal.run("workers", "letters").stdout
    (worker,) = json.loads(terminal.run("workers", "--json").stdout)

    assert all(word in shown for word in (str(process.pid), mode, "letters, parcels", str(id), "app:hold"))
    assert (worker["pid"], worker["mode"], worker["stopping"]) == (process.pid, mode, False)
    assert [task["id"] for task in worker["running"]] == [id]
    assert "replies" not in worker
    terminal.run("cancel", str(id))


def test_workers_of_a_mistyped_queue_get_a_suggestion(terminal: Terminal) -> None:
    enqueue(terminal, "pack.delay('a')")

    done = terminal.run("workers", "parcel")

    assert done.returncode == 2
    assert "did you mean 'parcels'?" in only_line(done)


# -- pause and resume ----------------------------------------------------------------------------------------------


def test_a_paused_queue_is_shown_and_resumed(terminal: Terminal, broker: Broker) -> None:
    enqueue(terminal, "pack.delay('a')")
    enqueue(terminal, "hold.delay('b', 0)")

    done = terminal.run("pause", "parcels", "letters")

    assert done.returncode == 0
    assert "'parcels' is paused; still running: 0" in done.stdout
    assert "delayed resume parcels" in terminal.run("status").stdout
    assert [queue["paused"] for queue in terminal.status()["queues"]] == [True, True]
    serve(terminal)
    eventually(lambda: broker.workers("parcels"), "the worker announces itself")
    assert not (terminal.folder / "packed").exists()

    done = terminal.run("resume", "parcels")

    assert done.stdout == "'parcels' is not paused any more\n"
    eventually((terminal.folder / "packed").exists, "the task has run")
    assert not (terminal.folder / "held").exists()


@pytest.mark.parametrize("command", ["pause", "resume", "stop"])
def test_a_queue_that_does_not_exist_is_wrong_usage(terminal: Terminal, command: str) -> None:
    enqueue(terminal, "pack.delay('a')")

    done = terminal.run(command, "parcel")

    assert done.returncode == 2
    assert "did you mean 'parcels'?" in only_line(done)


# -- cancel --------------------------------------------------------------------------------------------------------


def test_a_waiting_task_is_cancelled(terminal: Terminal, broker: Broker) -> None:
    later = enqueue(terminal, "pack.options(delay=100).delay('a')")
    ready = enqueue(terminal, "hold.delay('b')")

    assert terminal.run("cancel", str(later)).stdout == (
        f"task {later} app:pack: removed from 'parcels', where it was scheduled\n"
    )
    assert "where it was ready" in terminal.run("cancel", str(ready), "--queue", "letters").stdout
    assert (broker.counts("letters"), broker.counts("parcels")) == ((0, 0, 0, 0), (0, 0, 0, 0))


def test_a_running_task_is_cancelled_softly(terminal: Terminal, broker: Broker, mode: str) -> None:
    id = enqueue(terminal, "hold.delay('cleaned up')")
    serve(terminal, "--mode", mode)
    running(terminal, broker, id)

    done = terminal.run("cancel", str(id))

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"task {id} app:hold: cancelled after ")
    assert (terminal.folder / "held").read_text() == "cleaned up\n"
    eventually(lambda: broker.get("letters", id) is None, "it is gone, and is not tried again")


def test_a_task_that_is_stuck_in_c_is_shown_and_killed(terminal: Terminal, broker: Broker, mode: str) -> None:
    id = enqueue(terminal, "stuck.delay()")
    serve(terminal, "--mode", mode)
    running(terminal, broker, id)

    stack = terminal.run("stack", str(id))
    done = terminal.run("cancel", str(id))

    assert stack.returncode == 0, stack.stderr
    assert "in stuck" in stack.stdout
    assert "app.py" in stack.stdout
    assert done.returncode == 0, done.stderr
    assert f"task {id} app:stuck: cancelled, and killed by signal 9 (SIGKILL) after " in done.stdout
    eventually(lambda: broker.get("letters", id) is None, "it is gone, and is not tried again")
    again = enqueue(terminal, "hold.delay('next')")
    running(terminal, broker, again)
    terminal.run("cancel", str(again))


def test_a_regex_is_shown_and_cancelled(terminal: Terminal, broker: Broker) -> None:
    id = enqueue(terminal, "match.delay()")
    serve(terminal)
    running(terminal, broker, id)

    assert "in match" in terminal.run("stack", str(id), "--queue", "letters").stdout
    assert "app:match: cancelled" in terminal.run("cancel", str(id)).stdout


@pytest.mark.parametrize("command", ["cancel", "stack"])
def test_a_task_that_is_not_there_is_an_error(terminal: Terminal, command: str) -> None:
    id = enqueue(terminal, "pack.delay('a')")
    enqueue(terminal, "hold.delay('b')")

    unknown = terminal.run(command, "4711")
    elsewhere = terminal.run(command, str(id), "--queue", "letters")

    assert (unknown.returncode, elsewhere.returncode) == (1, 1)
    assert "no task 4711 in any of the 2 queues" in only_line(unknown)
    assert "'letters' has no task" in only_line(elsewhere)
    assert "'parcels' has" in only_line(elsewhere)


def test_a_task_of_a_dead_worker_can_not_be_cancelled_at_once(terminal: Terminal, broker: Broker) -> None:
    id = enqueue(terminal, "pack.delay('a')")
    assert broker.claim(["parcels"], "gone:1:2", 1, 7, 1, 60.0)

    done = terminal.run("cancel", str(id), "--timeout", "0.5")

    assert done.returncode == 1
    assert "gone:1:2" in only_line(done)
    assert "does not answer" in only_line(done)
    assert broker.get("parcels", id) is not None


def test_a_task_that_waits_has_no_stack(terminal: Terminal) -> None:
    id = enqueue(terminal, "pack.delay('a')")

    done = terminal.run("stack", str(id))

    assert done.returncode == 1
    assert "does not run: it is ready" in only_line(done)


# -- stop ----------------------------------------------------------------------------------------------------------


def test_workers_are_sent_home(terminal: Terminal, broker: Broker) -> None:
    id = enqueue(terminal, "hold.delay('finished', 3)")
    first = serve(terminal)
    running(terminal, broker, id)
    second = serve(terminal, "--mode", "preforked")
    eventually(lambda: len(broker.workers("letters")) == 2, "both are there")

    done = terminal.run("stop", "letters")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["2 workers of 'letters' asked to stop", "2 workers left"]
    assert (first.wait(10), second.wait(10)) == (0, 0)
    assert (terminal.folder / "held").read_text() == "finished\n"
    assert terminal.run("stop", "letters").stdout == "no worker serves 'letters'\n"


def test_a_worker_that_does_not_leave_in_time_is_an_error(terminal: Terminal, broker: Broker) -> None:
    id = enqueue(terminal, "hold.delay('x', 15)")
    worker = serve(terminal)
    said = running(terminal, broker, id)

    assert terminal.run("stop", "letters", "--no-wait").returncode == 0
    done = terminal.run("stop", "letters", "--timeout", "0.5")

    assert done.returncode == 1
    assert "after 0.5 s 1 of 1 are still there" in only_line(done)
    assert said.worker in only_line(done)
    assert worker.wait(30) == 0
    assert (terminal.folder / "held").read_text() == "x\n"


def test_a_supervisor_does_not_start_again_who_was_sent_home(terminal: Terminal, broker: Broker) -> None:
    enqueue(terminal, "hold.delay('x', 0)")
    supervisor = serve(terminal, "--workers", "2")
    eventually(lambda: len(broker.workers("letters")) == 2, "both are there")

    done = terminal.run("stop", "letters")

    assert done.returncode == 0, done.stderr
    assert supervisor.wait(20) == 0, terminal.output()
    assert terminal.output().count(" starts: ") == 2
