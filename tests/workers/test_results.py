"""What workers keep of tasks, and what handles make of it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from delayed import ConfigError, NotKept, NotSerializable, ResultGone, TaskFailed, TaskHandle, results
from delayed.message import Counts
from delayed.retry import Retry
from delayed.task import Task
from tests.bank import Bank, bank_at
from tests.workers import answering
from tests.workers.conftest import Bench, alive, children_of, fork_server_of, fork_servers_of, wait_for

sqlite_only = pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
transactional = pytest.mark.parametrize("bench", ["sqlite", "postgres", "mongodb"], indirect=True)
BOUND = 20.0


def put(bench: Bench, func: Callable[..., Any], *args: Any, keep: Any = "1h", **options: Any) -> TaskHandle[Any]:
    return bench.queue.handle(bench.put(func, *args, keep=keep, **options))


def test_results_come_back(bench: Bench, mode: str) -> None:
    values = [None, 0, "text", {"a": [1, 2.5, b"\0"]}, 10**40]
    handles = [put(bench, answering.give, value) for value in values]
    handles.append(put(bench, answering.give_async, "awaited"))
    assert handles[0].status == "ready" and handles[0].verdict is None

    bench.burst(mode)

    assert [handle.result(BOUND) for handle in handles] == [*values, "awaited"]
    assert {handle.status for handle in handles} == {"done"}
    verdict = handles[0].verdict
    assert verdict is not None and verdict.ok and verdict.kind == "returned" and verdict.wall >= 0
    assert bench.queue.broker.counts(bench.queue.name) == Counts(0, 0, 0, 0)


@sqlite_only
def test_the_result_of_a_task_that_left_no_descriptor_free_is_kept(bench: Bench, mode: str) -> None:
    handle = put(bench, answering.give_without_files, 1)

    bench.burst(mode)

    assert handle.result(BOUND) == 1
    assert len(bench.ledger.find("begin")) == 1


def test_who_waits_is_woken(bench: Bench, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FLOOR", 100.0)  # nobody looks in between
    bench.start(mode)

    for number in range(10):
        assert put(bench, answering.give, number).result(BOUND) == number


def test_what_keeps_no_answer_says_so(bench: Bench, mode: str) -> None:
    handle = put(bench, answering.give_later, 1, 1.0, keep=None)
    with pytest.raises(NotKept, match="keep="):
        handle.result()
    bench.burst(mode)

    with pytest.raises(ResultGone):
        handle.result()
    assert handle.status == "gone" and handle.verdict is None


def test_an_answer_is_gone_after_its_time(bench: Bench, mode: str) -> None:
    handle = put(bench, answering.give, 1, keep=0.3)
    bench.burst(mode)

    wait_for(lambda: handle.status == "gone")
    with pytest.raises(ResultGone, match="longer ago"):
        handle.result()


def test_an_exception_comes_back_as_itself_with_its_traceback(bench: Bench, mode: str) -> None:
    handle = put(bench, answering.raise_plain)
    bench.burst(mode)

    with pytest.raises(answering.Plain, match="it went wrong") as caught:
        handle.result(BOUND)

    told = str(caught.value.__cause__)
    assert "in raise_plain" in told and "KeyError: 'inner'" in told
    assert handle.status == "failed"
    assert handle.verdict is not None and handle.verdict.type == "tests.workers.answering.Plain"


def test_an_exception_that_can_not_come_back_is_told_in_words(bench: Bench, mode: str) -> None:
    demanding = put(bench, answering.raise_demanding)
    exits = put(bench, answering.exit_with, 3)
    bench.burst(mode)

    with pytest.raises(TaskFailed, match="Demanding: it went wrong") as caught:
        demanding.result(BOUND)
    assert caught.value.verdict is not None and caught.value.verdict.kind == "raised"
    assert "in raise_demanding" in str(caught.value.__cause__)
    with pytest.raises(TaskFailed, match="exited with 3"):
        exits.result(BOUND)


def test_a_result_that_can_not_be_serialized_says_so(bench: Bench, mode: str) -> None:
    handle = put(bench, answering.give_lock, retry=Retry.of(3))
    bench.burst(mode)

    with pytest.raises(NotSerializable, match="lock"):
        handle.result(BOUND)
    assert handle.status == "done", "the task itself did what it should"
    assert bench.ledger.lines == ["begin"]
    assert "can't be kept" in bench.log()


def test_large_results_come_back_and_take_no_memory_afterwards(bench: Bench, mode: str) -> None:
    worker = bench.start(mode)
    handles = [put(bench, answering.give_large, 1 + number % 3) for number in range(24)]

    for number, handle in enumerate(handles):
        size = 1 + number % 3
        assert handle.result(BOUND) == bytes([size]) * (size << 20)

    spool, *_ = [  # while a slot of it is cleared it is mapped, and the map has a descriptor of its own
        f"/proc/{worker.pid}/fd/{fd}"
        for fd in os.listdir(f"/proc/{worker.pid}/fd")
        if "delayed-spool" in os.readlink(f"/proc/{worker.pid}/fd/{fd}")
    ]
    wait_for(lambda: os.stat(spool).st_blocks * 512 < 24 * 65536)


def test_what_was_killed_or_stopped_has_a_verdict(bench: Bench, mode: str) -> None:
    killed = put(bench, answering.kill_self)
    late = put(bench, answering.give_later, 1, 30.0, timeout=2.0)
    bench.burst(mode)

    with pytest.raises(TaskFailed, match="SIGKILL") as caught:
        killed.result(BOUND)
    assert caught.value.verdict is not None and caught.value.verdict.kind == "killed"
    with pytest.raises(TaskFailed, match="timed out") as caught:
        late.result(BOUND)
    assert caught.value.verdict is not None and caught.value.verdict.kind == "timed out"
    assert "give_later" in str(caught.value.__cause__)


def test_a_retried_task_answers_once_with_its_last_run(bench: Bench, mode: str) -> None:
    good = put(bench, answering.give_attempt, 3, retry=Retry(5, delay=0.1))
    bad = put(bench, answering.give_attempt, 9, retry=Retry(1, delay=0.1))
    bench.start(mode)

    assert good.result(BOUND) == 3
    with pytest.raises(ValueError, match="not yet"):
        bad.result(BOUND)
    assert len(bench.ledger.lines) == 5


def test_a_child_that_dies_between_its_return_and_its_answer_has_crashed(bench: Bench, mode: str) -> None:
    again = put(bench, answering.give_deadly, retry=Retry(1, delay=0.0))
    bench.burst(mode)
    assert again.result(BOUND) == "second"
    assert bench.ledger.lines == ["begin"] * 2

    once = put(bench, answering.give_deadly)
    bench.burst(mode)
    with pytest.raises(TaskFailed, match="SIGKILL"):
        once.result(BOUND)


def test_a_dead_letter_says_why(bench: Bench, mode: str) -> None:
    handle = put(bench, answering.reject)
    bench.burst(mode)

    with pytest.raises(TaskFailed, match="rejected: nobody wants it"):
        handle.result(BOUND)
    assert handle.status == "dead"
    assert handle.verdict is not None and handle.verdict.kind == "rejected"


def test_a_task_that_returns_by_an_exception_answers_none(bench: Bench, mode: str) -> None:
    handles = [put(bench, answering.leave), put(bench, answering.exit_with, 0)]
    bench.burst(mode)

    assert [handle.result(BOUND) for handle in handles] == [None, None]


def test_handlers_do_not_come_in_the_way_of_answers(bench: Bench, mode: str) -> None:
    good, bad = put(bench, answering.give, 5), put(bench, answering.raise_plain)
    bench.burst(mode, success_handler="tests.workers.tasks:on_success", error_handler="tests.workers.tasks:on_error")

    assert good.result(BOUND) == 5
    with pytest.raises(answering.Plain):
        bad.result(BOUND)
    assert len(bench.ledger.lines) == 2


def test_a_task_may_ask_for_the_results_of_others(bench: Bench, mode: str) -> None:
    handles = [put(bench, answering.give, number) for number in range(5)]
    total = put(bench, answering.give_sum, handles)
    bench.start(mode, processes=2)

    assert total.result(BOUND) == 10


@sqlite_only
def test_many_are_awaited_in_one_event_loop(bench: Bench, mode: str) -> None:
    bench.start(mode)

    async def gather() -> list[Any]:
        return await asyncio.gather(*(put(bench, answering.give, number) for number in range(100)))

    assert asyncio.run(gather()) == list(range(100))


# -- cancelling ----------------------------------------------------------------------------------------------------


def test_a_waiting_task_is_cancelled(bench: Bench, mode: str) -> None:
    ready, later = put(bench, answering.give, 1), put(bench, answering.give, 2, delay=100.0)
    assert later.status == "scheduled"

    assert ready.cancel() and later.cancel()

    for handle in (ready, later):
        assert handle.status == "failed"
        with pytest.raises(TaskFailed, match="cancelled"):
            handle.result(BOUND)
        assert handle.cancel(), "it is cancelled already"
    bench.burst(mode)
    assert ready.status == "failed"


def test_a_running_task_is_cancelled(bench: Bench, mode: str) -> None:
    handle = put(bench, answering.give_later, 1, 100.0, retry=Retry(3))
    bench.start(mode, announce_interval=0.2)
    wait_for(lambda: bench.ledger.lines)
    assert handle.status == "running"

    assert handle.cancel()

    with pytest.raises(TaskFailed, match="cancelled") as caught:
        handle.result(BOUND)
    assert caught.value.verdict is not None and caught.value.verdict.kind == "cancelled"
    done = put(bench, answering.give, 1)
    done.result(BOUND)
    assert not done.cancel()


# -- progress ------------------------------------------------------------------------------------------------------


def test_a_running_task_tells_how_far_it_is(bench: Bench, mode: str) -> None:
    handle = put(bench, answering.report, 0.25, 0.5)
    assert handle.progress is None
    bench.start(mode, announce_interval=1000.0)  # but for progress it would not be told again

    wait_for(lambda: handle.progress == (0.25, "part 0"))
    bench.folder.joinpath("ledger.0").touch()
    wait_for(lambda: handle.progress == (0.5, "part 1"))

    bench.folder.joinpath("ledger.1").touch()
    assert handle.result(BOUND) == "done"
    wait_for(lambda: handle.progress is None)
    assert bench.ledger.find("reported") == ["0.25", "0.5"]


@sqlite_only
@pytest.mark.parametrize("value", [-0.1, 1.1, "half", None, True, float("nan")])
def test_what_is_no_progress_is_refused(bench: Bench, value: Any) -> None:
    handle = put(bench, answering.report_more, value)
    bench.burst()

    with pytest.raises(ConfigError, match="progress is a number from 0 to 1"):
        handle.result(BOUND)


# -- transactions of their own -------------------------------------------------------------------------------------


@pytest.fixture
def bank(bench: Bench) -> Bank:
    bench.queue.broker.check()
    bank = bank_at(bench.url, f"bank_{bench.queue.name.replace('-', '_')}")
    bank.open()
    return bank


@transactional
def test_a_task_that_ends_in_its_own_transaction_keeps_its_answer(bench: Bench, bank: Bank, mode: str) -> None:
    handle = put(bench, answering.commit_and, bench.url, bank.name, "wait")
    worker = bench.start(mode)
    wait_for(lambda: bench.ledger.find("committed") == [""])
    assert handle.status == "running" and handle.verdict is None, "it has committed, and its function goes on"

    bench.folder.joinpath("ledger.go").touch()

    assert handle.result(BOUND) == "result"
    bank.check([1])
    worker.terminate()


@transactional
def test_a_run_that_fails_after_its_commit_answers_so(bench: Bench, bank: Bank, mode: str) -> None:
    raising = put(bench, answering.commit_and, bench.url, bank.name, "raise")
    bench.burst(mode)
    with pytest.raises(answering.Plain, match="after it"):
        raising.result(BOUND)


@transactional
def test_a_child_that_is_killed_after_its_commit_answers_so(bench: Bench, bank: Bank, mode: str) -> None:
    killed = put(bench, answering.commit_and, bench.url, bank.name, "kill")
    bench.burst(mode)
    with pytest.raises(TaskFailed, match="SIGKILL"):
        killed.result(BOUND)


# -- the deaths of guardians ---------------------------------------------------------------------------------------


def test_the_stand_in_keeps_answers(bench: Bench, mode: str) -> None:
    result = put(bench, answering.give_later, "result", 1.5)
    worker = bench.start(mode)
    wait_for(lambda: bench.ledger.lines)
    server = fork_server_of(worker)

    worker.kill()

    assert result.result(BOUND) == "result"
    wait_for(lambda: not alive(server), 10.0)


def test_the_stand_in_keeps_the_answer_of_a_child_that_dies(bench: Bench, mode: str) -> None:
    result = put(bench, answering.give_later, 1, 30.0, timeout=1.0)
    worker = bench.start(mode)
    wait_for(lambda: bench.ledger.lines)
    wait_for(lambda: children_of(fork_server_of(worker)))

    worker.kill()

    with pytest.raises(TaskFailed, match="timed out"):
        result.result(BOUND)


@sqlite_only
def test_random_deaths_of_guardians_lose_and_mix_up_no_answer(bench: Bench, mode: str) -> None:
    total = 100 if mode == "forked" else 1000
    dice = random.Random()
    tasks = [Task.create(answering.give, (str(bench.ledger.path), number), keep="1h") for number in range(total)]
    ids = bench.queue.enqueue_many(tasks)
    workers: list[subprocess.Popen[str]] = [bench.start(mode, processes=2) for _ in range(2)]
    deadline = time.monotonic() + 40
    for _ in range(6):
        time.sleep(dice.uniform(0.0, 0.3))
        victim = dice.randrange(2)
        servers = [pid for pid in fork_servers_of(workers[victim].pid) if children_of(pid)]
        if not servers:
            continue
        killed = dice.choice([workers[victim].pid, *servers])
        os.kill(killed, signal.SIGKILL)
        if killed == workers[victim].pid:
            workers[victim].wait(20)
            workers[victim] = bench.start(mode, processes=2)
        else:
            wait_for(lambda victim=victim, killed=killed: killed not in fork_servers_of(workers[victim].pid))

    for number, id in enumerate(ids):
        assert bench.queue.handle(id).result(deadline - time.monotonic()) == number
