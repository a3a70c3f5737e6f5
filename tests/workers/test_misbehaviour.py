"""Tasks and handlers that misbehave: what is told of them, and what becomes of the rest.

The ways to die themselves are in :mod:`tests.workers.deaths`.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest

from delayed.codec import Codec
from delayed.message import Message
from tests.workers import slow, tasks
from tests.workers.conftest import Bench, alive, wait_for
from tests.workers.deaths import spins

HANDLER = "tests.workers.tasks:on_error"


def test_a_handler_is_told_what_was_used(bench: Bench, mode: str) -> None:
    bench.put(tasks.burn, 0.3)
    bench.burst(mode, error_handler=HANDLER)

    (error,) = bench.ledger.find("error")
    found = re.search(r"\(CPU ([\d.]+) s", error)
    assert found is not None, error
    assert float(found[1]) >= 0.25, "most of it: a lane counts its own thread, the task its process"


@pytest.mark.parametrize("func", [tasks.stuck_in_regex, tasks.stuck_in_c])
def test_the_stack_of_a_stuck_task_is_in_log_and_handler(bench: Bench, mode: str, func: Callable[..., Any]) -> None:
    bench.put(func, timeout=0.3)

    bench.burst(mode, error_handler=HANDLER)

    (stack,) = bench.ledger.find("stack")
    assert f"in {func.__name__}" in stack
    assert f"in {func.__name__}" in bench.log()


@pytest.mark.parametrize("mode", ["forked", "preforked"])
def test_a_task_whose_time_is_up_may_tidy_up(bench: Bench, mode: str) -> None:
    bench.put(tasks.tidy_up, timeout=0.3)

    bench.burst(mode)

    assert bench.ledger.lines == ["tidied"]


def test_a_child_that_stopped_a_task_can_be_ended_by_sigterm(bench: Bench, mode: str) -> None:
    bench.put(spins.die, timeout=0.2)
    bench.put(tasks.kill_self, int(signal.SIGTERM))

    bench.burst(mode, error_handler=HANDLER)

    stopped, ended = bench.ledger.find("error")
    assert stopped.startswith("die | None | TaskTimeout")
    assert ended.startswith("kill_self | 15 | None | killed by signal 15 (SIGTERM), not by its worker")


def test_daemons_of_a_task_die_with_its_child(bench: Bench) -> None:
    bench.put(tasks.fork_daemon)
    bench.put(tasks.fork_session_daemon)

    bench.burst("forked")

    daemons = [int(pid) for pid in bench.ledger.find("daemon")]
    assert len(daemons) == 2
    wait_for(lambda: not any(alive(pid) for pid in daemons), 5.0)


def test_the_next_task_does_not_wait_for_a_forked_child_to_go(bench: Bench) -> None:
    bench.put(tasks.linger, "next", 5.0)
    bench.put(tasks.mark, "next")

    bench.burst("forked")

    assert bench.ledger.lines == ["lingers", "next", "gone"]


def test_forked_children_that_do_not_go_are_killed(bench: Bench) -> None:
    for _ in range(2):  # as many as there are seats
        bench.put(tasks.linger, "nobody says this", 100.0)
    bench.put(tasks.mark, "next")

    bench.burst("forked")

    assert bench.ledger.lines == ["lingers", "lingers", "next"]


def test_the_next_task_waits_for_the_handler_of_a_forked_one(bench: Bench) -> None:
    for number in range(3):
        bench.put(tasks.mark, number)

    bench.burst("forked", success_handler="tests.workers.tasks:on_success_slowly")

    assert bench.ledger.lines == ["0", "begin", "end", "1", "begin", "end", "2", "begin", "end"]


def test_a_task_that_kills_its_child_is_charged_and_retried(bench: Bench, mode: str) -> None:
    bench.put(tasks.kill_self, 9, retry={"max": 1, "delay": 0.05})

    bench.burst(mode, error_handler=HANDLER)

    assert len(bench.ledger.find("error kill_self")) == 2


@pytest.mark.parametrize("handler", ["broken", "missing"])
def test_a_handler_that_fails_harms_nothing(bench: Bench, mode: str, handler: str) -> None:
    bench.put(tasks.fail, "oops")
    bench.put(tasks.kill_self, 9)
    bench.put(tasks.mark, "last")
    path = f"tests.workers.tasks:{handler}"

    bench.burst(mode, success_handler=path, error_handler=path)

    assert bench.ledger.lines.count("last") == 1
    assert bench.ledger.find("handler breaks") == ([""] * 3 if handler == "broken" else [])
    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)


@pytest.mark.parametrize("func", [tasks.mark, tasks.fail, tasks.kill_self])
def test_a_handler_that_hangs_is_ended(bench: Bench, mode: str, func: Callable[..., Any]) -> None:
    bench.put(func, 9)
    bench.put(tasks.mark, "last")
    path = "tests.workers.tasks:hang"
    worker = bench.start(mode, success_handler=path, error_handler=path, handler_timeout=0.5)

    wait_for(bench.settled)
    wait_for(lambda: len(bench.ledger.find("handler hangs")) == 2)
    bench.put(tasks.mark, "after")
    wait_for(lambda: "after" in bench.ledger.lines)

    worker.terminate()
    assert worker.wait(10) == 0
    assert bench.ledger.lines.count("last") == 1


def test_the_success_handler_gets_the_task(bench: Bench, mode: str) -> None:
    id = bench.put(tasks.mark, "x")

    bench.burst(mode, success_handler="tests.workers.tasks:on_success")

    assert [line.split()[0] for line in bench.ledger.find("success")] == [str(id)]


def test_undecodable_and_unknown_tasks_end_with_a_verdict(bench: Bench, mode: str) -> None:
    broker, name = bench.queue.broker, bench.queue.name
    id = bench.put(tasks.mark, "x")
    (entry,) = broker.peek(name, "ready")
    broker.remove(name, id)
    good = entry.message
    first = broker.reserve_ids(name, 3)
    broker.enqueue(
        name,
        [
            good._replace(id=first, payload=b"garbage"),
            good._replace(id=first + 1, func="tests.workers.tasks:nothing_like_it"),
            good._replace(id=first + 2, payload=bench.queue.codec.encode((), {})),
        ],
        os.urandom(16).hex(),
        1,
    )
    bench.put(tasks.mark, "last")

    bench.burst(mode, error_handler=HANDLER)

    assert bench.ledger.lines[-1] == "last" or "last" in bench.ledger.lines
    errors = bench.ledger.find("error")
    assert any("undecodable" in error for error in errors), errors
    assert any("unknown function" in error for error in errors), errors
    assert any("bad arguments" in error for error in errors), errors
    counts = broker.counts(name)
    assert (counts.dead, counts.scheduled) == (1, 1), "garbage is kept; an unknown function is tried again"
    (dead,) = broker.peek(name, "dead")
    assert "undecodable" in dead.reason
    broker.purge(name)


def test_an_error_text_that_is_no_text_is_settled_all_the_same(bench: Bench) -> None:
    broker, name = bench.queue.broker, bench.queue.name
    good = Codec().encode((), {})
    raises = good[:4] + pickle.dumps(Raising())
    broker.enqueue(name, [Message(broker.reserve_ids(name, 1), "os:getpid", raises)], os.urandom(16).hex(), 1)
    bench.put(tasks.mark, "last")

    bench.burst()

    assert bench.ledger.lines == ["last"]
    assert broker.counts(name) == (0, 0, 0, 1)
    (dead,) = broker.peek(name, "dead")
    assert "caf?" in dead.reason
    broker.purge(name)


class Raising:
    """Its pickle raises an error with half a character in its text."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise ValueError('caf\\udce9')",)


def test_a_task_whose_time_is_up_before_its_module_is_imported_never_runs(bench: Bench, mode: str) -> None:
    bench.put(slow.run, timeout=0.2)
    bench.put(tasks.mark, "last")

    bench.burst(mode, error_handler=HANDLER, kill_timeout=10.0)

    (error,) = bench.ledger.find("error")
    assert error.startswith("run | None | TaskTimeout | timed out (limit 0.2 s) after")
    assert "ran" not in bench.ledger.lines
    assert "last" in bench.ledger.lines
