"""What people ask of a running worker: to cancel a task, to show where one is, to stop."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from delayed import ForkedWorker, PreforkedWorker, Queue
from delayed.delay import delay
from delayed.worker import courier
from tests.workers import tasks
from tests.workers.conftest import Bench, Ledger, wait_for

HANDLER = "tests.workers.tasks:on_error"
SOON = 0.1  # seconds between announcements, so that these tests wait less


def worker_of(bench: Bench) -> str:
    """The id of the worker that has announced itself."""
    workers = wait_for(lambda: bench.queue.broker.workers(bench.queue.name))
    return str(workers[0].worker)


def ask(bench: Bench, do: str, task: int | None = None, order: str | None = None) -> str:
    """Leave an order; its id."""
    order = order or secrets.token_hex(8)
    what: dict[str, Any] = {"id": order, "do": do, "queue": bench.queue.name, "task": task}
    bench.queue.broker.ask(worker_of(bench), bench.queue.name, what, 30.0)
    return order


def replies(bench: Bench) -> Mapping[str, Any]:
    return {
        order: reply
        for worker in bench.queue.broker.workers(bench.queue.name)
        for order, reply in worker.info["replies"].items()
    }


def reply_to(bench: Bench, order: str) -> tuple[bool, str]:
    reply = wait_for(lambda: replies(bench).get(order))
    return reply["done"], reply["text"]


@pytest.mark.parametrize(
    ("func", "words"),
    [
        (tasks.note_stop, "cancelled after"),
        (tasks.begin_and_match, "cancelled after"),
        (tasks.begin_and_be_stuck, "cancelled, and killed by signal 9 (SIGKILL) after"),
        (tasks.fail_when_stopped, "cancelled after"),
    ],
)
def test_a_running_task_is_cancelled_and_not_tried_again(
    bench: Bench, mode: str, func: Callable[..., Any], words: str
) -> None:
    id = bench.put(func, retry={"max": 3, "delay": 0.0}, timeout=None)
    bench.start(mode, error_handler=HANDLER, announce_interval=SOON)
    wait_for(lambda: bench.ledger.find("begin"))

    done, text = reply_to(bench, ask(bench, "cancel", id))

    assert done
    assert text.startswith(words if mode in ("forked", "preforked") else "cancelled")
    wait_for(lambda: bench.queue.broker.get(bench.queue.name, id) is None)
    bench.put(tasks.mark, "next")
    wait_for(lambda: "next" in bench.ledger.lines)
    assert bench.queue.broker.counts(bench.queue.name).dead == 0
    assert len(bench.ledger.find("begin")) == 1
    if func is tasks.note_stop:
        assert bench.ledger.find("stopped by") == ["TaskCancelled"]
    if func is not tasks.fail_when_stopped:  # which raised, and its own process knows no better
        assert bench.ledger.find("error") == []
    assert f"task {id} " in bench.log() and "it is not run again" in bench.log()


@pytest.mark.parametrize("kind", [ForkedWorker, PreforkedWorker])
def test_what_is_cancelled_runs_not_at_all_or_not_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[PreforkedWorker]
) -> None:
    """Orders find tasks that run, that wait in a child's channel or in the monitor, and that have just ended."""
    queue = Queue("q", f"memory://{secrets.token_hex(8)}")
    ledger = Ledger(tmp_path / "ledger")
    announce = queue.broker.announce
    orders: dict[str, int] = {}
    known: dict[str, Any] = {}

    def eager(worker: str, queues: Any, info: Any, ttl: float) -> Any:
        """As if somebody had just asked for half of all that is claimed."""
        known.update(info["replies"] if info else {})
        announce(worker, queues, info, ttl)
        claimed = {entry.message.id for entry in queue.broker.peek("q", "running")}
        fresh = {secrets.token_hex(8): id for id in claimed - set(orders.values()) if id % 2}
        orders.update(fresh)
        return [{"id": order, "do": "cancel", "queue": "q", "task": id} for order, id in fresh.items()]

    monkeypatch.setattr(queue.broker, "announce", eager)
    monkeypatch.setattr(courier, "CHORES_TOGETHER", 0.0)
    monkeypatch.setattr(courier, "ANNOUNCE_INTERVAL", 0.03)
    words = {
        delay(queue)(tasks.nap)(str(ledger.path), number, 0.3 if number % 20 == 1 else 0.005).id: str(number)
        for number in range(200)
    }
    kind(queue, processes=2, burst=True, lease=3).run()

    begun = [line.split()[0] for line in ledger.find("begin")]
    ended = ledger.find("end")
    cancelled = {words[orders[order]]: reply["text"] for order, reply in known.items() if reply["done"]}
    assert cancelled
    assert len(begun) == len(set(begun)), "none ran twice"
    unbegun = {word for word, text in cancelled.items() if "before it began" in text}
    assert set(begun).isdisjoint(unbegun)
    # (One that has noted its end may still be stopped in its very last moment.)
    assert set(ended) >= set(words.values()) - set(cancelled), "what was not cancelled ran to its end"


@pytest.mark.parametrize("func", [tasks.begin_and_match, tasks.begin_and_be_stuck])
def test_the_stack_of_a_stuck_task_can_be_seen_while_it_runs(bench: Bench, mode: str, func: Callable[..., Any]) -> None:
    id = bench.put(func, timeout=None)
    bench.start(mode, announce_interval=SOON)
    wait_for(lambda: bench.ledger.find("begin"))

    for _ in range(2):
        done, text = reply_to(bench, ask(bench, "stack", id))

        assert done
        assert f"in {func.__name__}" in text
        assert "tests/workers/tasks.py" in text
        assert text.count(f"in {func.__name__}") == 1, "each look begins anew"


def test_a_task_goes_on_after_its_stack_was_looked_at(bench: Bench, mode: str) -> None:
    bench.put(tasks.nap, "x", 2.0)
    bench.start(mode, announce_interval=SOON)
    wait_for(lambda: bench.ledger.find("begin"))
    (entry,) = bench.queue.broker.peek(bench.queue.name, "running")

    done, text = reply_to(bench, ask(bench, "stack", entry.message.id))

    assert done
    assert "in nap" in text
    assert bench.ledger.find("end") == []
    wait_for(bench.settled)
    assert bench.ledger.find("end") == ["x"]


def test_a_coroutine_is_shown_where_it_waits_and_cancelled(bench: Bench) -> None:
    ids = [bench.put(tasks.note_stop_async) for _ in range(3)]
    bench.start("async", concurrency=5, announce_interval=SOON)
    wait_for(lambda: len(bench.ledger.find("begin")) == 3)

    for _ in range(2):
        assert "in note_stop_async" in reply_to(bench, ask(bench, "stack", ids[1]))[1]
    done, text = reply_to(bench, ask(bench, "cancel", ids[1]))

    assert done
    assert text.startswith("cancelled after")
    assert bench.ledger.find("stopped by") == ["CancelledError"]
    wait_for(lambda: bench.queue.broker.counts(bench.queue.name).running == 2)


def test_an_order_reaches_a_busy_worker_within_a_few_seconds(bench: Bench) -> None:
    bench.start("preforked")
    worker_of(bench)
    id = bench.put(tasks.note_stop)
    wait_for(lambda: bench.ledger.find("begin"))

    order = ask(bench, "cancel", id)

    wait_for(lambda: replies(bench).get(order), 3.5)  # every two seconds, and half a second of a neighbouring chore


def test_an_order_about_a_task_that_is_elsewhere_is_answered(bench: Bench) -> None:
    bench.put(tasks.nap, "x", 2.0)
    bench.start("preforked", announce_interval=SOON)
    wait_for(lambda: bench.ledger.find("begin"))

    for do in ("cancel", "stack", "sing"):
        done, text = reply_to(bench, ask(bench, do, 4711))
        assert not done
        assert ("does not know how to sing" if do == "sing" else "does not have it") in text

    wait_for(bench.settled)
    assert bench.ledger.find("end") == ["x"]


def test_a_worker_that_is_asked_to_stop_finishes_what_runs(bench: Bench, mode: str) -> None:
    bench.put(tasks.nap, "x", 2.0)
    worker = bench.start(mode, announce_interval=SOON)
    wait_for(lambda: bench.ledger.find("begin"))
    id = worker_of(bench)
    broker, name = bench.queue.broker, bench.queue.name

    order = ask(bench, "stop")
    wait_for(lambda: any(worker.info["stopping"] for worker in broker.workers(name)))
    broker.ask(id, name, {"id": order, "do": "stop"}, 30.0)  # the same again, and by somebody else: no hurry
    broker.ask(id, name, {"id": "another", "do": "stop"}, 30.0)

    assert worker.wait(20) == 0
    assert bench.ledger.find("end") == ["x"]
    assert broker.workers(name) == []


def test_nothing_is_taken_from_a_paused_queue(bench: Bench, mode: str) -> None:
    bench.put(tasks.nap, "before", 1.0)
    bench.start(mode, announce_interval=SOON)
    wait_for(lambda: bench.ledger.find("begin"))
    bench.queue.pause()
    assert bench.queue.paused
    bench.put(tasks.mark, "after")

    wait_for(lambda: bench.queue.broker.counts(bench.queue.name).running == 0)
    wait_for(lambda: bench.queue.broker.workers(bench.queue.name)[0].info["running"] == [])
    assert bench.ledger.find("end") == ["before"]
    assert "after" not in bench.ledger.lines

    bench.queue.resume()
    assert not bench.queue.paused
    wait_for(lambda: "after" in bench.ledger.lines, 1.5)


def test_a_burst_leaves_a_paused_queue_alone(bench: Bench) -> None:
    bench.put(tasks.mark, "x")
    bench.queue.pause()

    bench.burst("preforked")

    assert bench.ledger.lines == []
    assert bench.queue.len() == 1
