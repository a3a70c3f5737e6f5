"""Groups of handles, without workers: what they make of what is in the store."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from delayed import (
    Group,
    NotKept,
    Queue,
    ResultGone,
    ResultTimeout,
    SignatureMismatch,
    TaskFailed,
    TaskHandle,
    results,
)
from delayed.answers import Raised
from delayed.delay import Call
from delayed.group import Tally
from delayed.options import Options
from delayed.worker import verdict
from delayed.worker.verdict import Verdict
from tests.brokers.patience import eventually
from tests.test_handle import BOUND, claim, double, finish, later

FAILED = Verdict(verdict.RAISED, "KeyError", "'key'")


def add(a: int, b: int = 0) -> int:
    return a + b


def call_of(queue: Queue, func: Callable[..., Any], **options: Any) -> Call[..., Any]:
    return Call(func, queue, Options().updated(options))


def kept(queue: Queue, number: int) -> Group[Any]:
    return call_of(queue, double, keep="1h").map(range(number))


# -- map -----------------------------------------------------------------------------------------------------------


def test_each_item_is_the_only_argument_of_a_task(queue: Queue) -> None:
    call = call_of(queue, add)

    group = call.map([5, (6, 7)])

    assert [queue.codec.decode(claim(queue).payload)[0] for _ in range(2)] == [(5,), ((6, 7),)]
    assert [handle.id for handle in group] == list(group.ids)


def test_each_item_has_the_arguments(queue: Queue) -> None:
    call = call_of(queue, add, priority=3)

    group = call.options(timeout=5).starmap([(1, 2), [3]])

    messages = [claim(queue).message() for _ in range(2)]
    assert [queue.codec.decode(message.payload)[0] for message in messages] == [(1, 2), (3,)]
    assert {(message.priority, message.timeout) for message in messages} == {(3, 5)}
    assert tuple(message.id for message in messages) == group.ids


def test_items_are_enqueued_from_asyncio(queue: Queue) -> None:
    async def main() -> tuple[Group[Any], Group[Any]]:
        return await call_of(queue, double).amap([1, 2]), await call_of(queue, add).astarmap([(1, 2), [3]])

    one, other = asyncio.run(main())

    assert [queue.codec.decode(claim(queue).payload)[0] for _ in range(4)] == [(1,), (2,), (1, 2), (3,)]
    assert (len(one), len(other)) == (2, 2)


def test_nothing_is_stored_if_one_item_does_not_fit(queue: Queue) -> None:
    call = call_of(queue, add)

    with pytest.raises(SignatureMismatch):
        call.starmap([(1, 2), (1, 2, 3)])

    assert queue.len() == 0


def test_of_nothing_comes_an_empty_group(queue: Queue) -> None:
    group = call_of(queue, double).map([])

    assert len(group) == 0 and group.results() == [] and list(group.as_completed()) == [] and group.wait(0.0)
    assert group.progress == (0, 0, 0)
    assert group.cancel() == 0


# -- the handles ---------------------------------------------------------------------------------------------------


def test_it_is_a_sequence_of_handles(queue: Queue) -> None:
    group = kept(queue, 3)

    assert len(group) == 3
    assert group[0] == TaskHandle(group.ids[0], queue.name) and group[-1] == queue.handle(group.ids[2])
    assert list(group[1:]) == list(group)[1:] and isinstance(group[1:], Group)
    assert group[2] in group
    assert repr(group) == "<Group of 3 tasks in queue 'default'>"


def test_it_can_be_pickled_and_made_again_from_ids(tmp_path: Path) -> None:
    queue = Queue("q", f"sqlite:///{tmp_path}/tasks.db")
    group = kept(queue, 2)
    finish(queue, 1)
    finish(queue, 2)

    assert pickle.loads(pickle.dumps(group)).results(BOUND) == [1, 2]
    assert queue.group(list(group.ids)).results(BOUND) == [1, 2]
    queue.broker.close()


# -- the answers ---------------------------------------------------------------------------------------------------


def test_results_are_in_the_order_of_the_group(queue: Queue) -> None:
    group = queue.group(reversed(kept(queue, 3).ids))
    for value in "abc":
        finish(queue, value)

    assert group.results(BOUND) == ["c", "b", "a"]
    assert group.progress == Tally(done=3, failed=0, total=3)


def test_who_waits_is_woken_by_each_end(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FLOOR", 100.0)  # nobody looks in between
    group = kept(queue, 20)
    heard = threading.Semaphore(0)

    def end_all() -> None:
        for number in range(20):
            finish(queue, number)
            heard.acquire(timeout=BOUND)

    thread = threading.Thread(target=end_all)
    thread.start()
    ended = []
    for handle in group.as_completed(BOUND):
        ended.append(handle)
        heard.release()
    thread.join()

    assert ended == list(group)


def test_the_first_failure_is_raised_with_the_task_that_it_was(queue: Queue) -> None:
    group = kept(queue, 3)
    claim(queue)  # runs on
    finish(queue, Raised(KeyError("key")), FAILED)

    with pytest.raises(KeyError) as caught:
        group.results(BOUND)

    assert caught.value.__notes__ == [f"It is task {group.ids[1]}, number 1 of 3 in its group."]
    assert group.progress == (0, 1, 3)


def test_exceptions_may_stand_in_the_place_of_results(queue: Queue) -> None:
    group = kept(queue, 3)
    finish(queue, 1)
    finish(queue, Raised(KeyError("key")), FAILED)
    finish(queue, ..., Verdict(verdict.KILLED, signal=9))

    first, second, third = group.results(BOUND, return_exceptions=True)

    assert first == 1 and isinstance(second, KeyError) and isinstance(third, TaskFailed)
    assert list(group.as_completed(BOUND)) == list(group), "failed or not"
    assert group.wait(BOUND)
    assert group.progress == (1, 2, 3)


def test_what_has_not_ended_in_time(queue: Queue) -> None:
    group = kept(queue, 2)
    finish(queue, 1)

    with pytest.raises(ResultTimeout, match=r"1 of 2 tasks have not ended within 0\.05 s"):
        group.results(0.05)
    assert not group.wait(0.0)
    assert group.progress == (1, 0, 2)


@pytest.mark.parametrize(
    "ask",
    [
        lambda group: group.results(),
        lambda group: group.results(return_exceptions=True),
        lambda group: group.wait(),
        lambda group: next(group.as_completed()),
        lambda group: group.progress,
        lambda group: asyncio.run(group.aresults()),
    ],
)
def test_without_keep_there_is_an_error_at_once(queue: Queue, ask: Callable[[Group[int]], Any]) -> None:
    call = call_of(queue, double)

    with pytest.raises(NotKept, match="keep='1h'"):
        ask(call.map([1, 2]))


@pytest.mark.parametrize("unkept_first", [True, False])
def test_one_without_keep_is_told_at_once_wherever_it_is(queue: Queue, unkept_first: bool) -> None:
    unkept = call_of(queue, double).map([1])
    some = kept(queue, 3)
    group = queue.group([*unkept.ids, *some.ids] if unkept_first else [*some.ids, *unkept.ids])

    with pytest.raises(NotKept, match=str(unkept.ids[0])):
        group.results(return_exceptions=True)
    with pytest.raises(NotKept, match=str(unkept.ids[0])):
        list(group.as_completed())


def test_who_waits_hears_of_what_is_gone_or_dead(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FLOOR", 0.1)
    group = kept(queue, 3)
    finish(queue, ..., Verdict(verdict.REJECTED, text="not this one"), "dead")
    thread = later(0.1, lambda: queue.broker.purge(queue.name, ["ready"]))

    dead, *gone = group.results(BOUND, return_exceptions=True)

    assert isinstance(dead, TaskFailed) and [type(each) for each in gone] == [ResultGone] * 2
    thread.join()


def test_a_group_is_awaited(queue: Queue) -> None:
    group = kept(queue, 3)
    finish(queue, 0)

    async def main() -> None:
        with pytest.raises(ResultTimeout):
            await group.aresults(0.05)
        thread = later(0.1, lambda: [finish(queue, 1), finish(queue, Raised(KeyError("key")), FAILED)])
        ticks = 0
        waiting = asyncio.ensure_future(group.aresults(BOUND, return_exceptions=True))
        while not waiting.done():
            await asyncio.sleep(0.01)
            ticks += 1
        first, second, error = await waiting
        assert (first, second) == (0, 1) and isinstance(error, KeyError)
        assert ticks > 2, "the loop went on"
        with pytest.raises(KeyError):
            await group
        thread.join()

    asyncio.run(main())


def test_handles_are_awaited_as_their_tasks_end(queue: Queue) -> None:
    group = kept(queue, 3)
    finish(queue)

    async def main() -> None:
        ended = []
        async for handle in group.as_completed(BOUND):
            ended.append(handle)
            if len(ended) < 3:
                await asyncio.to_thread(finish, queue)
        assert ended == list(group)
        with pytest.raises(ResultTimeout, match="1 of 1"):
            async for _ in kept(queue, 1).as_completed("10ms"):
                pass
        assert await kept(queue, 2).acancel("5s") == 2
        with pytest.raises(NotKept):
            async for _ in call_of(queue, double).map([1]).as_completed():
                pass

    asyncio.run(main())


@pytest.mark.parametrize("seconds", [0.001, 0.05])
def test_what_is_cancelled_while_it_begins_leaves_nobody_waiting(queue: Queue, seconds: float) -> None:
    group = kept(queue, 3000)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(group, seconds)

    asyncio.run(main())

    eventually(lambda: "delayed-group" not in {thread.name for thread in threading.enumerate()})
    assert not queue.postbox._waiting


def test_many_are_awaited_with_few_calls(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    group = kept(queue, 1200)
    for number in range(1200):
        finish(queue, number)
    calls: list[int] = []
    ask = queue.broker.get_results

    def counted(name: str, ids: Any) -> dict[int, bytes]:
        calls.append(len(ids))
        return ask(name, ids)

    monkeypatch.setattr(queue.broker, "get_results", counted)
    assert group.progress == (1200, 0, 1200)

    assert calls == [500, 500, 200]
    assert group.results(BOUND) == list(range(1200))


# -- cancelling ----------------------------------------------------------------------------------------------------


def test_what_waits_is_cancelled_and_what_has_ended_is_not(queue: Queue) -> None:
    group = kept(queue, 4)
    finish(queue, 1)

    assert group.cancel() == 3
    assert group.progress == (1, 3, 4)
    assert queue.len() == 0
    assert group.cancel() == 0


def test_what_runs_is_stopped_by_its_worker_or_not_in_time(queue: Queue) -> None:
    group = kept(queue, 2)
    held = claim(queue)
    queue.broker.announce("w", [queue.name], {}, 60.0)

    start = time.monotonic()
    with pytest.raises(ResultTimeout, match=str(held.id)):
        group.cancel(timeout=0.2)

    assert time.monotonic() - start < BOUND
    assert queue.len() == 0


# -- the bar -------------------------------------------------------------------------------------------------------


def test_a_bar_is_shown_at_a_terminal_only(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    group = kept(queue, 2)
    finish(queue, 1)
    finish(queue, ..., FAILED)
    assert group.wait(BOUND, progress_bar=True)
    assert capsys.readouterr() == ("", "")

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert len(group.results(BOUND, return_exceptions=True, progress_bar=True)) == 2

    out, err = capsys.readouterr()
    assert out == "" and "2/2" in err and "1 failed" in err
