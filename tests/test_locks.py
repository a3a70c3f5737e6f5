"""Locks: waiting, holding, losing; on each store in `tests/brokers/test_locks.py`."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time

import pytest

from delayed import BrokerFull, BrokerUnavailable, ConfigError, LockLost, LockTimeout, Queue
from tests.brokers.patience import eventually
from tests.flaky import FlakyKeys


def stored(queue: Queue, name: str) -> bool:
    return bool(queue.broker.get_keys(queue.name, ["lock:" + name]))


def test_one_holds_it_and_then_another(queue: Queue) -> None:
    first, second, other = queue.lock("x"), queue.lock("x"), queue.lock("y")
    assert first.acquire() and other.acquire()
    assert first.held and 20 < first.left <= 30

    assert not second.acquire(timeout=0)
    assert not second.held and second.left == 0
    first.release()
    assert not first.held
    assert second.acquire(timeout=0)

    assert second.held and queue.lock("x").holder() == second.holder()
    second.release()
    assert second.holder() is None and other.held


def test_it_is_not_reentrant(queue: Queue) -> None:
    with queue.lock("x", wait=0) as lock:
        assert not lock.acquire(), "as anybody else"
        assert lock.held
        lock.extend()


def test_with_it_is_released_whatever_happens(queue: Queue) -> None:
    with pytest.raises(ZeroDivisionError), queue.lock("x"):
        assert stored(queue, "x")
        raise ZeroDivisionError

    assert not stored(queue, "x")


def test_who_waits_too_long_is_told(queue: Queue) -> None:
    with queue.lock("x"):
        began = time.monotonic()
        with (
            pytest.raises(LockTimeout, match=r"the lock 'x' was held by others for 0.1 s") as caught,
            queue.lock("x", wait="100ms"),
        ):
            raise AssertionError("two hold it")
        assert isinstance(caught.value, TimeoutError) and caught.value.name == "x"
        assert 0.1 <= time.monotonic() - began < 5


def test_who_waits_gets_it_when_it_runs_out() -> None:
    broker = FlakyKeys()
    queue = Queue("q", broker)
    got: list[float] = []

    def wait() -> None:
        with queue.lock("x", wait=10):
            got.append(time.monotonic())

    holder = queue.lock("x", ttl=60)
    assert holder.acquire()
    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: broker.requests.count("put") > 3)
    assert not got
    holder.extend("200ms")
    thread.join(10)

    assert got and not stored(queue, "x"), "nobody released it, and its time was over"


def test_fencing_tokens_rise_with_each_holder(queue: Queue) -> None:
    tokens = []
    for _ in range(5):
        lock = queue.lock("x", ttl=30)
        assert lock.acquire()
        tokens.append(lock.fencing_token)
        lock.extend(60)
        assert lock.fencing_token == tokens[-1], "it is the same hold"
        lock.release()
        with pytest.raises(LockLost, match="the lock 'x' is not held by this object: acquire it first"):
            lock.fencing_token  # noqa: B018
        lost = queue.lock("x", ttl=0.02)
        assert lost.acquire()
        eventually(lambda: not stored(queue, "x"))
        tokens.append(lost.fencing_token)

    assert tokens == sorted(set(tokens))


def test_a_lost_lock_says_who_holds_it_now(queue: Queue) -> None:
    lost = queue.lock("x", ttl=0.02)
    assert lost.acquire()
    eventually(lambda: not stored(queue, "x"))
    assert not lost.held
    with queue.lock("x") as now:
        holder = now.holder()
        with pytest.raises(
            LockLost, match=rf"the lock 'x' is lost: its time was over, and {holder} holds it now; giv"
        ) as caught:
            lost.extend()
        assert (caught.value.name, caught.value.holder) == ("x", holder)
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (str(copy), copy.name, copy.holder) == (str(caught.value), "x", holder)
        assert now.held and stored(queue, "x"), "it is not the loser's to take away"

    again = queue.lock("x", ttl=0.02)
    assert again.acquire()
    eventually(lambda: not stored(queue, "x"))
    with pytest.raises(LockLost, match="nobody is known to hold it now"):
        again.release()


def test_a_block_that_took_too_long_is_told(queue: Queue) -> None:
    with pytest.raises(LockLost), queue.lock("x", ttl=0.02):
        eventually(lambda: not stored(queue, "x"))

    with pytest.raises(ZeroDivisionError) as caught, queue.lock("x", ttl=0.02):
        eventually(lambda: not stored(queue, "x"))
        raise ZeroDivisionError
    assert "the lock 'x' is lost" in caught.value.__notes__[0]


def test_what_makes_no_sense_is_refused(queue: Queue) -> None:
    for words, call in (
        ("a lock's name is text, not ''", lambda: queue.lock("")),
        ("ttl must be a duration from 0.01 s", lambda: queue.lock("x", ttl=0)),
        ("wait must be a duration", lambda: queue.lock("x", wait="long")),
        ("timeout must be a duration", lambda: queue.lock("x").acquire(timeout=-1)),
        (r"'x{60}…' can't name a value: .* 1 to 495 characters, and .* has 496", lambda: queue.lock("x" * 496)),
        (r"'\\ud800' can't name a value", lambda: queue.lock("\ud800")),
    ):
        with pytest.raises(ConfigError, match=words):
            call()


# -- a store that is away ------------------------------------------------------------------------------------------


def test_a_lock_whose_answer_was_lost_is_known_again() -> None:
    broker = FlakyKeys("refused", "lost", "", "lost")
    queue = Queue("q", broker)
    lock = queue.lock("x", ttl=60)

    assert lock.acquire()

    assert lock.held and broker.requests == ["put", "put", "put", "get", "put", "get"]
    broker.script = ["lost"]
    lock.extend(90)
    assert 80 < lock.left <= 90
    broker.script = ["lost"]
    lock.release()
    assert not stored(queue, "x")


def test_who_gives_up_leaves_nothing_behind() -> None:
    broker = FlakyKeys("lost")
    queue = Queue("q", broker, enqueue_timeout=0)
    with pytest.raises(BrokerUnavailable):
        queue.lock("x").acquire()
    assert not stored(queue, "x")

    broker.script = ["full"]
    with pytest.raises(BrokerFull):
        queue.lock("x").acquire()

    def interrupted() -> None:
        raise KeyboardInterrupt

    broker.script = ["lost", interrupted]
    with pytest.raises(KeyboardInterrupt):
        Queue("q", broker).lock("x").acquire()
    assert not stored(queue, "x")


def test_a_lock_that_can_not_be_released_is_no_error_of_the_block(caplog: pytest.LogCaptureFixture) -> None:
    broker = FlakyKeys()
    queue = Queue("q", broker, enqueue_timeout=0)

    with queue.lock("x"):
        broker.script = ["refused"]
    with pytest.raises(BrokerUnavailable), queue.lock("y", ttl=0.02) as lock:
        eventually(lambda: not lock.held)
        broker.script = ["refused"]

    assert "the lock x can't be released, and is free when its time is over: no connection" in caplog.text


# -- asyncio -------------------------------------------------------------------------------------------------------


def test_an_event_loop_goes_on_while_one_of_its_coroutines_waits(queue: Queue) -> None:
    async def one(log: list[str], name: str) -> None:
        async with queue.lock("x", wait=10) as lock:
            log.append(name)
            await lock.aextend(20)
            await asyncio.sleep(0)
            log.append(name)

    async def main() -> list[str]:
        log: list[str] = []
        await asyncio.wait_for(asyncio.gather(*(one(log, name) for name in "abc")), 10)
        lock = queue.lock("x")
        assert await lock.aacquire(timeout=0) and not await queue.lock("x").aacquire(timeout=0)
        with pytest.raises(LockTimeout):
            async with queue.lock("x", wait=0.01):
                raise AssertionError("two hold it")
        await lock.arelease()
        return log

    log = asyncio.run(main())

    assert sorted(log) == list("aabbcc") and log[::2] == log[1::2], "one after the other"
    assert not stored(queue, "x")


def test_a_coroutine_that_is_cancelled_while_it_acquires_does_not_hold_it() -> None:
    reached, gate = threading.Event(), threading.Event()

    def wait() -> None:
        reached.set()
        assert gate.wait(10)

    broker = FlakyKeys(wait)
    queue = Queue("q", broker)

    async def main() -> None:
        lock = queue.lock("x")
        task = asyncio.create_task(lock.aacquire())
        assert await asyncio.to_thread(reached.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)
        assert not lock.held

    asyncio.run(main())

    assert broker.requests[0] == "put", "the lock was there for a moment"
    assert not stored(queue, "x")
