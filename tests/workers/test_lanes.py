"""Children that run several tasks at once: in threads, or on an event loop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from delayed.task import Task
from tests.workers import lanes, tasks
from tests.workers.conftest import Bench, children_of, fork_server_of, wait_for

HANDLER = "tests.workers.tasks:on_error"
LANES = {"threaded": "threads", "async": "concurrency"}
nap: dict[str, Callable[..., Any]] = {"threaded": lanes.nap_in_steps, "async": lanes.sleep}
die: dict[str, Callable[..., Any]] = {"threaded": lanes.die, "async": lanes.die_async}


@pytest.fixture(params=["threaded", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def start(bench: Bench, mode: str, many: int = 8, **options: Any) -> Any:
    return bench.start(mode, **{LANES[mode]: many}, **options)


def burst(bench: Bench, mode: str, many: int = 8, **options: Any) -> None:
    bench.burst(mode, **{LANES[mode]: many}, error_handler=HANDLER, **options)


@pytest.mark.parametrize("func", [lanes.meet, lanes.meet_async])
def test_they_run_at_once(bench: Bench, mode: str, func: Callable[..., Any]) -> None:
    for number in range(8):
        bench.put(func, number, 8, timeout=10)

    burst(bench, mode)

    assert len(bench.ledger.find("met")) == 8
    assert bench.ledger.find("error") == []


def test_no_more_than_asked_for_run_at_once(bench: Bench, mode: str) -> None:
    for number in range(7):
        bench.put(nap[mode], number, 0.3)
    start(bench, mode, 3)
    wait_for(bench.settled)
    most = running = 0
    for line in bench.ledger.lines:
        running += line.startswith("begin") - line.startswith("end")
        most = max(most, running)
    assert most == 3


def test_tasks_that_do_not_fit_into_the_channel_at_once_follow_as_soon_as_there_is_room(bench: Bench) -> None:
    """The channel holds three of these. With a look every 50 ms they would need five seconds."""
    many = 300
    task = Task.create(lanes.note_begin, (str(bench.ledger.path), b"x" * 60_000))
    bench.queue.enqueue_many([task] * many)

    start(bench, "async", many)
    wait_for(lambda: len(bench.ledger.find("at")) == many)

    begun = [float(at) for at in bench.ledger.find("at")]
    assert max(begun) - min(begun) < 1.5


@pytest.mark.parametrize("func", [lanes.who, lanes.who_async])
def test_each_has_its_own_current_and_context(bench: Bench, mode: str, func: Callable[..., Any]) -> None:
    ids = [bench.put(func, number) for number in range(20)]

    burst(bench, mode, 10)

    expected = [f"{number} {bench.queue.name}:{id} unset {number}" for number, id in enumerate(ids)]
    assert sorted(bench.ledger.find("who")) == sorted(expected)


def test_a_deadline_ends_one_and_leaves_its_neighbours_alone(bench: Bench, mode: str) -> None:
    bench.put(nap[mode], "late", 60.0, timeout=1.0)
    for number in range(3):
        bench.put(nap[mode], number, 2.0)

    burst(bench, mode)

    assert sorted(bench.ledger.find("begin")) == ["0", "1", "2", "late"], "nobody ran twice"
    assert sorted(bench.ledger.find("end")) == ["0", "1", "2"]
    assert "tidied late" in bench.ledger.lines
    (error,) = bench.ledger.find("error")
    assert "TaskTimeout | timed out (limit 1 s)" in error
    (stack,) = bench.ledger.find("stack")
    assert f"in {nap[mode].__name__}" in stack


def test_the_stack_of_a_coroutine_is_where_it_waits(bench: Bench) -> None:
    bench.put(lanes.deep, timeout=0.2)
    bench.put(lanes.sleep, "other", 0.5)

    burst(bench, "async")

    (stack,) = bench.ledger.find("stack")
    assert "in deeper" in stack
    assert "in deep" in stack
    assert "in sleep" not in stack
    assert "left" in bench.ledger.lines, "async with ended as it should"


@pytest.mark.parametrize(
    ("mode", "func"),
    [
        ("threaded", lanes.stuck_in_c),
        ("threaded", lanes.stuck_in_regex),
        ("threaded", lanes.stuck_in_lock),
        ("async", lanes.stuck_in_c),
        ("async", lanes.stuck_in_lock),
        ("async", lanes.block_in_c),
        ("async", lanes.swallow),
    ],
)
def test_one_that_does_not_yield_is_killed_and_its_neighbours_run_again(
    bench: Bench, mode: str, func: Callable[..., Any]
) -> None:
    for number in range(3):
        bench.put(nap[mode], number, 1.5)
    bench.put(tasks.mark, "finished")
    worker = start(bench, mode, error_handler=HANDLER)
    wait_for(lambda: len(bench.ledger.find("begin")) == 3 and "finished" in bench.ledger.lines)
    bench.put(func, timeout=0.3)
    bench.put(tasks.mark, "after")

    wait_for(bench.settled)

    assert bench.ledger.lines.count("finished") == 1, "what had ended is settled"
    assert sorted(bench.ledger.find("end")) == ["0", "1", "2"], "each of the others ends once"
    (error,) = wait_for(lambda: bench.ledger.find("error"))
    assert error.startswith(f"{func.__name__} | 9 | TaskTimeout | timed out (limit 0.3 s), and was killed by signal 9")
    (stack,) = wait_for(lambda: bench.ledger.find("stack"))
    assert f"in {func.__name__}" in stack
    assert "uncharged" in bench.log()
    assert worker.poll() is None


def test_neighbours_given_back_are_not_charged(bench: Bench, mode: str) -> None:
    bench.put(nap[mode], "neighbour", 3600.0)
    worker = start(bench, mode)
    wait_for(lambda: bench.ledger.find("begin"))
    bench.put(lanes.stuck_in_c, timeout=0.3)
    wait_for(lambda: len(bench.ledger.find("begin neighbour")) == 2)
    server = fork_server_of(worker)
    worker.kill()
    os.kill(server, signal.SIGKILL)  # or it would stand in for an hour
    (entry,) = bench.queue.broker.peek(bench.queue.name, "running")
    assert entry.attempt == 1


def test_a_blocked_loop_is_freed_where_python_code_blocks_it(bench: Bench) -> None:
    bench.put(lanes.sleep, "neighbour", 1.5)
    worker = start(bench, "async", error_handler=HANDLER)
    wait_for(lambda: bench.ledger.find("begin"))
    (child,) = wait_for(lambda: children_of(fork_server_of(worker)))
    bench.put(lanes.block, "blocks", 3600.0, timeout=0.3)
    bench.put(lanes.block_in_subtask, timeout=0.3)

    wait_for(bench.settled)

    assert children_of(fork_server_of(worker)) == [child], "nobody was killed"
    assert bench.ledger.find("begin neighbour") == [""]
    assert bench.ledger.find("end") == ["neighbour"]
    assert len([error for error in bench.ledger.find("error") if "timed out (limit 0.3 s) after" in error]) == 2


def test_a_blocked_loop_is_reported(bench: Bench) -> None:
    bench.put(lanes.block, "blocks", 2.5)
    bench.put(lanes.sleep, "waits", 0.1)

    burst(bench, "async")

    assert bench.ledger.find("end") == ["blocks", "waits"]
    assert bench.log().count("event loop") == 1
    assert "in block" in bench.log()


def test_a_crash_is_charged_to_its_own_thread(bench: Bench) -> None:
    for number in range(3):
        bench.put(lanes.nap_in_steps, number, 1.0)
    start(bench, "threaded", error_handler=HANDLER)
    wait_for(lambda: len(bench.ledger.find("begin")) == 3)
    bench.put(lanes.crash)

    wait_for(bench.settled)

    assert len(bench.ledger.find("crashes")) == 1
    assert sorted(bench.ledger.find("end")) == ["0", "1", "2"]
    (error,) = wait_for(lambda: bench.ledger.find("error"))
    assert error.startswith("crash | 11 | None | killed by signal 11")


def test_when_nobody_can_tell_who_it_was_each_runs_alone(bench: Bench, mode: str) -> None:
    for number in range(3):
        bench.put(nap[mode], number, 1.0)
    start(bench, mode, error_handler=HANDLER)
    wait_for(lambda: len(bench.ledger.find("begin")) == 3)
    bench.put(die[mode], 3)

    wait_for(bench.settled)

    assert sorted(bench.ledger.find("end")) == ["0", "1", "2"], "the innocent end once, and well"
    (error,) = wait_for(lambda: bench.ledger.find("error"))
    assert error.startswith(f"{die[mode].__name__} | None | None | exited with 3")


def test_a_child_that_is_killed_from_outside_costs_nobody_an_attempt(bench: Bench, mode: str) -> None:
    for number in range(4):
        bench.put(nap[mode], number, 1.0)
    worker = start(bench, mode, error_handler=HANDLER)
    wait_for(lambda: len(bench.ledger.find("begin")) == 4)
    (child,) = children_of(fork_server_of(worker))
    os.kill(child, signal.SIGKILL)

    wait_for(bench.settled)

    assert sorted(bench.ledger.find("end")) == ["0", "1", "2", "3"]
    assert bench.ledger.find("error") == []


def test_a_shutdown_lets_finish_what_can_and_gives_back_the_rest(bench: Bench, mode: str) -> None:
    bench.put(nap[mode], "short", 0.7)
    bench.put(nap[mode], "long", 3600.0)
    worker = start(bench, mode, shutdown_timeout=1.5)
    wait_for(lambda: len(bench.ledger.find("begin")) == 2)

    worker.terminate()

    assert worker.wait(10) == 0
    assert bench.ledger.find("end") == ["short"]
    assert "tidied long" in bench.ledger.lines
    counts = bench.queue.broker.counts(bench.queue.name)
    assert (counts.ready, counts.running) == (1, 0)
    assert bench.queue.broker.peek(bench.queue.name, "ready")[0].attempt == 0


def test_a_child_is_replaced_after_so_many_tasks(bench: Bench, mode: str) -> None:
    for _ in range(100):
        bench.put(lanes.pid)

    burst(bench, mode, 4, max_tasks=10)

    pids = bench.ledger.find("pid")
    assert len(pids) == 100
    assert 5 <= len(set(pids)) <= 11
    # Those that had been waiting for a task when it retired may get one more each.
    assert max(pids.count(pid) for pid in set(pids)) <= 10 + 4


def test_a_task_may_exit_and_fork(bench: Bench, mode: str) -> None:
    bench.put(lanes.exit_softly, 3)
    bench.put(lanes.exit_softly, 0)
    bench.put(lanes.fork)
    bench.put(tasks.fork_and_return)
    bench.put(nap[mode], "neighbour", 0.3)

    burst(bench, mode)

    assert bench.ledger.find("end") == ["neighbour"]
    (error,) = bench.ledger.find("error")
    assert "exited with 3" in error


def test_what_tasks_leave_on_the_loop_ends_with_the_child(bench: Bench) -> None:
    bench.put(lanes.leave_task)

    burst(bench, "async")

    assert "left task ended" in bench.ledger.lines


@pytest.mark.parametrize("handler", ["", "_async"])
def test_handlers_may_be_coroutines(bench: Bench, mode: str, handler: str) -> None:
    bench.put(lanes.nothing)
    bench.put(tasks.fail, "oops")
    bench.put(tasks.kill_self, 9)
    home = "tests.workers.lanes" if handler else "tests.workers.tasks"

    bench.burst(mode, success_handler=f"{home}:on_success{handler}", error_handler=f"{home}:on_error{handler}")

    assert sorted(line.split()[0] for line in bench.ledger.find("error")) == ["fail", "kill_self"]
    assert bench.ledger.find("success")


@pytest.mark.parametrize("guardian", ["monitor", "fork server"])
def test_a_dead_guardian_costs_nothing(bench: Bench, mode: str, guardian: str) -> None:
    for number in range(4):
        bench.put(nap[mode], number, 1.5)
    bench.put(nap[mode], "late", 3600.0, timeout=1.5)
    worker = start(bench, mode)
    wait_for(lambda: len(bench.ledger.find("begin")) == 5)

    os.kill(worker.pid if guardian == "monitor" else fork_server_of(worker), signal.SIGKILL)

    wait_for(bench.settled)
    assert sorted(bench.ledger.find("begin")) == ["0", "1", "2", "3", "late"]
    assert sorted(bench.ledger.find("end")) == ["0", "1", "2", "3"]
    assert "tidied late" in bench.ledger.lines


def test_a_thousand_sleepers(bench: Bench) -> None:
    for number in range(1000):
        bench.put(lanes.sleep, number, 1.0)

    burst(bench, "async", 1000)

    assert len(bench.ledger.find("end")) == 1000


def test_an_event_loop_may_be_uvloops(bench: Bench) -> None:
    bench.put(lanes.loop_name)
    bench.put(lanes.sleep, "late", 60.0, timeout=1.5)
    bench.put(lanes.block, "blocks", 60.0, timeout=0.3)
    bench.put(lanes.sleep, "well", 2.0)

    burst(bench, "async", uvloop=True)

    assert bench.ledger.find("loop") == ["uvloop"]
    assert bench.ledger.find("end") == ["well"]
    assert bench.ledger.lines.count("cancelled late") == 1
    assert len(bench.ledger.find("error")) == 2
