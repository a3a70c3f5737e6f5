"""What programs that enqueue can use in their own tests."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from delayed import (
    ConfigError,
    NotEnqueueable,
    NotKept,
    Queue,
    ResultGone,
    RetryLater,
    TaskFailed,
    current,
    delayed,
)
from delayed.delay import delay
from delayed.retry import Retry
from delayed.testing import Tasks, capture
from tests import functions

queue = Queue("mails", "redis://127.0.0.1:1")  # where nobody listens
other = Queue("plain", "redis://127.0.0.1:1", serializer="json")
done: list[Any] = []


@delayed(queue)
def welcome(name: str, polite: bool = True) -> str:
    done.append(("welcome", name, polite))
    remind.options(delay=86400).delay(name)
    return f"hello {name}"


@delayed(queue)
def remind(name: str) -> None:
    done.append(("remind", name))


@delayed(other, retry=Retry(2, delay=10, factor=3, jitter=False))
def flaky(fails: int) -> None:
    done.append(("flaky", current.attempt))
    if current.attempt <= fails:
        raise OSError("no line")


@delayed(other)
async def slow(x: int) -> int:
    await asyncio.sleep(0)
    return x + 1


@delayed(queue)
def endless() -> None:
    endless.delay()


@delayed(queue, max_deliveries=3)
def later() -> None:
    done.append("later")
    raise RetryLater(60)


@delayed(queue)
def gives_up() -> None:
    pytest.fail("seen by the test")


@pytest.fixture
def tasks() -> Iterator[Tasks]:
    done.clear()
    with capture() as found:
        yield found


def test_nothing_is_run_before_it_is_asked_for(tasks: Tasks) -> None:
    handle = welcome.delay("ada")

    assert done == []
    assert tasks.assert_enqueued(welcome, "ada").id == handle.id
    assert [task.func_name for task in tasks.enqueued] == ["welcome"]
    (run,) = tasks.run_all()
    assert (run.result, run.verdict.ok, run.error, run.last) == ("hello ada", True, None, True)
    assert (run.task.id, run.task.queue, run.task.attempt) == (handle.id, "mails", 1)
    assert done == [("welcome", "ada", True)]
    assert queue.len() == 1, "the reminder waits"


def test_time_passes_as_the_test_says(tasks: Tasks) -> None:
    welcome.delay("ada")
    began = time.monotonic()

    assert len(tasks.advance("23h59m")) == 1
    assert len(tasks.advance(timedelta(minutes=1))) == 1
    assert done == [("welcome", "ada", True), ("remind", "ada")]
    assert time.monotonic() - began < 5


def test_retries_come_when_the_policy_says(tasks: Tasks) -> None:
    flaky.delay(1)
    first = tasks.run_all()
    assert [(run.last, type(run.error), run.verdict.kind) for run in first] == [(False, OSError, "raised")]

    assert tasks.advance(9.9) == []
    assert [run.verdict.kind for run in tasks.advance(0.2)] == ["returned"]
    assert done == [("flaky", 1), ("flaky", 2)]


def test_the_last_failure_is_raised_in_the_test(tasks: Tasks) -> None:
    flaky.delay(3)

    with pytest.raises(OSError, match="no line"):
        tasks.advance("1h")
    assert [run.last for run in tasks.runs] == [False, False, True]

    flaky.delay(3)
    assert [run.last for run in tasks.advance("1h", raising=False)] == [False, False, True]


def test_a_task_that_asks_for_another_time_gets_it(tasks: Tasks) -> None:
    later.delay()

    runs = tasks.advance("10m")
    assert done == ["later"] * 11, "more often than it may be lost"
    assert {run.verdict.kind for run in runs} == {"postponed"} and tasks.dead == []


def test_coroutines_are_run_with_and_without_a_loop(tasks: Tasks) -> None:
    slow.delay(1)
    assert [run.result for run in tasks.run_all()] == [2]

    async def main() -> list[Any]:
        await slow.adelay(2)
        return [run.result for run in tasks.run_all()]

    assert asyncio.run(main()) == [3]


def test_what_is_enqueued_by_threads_and_by_hand_is_captured(tasks: Tasks) -> None:
    thread = threading.Thread(target=lambda: delay(queue)(functions.add)(1, 2))
    thread.start()
    thread.join()

    task = queue.dequeue()
    assert task is not None and task.run() == functions.add(1, 2)
    assert queue.release(task)
    assert tasks.enqueued == []


def test_what_would_not_arrive_is_refused(tasks: Tasks) -> None:
    with pytest.raises(NotEnqueueable):
        flaky.delay({1, 2})  # type: ignore[arg-type]
    with pytest.raises(NotEnqueueable):
        welcome.delay(lambda: 1)  # type: ignore[arg-type]


def test_arguments_arrive_as_copies(tasks: Tasks) -> None:
    names: Any = ["ada"]
    welcome.delay(names)
    names.append("bob")

    tasks.run_all()
    assert done == [("welcome", ["ada"], True)]


def test_assertions_know_defaults_and_names(tasks: Tasks) -> None:
    welcome.delay("ada")
    welcome.delay(name="bob", polite=False)

    tasks.assert_enqueued(welcome)
    tasks.assert_enqueued(welcome, "ada", True)
    tasks.assert_enqueued(welcome, name="ada")
    tasks.assert_enqueued(welcome, "bob", False)
    tasks.assert_not_enqueued(remind)
    assert [task.args for task in tasks.of(welcome)] == [("ada",), ()]
    with pytest.raises(AssertionError, match=r"calls welcome\('bob'\); there are:\n  <Task .*'ada'\)>\n  <Task .*bob"):
        tasks.assert_enqueued(welcome, "bob")
    with pytest.raises(AssertionError, match=r"calls remind\(\); there are:\n  <Task .*\n  <Task"):
        tasks.assert_enqueued(remind)
    with pytest.raises(AssertionError, match="a task waits:\n  <Task"):
        tasks.assert_not_enqueued(welcome)


def test_inline_runs_at_once(tasks: Tasks) -> None:
    tasks.inline = True
    welcome.delay("ada")

    assert done == [("welcome", "ada", True)]
    with pytest.raises(OSError, match="no line"):
        flaky.options(retry=0).delay(1)


def test_handles_get_their_answers(tasks: Tasks) -> None:
    handle = welcome.options(keep="1h").delay("ada")
    assert handle.status == "ready"
    assert handle.result() == "hello ada", "waiting runs what is due"
    assert handle.status == "done"
    tasks.advance("61m")
    with pytest.raises(ResultGone):
        handle.result()

    failing = flaky.options(keep="1h").delay(3)
    with pytest.raises(ConfigError, match=r"is tried again later: call advance\(\) before"):
        failing.result()
    tasks.advance("10m", raising=False)
    with pytest.raises(TaskFailed, match="no line"):
        failing.result()
    plain = welcome.delay("bob")
    with pytest.raises(NotKept):
        plain.result()


def test_an_endless_chain_is_told(tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delayed.testing.tasks.RUNS_MAX", 50)
    endless.delay()

    with pytest.raises(ConfigError, match="50 tasks were run, and there are more"):
        tasks.run_all()


def test_the_test_can_fail_inside_a_task(tasks: Tasks) -> None:
    gives_up.delay()

    with pytest.raises(pytest.fail.Exception, match="seen by the test"):
        tasks.run_all()


def test_one_capture_at_a_time(tasks: Tasks) -> None:
    with pytest.raises(ConfigError, match="one capture"), capture():
        pass
    assert queue.broker is tasks.broker, "and it is still on"


def test_outside_of_the_block_queues_are_themselves() -> None:
    local = Queue("local", "memory://")
    with capture():
        local.enqueue(local.task(functions.add, 1, 2))
        assert local.len() == 1
    assert local.len() == 0
    local.enqueue(local.task(functions.add, 1, 2))
    assert local.len() == 1


def test_the_plugin_has_the_fixture(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "testing.md").read_text()
    (tmp_path / "test_mails.py").write_text(page.split("```python\n")[1].split("```")[0])
    (tmp_path / "test_it.py").write_text(
        "from delayed import Queue, delayed\n"
        "@delayed(Queue('q', 'redis://127.0.0.1:1'))\n"
        "def add(a, b): return a + b\n"
        "def test_it(delayed_tasks):\n"
        "    add.delay(1, 2)\n"
        "    assert [run.result for run in delayed_tasks.run_all()] == [3]\n"
        "    delayed_tasks.assert_enqueued(add)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "delayed.testing.plugin", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=50,
    )

    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "AssertionError: no task waits that calls add(); there are:" in done.stdout, done.stdout + done.stderr
    assert "delayed/testing/tasks.py" not in done.stdout, "the traceback ends in the test"
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"delayed": "delayed.testing.plugin"}


# -- retries and time --------------------------------------------------------------------------------------------------


def decide(error: BaseException, attempt: int) -> float | bool:
    if isinstance(error, OSError) and attempt == 1:
        raise ValueError("a policy that fails is not heard")
    return 60.0 if attempt < 4 else False


@delayed(queue, retry=Retry(1, delay=5, jitter=False, on=ValueError))
def mind(kind: str) -> None:
    raise {"value": ValueError, "os": OSError}[kind](kind)


@delayed(queue, retry=Retry(1, delay=5, jitter=False, policy=decide))
def ask(kind: str) -> None:
    raise {"value": ValueError, "os": OSError}[kind](kind)


def test_policies_mind_what_was_raised(tasks: Tasks) -> None:
    mind.delay("value")
    mind.delay("os")

    runs = tasks.advance("1h", raising=False)

    assert [(str(run.error), run.task.attempt, run.last) for run in runs] == [
        ("value", 1, False), ("os", 1, True), ("value", 2, True),
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "attempts"), [("value", 4), ("os", 4)])
def test_policies_are_asked(tasks: Tasks, kind: str, attempts: int) -> None:
    ask.delay(kind)

    runs = tasks.advance("1h", raising=False)

    assert [run.task.attempt for run in runs] == list(range(1, attempts + 1))


def test_what_has_not_begun_in_time_is_not_run(tasks: Tasks) -> None:
    welcome.options(delay=30, expires="1m").delay("late").reschedule(90)
    welcome.options(delay=30, expires="1m").delay("in time")

    runs = tasks.advance("2m")

    assert [(run.task.args, run.verdict.kind, run.last) for run in runs] == [
        (("in time",), "returned", True), (("late",), "expired", True),
    ]  # fmt: skip
    assert done == [("welcome", "in time", True)]


def test_what_fails_for_good_is_kept_if_its_queue_keeps_it() -> None:
    keeping = Queue("keeping", "redis://127.0.0.1:1", dead_letters=True)
    with capture() as tasks:
        delay(keeping)(functions.raise_type_error)()
        tasks.run_all(raising=False)

    assert len(tasks.dead) == 1
    assert "TypeError" in tasks.dead[0]


@delayed(queue, keep="1h")
def double(number: int) -> int:
    return 2 * number


@delayed(queue, keep="1h")
def total(numbers: list[int]) -> int:
    return sum(numbers)


def test_groups_and_what_follows_them_have_their_results() -> None:
    with capture() as tasks:
        limited = double.options(at_once=1, rate="1/h")
        group = limited.map([1, 2])
        last = group.then(total)

        assert len(tasks.run_all()) == 3
        assert last.result() == 6 and group.results() == [2, 4]
        assert [run.task.attempt for run in tasks.runs] == [1, 1, 1]


def test_a_group_that_is_not_due_can_not_be_waited_for() -> None:
    with capture() as tasks:
        later = double.options(delay=60).map([1])
        after = later[0].then(double)
        with pytest.raises(ConfigError, match="advance"):
            later.results()
        assert tasks.run_all() == []

        tasks.advance("1m")

        assert (later.results(), after.result()) == ([2], 4)


def test_what_follows_a_failure_is_not_run() -> None:
    with capture() as tasks:
        total.delay([None]).then(double)  # type: ignore[list-item]

        first, second = tasks.run_all(raising=False)

        assert (first.verdict.kind, second.verdict.kind) == ("raised", "not run")
        assert second.last and isinstance(second.error, TaskFailed)


def test_a_transaction_enqueues_when_its_block_ends_well() -> None:
    with capture() as tasks:
        with queue.transaction(object()):
            delay(queue)(functions.add)(1, 2)
            assert tasks.enqueued == []
        with pytest.raises(ZeroDivisionError), queue.transaction(object()):
            delay(queue)(functions.add)(3, 4)
            raise ZeroDivisionError
        tasks.assert_enqueued(functions.add, 1, 2)
        assert len(tasks.enqueued) == 1


def test_what_a_task_raises_has_no_context_of_ours() -> None:
    with capture() as tasks:
        delay(queue)(functions.raise_type_error)()
        (run,) = tasks.run_all(raising=False)

    assert isinstance(run.error, TypeError)
    assert run.error.__context__ is None
