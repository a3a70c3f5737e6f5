"""What a worker calls around tasks and processes."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from delayed import ConfigError, Hooks, PreforkedWorker, Queue, Task, events
from tests.workers import hooks, tasks
from tests.workers.conftest import Bench, wait_for

SHARED = ("threaded", "async")


def path(kind: type) -> str:
    return f"tests.workers.hooks:{kind.__name__}"


def told(bench: Bench, func: str) -> list[str]:
    """What was called for a function, in order: the hook and what it was told."""
    found = [re.match(rf"(\w+) {func} (.*)", line) for line in bench.ledger.lines]
    return [f"{match[1]} {match[2]}" for match in found if match is not None and match[1] != "in"]


def pids(bench: Bench, start: str) -> list[int]:
    return [int(rest.split()[0]) for rest in bench.ledger.find(start)]


def test_hooks_are_called_around_a_task_that_returns(bench: Bench, mode: str) -> None:
    bench.put(hooks.give, 42)

    bench.burst(mode, hooks=path(hooks.Everything))

    assert told(bench, "give") == ["before 1 True", "success 1 42", "after 1 returned"]


def test_hooks_are_called_around_a_task_that_fails(bench: Bench, mode: str) -> None:
    bench.put(tasks.fail, "no", retry={"max": 1, "delay": 0.05, "jitter": False})

    bench.burst(mode, hooks=path(hooks.Everything))

    assert told(bench, "fail") == [
        "before 1 True", "failure 1 raised ValueError", "retry 1 raised 0.05", "after 1 raised",
        "before 2 True", "failure 2 raised ValueError", "exhausted 2 raised", "after 2 raised",
    ]  # fmt: skip


def test_the_retry_comes_after_the_delay_that_the_hook_was_told(bench: Bench) -> None:
    bench.put(tasks.fail, "no", retry={"max": 1, "delay": 100.0})
    bench.start("preforked", hooks=path(hooks.Everything))
    wait_for(lambda: bench.ledger.find("after fail 1"))
    (entry,) = wait_for(lambda: bench.queue.broker.peek(bench.queue.name, "scheduled"))

    (said,) = bench.ledger.find("retry fail 1 raised")

    assert -5 < entry.due - float(said) < 0.1


def test_hooks_are_called_for_a_task_whose_time_is_up(bench: Bench, mode: str) -> None:
    bench.put(hooks.linger, timeout=0.3)

    bench.burst(mode, hooks=path(hooks.Everything), kill_timeout=5.0)

    assert told(bench, "linger") == [
        "before 1 True", "timeout 1 timed out TaskTimeout True", "exhausted 1 timed out", "after 1 timed out",
    ]  # fmt: skip
    assert _processes(bench, "linger") == 1


def test_hooks_are_called_in_another_child_for_a_task_that_kills_its_own(bench: Bench, mode: str) -> None:
    bench.put(tasks.kill_self, signal.SIGKILL)
    bench.put(tasks.stuck_in_c, timeout=0.3)

    bench.burst(mode, hooks=path(hooks.Everything))

    assert told(bench, "kill_self") == [
        "before 1 True", "failure 1 killed NoneType", "exhausted 1 killed", "after 1 killed",
    ]  # fmt: skip
    assert told(bench, "stuck_in_c") == [
        "before 1 True", "timeout 1 timed out TaskTimeout True", "exhausted 1 timed out", "after 1 timed out",
    ]  # fmt: skip
    assert _processes(bench, "kill_self") == _processes(bench, "stuck_in_c") == 2


def _processes(bench: Bench, func: str) -> int:
    """In how many processes hooks were called for a function."""
    found = [re.match(rf"in \w+ {func} (\d+)", line) for line in bench.ledger.lines]
    return len({match[1] for match in found if match is not None})


def test_hooks_are_called_for_what_can_not_even_begin(bench: Bench, mode: str) -> None:
    bench.put(tasks.mark_pid, "one argument too many")
    bench.queue.enqueue(Task(func_path="tests.workers.tasks:nowhere"))

    worker = bench.start(mode, hooks=path(hooks.Everything))
    wait_for(lambda: bench.ledger.find("after nowhere 1") and bench.ledger.find("after mark_pid 1"))
    worker.terminate()
    worker.wait(10)

    assert told(bench, "mark_pid") == [
        "before 1 True", "failure 1 bad arguments SignatureMismatch", "exhausted 1 bad arguments",
        "after 1 bad arguments",
    ]  # fmt: skip
    assert [line for line in told(bench, "nowhere") if not line.startswith("before")] == [
        "failure 1 unknown function FunctionNotFound", "retry 1 unknown function 5.00", "after 1 unknown function",
    ]  # fmt: skip


def test_hooks_are_called_for_a_task_that_is_stopped_with_its_worker(bench: Bench, mode: str) -> None:
    bench.put(hooks.linger)
    worker = bench.start(mode, hooks=path(hooks.Everything), shutdown_timeout=0.2, kill_timeout=5.0)
    wait_for(lambda: bench.ledger.find("before linger"))

    worker.terminate()

    assert worker.wait(15) == 0
    assert told(bench, "linger") == ["before 1 True", "given_back 1 stopped", "after 1 stopped"]


def test_hooks_run_where_their_task_does(bench: Bench, mode: str) -> None:
    func = hooks.give_async if mode == "async" else hooks.give
    bench.put(func, 1)

    bench.burst(mode, hooks=path(hooks.Everything))

    ((task_pid, task_thread),) = [rest.split() for rest in bench.ledger.find("task")]
    for hook in ("before", "success", "after"):
        ((_, pid, thread),) = [rest.split() for rest in bench.ledger.find(f"in {hook}")]
        assert pid == task_pid
        assert (thread == task_thread) == (mode != "async"), "plain hooks do not hold up the event loop"


def test_each_process_starts_and_stops_once(bench: Bench, mode: str) -> None:
    for number in range(6):
        bench.put(hooks.give, number)

    bench.burst(mode, hooks=path(hooks.Everything), max_tasks=None if mode == "forked" else 2)

    started, stopped = pids(bench, "start"), pids(bench, "stop")
    assert len(set(started)) == len(started)
    assert sorted(started) == sorted(stopped)
    assert set(pids(bench, "task")) <= set(started)
    assert len(set(pids(bench, "task"))) >= (6 if mode == "forked" else 3)
    assert all(stop.split()[0] == stop.split()[1] for stop in bench.ledger.find("stop"))


def test_a_process_starts_before_its_first_task_and_stops_after_its_last(bench: Bench) -> None:
    for number in range(3):
        bench.put(hooks.give, number)

    bench.burst("preforked", hooks=path(hooks.Everything))

    words = [line.split()[0] for line in bench.ledger.lines]
    assert words.index("start") < words.index("before")
    assert words.index("stop") == len(words) - 1


def test_a_process_that_is_told_to_leave_stops(bench: Bench, mode: str) -> None:
    bench.put(hooks.give, 1)
    worker = bench.start(mode, hooks=path(hooks.Everything))
    wait_for(lambda: bench.ledger.find("after give"))

    worker.terminate()

    assert worker.wait(10) == 0
    assert sorted(pids(bench, "start")) == sorted(pids(bench, "stop"))


def test_hooks_may_be_coroutines(bench: Bench, mode: str) -> None:
    bench.put(hooks.give, 1)
    bench.put(hooks.give_async, 2)
    bench.put(tasks.fail, "no")

    bench.burst(mode, hooks=path(hooks.Coroutines))

    found = Counter(line for line in bench.ledger.lines if not line.startswith("task"))
    starts, stops = found.pop("start"), found.pop("stop")
    assert starts == stops
    assert found == Counter(
        ["before give", "success give 1", "after give returned", "before give_async", "success give_async 2",
         "after give_async returned", "before fail", "failing", "failure fail", "after fail raised"]
    )  # fmt: skip


def test_hooks_that_raise_harm_nothing(bench: Bench, mode: str) -> None:
    bench.put(hooks.give, 1)
    bench.put(hooks.fail_twice, retry={"max": 5, "delay": 0.05})

    bench.burst(mode, hooks=path(hooks.Broken))

    assert len(bench.ledger.find("task")) == 1
    assert bench.ledger.find("failing") == [""] * 3
    assert bench.ledger.find("done") == [""]
    assert len(bench.ledger.find("broken before")) == len(bench.ledger.find("broken after")) == 4
    assert len(bench.ledger.find("broken failure")) == 2
    assert bench.ledger.find("broken stop")
    log = bench.log()
    assert "hook before of tests.workers.hooks:Broken failed; the task runs all the same" in log
    assert "hook after of tests.workers.hooks:Broken failed; the task's outcome stands" in log
    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)


@pytest.mark.parametrize("kind", [hooks.NeedsDatabase, hooks.Dies])
def test_a_process_that_can_not_start_leaves_and_no_task_is_lost(bench: Bench, mode: str, kind: type[Hooks]) -> None:
    for number in range(5):
        bench.put(tasks.mark, "ran", number)

    bench.burst(mode, hooks=path(kind))

    assert sorted(bench.ledger.find("ran")) == list("01234")
    assert len(bench.ledger.find("try")) >= (4 if kind is hooks.NeedsDatabase else 3)
    if kind is hooks.NeedsDatabase:
        log = bench.log()
        assert "hook start of tests.workers.hooks:NeedsDatabase failed; this process leaves" in log
        assert "ConnectionError: the database is not there" in log


@pytest.mark.parametrize("kind", [hooks.NeedsDatabase, hooks.Dies])
def test_processes_that_can_not_start_come_at_growing_intervals(bench: Bench, kind: type[Hooks]) -> None:
    bench.put(tasks.mark, "ran")

    bench.burst("preforked", hooks=path(kind))

    first, second, third = [float(rest) for rest in bench.ledger.find("at")][:3]
    assert second - first >= 0.2
    assert third - second >= 0.4


@pytest.mark.parametrize("name", ["start", "failure", "after"])
def test_a_hook_that_hangs_is_ended(bench: Bench, mode: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANGS", name)
    bench.put(tasks.fail, "no")
    bench.put(tasks.mark, "next")

    bench.burst(mode, hooks=path(hooks.Hangs), handler_timeout=0.5)

    assert bench.ledger.find(f"{name} hangs") == [""]
    assert bench.ledger.find("next") == [""]
    assert bench.ledger.find("failing") == [""], "the task itself is not charged with it"
    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)


@pytest.mark.parametrize("kind", [hooks.Lingers, hooks.LingersOnTheLoop])
@pytest.mark.parametrize("func", [hooks.give, hooks.give_async])
def test_what_goes_before_a_task_is_a_part_of_its_time(
    bench: Bench, mode: str, kind: type[Hooks], func: Callable[..., Any]
) -> None:
    bench.put(func, 1, timeout=0.3)
    bench.put(tasks.mark_pid)

    bench.burst(mode, hooks=path(kind), kill_timeout=10.0)

    assert bench.ledger.find("task") == []
    ((name, *kinds, pid),) = [line.split() for line in bench.ledger.find("timeout")]
    assert (name, kinds) == (func.__name__, ["timed", "out"])
    assert mode == "forked" or bench.ledger.find("pid") == [pid], "its process needs not be killed"


def test_hooks_may_decide_how_a_task_goes_on(bench: Bench, mode: str) -> None:
    bench.put(hooks.closed)
    bench.put(hooks.fail_twice)
    rejected = bench.put(hooks.fail_with_key)
    stopped = bench.put(hooks.linger, timeout=0.3)

    bench.burst(mode, hooks=path(hooks.Decides), kill_timeout=5.0)

    assert bench.ledger.find("before closed") == [""] * 2
    assert bench.ledger.find("task closed") == [""]
    assert bench.ledger.find("done") == [""]
    dead = {entry.message.id: entry.reason for entry in bench.queue.broker.peek(bench.queue.name, "dead")}
    assert dead == {rejected: "no such thing", stopped: "takes too long"}


def test_a_hook_may_retire_its_process(bench: Bench, mode: str) -> None:
    for number in range(3):
        bench.put(hooks.give, number)

    bench.burst(mode, hooks=path(hooks.RetiresAfter))

    assert len(set(pids(bench, "task"))) == 3


def test_an_idle_process_is_told_so_again_and_again_and_may_stop_its_worker(bench: Bench, mode: str) -> None:
    bench.put(tasks.mark, "task")
    worker = bench.start(mode, hooks=path(hooks.StopsWhenIdle))

    assert worker.wait(20) == 0
    assert bench.ledger.lines[0] == "task"
    seconds = [float(rest) for rest in bench.ledger.find("idle")]
    assert 0.3 <= seconds[0] < seconds[-1]
    assert seconds[-1] >= 0.5


def test_a_worker_refuses_what_is_no_class_of_hooks(tmp_path: Path) -> None:
    queue = Queue("default", f"sqlite:///{tmp_path}/tasks.db")

    with pytest.raises(ConfigError, match="hooks must be a subclass"):
        PreforkedWorker(queue, hooks=hooks.NoHooks)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="hooks runs in another process and must be importable there"):
        PreforkedWorker(queue, hooks=type("Nowhere", (Hooks,), {}))


def test_a_path_to_something_else_is_said_in_the_log(bench: Bench) -> None:
    bench.put(tasks.mark, "never")
    worker = bench.start("preforked", hooks=path(hooks.NoHooks))

    wait_for(lambda: "tests.workers.hooks:NoHooks is not a subclass of delayed.Hooks" in bench.log())
    worker.terminate()

    assert worker.wait(10) == 0
    assert bench.queue.broker.counts(bench.queue.name).ready == 1


def test_who_enqueues_may_listen(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "listeners", [])
    heard: list[tuple[str, list[int | None]]] = []

    @events.on_enqueued
    def broken(name: str, tasks: object) -> None:
        raise ValueError("no")

    events.on_enqueued(lambda name, tasks: heard.append((name, [task.id for task in tasks])))
    one = queue.enqueue(Task(func_path="os:getpid"))
    more = queue.enqueue_many([Task(func_path="os:getpid"), Task(func_path="os:getpid")])

    assert heard == [("default", [one]), ("default", more)]
