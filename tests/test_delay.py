"""Decorating functions, and enqueueing their calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import FunctionType
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import delayed as package
from delayed import (
    ConfigError,
    NotEnqueueable,
    Queue,
    Retry,
    SignatureMismatch,
    Task,
    TaskHandle,
    UnknownOption,
    delayed,
)
from delayed.delay import delay, delay_in_time, delay_with_params
from delayed.message import Message
from tests import functions


def copy_of(func: Callable[..., Any]) -> Any:
    """The function itself, but without what a former test decorated: a decorator adds to the object it gets."""
    assert isinstance(func, FunctionType)
    vars(func).clear()
    return func


@pytest.fixture
def add() -> Any:
    yield copy_of(functions.add)
    vars(functions.add).clear()


def stored(queue: Queue) -> list[Message]:
    states = ("ready", "scheduled")
    return [entry.message for state in states for entry in queue.broker.peek(queue.name, state)]  # type: ignore[arg-type]


def call_of(queue: Queue) -> tuple[tuple[Any, ...], dict[str, Any]]:
    (message,) = stored(queue)
    task = Task.from_message(message, queue.codec)
    return task.args, task.kwargs


# -- the forms of decorating ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decorate", "timeout"),
    [
        (lambda queue, func: delayed(queue)(func), 600),
        (lambda queue, func: delayed(queue)()(func), 600),
        (lambda queue, func: delayed(queue)(10)(func), 10),
        (lambda queue, func: delayed(queue)(timeout=10)(func), 10),
        (lambda queue, func: delayed(queue)(seconds=10)(func), 10),
        (lambda queue, func: delayed(queue)(func, timeout=10), 10),
        (lambda queue, func: delayed(queue, timeout=10)(func), 10),
        (lambda queue, func: delayed(queue, timeout=5)(timeout=10)(func), 10),
        (lambda queue, func: delayed(queue, timeout=10)(priority=1)(func), 10),
        (lambda queue, func: delayed(queue)(None)(func), None),
        (lambda queue, func: delayed(queue, timeout=None)(func), None),
    ],
)
def test_the_ways_to_decorate(
    queue: Queue, add: Any, decorate: Callable[[Queue, Any], Any], timeout: float | None
) -> None:
    decorated = decorate(queue, add)

    assert decorated is functions.add
    assert decorated(1, 2) == 3, "it can be called as before"
    handle = decorated.delay(1, b=5)
    assert handle == TaskHandle(stored(queue)[0].id, "default")
    assert stored(queue)[0].timeout == timeout
    assert call_of(queue) == ((1,), {"b": 5})


def test_the_default_queue(monkeypatch: pytest.MonkeyPatch, queue: Queue, add: Any) -> None:
    monkeypatch.setattr("delayed.delay._default", queue)
    for decorate in (delayed, delayed(), delayed(timeout=3)):
        decorate(copy_of(functions.add)).delay(1)

    assert [message.timeout for message in stored(queue)] == [600, 600, 3]


def test_the_default_queue_is_in_the_default_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delayed.delay._default", None)
    monkeypatch.setenv("DELAYED_URL", "memory://from-the-environment")

    assert repr(delayed()(copy_of(functions.add)).queue) == "<Queue default on memory://from-the-environment>"


def test_the_api_of_delayed_0_2(queue: Queue, add: Any) -> None:
    decorated = delayed(queue)()(add)
    decorated.timeout(7)(1, 2)
    delay(queue)(functions.only_names)(name="x")
    delay_in_time(queue)(functions.only_names, timeout=8)(name="x")
    delay_in_time(queue)(functions.only_names, 9)(name="x")
    delay_with_params(queue)(timeout=10, prior=True)(functions.only_names)(name="x")

    messages = {message.timeout: message for message in stored(queue)}
    assert sorted(messages) == [7, 8, 9, 10, 600]
    assert messages[10].priority == 1


def test_options_reach_the_message(queue: Queue, add: Any) -> None:
    decorated = delayed(queue, timeout=3, retry=2, priority=5, key="k", max_deliveries=7)(add)
    decorated.delay(1)
    decorated.options(timeout=None, retry=None, priority=-1, delay=60, key=None).delay(1)
    decorated.options(retry=Retry(-1, delay=9)).options(timeout=4).delay(1)

    first, other, changed = sorted(stored(queue), key=lambda message: message.id)
    assert (first.timeout, first.priority, first.key, first.max_deliveries, first.delay) == (3, 5, "k", 7, 0)
    assert first.retry is not None and first.retry["max"] == 2
    assert (other.timeout, other.retry, other.priority, other.key) == (None, None, -1, None)
    assert (changed.timeout, changed.priority) == (4, 5)
    assert changed.retry is not None and (changed.retry["max"], changed.retry["delay"]) == (-1, 9)
    assert len(queue.broker.peek("default", "scheduled")) == 1


def test_after_a_while(queue: Queue, add: Any) -> None:
    decorated = delayed(queue, priority=5, delay=9)(add)

    for pause in (90, timedelta(seconds=90), "1m30s"):
        decorated.after(pause).delay(1)
    decorated.after("5m").options(priority=6).after(0.25).delay(1)

    assert sorted((message.delay, message.priority) for message in stored(queue)) == [(0.25, 6), *[(90, 5)] * 3]


def test_at_a_time(queue: Queue, add: Any) -> None:
    decorated = delayed(queue)(add)
    begun = datetime.now(UTC)
    in_an_hour = decorated.at((begun + timedelta(hours=1)).astimezone(ZoneInfo("Asia/Kathmandu")))
    past = decorated.options(priority=7).at(begun - timedelta(hours=1))

    in_an_hour.delay(1)
    past.delay(1)
    in_an_hour.after(5).delay(1)  # the last word counts
    decorated.after(5).at(begun + timedelta(hours=2)).options(key="two").delay(1)

    at_once, soon, hour, two = sorted(stored(queue), key=lambda message: message.delay)
    assert (at_once.delay, at_once.priority, soon.delay, two.key) == (0, 7, 5, "two")
    spent = (datetime.now(UTC) - begun).total_seconds()
    assert 3600 - spent <= hour.delay <= 3600
    assert 7200 - spent <= two.delay <= 7200


def test_a_call_at_a_time_survives_its_way(queue: Queue, add: Any) -> None:
    """As with a function that travels by value: its time stays the same, however long it is on its way."""
    call = delayed(queue)(add).at(datetime.now(UTC) + timedelta(hours=1))
    make, arguments = call.__reduce__()

    make(*arguments).delay(1)

    (message,) = stored(queue)
    assert 3500 < message.delay <= 3600


def test_what_is_no_time_is_refused_where_it_is_written(queue: Queue, add: Any) -> None:
    decorated = delayed(queue)(add)

    with pytest.raises(ConfigError, match="delay must be a duration"):
        decorated.after("soon")
    with pytest.raises(ConfigError, match=r"at\(\.\.\.\) takes a datetime with a time zone"):
        decorated.at(datetime(2030, 1, 1))


def test_arguments_named_like_options_are_arguments(queue: Queue) -> None:
    delay(queue)(functions.echo)(1, timeout=5, retry=3, self="me", func="f")

    assert call_of(queue) == ((1,), {"timeout": 5, "retry": 3, "self": "me", "func": "f"})


def test_adelay_enqueues_without_blocking_the_loop(queue: Queue, add: Any) -> None:
    decorated = delayed(queue)(add)

    async def main() -> TaskHandle:
        return await decorated.adelay(3, b=4)

    handle = asyncio.run(main())

    assert handle.id == stored(queue)[0].id
    assert call_of(queue) == ((3,), {"b": 4})


# -- methods -------------------------------------------------------------------------------------------------------


def test_static_and_class_methods(queue: Queue) -> None:
    delay(queue)(functions.Shop.total)(10)
    delay(queue)(functions.Shop.named)("here")
    delay(queue)(functions.Shop.Till.ring)()
    delay(queue)(functions.Shop.sell)(functions.Shop(), item="milk")

    tasks = [Task.from_message(message, queue.codec) for message in stored(queue)]
    assert [task.run() for task in tasks] == [7, "Shop here", "ring", "sold milk"]
    assert tasks[2].func_path == "tests.functions:Shop.Till.ring"


def test_a_method_of_an_object_is_refused_with_the_way_out(queue: Queue) -> None:
    with pytest.raises(NotEnqueueable, match="which would have to travel with it"):
        delay(queue)(functions.Shop().sell)("tea")
    with pytest.raises(NotEnqueueable, match=r"pass the object too, Shop.sell.delay\(object"):
        delay(queue)(functions.Shop.sell)("tea")
    assert len(queue) == 0


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"a": 1}), ((1,), {"c": 1}), ((), {"b": 1})]
)
def test_arguments_that_do_not_fit_fail_at_once(queue: Queue, args: Any, kwargs: Any) -> None:
    with pytest.raises(SignatureMismatch, match=r"^add\(a.*, b.* = 2\)"):
        delay(queue)(functions.add)(*args, **kwargs)
    assert len(queue) == 0


@pytest.mark.parametrize(
    ("func", "words"),
    [
        (functions.anonymous, "lambda"),
        (functions.make_nested(), "made inside a function"),
        (functions.original_of_replaced, "another object"),
        (functions.echo.__call__, "no worker could|method|does not exist|no name"),
        (3, "not callable"),
    ],
)
def test_what_no_worker_could_find_is_refused(queue: Queue, func: Any, words: str) -> None:
    with pytest.raises(NotEnqueueable, match=words):
        delay(queue)(func)()
    assert len(queue) == 0


def test_arguments_that_can_not_be_pickled_are_named(queue: Queue) -> None:
    with pytest.raises(NotEnqueueable, match=r"argument 1 is a _thread.lock; argument name is a builtins.function"):
        import threading

        delay(queue)(functions.echo)(1, threading.Lock(), name=lambda: 1)
    assert len(queue) == 0


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"timout": 3}, UnknownOption, "did you mean 'timeout'"),
        ({"retries": 3}, UnknownOption, "did you mean 'retry'"),
        ({"xyz": 3}, UnknownOption, "there are timeout, retry"),
        ({"error_handler": print}, UnknownOption, "give it to the worker"),
        ({"timeout": 0}, ConfigError, "timeout must be a number of seconds above 0"),
        ({"timeout": "3"}, ConfigError, "not '3'"),
        ({"timeout": True}, ConfigError, "timeout"),
        ({"timeout": float("nan")}, ConfigError, "timeout"),
        ({"retry": -2}, ConfigError, "retry"),
        ({"retry": 1.5}, ConfigError, "retry"),
        ({"priority": 40000}, ConfigError, "from -32768 to 32767"),
        ({"priority": 1.0}, ConfigError, "priority"),
        ({"delay": -1}, ConfigError, "delay"),
        ({"delay": float("inf")}, ConfigError, "delay"),
        ({"delay": 1764000000000}, ConfigError, "not milliseconds or a date"),
        ({"key": 3}, ConfigError, "key"),
        ({"max_deliveries": 0}, ConfigError, "max_deliveries"),
        ({"timeout": 3, "seconds": 4}, ConfigError, "old name"),
        ({"memory": "much"}, ConfigError, "memory must be a size: write 512M or 2G, or a number of bytes; not 'much'"),
        ({"memory": 0}, ConfigError, "memory"),
        ({"memory": True}, ConfigError, "memory"),
        ({"cpu": 0}, ConfigError, "cpu must be a number of seconds above 0"),
        ({"cpu": 2.0**62}, ConfigError, "cpu must be a number of seconds above 0"),
        ({"memory": 2**62}, ConfigError, "more than any machine has"),
        ({"cpu": "30"}, ConfigError, "not '30'"),
        ({"kill_memory": "1G"}, UnknownOption, "it is the worker's; a task has memory=..."),
    ],
)
def test_wrong_options_fail_at_decoration(queue: Queue, options: Any, error: type[Exception], words: str) -> None:
    for decorate in (
        lambda: delayed(queue, **options),
        lambda: delayed(queue)(**options),
        lambda: delayed(queue)(functions.only_names, **options),
        lambda: delay_with_params(queue)(**options),
    ):
        with pytest.raises(error, match=words):
            decorate()
    assert not hasattr(functions.only_names, "delay")


def test_a_function_is_decorated_once(queue: Queue, add: Any) -> None:
    delayed(queue)(add)
    with pytest.raises(ConfigError, match=r"delay\(queue\)\(add\)"):
        delayed(Queue("other", queue.broker))(add)


def test_what_can_not_be_decorated(queue: Queue) -> None:
    with pytest.raises(NotEnqueueable, match=r"delay\(queue\)"):
        delayed(queue)(len)
    with pytest.raises(ConfigError, match="not 'name'"):
        delayed("name")  # type: ignore[call-overload]


# -- by value ------------------------------------------------------------------------------------------------------


def test_with_cloudpickle_functions_travel_whole() -> None:
    queue = Queue("q", "memory://by-value", serializer="cloudpickle")
    factor = 3
    delay(queue)(lambda number: number * factor)(4)
    delay(queue)(functions.make_nested())()
    delay(queue)(functions.add)(1)

    tasks = [Task.from_message(message, queue.codec) for message in stored(queue)]
    assert [task.run() for task in tasks] == [12, 1, 3]
    assert tasks[2].func_path == "tests.functions:add", "what can be imported is"
    with pytest.raises(SignatureMismatch):
        delay(queue)(lambda number: number)()


# -- the package ---------------------------------------------------------------------------------------------------


def test_every_public_name_is_there_and_nothing_else() -> None:
    assert list(package.__all__) == sorted(package.__all__)
    for name in package.__all__:
        # A text, and an alias whose module is that of typing from Python 3.13 on.
        if name not in ("__version__", "Hidden"):
            assert getattr(package, name).__module__.startswith("delayed.")
    with pytest.raises(AttributeError, match="nothing_like_it"):
        package.nothing_like_it  # noqa: B018
