"""Queues: enqueueing whatever the store does, and taking by hand."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from delayed import (
    BrokerFull,
    BrokerUnavailable,
    ConfigError,
    EnqueueRefused,
    EnqueueUncertain,
    MissingDependency,
    NotEnqueueable,
    Queue,
    Sweeper,
    Task,
    events,
)
from delayed.brokers import deadline
from delayed.brokers.memory import MemoryBroker
from delayed.message import Message
from delayed.producer import Producer
from tests import functions
from tests.servers.redis import redis_server


class Flaky(MemoryBroker):
    """A store that answers as its script says, one entry a call, and then as it should.

    "refused": the call never arrives. "lost": it takes effect, and its answer is lost. "full": no room.
    """

    def __init__(self, *script: str) -> None:
        super().__init__(f"memory://{secrets.token_hex(8)}")
        self.script = list(script)
        self.calls: list[tuple[str, int]] = []

    def enqueue(self, queue: str, messages: Sequence[Message], session: str, seq: int) -> None:
        self.calls.append((session, seq))
        what = self.script.pop(0) if self.script else ""
        if what == "refused":
            raise BrokerUnavailable("no connection", sent=False)
        if what == "full":
            raise BrokerFull("no room")
        super().enqueue(queue, messages, session, seq)
        if what == "lost":
            raise BrokerUnavailable("no answer", sent=True)


def task(number: int = 1) -> Task:
    return Task.create(functions.add, (number,))


def stored(queue: Queue) -> list[int]:
    return [entry.message.id for entry in queue.broker.peek(queue.name, "ready", 10_000)]


# -- making one ----------------------------------------------------------------------------------------------------


def test_making_a_queue_opens_nothing(tmp_path: Path) -> None:
    Queue("q", f"sqlite:///{tmp_path}/tasks.db")
    Queue("q", "redis://localhost:1")

    assert list(tmp_path.iterdir()) == []


def test_the_default_store_is_read_at_the_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    monkeypatch.setenv("DELAYED_URL", "memory://chosen-later")

    assert repr(queue.broker) == "MemoryBroker('memory://chosen-later')"


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "a{b}", None, 3])
def test_bad_names_are_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="queue"):
        Queue(name, "memory://")


@pytest.mark.parametrize("timeout", [0, -1, "3", True])
def test_bad_timeouts_are_refused(timeout: Any) -> None:
    with pytest.raises(ConfigError, match="default_timeout"):
        Queue("q", "memory://", timeout)


@pytest.mark.parametrize(
    ("conn", "words"),
    [
        ("rediss//host", "is not a URL"),
        ("rdis://host", r"did you mean redis://"),
        ("tasks.db", "sqlite:///tasks.db"),
        (3, "no broker takes a builtins.int"),
        ("memory://a/b", "a name at most"),
    ],
)
def test_a_bad_store_is_told_where_it_is_written(conn: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Queue("q", conn)


def test_a_missing_driver_comes_with_its_command() -> None:
    code = "import sys; sys.modules['redis'] = None; from delayed import Queue; Queue('q', 'redis://localhost')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)

    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("delayed.errors.MissingDependency: the package 'redis' is needed for redis://")
    assert last.endswith("run: pip install 'delayed[redis]'")


def test_a_missing_serializer_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(MissingDependency, match=r"pip install 'delayed\[msgpack\]'"):
        Queue("q", "memory://", serializer="msgpack")


def test_a_spec_makes_the_same_queue(tmp_path: Path) -> None:
    queue = Queue("q", f"sqlite:///{tmp_path}/a.db", None, 3, serializer="json", max_size=99)

    again = Queue.from_spec(queue.spec())

    assert again.spec() == queue.spec()
    assert (again.default_timeout, again.codec.serializer.name) == (None, "json")
    with pytest.raises(ConfigError, match="no other process can open"):
        Queue("q", "memory://").spec()


# -- enqueueing ----------------------------------------------------------------------------------------------------


def test_tasks_get_rising_ids_and_keep_their_order(queue: Queue) -> None:
    tasks = [task(number) for number in range(5)]

    ids = [queue.enqueue(each) for each in tasks]

    assert ids == sorted(ids) == [each.id for each in tasks] == stored(queue)
    assert queue.len() == len(queue) == 5
    assert bool(Queue("empty", "memory://"))


def test_many_at_once(queue: Queue) -> None:
    tasks = [task(number) for number in range(2500)]

    ids = queue.enqueue_many(tasks)

    assert ids == [each.id for each in tasks] == stored(queue)
    assert queue.enqueue_many([]) == []


@pytest.mark.parametrize("scheme", ["memory", "redis"])
def test_of_many_at_once_the_thousands_before_a_bad_one_are_stored(scheme: str) -> None:
    with redis_server() if scheme == "redis" else contextlib.nullcontext() as server:
        queue = Queue("many", server.url if server else "memory://")
        tasks = [queue.task(functions.add, number, 2) for number in range(2500)]
        tasks[2100] = queue.task(functions.add, threading.Lock(), 2)

        with pytest.raises(NotEnqueueable, match="lock"):
            queue.enqueue_many(tasks)

        assert stored(queue) == [each.id for each in tasks[:2000]]
        assert not any(each.id for each in tasks[2000:])
        ids = queue.enqueue_many(tasks[:2100])
        assert stored(queue)[2000:] == ids == [each.id for each in tasks[:2100]]
        queue.broker.close()


def test_the_next_thousand_is_serialized_while_redis_takes_the_last_one() -> None:
    with redis_server() as server:
        queue = Queue("many", server.url)
        queue.enqueue(task())
        seen: list[object] = []
        tasks = [task(number) for number in range(2500)]
        tasks[1700] = queue.task(functions.add, functions.Telling(lambda: seen.append("serialized")), 2)

        events.on_enqueued(told := lambda name, part: seen.append(len(part)))
        try:
            queue.enqueue_many(tasks)
        finally:
            events.listeners.remove(told)

        assert seen == ["serialized", 1000, 1000, 500]
        queue.broker.close()


def test_threads_share_a_queue(queue: Queue) -> None:
    ids: list[int] = []

    def produce() -> None:
        ids.extend(queue.enqueue(task()) for _ in range(200))

    threads = [threading.Thread(target=produce) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(ids) == sorted(stored(queue))
    assert len(set(ids)) == 800


def test_a_fork_starts_afresh(tmp_path: Path) -> None:
    queue = Queue("q", f"sqlite:///{tmp_path}/tasks.db")
    for _ in range(10):
        queue.enqueue(task())
    children = []
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            code = 1
            try:
                for _ in range(20):
                    queue.enqueue(task())
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    for _ in range(20):
        queue.enqueue(task())

    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]
    assert len(set(stored(queue))) == len(stored(queue)) == 90


@pytest.mark.parametrize(
    "script", [("refused",), ("lost",), ("lost", "refused", "lost"), ("refused", "full", "refused")]
)
def test_an_outage_that_ends_in_time_costs_nothing(script: tuple[str, ...]) -> None:
    broker = Flaky(*script)
    queue = Queue("q", broker)

    id = queue.enqueue(task())

    assert stored(queue) == [id]
    assert len(set(broker.calls)) == 1, "it is the same request each time"


def test_what_never_arrived_is_refused() -> None:
    queue = Queue("q", Flaky(*["refused"] * 99), enqueue_timeout=0.3)
    one = task()
    start = time.monotonic()

    with pytest.raises(EnqueueRefused, match="no connection"):
        queue.enqueue(one)

    assert 0.05 < time.monotonic() - start < 2
    assert one.id is None
    assert stored(queue) == []


def test_what_may_have_arrived_is_uncertain_and_can_be_settled() -> None:
    broker = Flaky("lost", *["refused"] * 99)
    queue = Queue("q", broker, enqueue_timeout=0.3)

    with pytest.raises(EnqueueUncertain, match="may be enqueued or not") as caught:
        queue.enqueue(task())
    assert stored(queue) == caught.value.ids
    broker.script = ["refused"] * 99
    with pytest.raises(EnqueueUncertain) as again:
        caught.value.retry(0.1)
    broker.script = []
    other = queue.enqueue(task())
    again.value.retry()
    caught.value.retry()

    assert stored(queue) == [*caught.value.ids, other], "neither lost nor stored twice"


def test_a_full_store_is_told_at_once_and_leaves_nothing_behind() -> None:
    broker = Flaky("full")
    queue = Queue("q", broker)

    with pytest.raises(BrokerFull):
        queue.enqueue(task())
    queue.enqueue(task())

    assert len(stored(queue)) == 1
    assert len(broker.calls) == 2


def test_an_interrupted_enqueue_leaves_its_session() -> None:
    broker = Flaky()
    queue = Queue("q", broker)
    queue.enqueue(task())

    class Interrupting(Message):
        __slots__ = ()

        def header(self) -> bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        queue.producer.enqueue([Interrupting(id=1, func="f", payload=b"")])
    queue.enqueue(task())

    sessions = [session for session, _ in broker.calls]
    assert sessions[0] == sessions[1] != sessions[2]


# -- taking by hand ------------------------------------------------------------------------------------------------


def test_dequeue_run_release(queue: Queue) -> None:
    queue.enqueue(task(1))
    queue.enqueue(task(2))

    first = queue.dequeue()

    assert first is not None and first.run() == 3
    assert queue.len() == 1
    assert queue.release(first)
    assert not queue.release(first), "safe, and says that it was gone"
    assert queue.broker.counts("default").running == 0


def test_requeue_goes_to_the_end(queue: Queue) -> None:
    first, second = queue.enqueue(task()), queue.enqueue(task())

    taken = queue.dequeue()
    assert taken is not None and taken.id == first
    assert queue.requeue(taken)
    assert not queue.requeue(taken)

    assert stored(queue) == [second, first]


def test_an_empty_queue_gives_none_after_a_second(queue: Queue) -> None:
    start = time.monotonic()
    assert queue.dequeue() is None
    assert 0.9 < time.monotonic() - start < 3


def test_what_can_not_be_decoded_is_passed_over_and_kept(queue: Queue) -> None:
    bad = Message(id=queue.broker.reserve_ids("default", 1), func="m:f", payload=b"garbage")
    queue.broker.enqueue("default", [bad], "0" * 32, 1)
    good = queue.enqueue(task())

    first = queue.dequeue() or queue.dequeue()

    assert first is not None and first.id == good
    (dead,) = queue.broker.peek("default", "dead")
    assert "the payload has version 103; this worker reads 1" in dead.reason


def test_a_lost_task_comes_back_after_timeout_and_slack() -> None:
    queue = Queue("q", f"memory://{secrets.token_hex(8)}", requeue_timeout=0.1)
    id = queue.enqueue(Task.create(functions.add, (1,), timeout=0.1))
    taken = queue.dequeue()
    deadline = time.monotonic() + 10

    while not queue.requeue_lost():
        assert time.monotonic() < deadline
        time.sleep(0.02)

    assert stored(queue) == [id]
    assert taken is not None and not queue.release(taken)


# -- the sweeper ---------------------------------------------------------------------------------------------------


def lose(queue: Queue, n: int) -> None:
    queue.enqueue_many([task() for _ in range(n)])
    queue.broker.claim([queue.name], "dead worker", 1, 1, n, 0.01)


def test_a_sweeper_returns_what_is_lost_in_all_its_queues() -> None:
    broker = MemoryBroker(f"memory://{secrets.token_hex(8)}")
    queues = [Queue(name, broker) for name in ("a", "b", "c")]
    for queue in queues:
        lose(queue, 3)
    sweeper = Sweeper(queue=queues[0], queues=queues[1:], interval=0.02)
    thread = threading.Thread(target=sweeper.run)
    thread.start()
    deadline = time.monotonic() + 10

    while [queue.len() for queue in queues] != [3, 3, 3]:
        assert time.monotonic() < deadline
        time.sleep(0.01)

    sweeper.stop()
    thread.join(5)
    assert not thread.is_alive()


def test_a_sweeper_stops_at_once_and_can_run_again(queue: Queue) -> None:
    sweeper = Sweeper(queue, 60)
    for _ in range(2):
        thread = threading.Thread(target=sweeper.run)
        thread.start()
        sweeper.stop()
        thread.join(5)
        assert not thread.is_alive()


def test_a_sweeper_goes_on_when_the_store_comes_back(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    lose(queue, 1)
    failures = [BrokerUnavailable("away")] * 3
    sweep = queue.broker.sweep

    def flaky(name: str, *args: Any) -> Any:
        if failures:
            raise failures.pop()
        return sweep(name, *args)

    monkeypatch.setattr(queue.broker, "sweep", flaky)
    sweeper = Sweeper(queue, 0.01)
    thread = threading.Thread(target=sweeper.run)
    thread.start()
    deadline = time.monotonic() + 10
    while not queue.len():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sweeper.stop()
    thread.join(5)


def test_a_paused_queue_gives_nothing_until_it_is_resumed(queue: Queue) -> None:
    queue.enqueue(Task.create(len, ("abc",)))
    assert not queue.paused

    queue.pause()
    assert queue.paused
    assert queue.dequeue() is None
    queue.enqueue(Task.create(len, ("abc",)))
    assert queue.len() == 2

    queue.resume()
    assert not queue.paused
    assert queue.dequeue() is not None


def test_a_sweeper_without_queues_is_refused(queue: Queue) -> None:
    with pytest.raises(ConfigError, match="needs a queue"):
        Sweeper()
    with pytest.raises(ConfigError, match="interval"):
        Sweeper(queue, 0)


def test_a_task_that_waits_can_be_rescheduled_and_cancelled(queue: Queue) -> None:
    now, later, runs = (task(number) for number in (1, 2, 3))
    runs.priority, later.delay = 1, 60.0
    queue.enqueue_many([now, later, runs])
    taken = queue.dequeue()
    assert taken is not None and taken.id == runs.id
    assert now.id and later.id and runs.id

    assert queue.reschedule(now.id, "1h")
    assert queue.reschedule(later.id, 0)
    assert not queue.reschedule(runs.id, 0), "it runs"
    entry = queue.broker.get(queue.name, now.id)
    assert entry is not None and 3500 < entry.due <= 3600
    assert stored(queue) == [later.id]

    assert queue.cancel(now.id)
    assert queue.cancel(later.id)
    assert not queue.cancel(later.id), "it is gone"
    assert not queue.cancel(runs.id), "it runs"
    assert queue.release(taken)
    assert queue.broker.counts(queue.name) == (0, 0, 0, 0)


def test_a_handle_reschedules(queue: Queue) -> None:
    handle = queue.handle(queue.enqueue(task()))

    assert handle.reschedule("1h")
    assert handle.status == "scheduled"
    assert handle.reschedule(0)
    assert handle.status == "ready"
    assert handle.cancel()
    assert not handle.reschedule(0)


def test_a_delay_that_makes_no_sense_reschedules_nothing(queue: Queue) -> None:
    id = queue.enqueue(task())

    with pytest.raises(ConfigError, match="delay must be a duration"):
        queue.reschedule(id, "soon")
    assert stored(queue) == [id]


# Amid a destructor it is lost, and only told of.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_call_that_a_signal_ends_keeps_no_other_waiting() -> None:
    """As a task does whose time is up, or Ctrl-C, at whatever moment."""

    class Interrupt(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    producer = Producer(MemoryBroker(), "default")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(300):
            assert not deadline.is_set()
            with contextlib.suppress(Interrupt):
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.0006), 1.0)  # again, if it is lost
                while True:
                    producer.reserve_ids(1)
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(producer.reserve_ids, 1).result()) == 1
