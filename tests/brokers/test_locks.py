"""Locks on every store."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from delayed import LockLost, Queue
from delayed.brokers import Broker
from tests.brokers.patience import eventually
from tests.brokers.test_conformance import in_threads


def test_of_many_who_want_it_one_holds_it_at_a_time(open_broker: Callable[[], Broker], queue: str) -> None:
    queues = [Queue(queue, open_broker()) for _ in range(2)]
    inside: list[int] = []
    tokens: list[int] = []

    def hold(number: int) -> None:
        for _ in range(3):
            with queues[number % 2].lock("x", wait=20) as lock:
                inside.append(number)
                time.sleep(0.005)
                tokens.append(lock.fencing_token)
                assert inside == [number]
                inside.remove(number)

    in_threads(4, hold)

    assert len(tokens) == 12 and tokens == sorted(set(tokens)), "each holder has a higher one"
    assert queues[0].lock("x").holder() is None


def test_it_runs_out_and_can_be_extended(open_broker: Callable[[], Broker], queue: str) -> None:
    mine, others = (Queue(queue, open_broker()) for _ in range(2))
    lock, other = mine.lock("x", ttl=30), others.lock("x", wait=20)
    assert lock.acquire()
    lock.extend(60)
    assert not other.acquire(timeout=0.01)
    lock.extend(0.05)

    assert other.acquire()

    assert other.fencing_token > lock.fencing_token
    try:
        lock.release()
        raise AssertionError("it was another's")
    except LockLost as lost:
        assert lost.holder == other.holder()
    other.extend()
    other.release()


def test_the_lock_of_a_process_that_was_killed_is_free_when_its_time_is_over(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tasks.db"
    code = f"""
import time
from delayed import Queue
assert Queue("q", {url!r}).lock("x", ttl=1).acquire()
print("held", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    queue = Queue("q", url)
    lock = queue.lock("x")
    assert not lock.acquire(timeout=0)
    assert (queue.lock("x").holder() or "").endswith(f":{process.pid}")
    process.kill()
    process.wait()
    process.stdout.close()

    assert lock.acquire(timeout=20)

    eventually(lambda: lock.held)
    lock.release()
    queue.broker.close()
