"""Whether, and how soon, a failed task is tried again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from delayed import PreforkedWorker, Queue, Retry, Task, TaskTimeout
from delayed.retry import constant, fixed
from tests.workers import hooks, retries, tasks
from tests.workers.conftest import Bench, Ledger, wait_for
from tests.workers.test_hooks import path

SOON = constant(0.02)
PRELOAD = ["tests.workers.retries"]  # so that no run takes its time to import it


def of_mode(mode: str, func: Callable[..., Any], coroutine: Callable[..., Any]) -> Callable[..., Any]:
    return coroutine if mode == "async" else func


def runs(bench: Bench) -> list[str]:
    return bench.ledger.find("run")


@pytest.mark.parametrize(
    ("name", "policy", "number"),
    [
        ("VeryBusy", Retry(1, backoff=SOON, on=retries.Busy), 2),
        ("VeryBusy", Retry(1, backoff=SOON, on="tests.workers.retries.VeryBusy"), 2),
        ("ValueError", Retry(1, backoff=SOON, on=retries.Busy), 1),
        ("ValueError", Retry(1, backoff=SOON, on=()), 1),
        ("VeryBusy", Retry(1, backoff=SOON, never=retries.Busy), 1),
        ("VeryBusy", Retry(1, backoff=SOON, on=Exception, never=retries.VeryBusy), 1),
        ("ValueError", Retry(1, backoff=SOON, on=Exception, never=retries.VeryBusy), 2),
        ("SystemExit", Retry(1, backoff=SOON, on=SystemExit), 2),
        ("SystemExit", Retry(1, backoff=SOON, on="killed"), 1),
        ("group", Retry(1, backoff=SOON, on=retries.Busy), 2),
        ("group", Retry(1, backoff=SOON, never=retries.Busy), 1),
        ("later", Retry(1, backoff=SOON, on=()), 2),  # it asked for it
    ],
)
def test_what_was_raised_decides(bench: Bench, name: str, policy: Retry, number: int) -> None:
    bench.put(retries.fail, name, retry=policy)

    bench.burst(preload=PRELOAD)

    assert runs(bench) == ["1", "2"][:number]
    assert ("its retry policy says so" in bench.log()) == (number == 1)
    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)


def test_what_was_raised_decides_in_each_kind_of_worker(bench: Bench, mode: str) -> None:
    func = of_mode(mode, retries.fail, retries.fail_async)
    bench.put(func, "VeryBusy", retry=Retry(1, backoff=SOON, on=retries.Busy))
    bench.put(func, "ValueError", retry=Retry(1, backoff=SOON, on=retries.Busy))
    bench.put(func, "ValueError", retry=Retry(1, backoff=SOON, never=retries.Busy))

    bench.burst(mode, preload=PRELOAD)

    assert sorted(runs(bench)) == ["1", "1", "1", "2", "2"]


@pytest.mark.parametrize(
    ("arguments", "number"),
    [({}, 2), ({"on": TaskTimeout}, 2), ({"on": OSError}, 1), ({"on": "killed"}, 1), ({"never": TaskTimeout}, 1)],
)
def test_a_run_whose_time_was_up_counts_as_a_task_timeout(
    bench: Bench, mode: str, arguments: dict[str, Any], number: int
) -> None:
    retry = Retry(1, backoff=SOON, **arguments)
    bench.put(of_mode(mode, retries.hang, retries.hang_async), timeout=0.4, retry=retry)
    bench.put(retries.swallow, timeout=0.4, retry=retry)

    bench.burst(mode, preload=PRELOAD)

    assert sorted(runs(bench)) == ["1", "1", "2", "2"][: 2 * number]


@pytest.mark.parametrize(
    ("arguments", "number"),
    [({}, 2), ({"on": "killed"}, 2), ({"on": BaseException}, 1), ({"never": "killed"}, 1), ({"never": OSError}, 2)],
)
def test_a_run_whose_process_died_counts_as_killed(
    bench: Bench, mode: str, arguments: dict[str, Any], number: int
) -> None:
    for func in (retries.die, retries.exit_hard):
        bench.put(func, retry=Retry(1, backoff=SOON, **arguments))

    bench.burst(mode, preload=PRELOAD)

    assert sorted(runs(bench)) == ["1", "1", "2", "2"][: 2 * number]


def test_a_function_decides_whether_and_when(bench: Bench, mode: str) -> None:
    bench.put(of_mode(mode, retries.fail, retries.fail_async), "VeryBusy", retry=Retry(0, policy=retries.until_third))

    bench.burst(mode, preload=PRELOAD)

    assert runs(bench) == ["1", "2", "3"], "a duration counts whatever max says"
    assert bench.ledger.find("asked") == ["VeryBusy 1", "VeryBusy 2", "VeryBusy 3"]


def test_a_function_may_leave_it_to_the_rest_of_the_policy(bench: Bench, mode: str) -> None:
    policy = Retry(1, backoff=SOON, policy=retries.as_usual)
    bench.put(of_mode(mode, retries.fail, retries.fail_async), "VeryBusy", retry=policy)

    bench.burst(mode, preload=PRELOAD)

    assert runs(bench) == ["1", "2"]
    assert bench.ledger.find("asked") == ["VeryBusy 1", "VeryBusy 2"]


def test_a_function_is_told_of_timeouts_and_not_of_deaths(bench: Bench, mode: str) -> None:
    policy = Retry(1, backoff=SOON, policy=retries.until_third)
    bench.put(of_mode(mode, retries.hang, retries.hang_async), timeout=0.4, retry=policy)
    bench.put(retries.die, retry=policy)

    bench.burst(mode, preload=PRELOAD)

    assert bench.ledger.find("asked") == ["TaskTimeout 1", "TaskTimeout 2", "TaskTimeout 3"]
    assert sorted(runs(bench)) == ["1", "1", "2", "2", "3"]


def test_a_function_may_be_a_coroutine(bench: Bench, mode: str) -> None:
    bench.put(of_mode(mode, retries.fail, retries.fail_async), "VeryBusy", retry=retries.coroutine)

    bench.burst(mode, preload=PRELOAD)

    assert runs(bench) == ["1", "2"]


def test_a_function_is_not_asked_after_what_is_never_retried(bench: Bench, mode: str) -> None:
    policy = Retry(1, backoff=SOON, never=retries.Busy, policy=retries.as_usual)
    bench.put(of_mode(mode, retries.fail, retries.fail_async), "VeryBusy", retry=policy)

    bench.burst(mode, preload=PRELOAD)

    assert runs(bench) == ["1"]
    assert bench.ledger.find("asked") == []


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (retries.broken, "the policy is broken"),
        (retries.nonsense, "must be a duration"),
        ("tests.workers.retries:missing", "has no missing"),
    ],
)
def test_a_function_that_fails_is_logged_and_not_heard(bench: Bench, mode: str, policy: Any, words: str) -> None:
    retry = Retry(1, backoff=SOON, policy=policy)
    bench.put(of_mode(mode, retries.fail, retries.fail_async), "VeryBusy", retry=retry)

    bench.burst(mode, preload=PRELOAD)

    assert runs(bench) == ["1", "2"]
    assert words in bench.log()
    assert "retry policy tests.workers.retries:" in bench.log()


def test_a_function_that_does_not_return_is_stopped(bench: Bench, mode: str) -> None:
    retry = Retry(1, backoff=SOON, policy=retries.endless)
    bench.put(of_mode(mode, retries.fail, retries.fail_async), "VeryBusy", retry=retry)

    bench.burst(mode, preload=PRELOAD, handler_timeout=0.3)

    assert runs(bench) == ["1", "2"]
    assert "was stopped" in bench.log()


def test_a_function_that_kills_its_process_kills_the_run(bench: Bench, mode: str) -> None:
    bench.put(retries.fail, "VeryBusy", retry=Retry(1, backoff=SOON, policy=retries.deadly))

    bench.burst(mode, preload=PRELOAD)

    assert runs(bench) == ["1", "2"]
    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)


def test_hooks_are_told_what_was_decided(bench: Bench, mode: str) -> None:
    bench.put(of_mode(mode, retries.fail, retries.fail_async), "VeryBusy", retry=Retry(0, policy=retries.until_third))

    bench.burst(mode, hooks=path(hooks.Everything))

    told = [line for name in ("retry", "exhausted") for line in bench.ledger.find(name)]
    name = of_mode(mode, retries.fail, retries.fail_async).__name__
    assert told == [f"{name} 1 raised 0.01", f"{name} 2 raised 0.01", f"{name} 3 raised"]


def test_pauses_are_as_the_policy_says(bench: Bench) -> None:
    bench.put(retries.fail, "VeryBusy", retry=Retry(2, backoff=fixed(0.01, 50), jitter=False))

    bench.start()

    def waits_long() -> bool:
        entries = bench.queue.broker.peek(bench.queue.name, "scheduled")
        return any(40 < entry.due <= 50 for entry in entries)

    wait_for(waits_long)
    assert runs(bench) == ["1", "2"]


@pytest.mark.parametrize(
    ("policy", "options", "asked"),
    [
        ("until_third", {}, 3),  # a policy in code that the worker imports
        ("as_usual", {}, 0),  # none
        ("as_usual", {"allow": ["tests.workers.*"]}, 2),
        ("as_usual", {"allow": ["tests.workers.retries.decorated"]}, 0),
        ("os.getcwd", {"allow": ["tests.workers.*"]}, 0),
    ],
)
def test_no_functions_are_asked_but_those_that_the_queue_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, options: dict[str, Any], asked: int
) -> None:
    """The path of a policy is in the header: whoever writes to the store could name any."""
    ledger = Ledger(tmp_path / "ledger")
    monkeypatch.setenv("LEDGER", str(ledger.path))
    queue = Queue("q", f"sqlite:///{tmp_path}/tasks.db", serializer="json", **options)
    retry = Retry(1, backoff=SOON, policy=f"tests.workers.retries:{policy}")
    queue.enqueue(Task.create(retries.decorated, (str(ledger.path),), retry=retry))

    PreforkedWorker(queue, burst=True).run()

    assert len(ledger.find("asked")) == asked
    assert len(ledger.find("run")) == max(asked, 2), "what is not asked is not heard"
    queue.broker.close()


def test_burst_mode_waits_for_the_first_pause_of_a_retry(bench: Bench) -> None:
    """A second, and what it takes to ask the store how long that is still."""
    bench.put(tasks.fail_until, "x", 1, retry=Retry(1, delay=1.09, jitter=False))

    bench.burst()

    assert bench.ledger.lines == ["try x", "try x", "done x"]
