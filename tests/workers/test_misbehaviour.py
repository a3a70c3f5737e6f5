"""Tasks that misbehave: each gets its verdict, and the worker goes on."""

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

HANDLER = "tests.workers.tasks:on_error"

TIMED_OUT = "| None | TaskTimeout | timed out (limit 0.3 s) after"
KILLED = "| 9 | TaskTimeout | timed out (limit 0.3 s), and was killed by signal 9"
DEATHS: list[tuple[Callable[..., Any], tuple[Any, ...], float | None, str]] = [
    (tasks.exit_hard, (3,), None, "| None | None | exited with 3"),
    (tasks.exit_hard, (0,), None, "| None | None | exited with 0: the process ended without an outcome"),
    (tasks.exit_softly, (4,), None, "| None | SystemExit | exited with 4"),
    (tasks.crash, (), None, "| 11 | None | killed by signal 11 (SIGSEGV), not by its worker"),
    (tasks.kill_self, (9,), None, "| 9 | None | killed by signal 9 (SIGKILL), not by its worker"),
    (tasks.kill_self, (15,), None, "| 15 | None | killed by signal 15 (SIGTERM), not by its worker"),
    (tasks.stuck_in_regex, (), 0.3, TIMED_OUT),
    (tasks.stuck_in_c, (), 0.3, KILLED),
    (tasks.stuck_stubborn, (), 0.3, KILLED),
    (tasks.ignore_sigterm, (), 0.3, KILLED),
    (tasks.tidy_up, (), 0.3, TIMED_OUT),
    (tasks.raise_unpicklable, (), None, "| None | Unpicklable | raised tests.workers.tasks.Unpicklable: holds a lock"),
    (tasks.raise_unspeakable, (), None, "| None | Unspeakable | raised tests.workers.tasks.Unspeakable"),
    (tasks.raise_base, ("KeyboardInterrupt",), None, "| None | KeyboardInterrupt | raised KeyboardInterrupt"),
    (tasks.raise_base, ("GeneratorExit",), None, "| None | GeneratorExit | raised GeneratorExit"),
    (tasks.raise_base, ("BaseException",), None, "| None | BaseException | raised BaseException"),
]


# Signals interrupt system calls and regexes in the main thread only, where these don't run.
IN_THREADS = {
    tasks.stuck_in_regex: KILLED,
    tasks.tidy_up: KILLED,
    tasks.ignore_sigterm: "| None | ValueError | raised ValueError: signal only works in main thread",
}


def test_every_death_has_a_verdict_and_the_worker_goes_on(bench: Bench, mode: str) -> None:
    for func, args, timeout, _ in DEATHS:
        bench.put(func, *args, timeout=timeout)
    bench.put(tasks.mark, "last")

    bench.burst(mode, error_handler=HANDLER, processes=2)

    assert "last" in bench.ledger.lines
    errors = bench.ledger.find("error")
    for func, _, _, words in DEATHS:
        if mode in ("threaded", "async"):
            words = IN_THREADS.get(func, words)
        assert any(error.startswith(f"{func.__name__} {words}") for error in errors), (func.__name__, words, errors)
    assert len(errors) == len(DEATHS)
    assert ("tidied" in bench.ledger.lines) == (mode in ("forked", "preforked"))
    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)


def test_a_handler_is_told_what_was_used(bench: Bench, mode: str) -> None:
    bench.put(tasks.burn, 0.3)
    bench.burst(mode, error_handler=HANDLER)

    (error,) = bench.ledger.find("error")
    found = re.search(r"\(CPU ([\d.]+) s", error)
    assert found is not None, error
    assert float(found[1]) >= 0.3


HARMLESS: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
    (tasks.close_everything, ()),
    (tasks.take_over_descriptors, ()),
    (tasks.print_much, (100_000_000,)),
    (tasks.return_unpicklable, ()),
    (tasks.fork_and_return, ()),
    (tasks.leave_thread, ()),
    (tasks.exit_softly, (0,)),
    (tasks.exit_softly, (None,)),
]


def test_what_tasks_leave_behind_does_not_reach_the_next_one(bench: Bench, mode: str) -> None:
    bench.put(tasks.delete_folder, str(bench.folder / "gone"))
    for func, args in HARMLESS:
        bench.put(func, *args)
        bench.put(tasks.mark, "after", func.__name__)

    bench.burst(mode, error_handler=HANDLER)

    # An event loop does not survive the loss of its descriptors, so that is the task's own failure.
    fatal = 2 if mode == "async" else 0
    assert bench.ledger.find("error")[fatal:] == [], "none of these is a failure"
    assert sorted(bench.ledger.find("after")) == sorted(func.__name__ for func, _ in HARMLESS)


@pytest.mark.parametrize("func", [tasks.stuck_in_regex, tasks.stuck_in_c])
def test_the_stack_of_a_stuck_task_is_in_log_and_handler(bench: Bench, mode: str, func: Callable[..., Any]) -> None:
    bench.put(func, timeout=0.3)

    bench.burst(mode, error_handler=HANDLER)

    (stack,) = bench.ledger.find("stack")
    assert f"in {func.__name__}" in stack
    assert f"in {func.__name__}" in bench.log()


def test_daemons_of_a_task_die_with_its_child(bench: Bench) -> None:
    bench.put(tasks.fork_daemon)
    bench.put(tasks.fork_session_daemon)

    bench.burst("forked")

    daemons = [int(pid) for pid in bench.ledger.find("daemon")]
    assert len(daemons) == 2
    wait_for(lambda: not any(alive(pid) for pid in daemons), 5.0)


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


def test_worker_ignores_a_task_s_own_sigalrm(bench: Bench) -> None:
    bench.put(tasks.kill_self, int(signal.SIGALRM))
    bench.put(tasks.mark, "last")

    bench.burst(error_handler=HANDLER)

    assert "last" in bench.ledger.lines
    assert "killed by signal 14" in bench.ledger.find("error")[0]


def test_a_task_whose_time_is_up_before_its_module_is_imported_never_runs(bench: Bench, mode: str) -> None:
    bench.put(slow.run, timeout=0.2)
    bench.put(tasks.mark, "last")

    bench.burst(mode, error_handler=HANDLER, kill_timeout=10.0)

    (error,) = bench.ledger.find("error")
    assert error.startswith("run | None | TaskTimeout | timed out (limit 0.2 s) after")
    assert "ran" not in bench.ledger.lines
    assert "last" in bench.ledger.lines
