"""Tasks: made, encoded, run."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import pytest

from delayed import ConfigError, DecodeError, FunctionNotFound, NotEnqueueable, Retry, SignatureMismatch, Task
from delayed.codec import Codec
from delayed.message import Message
from delayed.retry import delay_before_next
from tests import functions

SERIALIZERS = ("pickle", "cloudpickle", "msgpack", "json")


# -- tasks ---------------------------------------------------------------------------------------------------------


def test_the_task_of_delayed_0_2() -> None:
    task = Task(7, "tests.functions", "add", (1,), {"b": 3}, 5)

    assert (task.id, task.module_name, task.func_name) == (7, "tests.functions", "add")
    assert (task.args, task.kwargs, task.timeout) == ((1,), {"b": 3}, 5)
    assert task.run() == 4
    again = Task.deserialize(task.serialize())
    assert (again.id, again.func_path, again.args, again.kwargs, again.timeout) == (
        7, "tests.functions:add", (1,), {"b": 3}, 5,
    )  # fmt: skip
    assert again.data == task.data
    again.id = 8
    assert again.data is None
    assert Task.deserialize(again.serialize()).id == 8


def test_a_task_that_came_from_a_queue_can_be_copied_and_pickled() -> None:
    codec = Codec()
    made = Task.create(functions.add, (1,), {"b": 2}, timeout=3.0, retry=Retry(2), key="k", memory=2**20)
    message = made.to_message(codec, 5, None)
    task = Task.from_message(codec.open(message, message.header()), codec)
    task.attempt = 2

    for again in (copy.copy(task), copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        assert (again.id, again.timeout, again.retry, again.key) == (5, 3.0, Retry(2), "k")
        assert (again.memory, again.attempt, again.verdict) == (2**20, 2, None)
        assert again.run() == 3


def test_a_task_of_a_function() -> None:
    task = Task.create(functions.add, (1,), {"b": 2}, timeout=3)

    assert task.id is None
    assert task.func_path == "tests.functions:add"
    assert task.run() == 3


def test_a_coroutine_is_run_to_its_end() -> None:
    assert Task.create(functions.add_later, (1, 2)).run() == 3


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"c": 3})])
def test_arguments_that_do_not_fit_are_told_from_errors_of_the_function(args: Any, kwargs: Any) -> None:
    with pytest.raises(SignatureMismatch, match=r"tests\.functions:add"):
        Task.create(functions.add, args, kwargs).run()


def test_a_type_error_of_the_function_is_its_own() -> None:
    with pytest.raises(TypeError) as caught:
        Task.create(functions.raise_type_error).run()
    assert not isinstance(caught.value, SignatureMismatch)


def test_an_unknown_function() -> None:
    with pytest.raises(FunctionNotFound):
        Task(None, "tests.functions", "nobody").run()


# -- messages ------------------------------------------------------------------------------------------------------


def test_a_task_survives_its_message() -> None:
    codec = Codec()
    task = Task.create(functions.add, (1,), {"b": 2}, 3.5, retry=2, priority=4, delay=6, key="k", max_deliveries=9)

    message = task.to_message(codec, 11, 600)
    again = Task.from_message(message, codec)

    assert (message.id, message.delay, message.enqueued_at > 1.7e9) == (11, 6, True)
    for name in ("func_path", "args", "kwargs", "timeout", "retry", "priority", "key", "max_deliveries"):
        assert getattr(again, name) == getattr(task, name), name
    assert again.id == 11


def test_the_limits_of_a_task_survive_its_message() -> None:
    codec = Codec()
    task = Task.create(functions.add, (1,), memory="512M", cpu=30)

    message = task.to_message(codec, 11, 600)
    again = Task.from_message(Message.parse(11, message.header(), message.payload), codec)

    assert json.loads(message.header())["l"] == {"memory": 512 << 20, "cpu": 30}
    assert (again.memory, again.cpu) == (512 << 20, 30)


def test_a_task_without_limits_has_none_in_its_message() -> None:
    message = Task.create(functions.add, (1,)).to_message(Codec(), 11, 600)

    assert "l" not in json.loads(message.header())
    assert Message.parse(11, message.header(), b"").limits is None


@pytest.mark.parametrize("limits", [[], 3, {"memory": "512M"}, {"memory": -1}, {"cpu": 1e300}, {"disk": 3}])
def test_limits_that_nobody_knows_are_a_decode_error(limits: Any) -> None:
    header = json.dumps({"v": 1, "f": "os:getpid", "l": limits}).encode()

    with pytest.raises(DecodeError, match="limits"):
        Message.parse(11, header, b"")


@pytest.mark.parametrize(
    ("own", "default", "found"), [(None, 600, 600), (5, 600, 5), (math.inf, 600, None), (None, None, None)]
)
def test_the_queues_timeout_is_the_default(own: float | None, default: float | None, found: float | None) -> None:
    assert Task.create(functions.add, timeout=own).to_message(Codec(), 1, default).timeout == found


@pytest.mark.parametrize(("retry", "deliveries"), [(None, 11), (3, 14), (-1, 2**31 - 1)])
def test_each_retry_may_be_delivered(retry: int | None, deliveries: int) -> None:
    assert Task.create(functions.add, retry=retry).to_message(Codec(), 1, 1).max_deliveries == deliveries


# -- the codec -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_plain_data_comes_back_equal(serializer: str) -> None:
    codec = Codec(serializer)
    args = (None, True, 3, -(2**62), 1.5, "käse", [1, [2]], {"a": {"b": []}})

    assert Codec.from_spec(codec.spec()).decode(codec.encode(args, {"x": 1})) == (args, {"x": 1}, None)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ((1, 2), "argument 1 is a builtins.tuple"),
        ({1}, "set"),
        ([{"k": object()}], r"1\[0\]\['k'\]"),
        ({(1,): 1}, "keys"),
    ],
)
def test_what_would_come_back_as_something_else_is_refused(value: Any, where: str) -> None:
    with pytest.raises(NotEnqueueable, match=where):
        Codec("json").encode((0, value), {})


@pytest.mark.parametrize("value", [object(), bytearray(b"x"), 1j, [{"k": {1: range(3)}}], {frozenset((object(),))}])
def test_msgpack_refuses_what_it_has_no_type_for(value: Any) -> None:
    with pytest.raises(NotEnqueueable, match=r"argument a.* is a "):
        Codec("msgpack").encode((), {"a": value})


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_json_has_no_such_numbers(number: float) -> None:
    with pytest.raises(NotEnqueueable):
        Codec("json").encode((number,), {})


def test_msgpack_has_bytes_and_json_has_not() -> None:
    codec = Codec("msgpack")
    assert codec.decode(codec.encode((b"\0\xff",), {}))[0] == (b"\0\xff",)
    with pytest.raises(NotEnqueueable, match="bytes"):
        Codec("json").encode((b"",), {})


def test_only_the_queues_own_serializer_is_decoded() -> None:
    with pytest.raises(DecodeError, match="made with pickle, but this queue takes only json"):
        Codec("json").decode(Codec("pickle").encode((), {}))


@pytest.mark.parametrize(
    "payload", [b"", b"\1", b"\1\1\0\0", b"\1\1\0\0garbage", b"\2\1\0\0x", b"\1\1\1\0x", b"\1\1\0\1x"]
)
def test_garbage_is_a_decode_error(payload: bytes) -> None:
    with pytest.raises(DecodeError):
        Codec().decode(payload)


def test_every_prefix_of_a_payload_is_a_decode_error() -> None:
    payload = Codec().encode((1, "two"), {"three": [3]})
    for size in range(len(payload)):
        with pytest.raises(DecodeError):
            Codec().decode(payload[:size])


def test_a_pickle_that_is_no_call_is_a_decode_error() -> None:
    with pytest.raises(DecodeError):
        Codec().decode(b"\1\1\0\0" + pickle.dumps("no call"))


def test_large_arguments_are_refused_with_the_sizes() -> None:
    codec = Codec(max_size=1000)
    with pytest.raises(NotEnqueueable, match="more than the queue's limit of 1000"):
        codec.encode(("x" * 1000,), {})
    with pytest.raises(DecodeError, match="more than the queue's limit of 1000"):
        codec.decode(Codec().encode(("x" * 1000,), {}))


def test_an_unknown_serializer_names_the_known() -> None:
    with pytest.raises(ConfigError, match="pickle, cloudpickle, msgpack, json"):
        Codec("yaml")


# -- retries -------------------------------------------------------------------------------------------------------


def test_pauses_grow_to_a_limit_and_end() -> None:
    data = Retry(4, delay=1, factor=3, max_delay=10, jitter=False).data()

    assert [delay_before_next(data, attempt) for attempt in range(1, 6)] == [1, 3, 9, 10, None]


def test_jitter_shortens_by_up_to_a_half() -> None:
    pauses = {delay_before_next(Retry(1, delay=8).data(), 1) for _ in range(100)}

    assert len(pauses) > 50
    assert all(pause is not None and 4 <= pause <= 8 for pause in pauses)


def test_for_ever_is_for_ever() -> None:
    assert delay_before_next(Retry(-1, jitter=False).data(), 10_000) == 600


@pytest.mark.parametrize("data", [None, {}, {"max": 0}, {"max": "3"}])
def test_no_policy_no_retry(data: Any) -> None:
    assert delay_before_next(data, 1) is None


def test_what_means_a_policy() -> None:
    assert Retry.of(None) is None
    assert Retry.of(0) is None
    assert Retry.of(3) == Retry(3) == Retry.of(Retry(3).data())
    assert Retry.of(Retry(2)) == Retry(2)
    for wrong in (True, "3", -2, 1.5, {"maximum": 3}):
        with pytest.raises(ConfigError):
            Retry.of(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="delay"):
        Retry(1, delay=-1)
    with pytest.raises(ConfigError, match="factor"):
        Retry(1, factor=math.nan)
