"""What is special to the memory broker; what all brokers do is in test_conformance.py."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
import warnings
from types import FrameType
from typing import Any

import pytest

from delayed.brokers import broker_for, memory
from delayed.brokers.memory import MemoryBroker
from delayed.errors import BrokerError, ConfigError
from delayed.message import Claim, Message, Settlement


def put(broker: MemoryBroker) -> int:
    id = broker.reserve_ids("q", 1)
    broker.enqueue("q", [Message(id=id, func="module:function", payload=b"")], secrets.token_hex(16), 1)
    return id


def test_one_name_is_one_store_and_another_name_another() -> None:
    name = secrets.token_hex(8)
    broker = broker_for(f"memory://{name}")
    assert isinstance(broker, MemoryBroker)
    id = put(broker)

    same, other = MemoryBroker(f"memory://{name}"), MemoryBroker(f"memory://{name}-2")

    assert same.get("q", id) is not None
    assert other.queues() == []


def test_nothing_opens_it_in_another_process() -> None:
    assert MemoryBroker("memory://").spec() is None


@pytest.mark.parametrize("url", ["memory://a/b", "memory://a?b=c", "memory://a#b"])
def test_more_than_a_name_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="memory://name"):
        MemoryBroker(url)


def test_an_id_is_stored_once() -> None:
    broker = MemoryBroker(f"memory://{secrets.token_hex(8)}")
    message = Message(id=broker.reserve_ids("q", 1), func="module:function", payload=b"")

    with pytest.raises(BrokerError, match="reserve_ids"):
        broker.enqueue("q", [message, message], secrets.token_hex(16), 1)

    assert broker.counts("q") == (0, 0, 0, 0)


def test_a_wait_for_no_queue_ends_in_time() -> None:
    start = time.monotonic()
    MemoryBroker(f"memory://{secrets.token_hex(8)}").wait([], 0.1)
    assert 0.1 <= time.monotonic() - start < 2.0


def test_a_wake_ends_the_waits_of_all_threads() -> None:
    broker = MemoryBroker(f"memory://{secrets.token_hex(8)}")
    threads = [threading.Thread(target=broker.wait, args=(["q"], 8.0)) for _ in range(3)]
    for thread in threads:
        thread.start()
    threads[0].join(0.2)  # let them fall asleep
    start = time.monotonic()

    broker.wake(["q"])

    for thread in threads:
        thread.join(10.0)
    assert time.monotonic() - start < 2.0


def test_threads_that_interrupt_each_other_at_every_line_lose_and_repeat_nothing() -> None:
    broker = MemoryBroker(f"memory://{secrets.token_hex(8)}")
    ids: list[int] = []
    claimed: list[int] = []
    held: list[Claim] = []
    accepted: list[bool] = []
    returned: list[int] = []
    errors: list[BaseException] = []
    gate = threading.Barrier(4)

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename != memory.__file__:
            return None
        time.sleep(0)  # lets another thread run
        return trace

    def run(number: int) -> None:
        worker = f"w{number}"
        try:
            gate.wait(10.0)
            ids.extend(put(broker) for _ in range(10))
            gate.wait(30.0)
            for seq in range(1, 8):
                claims = broker.claim(["q"], worker, seq, seq, 2, 0.0)
                claimed.extend(claim.id for claim in claims)
            gate.wait(30.0)
            returned.append(broker.sweep("q").returned)
            gate.wait(30.0)
            held.extend(broker.claim(["q"], worker, 8, 8, 10, 15.0))
            gate.wait(30.0)
            for claim in held:  # every thread tries to end every claim
                accepted.extend(broker.settle(worker, [Settlement(claim.ref, "done")]))
        except BaseException as error:
            gate.abort()
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    threading.settrace(trace)
    try:
        for thread in threads:
            thread.start()
    finally:
        threading.settrace(None)
    for thread in threads:
        thread.join(40.0)

    assert errors == []
    assert len(set(ids)) == 40
    assert sorted(claimed) == sorted(ids)
    assert sum(returned) == 40
    assert accepted.count(True) == 40
    assert broker.counts("q") == (0, 0, 0, 0)


def test_a_fork_amid_a_call_of_another_thread_is_refused_and_does_not_hang() -> None:
    broker = MemoryBroker(f"memory://{secrets.token_hex(8)}")
    inside, leave = threading.Event(), threading.Event()

    class Slow(Message):
        def header(self) -> bytes:
            inside.set()
            leave.wait(10.0)
            return super().header()

    slow = Slow(id=broker.reserve_ids("q", 1), func="module:function", payload=b"")
    thread = threading.Thread(target=broker.enqueue, args=("q", [slow], secrets.token_hex(16), 1))
    thread.start()
    assert inside.wait(10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork of a process with threads is what is tested
        pid = os.fork()
    if not pid:
        signal.alarm(5)  # a hang is a death, not a test that never ends
        try:
            broker.wake(["q"])
            broker.close()
            with pytest.raises(BrokerError, match="fork of it"):
                broker.queues()
            os._exit(0)
        except BaseException:
            os._exit(1)

    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    leave.set()
    thread.join(10.0)

    assert code == 0
    assert broker.counts("q").ready == 1
