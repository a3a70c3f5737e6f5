"""Handles of tasks, without workers: what they make of what is in the store."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from delayed import (
    ConfigError,
    DecodeError,
    NotKept,
    Queue,
    ResultError,
    ResultGone,
    ResultTimeout,
    TaskFailed,
    TaskHandle,
    TaskTimeout,
    answers,
    patience,
    results,
)
from delayed.answers import Raised
from delayed.delay import delay_with_params
from delayed.errors import BrokerUnavailable
from delayed.message import Answer, Claim, Message, Settlement
from delayed.task import Task
from delayed.worker import verdict
from delayed.worker.threads import throw
from delayed.worker.verdict import Verdict
from tests.brokers.patience import eventually

BOUND = 10.0
RETURNED = Verdict(verdict.RETURNED, wall=0.5)


def double(number: int) -> int:
    return 2 * number


def put(queue: Queue, keep: Any = "1h", **options: Any) -> TaskHandle[int]:
    return delay_with_params(queue)(keep=keep, **options)(double)(21)


def claim(queue: Queue) -> Claim:
    (found,) = queue.broker.claim([queue.name], secrets.token_hex(8), 1, secrets.randbits(64), 1, 15.0)
    return found


def finish(queue: Queue, value: Any = 42, found: Verdict = RETURNED, action: Any = "done") -> None:
    """End the next task as a worker does."""
    held = claim(queue)
    body = queue.codec.encode_result(held.id, value) if value is not ... else b""
    answer = Answer(answers.pack(found, body), held.message().keep or 0.0)
    assert queue.broker.settle("w", [Settlement(held.ref, action, 0.0, "why", answer)]) == [True]


def later(seconds: float, action: Callable[[], Any]) -> threading.Thread:
    def run() -> None:
        time.sleep(seconds)
        action()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


# -- what it is ----------------------------------------------------------------------------------------------------


def test_it_is_a_pair_of_the_id_and_the_queues_name(queue: Queue) -> None:
    handle = put(queue)

    id, name = handle
    assert (id, name) == (handle.id, handle.queue) == (handle.id, "default")
    assert handle == (id, name) and hash(handle) == hash((id, name))
    assert handle == queue.handle(id) and handle in {queue.handle(id)}
    assert handle != queue.handle(id + 1)
    assert repr(handle) == f"TaskHandle(id={id}, queue='default')"


def test_it_can_be_pickled_and_finds_its_store_again(tmp_path: Path) -> None:
    queue = Queue("q", f"sqlite:///{tmp_path}/tasks.db")
    handle = put(queue)
    finish(queue)

    copies = pickle.loads(pickle.dumps([handle, handle, put(queue)]))

    assert copies[0] == handle and copies[0].result(BOUND) == 42
    assert copies[2].status == "ready"
    assert pickle.loads(pickle.dumps(copies[0])).result(BOUND) == 42, "also a copy of a copy"
    queue.broker.close()


def test_secrets_are_not_in_a_pickle(tmp_path: Path) -> None:
    queue = Queue("sealed", f"sqlite:///{tmp_path}/tasks.db", secret="0123456789abcdef")
    handle = put(queue)
    finish(queue)

    data = pickle.dumps(handle)

    assert b"0123456789abcdef" not in data and b"0123456789abcdef".hex().encode() not in data
    assert pickle.loads(data).result(BOUND) == 42, "this process knows the secret of the queue"
    queue.broker.close()


def test_without_a_store_it_can_only_be_compared(queue: Queue) -> None:
    handle = pickle.loads(pickle.dumps(put(queue)))

    assert handle == queue.handle(handle.id)
    with pytest.raises(ConfigError, match=r"queue\.handle"):
        handle.result()


def test_it_may_be_an_argument(tmp_path: Path) -> None:
    queue = Queue("q", f"sqlite:///{tmp_path}/tasks.db")
    handle = put(queue)
    queue.enqueue(Task.create(print, (handle,)))
    finish(queue)

    task = Task.from_message(queue.codec.open(claim(queue).message(), b""), queue.codec)

    assert task.args[0].result(BOUND) == 42
    queue.broker.close()


# -- the option ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("written", "seconds"), [("90s", 90), ("1h", 3600), ("7d", 604800), (0.5, 0.5)])
def test_durations(written: Any, seconds: float, queue: Queue) -> None:
    put(queue, keep=written)
    assert claim(queue).message().keep == seconds


@pytest.mark.parametrize("written", ["", "h", 0, "0s", -1, True, float("inf"), []])
def test_what_is_no_duration(written: Any, queue: Queue) -> None:
    with pytest.raises(ConfigError, match="keep"):
        put(queue, keep=written)


def test_none_is_kept_by_default(queue: Queue) -> None:
    put(queue, keep=None)
    assert b'"a"' not in claim(queue).header


@pytest.mark.parametrize("keep", ["1h", 0, -5, 1e12, [1]])
def test_a_header_that_keeps_nonsense_is_refused(keep: Any) -> None:
    with pytest.raises(DecodeError, match="keep"):
        Message.parse(1, json.dumps({"v": 1, "f": "m:f", "a": keep}).encode(), b"")


# -- results -------------------------------------------------------------------------------------------------------


def test_a_result_that_is_there(queue: Queue) -> None:
    handle = put(queue)
    assert (handle.status, handle.verdict) == ("ready", None)

    finish(queue)

    assert handle.result() == 42
    assert handle.result(0.0) == 42, "as often as one likes"
    assert handle.status == "done"
    assert handle.verdict == RETURNED
    assert not handle.cancel()


def test_a_result_that_comes_wakes_who_waits(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FLOOR", 100.0)  # nobody looks in between
    handle = put(queue)
    thread = later(0.2, lambda: finish(queue))

    assert handle.result(BOUND) == 42

    thread.join()


def test_a_result_that_does_not_come_in_time(queue: Queue) -> None:
    handle = put(queue)
    claim(queue)
    assert handle.status == "running"

    with pytest.raises(ResultTimeout, match=r"0\.1 s"):
        handle.result(timeout=0.1)
    with pytest.raises(TimeoutError):
        handle.result(0)


def test_an_exception_that_was_raised(queue: Queue) -> None:
    handle = put(queue)
    finish(queue, Raised(KeyError("key")), Verdict(verdict.RAISED, "KeyError", "'key'", "Traceback: line 3"))

    with pytest.raises(KeyError, match="key") as caught:
        handle.result(BOUND)

    assert "Traceback: line 3" in str(caught.value.__cause__)
    assert handle.status == "failed"


def test_a_failure_in_words(queue: Queue) -> None:
    handle = put(queue)
    finish(queue, ..., Verdict(verdict.KILLED, signal=9))

    with pytest.raises(TaskFailed, match="SIGKILL") as caught:
        handle.result(BOUND)
    assert caught.value.verdict == handle.verdict
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.verdict) == (str(caught.value), caught.value.verdict)


def test_a_forged_verdict_makes_no_result_of_an_exception_nor_one_of_nothing(queue: Queue) -> None:
    raised, failed = put(queue), put(queue)
    finish(queue, Raised(KeyError("key")), RETURNED)
    finish(queue, 42, Verdict(verdict.KILLED, signal=9))

    with pytest.raises(KeyError):
        raised.result(BOUND)
    with pytest.raises(TaskFailed):
        failed.result(BOUND)


def test_an_answer_of_another_task_is_refused_where_there_is_a_secret() -> None:
    queue = Queue("sealed", f"memory://{secrets.token_hex(8)}", secret="0123456789abcdef")
    one, other = put(queue), put(queue)
    finish(queue)
    finish(queue, 43)

    data = queue.broker.get_results(queue.name, [other.id])[other.id]
    queue.broker.put_result(queue.name, one.id, Answer(data, 60.0))

    with pytest.raises(DecodeError):
        one.result(BOUND)
    assert other.result(BOUND) == 43


@pytest.mark.parametrize(
    "data", [b"", b"\x01", b"\x02\x01\0\0\0\0{}", b"\x01\x01\xff\0\0\0{}", b"\x01\x01\x02\0\0\0[]"]
)
def test_an_answer_that_is_none(queue: Queue, data: bytes) -> None:
    with pytest.raises(DecodeError, match="answer"):
        answers.unpack(data)


def test_nothing_is_waited_for_that_can_not_come(queue: Queue) -> None:
    unkept, removed, dead = put(queue, keep=None), put(queue, delay=60.0), put(queue)
    queue.broker.remove(queue.name, removed.id)
    eventually(lambda: not listening())

    with pytest.raises(NotKept, match="keep='1h'"):
        unkept.result()
    with pytest.raises(ResultGone, match="removed"):
        removed.result()
    with pytest.raises(LookupError):
        queue.handle(12345).result()
    finish(queue, ..., Verdict(verdict.RETURNED))  # without an answer, for it is kept for no time
    with pytest.raises(ResultError):
        unkept.result()
    queue.broker.settle("w", [Settlement(claim(queue).ref, "dead", reason="poison: it was delivered too often")])
    with pytest.raises(TaskFailed, match="delivered too often"):
        dead.result()

    assert not listening(), "nobody has waited"
    assert (unkept.status, removed.status, dead.status) == ("gone", "gone", "dead")


def test_who_waits_hears_that_the_task_is_gone_or_dead(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FLOOR", 0.2)
    purged = put(queue)
    thread = later(0.2, lambda: queue.broker.purge(queue.name))
    with pytest.raises(ResultGone):
        purged.result(BOUND)
    thread.join()

    dead = put(queue)
    thread = later(0.2, lambda: queue.broker.settle("w", [Settlement(claim(queue).ref, "dead", reason="why")]))
    with pytest.raises(TaskFailed, match="why"):
        dead.result(BOUND)
    thread.join()


def test_a_dead_letter_that_is_brought_back_answers_anew(queue: Queue) -> None:
    handle = put(queue)
    finish(queue, ..., Verdict(verdict.REJECTED, text="not yet"), "dead")
    with pytest.raises(TaskFailed, match="not yet"):
        handle.result(BOUND)

    queue.broker.revive(queue.name, [handle.id])
    with pytest.raises(ResultTimeout):
        handle.result(0.1)
    thread = later(0.2, lambda: finish(queue))

    assert handle.result(BOUND) == 42
    thread.join()


def test_a_task_that_its_queue_cancels_answers_so(queue: Queue) -> None:
    handle = put(queue)

    assert queue.cancel(handle.id)

    assert handle.status == "failed"
    with pytest.raises(TaskFailed, match="cancelled"):
        handle.result(BOUND)
    assert not queue.cancel(handle.id)


def test_what_is_not_final_is_waited_for(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FLOOR", 0.1)
    handle = put(queue)
    held = claim(queue)
    queue.broker.settle("w", [Settlement(held.ref, "done", answer=answers.committed(60.0))])
    assert (handle.status, handle.verdict) == ("running", None)
    with pytest.raises(ResultTimeout):
        handle.result(0.5)

    answer = Answer(answers.pack(RETURNED, queue.codec.encode_result(handle.id, 42)), 60.0)
    thread = later(0.2, lambda: queue.broker.put_result(queue.name, handle.id, answer))

    assert handle.result(BOUND) == 42
    thread.join()


# -- waiting -------------------------------------------------------------------------------------------------------


def listening() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "delayed-results"]


def test_one_thread_serves_all_who_wait_and_goes_when_nobody_does(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "LINGER", 0.1)
    eventually(lambda: not listening())
    handles = [put(queue) for _ in range(20)]
    got: dict[int, int] = {}
    threads = [
        threading.Thread(target=lambda handle=handle: got.__setitem__(handle.id, handle.result(BOUND)))
        for handle in handles
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: len(queue.postbox._waiting) == 20)

    assert len(listening()) == 1
    for number in range(20):
        finish(queue, number)

    for thread in threads:
        thread.join(BOUND)
    assert got == {handle.id: number for number, handle in enumerate(handles)}
    eventually(lambda: not listening())
    assert not queue.postbox._waiting


def test_a_store_that_was_closed_is_not_opened_again_when_nobody_waits(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "LINGER", 100.0)
    eventually(lambda: not listening())
    opened = []
    listen = queue.broker.listen

    def count(name: str) -> Any:
        opened.append(listen(name))
        return opened[-1]

    def closed(timeout: float) -> bool:
        raise BrokerUnavailable("closed")

    monkeypatch.setattr(queue.broker, "listen", count)
    handle = put(queue)
    thread = later(0.2, lambda: finish(queue))
    assert handle.result(BOUND) == 42
    thread.join()

    opened[0].wait = closed

    eventually(lambda: not listening())
    assert len(opened) == 1


def test_who_waits_after_no_thread_could_be_started_is_served(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = put(queue)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            handle.result()
    assert not queue.postbox._waiting
    thread = later(0.1, lambda: finish(queue))

    assert handle.result(BOUND) == 42
    thread.join()


def no_thread(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_who_waits_hears_of_what_nobody_foresaw_and_the_next_one_is_served(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = put(queue)
    with monkeypatch.context() as patch:
        patch.setattr(queue.broker, "listen", lambda name: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            handle.result(BOUND)
    thread = later(0.1, lambda: finish(queue))

    assert handle.result(BOUND) == 42
    thread.join()


def test_waiting_goes_on_through_an_outage(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "BACKOFF", (0.01, 0.01))
    handle = put(queue)
    box = queue.postbox
    with box.expecting(handle.id) as future:
        real = queue.broker.get_results
        failures = 0

        def get_results(name: str, ids: Any) -> dict[int, bytes]:
            nonlocal failures
            failures += 1
            if failures < 5:
                raise BrokerUnavailable("the network is down")
            return real(name, ids)

        monkeypatch.setattr(queue.broker, "get_results", get_results)
        finish(queue)
        assert future.result(BOUND)
    assert failures >= 5


def test_a_forked_process_waits_for_itself(tmp_path: Path) -> None:
    queue = Queue("q", f"sqlite:///{tmp_path}/tasks.db")
    handle, mine = put(queue), put(queue)
    waiting = threading.Thread(target=lambda: mine.result(BOUND))
    waiting.start()
    eventually(lambda: listening())
    time.sleep(0.1)  # it listens

    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if handle.result(BOUND) == 42 else 2
        finally:
            os._exit(code)
    time.sleep(0.2)
    finish(queue)
    finish(queue, 43)

    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    waiting.join(BOUND)
    assert not waiting.is_alive(), "and the parent goes on"
    queue.broker.close()


WAITS: dict[str, Callable[[Queue, int, Any], Any]] = {
    "result": lambda queue, id, timeout: queue.handle(id).result(timeout),
    "aresult": lambda queue, id, timeout: asyncio.run(queue.handle(id).aresult(timeout)),
    "results": lambda queue, id, timeout: queue.group([id]).results(timeout)[0],
    "aresults": lambda queue, id, timeout: asyncio.run(queue.group([id]).aresults(timeout))[0],
}
every_wait = pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)


@every_wait
def test_an_unreachable_store_is_asked_again(wait: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue("default", f"memory://{secrets.token_hex(8)}", enqueue_timeout=0.2)
    handle = put(queue)
    away = Away(queue, monkeypatch)

    away.looks = 1000
    with pytest.raises(BrokerUnavailable, match="the network is down"):
        wait(queue, handle.id, None)
    with pytest.raises(ResultTimeout, match="as far as is known: the network is down"):
        wait(queue, handle.id, "10ms")
    finish(queue)
    away.looks = 2

    assert wait(queue, handle.id, BOUND) == 42
    away.looks = 2
    assert wait(queue, handle.id, None) == 42


class Away:
    """A store that can't be reached for as many looks at answers as it is told, or that is frozen."""

    def __init__(self, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = 0
        self.thawed = threading.Event()
        self.thawed.set()
        self._ask = queue.broker.get_results
        monkeypatch.setattr(queue.broker, "get_results", self.get_results)
        monkeypatch.setattr(patience, "LOOK", 0.1)

    def get_results(self, name: str, ids: Any) -> dict[int, bytes]:
        self.thawed.wait(BOUND)
        if self.looks > 0:
            self.looks -= 1
            raise BrokerUnavailable("the network is down")
        return self._ask(name, ids)


@pytest.mark.parametrize("ask", ["result", "results"])
def test_a_frozen_store_holds_up_nobody_for_longer_than_the_timeout(
    ask: str, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = put(queue).id
    handle = queue.handle(id) if ask == "result" else queue.group([id])
    away = Away(queue, monkeypatch)
    away.thawed.clear()
    loop = asyncio.new_event_loop()
    start = time.monotonic()

    with pytest.raises(ResultTimeout):
        getattr(handle, ask)(0.05)
    with pytest.raises(ResultTimeout):
        loop.run_until_complete(getattr(handle, "a" + ask)(0.05))

    assert time.monotonic() - start < BOUND / 2
    away.thawed.set()
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.mark.parametrize("wait", [WAITS["result"], WAITS["results"]])
@pytest.mark.parametrize("timeout", [None, 60])
def test_who_waits_can_be_stopped(wait: Callable[..., Any], timeout: float | None, queue: Queue) -> None:
    handle = put(queue)
    ended: list[BaseException] = []

    def run() -> None:
        try:
            wait(queue, handle.id, timeout)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    # In CPython what is thrown into a thread while it starts another one may hit that.
    eventually(lambda: queue.postbox._waiting and waits_patiently(thread))
    assert thread.ident is not None
    throw(thread.ident, TaskTimeout)
    thread.join(BOUND)

    assert [type(error) for error in ended] == [TaskTimeout]
    assert not queue.postbox._waiting


def waits_patiently(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    return any(
        each.f_code.co_filename == patience.__file__ and each.f_code.co_name in ("wait", "get")
        for each, _ in traceback.walk_stack(frame)
    )


@every_wait
def test_a_timeout_is_a_duration(wait: Callable[..., Any], queue: Queue) -> None:
    handle = put(queue)

    with pytest.raises(ResultTimeout, match=r"within 0\.01 s"):
        wait(queue, handle.id, "10ms")
    with pytest.raises(ResultTimeout):
        wait(queue, handle.id, timedelta())
    with pytest.raises(ConfigError, match="timeout must be a duration"):
        wait(queue, handle.id, "soon")
    with pytest.raises(ConfigError, match="timeout must be a duration"):
        handle.cancel("soon")
    with pytest.raises(ConfigError, match="timeout must be a duration"):
        queue.group([handle.id]).cancel("soon")
    assert handle.cancel("5s")


@pytest.mark.parametrize("id", ["abc", "5", 2**80, 2**53, -1, True, 1.5, None])
def test_what_is_no_id(id: Any, queue: Queue) -> None:
    with pytest.raises(ConfigError, match="id is a whole number"):
        queue.handle(id)
    with pytest.raises(ConfigError, match="id is a whole number"):
        queue.group([1, id])


# -- in asyncio ----------------------------------------------------------------------------------------------------


def test_results_are_awaited(queue: Queue) -> None:
    handles = [put(queue) for _ in range(30)]

    async def main() -> list[Any]:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0.01)

        beating = asyncio.ensure_future(beat())

        def finish_all() -> None:
            eventually(lambda: beats > 5)  # which it never is if who waits holds up the loop
            for number in range(30):
                finish(queue, number)

        thread = later(0.0, finish_all)
        found = await asyncio.gather(*handles[:15], *(handle.aresult(BOUND) for handle in handles[15:]))
        beating.cancel()
        thread.join()
        ended = handles[0]
        return [*found, await ended, await ended.astatus(), await ended.areschedule("5m"), await ended.acancel()]

    assert asyncio.run(main()) == [*range(30), 0, "done", False, False]


def test_awaiting_has_a_timeout_and_may_be_cancelled(queue: Queue) -> None:
    handle = put(queue)

    async def main() -> None:
        with pytest.raises(ResultTimeout):
            await handle.aresult(0.1)
        waiting = asyncio.ensure_future(handle.aresult())
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not queue.postbox._waiting

    asyncio.run(main())
    finish(queue)
    assert handle.result(BOUND) == 42
