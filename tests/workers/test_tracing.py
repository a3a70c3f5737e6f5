"""A trace goes from the caller to the task, to what that enqueues, and into the worker's log."""

from __future__ import annotations

import json

import pytest

import delayed
from delayed.message import Message
from tests.workers import tasks, traced
from tests.workers.conftest import Bench

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = GIVEN.split("-")[1]


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
def test_a_trace_is_in_the_task_in_what_it_enqueues_and_in_the_log(bench: Bench, mode: str) -> None:
    with delayed.trace(GIVEN):
        bench.put(traced.first, bench.url)
        bench.put(traced.second_async)
    untraced = bench.put(tasks.fail, "no")
    strange = [message(bench, text) for text in ("nonsense", "\x1b[2J")]

    bench.burst(mode, log_json=True, log_level="DEBUG")

    (one,) = bench.ledger.find("first")
    two = bench.ledger.find("second")
    assert len({one, *two}) == 3
    assert all(each.split("-")[1] == TRACE for each in (one, *two))
    records = [json.loads(line) for line in bench.log().splitlines()]
    ended = {record["trace"]: record["action"] for record in records if "trace" in record}
    assert ended == {one: "task_returned", **dict.fromkeys(two, "task_raised")}
    assert bench.ledger.lines.count("strange") == 2
    others = {record["task_id"] for record in records if "task_id" in record and "trace" not in record}
    assert others == {untraced, *strange}, "what is no trace is ignored"


def message(bench: Bench, trace: str) -> int:
    """A task with such a trace."""
    task = bench.queue.task(tasks.mark, str(bench.ledger.path), "strange")
    broker = bench.queue.broker
    id = broker.reserve_ids(bench.queue.name, 1)
    made: Message = task.to_message(bench.queue.codec, id, None)._replace(trace=trace)
    broker.enqueue(bench.queue.name, [made], f"{id:032x}", 1)
    return id
