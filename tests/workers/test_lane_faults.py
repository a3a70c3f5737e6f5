"""What a task may do to its neighbours, or to its worker, in a child that runs several: nothing of this."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.workers import gated, lanes, tasks
from tests.workers.conftest import Bench, children_of, fork_server_of, wait_for
from tests.workers.test_lanes import HANDLER, LANES, burst, nap
from tests.workers.test_lanes import start as start_lanes

ALL = ["forked", "preforked", "threaded", "async"]
meet_again: dict[str, Callable[..., Any]] = {"threaded": lanes.meet_again, "async": lanes.meet_again_async}
imported: dict[str, Callable[..., Any]] = {"threaded": gated.run, "async": gated.run_async}


@pytest.fixture(params=["threaded", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def start(bench: Bench, mode: str, many: int = 8, **options: Any) -> Any:
    # Their limits are no time to import anything in.
    return start_lanes(bench, mode, many, preload=["tests.workers.lanes"], **options)


# -- deadlines ---------------------------------------------------------------------------------------------------


def test_deadlines_that_follow_closely_are_told_each_with_its_stack(bench: Bench, mode: str) -> None:
    func = lanes.doze if mode == "threaded" else lanes.deep
    for number in range(32):
        bench.put(func, timeout=0.5 + 0.04 * number)

    worker = start(bench, mode, 32, kill_timeout=5.0, error_handler=HANDLER)

    wait_for(lambda: len(bench.ledger.find("error")) == 32 and bench.settled())
    assert all("| timed out (limit " in error for error in bench.ledger.find("error"))
    stacks = wait_for(lambda: len(found := bench.ledger.find("stack")) == 32 and found)  # a handler notes it last
    assert all("in doze" in stack or "in deeper" in stack for stack in stacks)
    assert worker.poll() is None


@pytest.mark.parametrize("mode", ["preforked", "threaded", "async"])
def test_a_child_that_is_stopped_at_a_deadline_is_killed(bench: Bench, mode: str) -> None:
    bench.put(lanes.nap_in_steps, "late", 3600.0, timeout=0.5)
    lanes_of = {LANES[mode]: 4} if mode in LANES else {}
    worker = bench.start(mode, error_handler=HANDLER, preload=["tests.workers.lanes"], **lanes_of)
    wait_for(lambda: bench.ledger.find("begin"))
    (child,) = children_of(fork_server_of(worker))

    os.kill(child, signal.SIGSTOP)

    (error,) = wait_for(lambda: bench.ledger.find("error"))
    assert "timed out (limit 0.5 s), and was killed by signal 9" in error
    assert worker.poll() is None


def test_each_of_130_threads_is_told_its_stack(bench: Bench) -> None:
    for _ in range(130):
        bench.put(lanes.doze, timeout=1.0)

    start(bench, "threaded", 130, kill_timeout=20.0, error_handler=HANDLER)

    wait_for(lambda: len(bench.ledger.find("error")) == 130)
    assert len([stack for stack in bench.ledger.find("stack") if "in doze" in stack]) == 130
    assert "was killed" not in bench.log()


def test_many_coroutines_may_have_one_deadline(bench: Bench) -> None:
    for number in range(300):
        bench.put(lanes.sleep, number, 3600.0, timeout=2.0)

    start(bench, "async", 300, kill_timeout=3.0)

    wait_for(lambda: bench.log().count("timed out (limit 2 s) after") == 300)
    assert len(bench.ledger.find("tidied")) == 300
    assert "killed" not in bench.log()
    assert "uncharged" not in bench.log()


@pytest.mark.parametrize(
    ("mode", "handler"), [("threaded", "together"), ("async", "together"), ("async", "together_async")]
)
def test_the_stop_of_a_neighbour_leaves_an_error_handler_alone(bench: Bench, mode: str, handler: str) -> None:
    bench.put(nap[mode], "first", 3600.0, timeout=0.3)
    bench.put(nap[mode], "second", 3600.0, timeout=1.0)

    start(bench, mode, 4, kill_timeout=5.0, error_handler=f"tests.workers.lanes:on_error_{handler}")

    wait_for(lambda: len(bench.ledger.find("handled")) == 2)
    assert sorted(bench.ledger.find("called")) == ["first", "second"]
    assert "was stopped" not in bench.log()


@pytest.mark.parametrize("func", [lanes.tidy_up, lanes.block_in_group])
def test_a_coroutine_stopped_in_its_own_code_may_await_what_it_tidies_up(
    bench: Bench, func: Callable[..., Any]
) -> None:
    bench.put(func, timeout=0.4)

    burst(bench, "async", kill_timeout=5.0, preload=["tests.workers.lanes"])

    (error,) = bench.ledger.find("error")
    assert "| timed out (limit 0.4 s) after" in error
    assert len(bench.ledger.find("tidied up")) == (func is lanes.tidy_up)
    (stack,) = bench.ledger.find("stack")
    assert f"in {func.__name__}" in stack or "in inner" in stack


# -- who is charged ----------------------------------------------------------------------------------------------


def test_who_is_stuck_is_charged_at_once_however_many_went_before(bench: Bench, mode: str) -> None:
    for _ in range(1200):
        bench.put(lanes.brief)
    start(bench, mode, 4, kill_timeout=0.3, error_handler=HANDLER)
    wait_for(bench.settled)

    for number in range(1, 4):
        bench.put(lanes.stuck_in_c, timeout=0.3)
        wait_for(lambda number=number: len(bench.ledger.find("error")) == number)

    assert "uncharged" not in bench.log(), "none ran twice"


def test_who_holds_up_the_loop_beyond_the_time_of_another_is_charged(bench: Bench) -> None:
    bench.put(lanes.wait_for_line, "innocent", "begin blocks", timeout=2.0)
    start(bench, "async", 4, kill_timeout=0.5, error_handler=HANDLER)
    wait_for(lambda: bench.ledger.find("begin innocent"))

    bench.put(lanes.block, "blocks", 3600.0)

    wait_for(bench.settled)
    assert bench.ledger.find("begin blocks") == [""], "the other one would have blocked for ever again"
    assert bench.ledger.find("end") == ["innocent"]
    (error,) = wait_for(lambda: bench.ledger.find("error"))
    assert error.startswith("block | 9 |")


def test_who_came_together_with_one_that_blocks_the_loop_is_not_stopped_for_it(bench: Bench) -> None:
    bench.put(lanes.block, "gathers", 0.3)  # meanwhile the others come
    bench.put(lanes.block, "blocks", 3600.0, timeout=1.0)
    for _ in range(6):
        bench.put(lanes.doze_async, timeout=1.0)
    start(bench, "async", kill_timeout=0.5)

    wait_for(bench.settled)
    assert bench.ledger.find("dozed") == [""] * 6, bench.log()
    assert bench.ledger.find("begin blocks") == [""]
    assert bench.ledger.find("end blocks") == []


def test_a_second_signal_whose_reason_the_first_has_found_does_no_harm(bench: Bench) -> None:
    bench.put(lanes.block, "gathers", 0.3)  # meanwhile the others come
    bench.put(lanes.meet_signal_twice, timeout=0.5)
    bench.put(lanes.sleep, "at the same time", 60.0, timeout=0.5)
    bench.put(lanes.sleep, "neighbour", 2.0)
    start(bench, "async")

    wait_for(bench.settled)
    assert bench.ledger.find("end") == ["gathers", "neighbour"], bench.log()
    assert bench.ledger.find("begin") == ["gathers", "at the same time", "neighbour"], "none ran twice"
    assert len(bench.ledger.find("owed")) == 1, "else it came to nothing"


def test_a_copy_of_the_loop_ends_nothing_that_a_neighbour_has_returned(bench: Bench) -> None:
    bench.start("async", concurrency=2)
    bench.put(lanes.wait_for_word)
    bench.put(lanes.give_word_and_fork)
    wait_for(bench.settled)
    for number in range(3):
        bench.put(lanes.sleep, number, 0.0)
    wait_for(bench.settled)
    assert sorted(bench.ledger.find("end")) == ["0", "1", "2", "giving", "waiting"]


def test_the_copy_that_a_coroutine_leaves_takes_nothing_from_the_others(bench: Bench) -> None:
    bench.put(lanes.block, "gathers", 0.3)  # meanwhile the others come
    bench.put(lanes.fork_and_yield)
    for _ in range(20):
        bench.put(lanes.doze_async, timeout=5.0)
    start(bench, "async")

    wait_for(bench.settled)
    assert bench.ledger.find("dozed") == [""] * 20
    assert "killed" not in bench.log()


def test_suspects_wait_for_a_child_that_takes_its_time_to_come(bench: Bench, mode: str) -> None:
    for number in range(2):
        bench.put(meet_again[mode], number, 2)
    worker = start(bench, mode, hooks="tests.workers.lanes:SlowToCome")
    wait_for(lambda: len(bench.ledger.find("begin")) == 2)
    (child,) = children_of(fork_server_of(worker))

    os.kill(child, signal.SIGKILL)

    wait_for(lambda: len(bench.ledger.find("end")) == 2)
    assert len(bench.ledger.find("came")) == 4, "one that replaced it, and two of their own"


@pytest.mark.parametrize(("count", "together"), [(8, 2), (3, 1)])
def test_suspects_run_apart_and_none_waits_for_another(bench: Bench, mode: str, count: int, together: int) -> None:
    for number in range(count):
        bench.put(meet_again[mode], number, count)
    worker = start(bench, mode)
    wait_for(lambda: len(bench.ledger.find("begin")) == count)
    (child,) = children_of(fork_server_of(worker))

    os.kill(child, signal.SIGKILL)

    wait_for(lambda: len(bench.ledger.find("end")) == count)
    children = Counter(line.split()[1] for line in bench.ledger.find("again"))
    assert max(children.values()) == together, "all ran at once, in different children"
    wait_for(bench.settled)
    wait_for(lambda: len(children_of(fork_server_of(worker))) == 1)


# -- the lanes go on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ALL)
def test_an_error_may_be_long_and_not_ascii(bench: Bench, mode: str) -> None:
    bench.put(lanes.fail_at_length, 40_000)
    bench.put(tasks.mark, "served")

    bench.burst(mode, error_handler=HANDLER)

    (error,) = bench.ledger.find("error")
    assert error.startswith("fail_at_length | None | ValueError | raised ValueError: ééé")
    assert "served" in bench.ledger.lines


def test_a_large_task_finds_no_descriptor_left(bench: Bench, mode: str) -> None:
    worker = start(bench, mode, 4, shutdown_timeout=1.0)
    bench.put(lanes.use_up_descriptors, 1.5)
    wait_for(lambda: bench.ledger.find("used up"))

    bench.put(tasks.size, b"x" * 200_000)

    assert wait_for(lambda: bench.ledger.find("size")) == ["200000"]
    bench.put(tasks.mark, "after")
    wait_for(bench.settled)
    assert "after" in bench.ledger.lines
    worker.terminate()
    assert worker.wait(10) == 0


def test_a_task_may_exit_with_anything(bench: Bench, mode: str) -> None:
    for _ in range(2):
        bench.put(lanes.exit_oddly)
    for number in range(4):
        bench.put(tasks.mark, "mark", number)

    burst(bench, mode, 2)

    assert len(bench.ledger.find("mark")) == 4
    assert [error.rpartition("| ")[2][:16] for error in bench.ledger.find("error")] == ["exited with 1: o"] * 2


def test_a_task_may_give_the_loop_a_factory_of_its_own(bench: Bench) -> None:
    bench.put(lanes.install_factory)
    for number in range(4):
        bench.put(tasks.mark_async, f"mark {number}")

    burst(bench, "async", 1)

    assert bench.ledger.find("mark") == list("0123")
    assert bench.ledger.find("error") == []


def test_a_task_may_cancel_all_that_runs_on_the_loop(bench: Bench) -> None:
    start(bench, "async", 2, success_handler="tests.workers.lanes:on_success_waits")
    bench.put(lanes.nothing)
    wait_for(lambda: bench.ledger.find("called"))
    bench.put(lanes.cancel_all)
    wait_for(lambda: bench.ledger.find("cancelled all"))

    for number in range(2):
        bench.put(lanes.meet_async, number, 2)

    wait_for(bench.settled)
    assert len(bench.ledger.find("met")) == 2, "both lanes are there"


@pytest.mark.parametrize("max_tasks", [None, 1])
def test_what_is_left_on_the_loop_does_not_hold_it_up_for_ever(bench: Bench, max_tasks: int | None) -> None:
    start(bench, "async", 2, max_tasks=max_tasks)
    bench.put(lanes.leave_blocker)
    if max_tasks is None:
        wait_for(lambda: bench.ledger.find("blocks"))

    for number in range(3):
        bench.put(tasks.mark_async, f"mark {number}")

    wait_for(bench.settled)
    assert sorted(bench.ledger.find("mark")) == list("012")


# -- waiting for others ------------------------------------------------------------------------------------------


def test_a_slow_import_stops_nobody_else(bench: Bench, mode: str) -> None:
    start(bench, mode, error_handler=HANDLER)
    bench.put(imported[mode])
    wait_for(lambda: bench.ledger.find("importing"))

    bench.put(nap[mode], "innocent", 0.01, timeout=10.0)

    wait_for(lambda: bench.ledger.find("end innocent"))
    assert bench.ledger.find("imported") == []
    tasks.note(str(bench.ledger.path), "import may end")
    wait_for(bench.settled)
    assert bench.ledger.find("imported") == [""]
    assert bench.ledger.find("error") == []


def test_claims_behind_long_tasks_go_to_a_worker_that_is_idle(bench: Bench, mode: str) -> None:
    for _ in range(2000):
        bench.put(lanes.nothing)
    for number in range(4):
        bench.put(nap[mode], number, 3600.0)
    for number in range(300):
        bench.put(tasks.mark, "mark", number)
    start(bench, mode, 4)
    wait_for(lambda: len(bench.ledger.find("begin")) == 4)

    start(bench, mode, 4)

    wait_for(lambda: bench.queue.broker.counts(bench.queue.name)[:3] == (0, 0, 4))
    assert len(bench.ledger.find("mark")) == 300
    assert bench.ledger.find("end") == []


def test_claims_of_a_child_that_retires_go_to_a_worker_that_is_idle(bench: Bench, mode: str) -> None:
    bench.put(nap[mode], "long", 3600.0)
    for number in range(30):
        bench.put(tasks.mark, "mark", number)
    start(bench, mode, 4, max_tasks=5)
    wait_for(lambda: bench.ledger.find("begin long"))

    start(bench, mode, 4)

    wait_for(lambda: len(bench.ledger.find("mark")) == 30)
    assert bench.ledger.find("end") == []


def test_the_error_handler_of_a_killed_task_is_called_where_there_is_room(bench: Bench, mode: str) -> None:
    for number in range(3):
        bench.put(nap[mode], number, 3600.0)
    start(bench, mode, 2, processes=2, kill_timeout=0.3, error_handler=HANDLER)
    wait_for(lambda: len(bench.ledger.find("begin")) == 3)

    bench.put(lanes.stuck_in_c, timeout=0.3)

    (error,) = wait_for(lambda: bench.ledger.find("error"))
    assert error.startswith("stuck_in_c | 9 |")
    assert bench.ledger.find("end") == []


@pytest.mark.parametrize("mode", ALL)
def test_an_error_handler_that_has_ended_is_not_called_again(bench: Bench, mode: str) -> None:
    bench.put(lanes.die, 3)

    bench.burst(mode, error_handler="tests.workers.lanes:on_error_the_last")

    assert bench.ledger.find("called") == [""]


@pytest.mark.parametrize("func", [lanes.return_at_the_gate, lanes.return_at_the_gate_in_thread])
def test_what_returned_before_the_loop_turned_again_has_ended(bench: Bench, func: Callable[..., Any]) -> None:
    bench.put(func)
    bench.put(lanes.die_before_the_loop_turns)
    start(bench, "async")

    wait_for(bench.settled)

    assert bench.ledger.lines.count("returned") == 1
    assert "die_before_the_loop_turns (attempt 1) killed by signal 9" in bench.log()
