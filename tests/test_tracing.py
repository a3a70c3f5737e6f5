"""The trace that a task is enqueued in, without workers."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest

import delayed
from delayed import Queue, TaskError, current
from delayed.delay import delay_with_params
from delayed.message import Claim, Message
from delayed.testing import capture
from delayed.tracing import add_trace, extra_of, present, valid
from tests import functions

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, PARENT = GIVEN.split("-")[1:3]
FORM = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]")


class Span:
    """What OpenTelemetry has of a span."""

    def __init__(self, trace_id: int, span_id: int) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.trace_flags = 1
        self.is_valid = bool(trace_id and span_id)

    def get_span_context(self) -> Span:
        return self


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The current span is the last one of these, as OpenTelemetry tells it."""
    found: list[Any] = [Span(0, 0)]
    module = types.ModuleType("opentelemetry.trace")
    module.get_current_span = lambda: found[-1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", module)
    yield found


def enqueued(queue: Queue) -> str | None:
    """The trace of a task that is enqueued now."""
    id = delay_with_params(queue)()(functions.add)(1, 2).id
    entry = queue.broker.get(queue.name, id)
    assert entry is not None
    return entry.message.trace


def parts(traceparent: str | None) -> list[str]:
    assert traceparent is not None and FORM.fullmatch(traceparent)
    return traceparent.split("-")


def test_nobody_asked_and_nothing_is_there(queue: Queue) -> None:
    assert enqueued(queue) is None
    assert present() is None


def test_what_is_enqueued_in_a_block_belongs_to_its_trace(queue: Queue) -> None:
    with delayed.trace(GIVEN) as here:
        first, second = enqueued(queue), enqueued(queue)
        assert here == present() == GIVEN

    assert [parts(each)[1] for each in (first, second)] == [TRACE, TRACE]
    assert len({PARENT, parts(first)[2], parts(second)[2]}) == 3, "each is an operation of its own"
    assert parts(first)[3] == "01"
    assert enqueued(queue) is None


@pytest.mark.parametrize("given", [None, "", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
def test_a_block_without_a_valid_trace_begins_a_new_one(queue: Queue, given: str | None) -> None:
    with delayed.trace(given) as one, delayed.trace(given) as other:
        found = enqueued(queue)

    assert parts(one)[1] != parts(other)[1]
    assert parts(found)[1] == parts(other)[1]


def test_many_and_those_in_threads_of_asyncio_have_it_too(queue: Queue) -> None:
    async def enqueue() -> None:
        with delayed.trace(GIVEN):
            await asyncio.to_thread(delay_with_params(queue)()(functions.add), 1, 2)

    asyncio.run(enqueue())
    with delayed.trace(GIVEN):
        queue.enqueue_many([queue.task(functions.add, 1, 2) for _ in range(3)])

    found = [entry.message.trace for entry in queue.broker.peek(queue.name, "ready")]
    assert [parts(each)[1] for each in found] == [TRACE] * 4
    assert len(set(found)) == 4


def test_another_thread_is_in_no_trace() -> None:
    found: list[str | None] = []
    with delayed.trace(GIVEN):
        thread = threading.Thread(target=lambda: found.append(present()))
        thread.start()
        thread.join()

    assert found == [None]


def test_the_current_span_comes_first_and_stays_what_it_is(queue: Queue, spans: list[Any]) -> None:
    with delayed.trace(GIVEN):
        assert parts(enqueued(queue))[1] == TRACE, "there is no span yet"
        spans.append(Span(0xABC, 0xDEF))
        found = enqueued(queue)

    assert found == f"00-{0xABC:032x}-{0xDEF:016x}-01"


@pytest.mark.parametrize("broken", [None, Span(-1, 1), object()])
def test_no_enqueue_fails_for_a_strange_span(queue: Queue, spans: list[Any], broken: Any) -> None:
    spans.append(broken)

    assert enqueued(queue) in (None, f"00-{-1:032x}-{1:016x}-01")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GIVEN, GIVEN),
        ("01" + GIVEN[2:], GIVEN),
        ("cc" + GIVEN[2:] + "-what-comes-later", GIVEN),
        (GIVEN[:-2] + "00", GIVEN[:-2] + "00"),
        (GIVEN + "-more", None),
        (GIVEN + "0", None),
        (GIVEN + "\n", None),
        ("01" + GIVEN[2:] + "0", None),
        ("ff" + GIVEN[2:], None),
        (GIVEN.upper(), None),
        (GIVEN.replace("b7ad6b7169203331", "0" * 16), None),
        (GIVEN[:-1], None),
        (" " + GIVEN, None),
        ("\x1b[2J", None),
        (None, None),
        (5, None),
    ],
)
def test_only_a_traceparent_is_one(text: object, expected: str | None) -> None:
    assert valid(text) == expected


def relay(times: int) -> None:
    TOLD.append(current.trace)
    if times:
        delay_with_params(RELAY)()(relay)(times - 1)


RELAY = Queue("relay", "memory://relay")
TOLD: list[str | None] = []


@pytest.mark.parametrize("given", [GIVEN, None])
def test_a_task_hands_its_trace_on(given: str | None) -> None:
    TOLD.clear()
    with capture() as tasks:
        with delayed.trace(given) if given else nullcontext():
            delay_with_params(RELAY)()(relay)(2)
        tasks.run_all()

    assert len(TOLD) == 3
    if given is None:
        assert TOLD == [None] * 3
    else:
        assert [parts(each)[1] for each in TOLD] == [TRACE] * 3
        assert len({PARENT, *TOLD}) == 4


def test_a_trace_that_is_none_is_not_handed_on() -> None:
    TOLD.clear()
    with capture() as tasks:
        delay_with_params(RELAY)()(relay)(0)  # so that the queue is known
        message = RELAY.task(relay, 1).to_message(RELAY.codec, 1, None)._replace(trace="nonsense")
        tasks.broker.enqueue(RELAY.name, [message], "a" * 32, 1)
        tasks.run_all()

    assert TOLD == [None] * 3


@pytest.mark.parametrize("trace", ["nonsense", "\x1b[31m", "00-" + "0" * 32 + "-b7ad6b7169203331-01", None])
def test_the_log_has_no_trace_that_is_none(trace: str | None) -> None:
    def extra(header: bytes) -> dict[str, str]:
        return extra_of(Claim("q", 1, 1, 1, 1, header, b""))

    assert extra(Message(1, "m:f", b"", trace=GIVEN).header()) == {"trace": GIVEN}
    assert extra(Message(1, "m:f", b"", trace=trace).header()) == {}
    assert extra(b'no header, "x"') == {}


def test_a_filter_gives_log_records_the_trace() -> None:
    record, own = logging.makeLogRecord({}), logging.makeLogRecord({"trace": GIVEN})
    with delayed.trace() as here:
        assert add_trace(record) and add_trace(own)
    outside = logging.makeLogRecord({})
    add_trace(outside)

    assert (record.trace, own.trace, outside.trace) == (here, GIVEN, "")  # type: ignore[attr-defined]


def test_outside_of_a_task_there_is_none_of_it() -> None:
    with pytest.raises(TaskError), delayed.trace():
        _ = current.trace
