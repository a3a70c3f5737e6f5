"""Tasks that wait for others: what is checked, and what their headers have, before any worker sees them."""

from __future__ import annotations

import pickle
import secrets
from collections.abc import Callable
from typing import Any

import pytest

from delayed import ConfigError, NotEnqueueable, NotKept, Queue, SignatureMismatch
from delayed.after import AFTER_MAX
from delayed.codec import Codec
from delayed.delay import Call
from delayed.errors import DecodeError
from delayed.message import Message
from delayed.options import Options
from delayed.worker import gifts
from tests.test_handle import claim, double


def add(a: int, b: int = 0) -> int:
    return a + b


def call(queue: Queue, func: Callable[..., Any] = double, **options: Any) -> Call[..., Any]:
    return Call(func, queue, Options().updated({"keep": "1h", **options}))


def last(queue: Queue) -> Message:
    """The message that was enqueued last."""
    return queue.broker.peek(queue.name, "ready", 1000)[-1].message


# -- what is stored ------------------------------------------------------------------------------------------------


def test_a_header_has_what_it_waits_for(queue: Queue) -> None:
    first, group = call(queue).delay(1), call(queue).map([1, 2])

    call(queue, after=[first, group]).delay(1)
    assert last(queue).gates == {"after": {"default": [first.id, *group.ids]}, "runs": 11}
    first.then(call(queue, add, retry=2), b=3)
    assert last(queue).gates == {"after": {"default": [first.id]}, "with": 1, "runs": 13}
    group.then(call(queue, add), 3)
    assert last(queue).gates == {"after": {"default": [*group.ids]}, "with": 2, "runs": 11}
    call(queue, after=first).options(after=None).delay(1)
    assert last(queue).gates is None


def test_what_follows_an_empty_group_need_not_wait(queue: Queue) -> None:
    call(queue).map([]).then(call(queue, add), 3)

    message = last(queue)
    assert message.gates is None and queue.codec.decode(message.payload)[0] == ([], 3)


def test_a_task_without_gates_has_none_in_its_header(queue: Queue) -> None:
    call(queue).delay(1)
    assert b'"gu"' not in claim(queue).header


def test_each_time_it_waits_is_a_delivery_so_that_these_have_no_end(queue: Queue) -> None:
    first = call(queue).delay(1)
    call(queue, after=first, max_deliveries=3).delay(1)

    message = last(queue)
    assert message.max_deliveries == 2**31 - 1
    assert message.gates is not None and message.gates["runs"] == 3


def test_a_header_comes_back_as_it_was(queue: Queue) -> None:
    call(queue, after=call(queue).delay(1), limit=None).delay(1)
    message = last(queue)

    assert Message.parse(message.id, message.header(), message.payload) == message


@pytest.mark.parametrize(
    "gates",
    [
        {"after": {}},
        {"after": {"q": []}},
        {"after": {"": [1]}},
        {"after": {"q{}": [1]}},
        {"after": {"q": [0]}},
        {"after": {"q": [2**53]}},
        {"after": {"q": ["1"]}},
        {"with": 3},
        {"with": True},
        {"runs": 0},
        {"limit": ["x", 0, None]},
        {"limit": ["x", 1001, None]},
        {"limit": ["x", None, 0]},
        {"limit": ["x", None, float(2**60)]},
        {"limit": ["", 1, None]},
        {"limit": ["x" * 301, 1, None]},
        {"limit": ["x\0", 1, None]},
        {"limit": ["x", 1]},
        {"limit": "x"},
        {"later": 1},
        [],
        3,
    ],
)
def test_gates_that_make_no_sense_are_refused(gates: Any) -> None:
    header = Message(1, "m:f", b"", gates=gates).header()

    with pytest.raises(DecodeError, match="gates"):
        Message.parse(1, header, b"")


# -- what is refused -----------------------------------------------------------------------------------------------


def test_what_keeps_no_answer_can_not_be_waited_for(queue: Queue) -> None:
    unkept = call(queue, keep=None)
    handle, group = unkept.delay(1), unkept.map([1])

    for ask in (
        lambda: call(queue, after=handle),
        lambda: call(queue, after=[group]),
        lambda: handle.then(call(queue)),
        lambda: group.then(call(queue)),
        lambda: pickle.loads(pickle.dumps(handle)).then(call(queue)),
    ):
        with pytest.raises(NotKept, match="keep='1h'"):
            ask()
    queue.handle(handle.id).then(call(queue))  # nobody knows: its worker will find out


def test_what_is_in_another_store_can_not_be_waited_for(queue: Queue) -> None:
    elsewhere = Queue("there", f"memory://{secrets.token_hex(8)}")
    handle = call(elsewhere).delay(1)

    with pytest.raises(ConfigError, match="in its own store only"):
        call(queue, after=handle).delay(1)
    assert call(Queue("other", queue.broker), after=call(queue).delay(1)).delay(1).queue == "other"


def test_a_result_that_the_other_queue_can_not_read_is_not_passed(queue: Queue) -> None:
    sealed = Queue("sealed", queue.broker, secret="0123456789abcdef")
    handle = call(queue).delay(1)

    with pytest.raises(ConfigError, match="another serializer or secret"):
        handle.then(call(sealed))
    call(sealed, after=handle).delay(1)


@pytest.mark.parametrize("value", [3, "task", [3], (1, "queue")])
def test_what_is_no_handle_is_refused(queue: Queue, value: Any) -> None:
    with pytest.raises(ConfigError, match="after takes"):
        call(queue, after=value)


def test_too_many_are_refused(queue: Queue) -> None:
    group = call(queue).map(range(AFTER_MAX + 1))

    with pytest.raises(ConfigError, match="may wait for 2000"):
        group.then(call(queue))
    group[1:].then(call(queue))


def test_a_function_that_is_not_decorated_is_refused(queue: Queue) -> None:
    handle = call(queue).delay(1)

    with pytest.raises(NotEnqueueable, match="decorated with @delayed"):
        handle.then(double)  # type: ignore[arg-type]


def test_arguments_are_checked_with_the_result_before_them(queue: Queue) -> None:
    handle = call(queue).delay(1)

    handle.then(call(queue, add), 2)
    with pytest.raises(SignatureMismatch):
        handle.then(call(queue, add), 2, 3)
    with pytest.raises(SignatureMismatch):
        handle.then(call(queue, add), a=2)


# -- what is passed ------------------------------------------------------------------------------------------------


def codec_of(queue: str, **options: Any) -> Codec:
    return Codec(queue=queue, **{"secret": "0123456789abcdef", **options})


def test_results_of_sealed_queues_arrive() -> None:
    one, other = codec_of("one"), codec_of("other", encrypt=False)
    bodies = [("one", 1, one.encode_result(1, "a")), ("other", 2, other.encode_result(2, {"b": b"\0"}))]

    assert gifts.unpack(gifts.pack(gifts.RESULTS, bodies), codec_of("mine")) == ["a", {"b": b"\0"}]
    assert gifts.unpack(gifts.pack(gifts.RESULT, bodies[:1]), codec_of("mine")) == "a"
    assert gifts.unpack(gifts.pack(gifts.RESULTS, []), codec_of("mine")) == []


@pytest.mark.parametrize(("queue", "id"), [("one", 2), ("other", 1)])
def test_a_result_of_another_task_is_refused(queue: str, id: int) -> None:
    body = codec_of("one").encode_result(1, "a")

    with pytest.raises(DecodeError):
        gifts.unpack(gifts.pack(gifts.RESULT, [(queue, id, body)]), codec_of("mine"))
