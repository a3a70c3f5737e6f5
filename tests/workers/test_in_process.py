"""A worker as an object of one's own program: in a thread, stopped from another, run again."""

from __future__ import annotations

import inspect
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path

import pytest

from delayed import (
    AsyncWorker,
    ConfigError,
    ForkedWorker,
    MissingDependency,
    PreforkedWorker,
    Queue,
    Task,
    ThreadedWorker,
)
from delayed.delay import delay
from delayed.worker import Worker
from delayed.worker.base import WorkerOptions
from delayed.worker.handing import BATCH_TIME, Handing
from delayed.worker.minding import Minder
from delayed.worker.seat import Seat
from tests.workers import packets, tasks
from tests.workers.conftest import Ledger, wait_for


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture(params=["memory", "sqlite"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Queue]:
    url = f"memory://{secrets.token_hex(8)}" if request.param == "memory" else f"sqlite:///{tmp_path}/tasks.db"
    queue = Queue("q", url)
    yield queue
    queue.broker.close()


@contextmanager
def running(worker: ForkedWorker | PreforkedWorker) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield thread
    finally:
        worker.stop()
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("kind", [ForkedWorker, PreforkedWorker])
def test_a_worker_runs_in_a_thread_and_is_stopped_from_another(
    queue: Queue, ledger: Ledger, kind: type[PreforkedWorker]
) -> None:
    worker = kind(queue=queue, kill_timeout=1)
    for word in ("first", "second"):  # and may run again
        with running(worker):
            delay(queue)(tasks.mark)(str(ledger.path), word)
            wait_for(lambda word=word: word in ledger.lines)

    assert ledger.lines == ["first", "second"]
    wait_for(lambda: queue.broker.counts("q") == (0, 0, 0, 0))


def test_a_stop_before_the_run_ends_it(queue: Queue, ledger: Ledger) -> None:
    worker = PreforkedWorker(queue)
    delay(queue)(tasks.mark)(str(ledger.path), "x")
    worker.stop()

    worker.run()

    assert ledger.lines == []
    assert queue.len() == 1


def test_a_burst_in_the_main_thread_leaves_when_all_is_done(queue: Queue, ledger: Ledger) -> None:
    for number in range(50):
        delay(queue)(tasks.mark)(str(ledger.path), number)

    PreforkedWorker(queue, processes=2, burst=True).run()

    assert sorted(map(int, ledger.lines)) == list(range(50))


def test_a_burst_waits_for_what_is_due_soon(queue: Queue, ledger: Ledger) -> None:
    queue.enqueue(Task.create(tasks.fail_until, (str(ledger.path), "x", 2), retry={"max": 3, "delay": 0.1}))

    PreforkedWorker(queue, burst=True).run()

    assert ledger.lines == ["try x", "try x", "try x", "done x"]


def test_one_worker_object_runs_once_at_a_time(queue: Queue, ledger: Ledger) -> None:
    worker = PreforkedWorker(queue)
    with running(worker):
        delay(queue)(tasks.mark)(str(ledger.path), "x")
        wait_for(lambda: ledger.lines)
        with pytest.raises(ConfigError, match="runs already"):
            worker.run()


def test_several_queues_are_served_in_their_order(tmp_path: Path, ledger: Ledger) -> None:
    url = f"sqlite:///{tmp_path}/tasks.db"
    low, high = Queue("low", url), Queue("high", url, serializer="json", allow=["tests.*"])
    for number in range(3):
        delay(low)(tasks.mark)(str(ledger.path), "low", number)
        delay(high)(tasks.mark)(str(ledger.path), "high", number)

    PreforkedWorker(queues=[high, low], burst=True).run()

    assert ledger.lines == [f"{name} {number}" for name in ("high", "low") for number in range(3)]


def test_two_workers_of_one_process_share_the_work(queue: Queue, ledger: Ledger) -> None:
    with running(PreforkedWorker(queue)), running(ForkedWorker(queue)):
        for number in range(40):
            delay(queue)(tasks.mark)(str(ledger.path), number)
        wait_for(lambda: len(ledger.lines) >= 40)
        wait_for(lambda: queue.broker.counts("q") == (0, 0, 0, 0))

    assert sorted(map(int, ledger.lines)) == list(range(40))


@pytest.mark.parametrize("kind", [PreforkedWorker, ThreadedWorker, AsyncWorker])
def test_a_worker_leaves_no_descriptors_behind(queue: Queue, ledger: Ledger, kind: type[Worker]) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def run() -> None:
        delay(queue)(tasks.mark)(str(ledger.path), "x")
        kind(queue, burst=True).run()

    run()
    before = descriptors()
    for _ in range(3):
        run()

    assert descriptors() <= before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"processes": 0}, "processes"),
        ({"processes": "2"}, "processes"),
        ({"kill_timeout": -1}, "kill_timeout"),
        ({"max_tasks": 0}, "max_tasks"),
        ({"max_memory": "lots"}, "max_memory must be a size: write 512M or 2G"),
        ({"kill_memory": 0}, "kill_memory must be a size"),
        ({"worker_memory": True}, "worker_memory must be a size"),
        ({"lease": 0.1}, "lease"),
        ({"lease": inf}, "lease must be a number from 0.3 to 86400"),
        ({"error_handler": lambda *args: None}, "error_handler runs in another process"),
    ],
)
def test_wrong_arguments_are_named(queue: Queue, options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PreforkedWorker(queue, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (ThreadedWorker, {"threads": 0}, "threads must be a whole number from 1 to 10000, not 0"),
        (AsyncWorker, {"concurrency": "9"}, "concurrency must be a whole number from 1 to 10000, not '9'"),
        (ThreadedWorker, {"processes": 0}, "processes must be"),
        (ThreadedWorker, {"threads": 2.5}, "not 2.5"),
    ],
)
def test_wrong_lanes_are_named(
    queue: Queue, kind: Callable[..., Worker], options: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        kind(queue, **options)


def test_uvloop_is_asked_for_by_name_where_it_is_missing(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=re.escape("pip install 'delayed[uvloop]'")):
        AsyncWorker(queue, uvloop=True)


def test_all_kinds_take_the_same_options(tmp_path: Path) -> None:
    queue = Queue("q", f"sqlite:///{tmp_path}/tasks.db")
    taken = set(inspect.signature(Worker.__init__).parameters) - {"self", "queue"}
    assert taken == set(WorkerOptions.__annotations__)
    assert taken - {"queues"} == set(PreforkedWorker(queue).settings()["options"])
    assert "threads" in ThreadedWorker(queue).settings()["options"]


def test_a_worker_needs_queues_of_one_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a queue"):
        PreforkedWorker()
    one, other = Queue("a", f"sqlite:///{tmp_path}/a.db"), Queue("b", f"sqlite:///{tmp_path}/b.db")
    with pytest.raises(ConfigError, match="one worker serves one broker"):
        PreforkedWorker(queues=[one, other])


def test_what_a_thread_has_read_and_can_not_begin_is_given_to_one_that_sleeps(
    queue: Queue, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets a packet of everything, as when the others have gone to sleep before it was read."""
    tick, blocked = Minder.tick, []

    def all_together(handing: Handing, seat: Seat, depth: int) -> int:
        return len(handing.courier.inbox) if handing.average * 2 <= BATCH_TIME else 1

    def watched(minder: Minder, at: float) -> None:
        tick(minder, at)
        blocked.extend(seat for seat in minder.seats if seat.blocked)

    monkeypatch.setattr(Handing, "batch_size", all_together)
    monkeypatch.setattr(Minder, "tick", watched)
    place = str(ledger.path)
    with running(ThreadedWorker(queue, threads=2)):
        queue.enqueue_many([Task.create(tasks.mark, (place, "quick")) for _ in range(300)])
        wait_for(lambda: len(ledger.find("quick")) == 300 and not queue.broker.counts(queue.name).running)
        queue.pause()
        behind = [Task.create(packets.behind, (place, number)) for number in range(9)]
        queue.enqueue_many([Task.create(packets.begin_and_wait, (place,)), *behind])
        queue.resume()
        wait_for(lambda: len(ledger.find("behind")) == 9)
        assert ledger.find("end") == []
        packets.go(place)
        wait_for(lambda: ledger.find("end"))
    assert sorted(ledger.find("behind")) == [f"{number} 1" for number in range(9)]
    assert not blocked


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("1 / 0", "ZeroDivisionError"),
        (
            "import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
            "starts threads",
        ),
    ],
)
def test_a_module_that_can_not_be_preloaded_is_an_error_at_the_start(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    (tmp_path / "to_preload.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ConfigError, match=words):
        PreforkedWorker(queue, preload=["to_preload"]).run()


def test_a_fork_server_that_never_starts_is_an_error(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")

    with pytest.raises(ConfigError, match="the fork server does not start: /bin/false ended with 1"):
        PreforkedWorker(queue).run()
