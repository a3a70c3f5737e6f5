"""Headers: what is written, what is read, and what neither is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from delayed import ConfigError, Queue, Retry
from delayed.errors import DELAY_MAX, DecodeError, NotEnqueueable
from delayed.fields import ENDLESS
from delayed.message import HEADER_MAX, Message
from delayed.options import Options
from delayed.retry import delay_before_next
from delayed.task import Task
from tests import functions
from tests.workers.poisons import headers

FULL = Message(
    7,
    "app.tasks:add",
    b"payload",
    timeout=1.5,
    priority=-3,
    delay=60,
    enqueued_at=1700000000.25,
    retry={**Retry(3, delay=0.1, jitter=False, on="a.B", never=OSError, policy="a:b").data(), "pauses": [1, 2.5]},
    max_deliveries=14,
    key="é\0\ud800",
    trace="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    limits={"memory": 2**40, "cpu": 0.5},
    keep=3600.0,
    extra={"new": [1, {"deep": None}]},
)


@pytest.mark.parametrize("message", [FULL, Message(1, "a:b", b"")], ids=["full", "least"])
def test_a_header_comes_back_equal(message: Message) -> None:
    assert Message.parse(message.id, message.header(), message.payload) == message


@pytest.mark.parametrize(("name", "header", "reason"), [*headers()])
def test_a_header_that_is_not_right_is_refused_with_the_reason(name: str, header: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason) as caught:
        Message.parse(7, header, b"")

    assert "task 7" in str(caught.value)
    assert len(str(caught.value)) < 300
    assert Message.glimpse(7, header, b"x") == Message(7, "?", b"x")


@pytest.mark.parametrize(
    "number",
    [
        "0",
        "5",
        "5.0",
        "-5.5",
        "1e3",
        "1795280796.129",
        "1795280796.1234567",
        "12345678901234.5",
        "0.5",
        "05",
        "5.",
        "nan",
    ],
)
@pytest.mark.parametrize(
    "frame",
    [
        '{"v":1,"f":"a:b","e":%s}',
        '{"v":1,"f":"a:b","t":9.0,"e":%s,"r":{"max":3}}',
        '{"v":1,"f":"a:b","e":%s,"e":7.0}',
        '{"v":1,"f":"a:b","e":7.0,"e":%s}',
        '{"v":1,"f":"a:b","e":%s, "e":7.0}',
        '{"v":1,"f":"a:b","e":%s,"\\u0065":7.0}',
        '{"v":1,"f":"a:b","k":"x","e":%s}',
        '{"v":1,"f":"a:b","new":{"o":1,"e":%s},"e":7.0}',
        '{"v":1,"f":"a:b","e":%s',
        '{"v":2,"f":"a:b","e":%s}',
    ],
)
def test_headers_that_differ_in_their_time_alone_are_read_as_each_by_itself(frame: str, number: str) -> None:
    def read(parse: Callable[[int, bytes, bytes], Message], number: str) -> Message | str:
        try:
            return parse(1, (frame % number).encode(), b"")
        except DecodeError as error:
            return str(error)

    for before in ("1.0", "7.0", "1795280796.5"):
        read(Message.parse_another, before)

    assert read(Message.parse_another, number) == read(Message.parse, number)


def test_a_header_that_nobody_would_read_is_not_stored(queue: Queue) -> None:
    task = Task.create(functions.add, (1, 2), key="x" * HEADER_MAX)

    with pytest.raises(NotEnqueueable, match=r"tests\.functions:add takes .* may take 65536: give it a shorter key"):
        queue.enqueue(task)

    assert queue.len() == 0


def odd(name: str) -> Callable[..., Any]:
    def function() -> None:
        pass

    function.__qualname__ = name
    setattr(sys.modules[__name__], name, function)
    return function


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "half\udc80", "x" * 9000], ids=ascii)
def test_a_name_that_fits_no_line_is_refused_at_once(queue: Queue, name: str) -> None:
    with pytest.raises(NotEnqueueable, match="is no path that can be stored"):
        queue.enqueue(queue.task(odd(name)))


def test_deliveries_are_no_more_than_stores_count(queue: Queue) -> None:
    queue.enqueue(Task.create(functions.add, (1, 2), retry=Retry(10**30)))

    (entry,) = queue.broker.peek(queue.name, "ready")
    assert entry.message.max_deliveries == ENDLESS


@pytest.mark.parametrize("attempt", [1, 2, 65, 10**6])
@pytest.mark.parametrize("factor", [0, 1.5e308, 10**300])
@pytest.mark.parametrize("first", [0, 1e-300, DELAY_MAX])
def test_a_pause_is_no_longer_than_stores_can_count(first: float, factor: float, attempt: int) -> None:
    policy = Retry(-1, delay=first, factor=factor, max_delay=DELAY_MAX)

    pause = delay_before_next(policy.data(), attempt)

    assert pause is not None and 0 <= pause <= DELAY_MAX


def test_a_timeout_beyond_all_floats_is_refused() -> None:
    with pytest.raises(ConfigError, match="timeout must be a number of seconds"):
        Options().updated({"timeout": 10**400})
