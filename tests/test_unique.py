"""Unique tasks as users write them: what is the same, and what `.delay()` then does."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import PurePosixPath
from typing import Any

import pytest

from delayed import AlreadyEnqueued, ConfigError, EnqueueUncertain, NotEnqueueable, Queue, Task, Unique, delayed
from delayed.brokers.memory import MemoryBroker
from delayed.errors import BrokerUnavailable
from delayed.events import listeners, on_enqueued
from delayed.message import Once
from delayed.testing import capture
from tests import functions


@dataclass
class Point:
    x: int
    y: list[int]


HERE = PurePosixPath()
NO: Any = None


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(StrEnum):
    SMALL = "s"
    BIG = "b"


def paint(
    n: int, colour: Colour = Colour.RED, where: PurePosixPath = HERE, size: Size = Size.BIG, by: Size = NO
) -> None:
    """A function with defaults of all kinds, one of them not what is annotated."""


def unsendable(n: int, how: Any = lambda: None) -> None:
    """A function with a default that can't be sent."""


def draw(point: Any, *more: Any, width: int = 1, **rest: Any) -> None:
    """A function with parameters of all kinds."""


def other(point: Any) -> None:
    """Another."""


class Holder:
    """An object that only pickle knows."""

    def __init__(self, value: int) -> None:
        self.value = value


def once(unique: Unique | bool | str, queue: Queue, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Once:
    task = queue.task(func, *args, **kwargs)
    task.unique = Unique.of(unique)
    return task.once(queue.codec)


def key(unique: Unique | bool | str, queue: Queue, func: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    return once(unique, queue, func, *args, **kwargs).key


def waiting(queue: Queue) -> list[int]:
    states = ("ready", "scheduled")
    return [entry.message.id for state in states for entry in queue.broker.peek(queue.name, state)]  # type: ignore[arg-type]


# -- what is the same ----------------------------------------------------------------------------------------------


def test_a_call_is_the_same_however_it_is_written(queue: Queue) -> None:
    first = key(True, queue, draw, 1)

    assert len(first) == 32 and int(first, 16)
    assert key(True, queue, draw, point=1) == first
    assert key(True, queue, draw, 1, width=1) == first, "a default that is given"
    assert key(True, queue, draw, 1, b=2, a=3) == key(True, queue, draw, 1, a=3, b=2)


@pytest.mark.parametrize(
    "call",
    [
        lambda queue: key(True, queue, other, 1),
        lambda queue: key(True, queue, draw, 2),
        lambda queue: key(True, queue, draw, "1"),
        lambda queue: key(True, queue, draw, 1.0),
        lambda queue: key(True, queue, draw, True),
        lambda queue: key(True, queue, draw, b"1"),
        lambda queue: key(True, queue, draw, [1]),
        lambda queue: key(True, queue, draw, 1, 1),
        lambda queue: key(True, queue, draw, 1, width=2),
        lambda queue: key(True, queue, draw, 1, more=(1,)),
    ],
)
def test_another_call_is_another(queue: Queue, call: Callable[[Queue], str]) -> None:
    assert call(queue) != key(True, queue, draw, 1)


@pytest.mark.parametrize("serializer", ["json", "msgpack", "cloudpickle"])
def test_equal_arguments_are_the_same_for_every_serializer(serializer: str) -> None:
    one = Queue("q", "memory://", allow=["*"])
    two = Queue("q", "memory://", serializer=serializer, allow=["*"])
    value = {"b": [1, 2.5, None, True, "ü"], "a": {"deep": []}}

    assert key(True, one, draw, value) == key(True, two, draw, dict(reversed(value.items())))


def test_equal_objects_of_plain_parts_are_the_same(queue: Queue) -> None:
    text = "".join(["a", "b"])  # pickle writes the same object twice in another way than two equal ones
    moment = datetime(2030, 1, 1, tzinfo=UTC)

    assert key(True, queue, draw, ["ab", "ab"]) == key(True, queue, draw, [text, text])
    assert key(True, queue, draw, {3, 1, 2}) == key(True, queue, draw, {2, 3, 1})
    assert key(True, queue, draw, Point(1, [2])) == key(True, queue, draw, Point(1, [2]))
    assert key(True, queue, draw, Point(1, [2])) != key(True, queue, draw, Point(1, [3]))
    for value, another in ((moment, moment + timedelta(1)), (Decimal("1.5"), Decimal("1.50")), (2**70, -(2**70))):
        assert key(True, queue, draw, value) == key(True, queue, draw, value)
        assert key(True, queue, draw, value) != key(True, queue, draw, another)


@pytest.mark.parametrize("serializer", ["pickle", "json"])
def test_defaults_are_the_same_whether_or_not_they_are_given(serializer: str) -> None:
    queue = Queue("q", "memory://", serializer=serializer, allow=["*"])

    assert key(True, queue, paint, 1) == key(True, queue, paint, n=1)
    assert key(True, queue, paint, 1) == key(True, queue, paint, 1, Colour.RED, size=Size.BIG, where=PurePosixPath("."))
    for other in ({"colour": Colour.BLUE}, {"size": Size.SMALL}, {"where": PurePosixPath("x")}):
        assert key(True, queue, paint, 1, **other) != key(True, queue, paint, 1)
    assert key("{colour}", queue, paint, 1) == key("{colour}", queue, paint, 1, colour=Colour.RED)


def test_what_can_not_be_told_apart_leaves_the_rest_as_it_is(queue: Queue) -> None:
    text = "".join(["a", "b"])

    assert key(True, queue, draw, Holder(1), "ab", "ab") == key(True, queue, draw, Holder(1), text, text)
    assert key(True, queue, draw, Holder(1), width=1) == key(True, queue, draw, point=Holder(1))
    assert key(True, queue, unsendable, 1) == key(True, queue, unsendable, n=1)


def test_other_objects_are_the_same_if_their_pickles_are(queue: Queue) -> None:
    assert key(True, queue, draw, Holder(1)) == key(True, queue, draw, Holder(1))
    assert key(True, queue, draw, Holder(1)) != key(True, queue, draw, Holder(2))


def test_compressing_and_signing_change_nothing_and_encrypting_hides(queue: Queue) -> None:
    long = [Holder(1)] * 5000
    secret = "a secret of sixteen"
    packed = Queue("q", "memory://", compressor="zlib", secret=secret)
    hidden = Queue("q", "memory://", secret=[secret, "another one of sixteen"], encrypt=True)

    assert key(True, packed, draw, long) == key(True, queue, draw, long)
    assert key(True, hidden, draw, 1) != key(True, queue, draw, 1), "who has no secret can't try what it may be"
    assert key(True, hidden, draw, 1) == key(True, hidden, draw, 1)


def test_what_travels_with_its_code_needs_a_key() -> None:
    queue = Queue("q", f"memory://{secrets.token_hex(8)}", serializer="cloudpickle")

    with pytest.raises(NotEnqueueable, match="give a key"):
        key(True, queue, lambda n: n, 1)
    assert key("n-{n}", queue, lambda n: n, 1) == key("n-1", queue, draw, 2)


# -- keys ----------------------------------------------------------------------------------------------------------


def test_a_key_names_arguments(queue: Queue) -> None:
    assert key("d-{point}", queue, draw, 7) == key("d-{point}", queue, draw, point=7) == key("d-7", queue, other, 1)
    assert key("{point[id]:03}", queue, draw, {"id": 7}) == key("007", queue, draw, 1)
    assert key("{{{point}}}", queue, draw, 1) == key("{{1}}", queue, draw, 1) != key("1", queue, draw, 1)


def test_the_arguments_in_a_key_are_told_apart(queue: Queue) -> None:
    def name(text: str, *values: str) -> str:
        return key(text, queue, draw, dict(zip("abc", values, strict=False)))

    two, touching = "{point[a]}-{point[b]}", "{point[a]}{point[b]}"
    assert name(two, "1", "2") == name("1-2") != name(two, "1", "3")
    assert name(two, "1-2", "3") == name(two, "1-2", "3")
    assert len({name(two, "1-2", "3"), name(two, "1", "2-3"), name("1-2-3")}) == 3
    assert len({name(touching, "12", "3"), name(touching, "1", "23"), name(touching, "", "123")}) == 3
    assert name("a-{point[a]}", "b-c") == name("a-b-c"), "nothing else can be meant"


def test_a_key_that_names_no_argument_is_told_by_delay(queue: Queue) -> None:
    task = queue.task(other, 1)
    task.unique = Unique("import-{customer_id}")

    with pytest.raises(ConfigError, match=r"no argument 'customer_id'; its arguments: point"):
        queue.enqueue(task)
    with pytest.raises(ConfigError, match="'int' object has no attribute"):
        key("{point.name}", queue, draw, 1)
    assert waiting(queue) == []


@pytest.mark.parametrize(
    ("unique", "message"),
    [
        (7, r"unique is True, a key such as"),
        ("", "text such as"),
        ("a{", "for a brace itself"),
        ("{}", "the name of an argument, not ''"),
        ("{0}", "the name of an argument, not '0'"),
    ],
)
def test_what_is_no_key_is_told_at_decoration(queue: Queue, unique: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        delayed(queue, unique=unique)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": "started"}, r"until=.*'done', or 'begun'"),
        ({"until": 0}, "from 0.001 s"),
        ({"until": None}, "must be a duration"),
        ({"on_conflict": "raise"}, "existing, replace, reject, not 'raise'"),
        ({"key": 7}, "text such as"),
    ],
)
def test_what_is_no_rule_is_told_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Unique(**options)


def test_what_a_broker_is_told(queue: Queue) -> None:
    rules = [Unique("k"), Unique("k", until="begun", on_conflict="replace"), Unique("k", until=timedelta(minutes=5))]

    found = [once(rule, queue, other, 1)[1:] for rule in rules]

    assert found == [(False, None, False), (True, None, True), (False, 300.0, False)]
    assert Unique("k", until="5m") == Unique("k", until=300)
    assert Unique.of(None) is Unique.of(False) is None


# -- delay() -------------------------------------------------------------------------------------------------------


@pytest.fixture
def add(queue: Queue) -> Any:
    vars(functions.add).clear()
    yield delayed(queue, unique=True)(functions.add)
    vars(functions.add).clear()


def test_the_second_call_gets_the_handle_of_the_first(queue: Queue, add: Any) -> None:
    told: list[Any] = []
    on_enqueued(lambda name, tasks: told.extend(tasks))
    try:
        first = add.delay(1, 2)
        second = add.delay(1, b=2)
        third = add.delay(1, 3)
    finally:
        listeners.pop()

    assert first == second != third
    assert waiting(queue) == [first.id, third.id]
    assert [task.id for task in told] == [first.id, third.id], "listeners hear of what is enqueued"
    assert second.cancel()
    assert add.delay(1, 2) != first


def test_rejected_calls_know_the_task_that_is_there(queue: Queue, add: Any) -> None:
    rejecting = add.options(unique=Unique("k", on_conflict="reject"))
    first = rejecting.delay(1, 2)

    with pytest.raises(AlreadyEnqueued, match=f"task {first.id} in queue 'default' is the same") as caught:
        rejecting.delay(3)

    assert caught.value.handle == first
    assert caught.value.handle.status == "ready"


def test_a_debounced_call_runs_once_with_the_last_arguments(add: Any) -> None:
    with capture() as tasks:
        debounced = add.options(unique=Unique("k", until="begun", on_conflict="replace"), delay="10s")
        for number in range(5):
            debounced.delay(number)
            tasks.advance("4s")
        runs = tasks.advance("1h")

    assert [run.task.args for run in runs] == [(4,)]


def test_a_throttled_call_runs_once_a_period(add: Any) -> None:
    with capture() as tasks:
        tasks.inline = True
        for number in range(7):
            add.options(unique=Unique("k", until="1m")).delay(number)
            tasks.advance("20s")

    assert [run.task.args for run in tasks.runs] == [(0,), (3,), (6,)]


def test_many_at_once_are_stored_one_by_one(queue: Queue, add: Any) -> None:
    tasks = [Task.create(functions.add, (number % 3,), unique=True) for number in range(9)]
    tasks.insert(4, Task.create(functions.add, (7,)))

    ids = queue.enqueue_many(tasks)

    assert ids == [task.id for task in tasks]
    assert waiting(queue) == [ids[0], ids[1], ids[2], ids[4]]
    assert len(set(ids)) == 4
    assert [handle.id for handle in add.map([0, 1, 5])][:2] == ids[:2]


def test_a_task_made_by_hand_may_be_unique(queue: Queue) -> None:
    first = queue.enqueue(Task(None, "nowhere", "to_be_found", (1,), unique=True))

    assert queue.enqueue(Task(None, "nowhere", "to_be_found", (1,), unique=True)) == first
    assert queue.enqueue(Task(None, "nowhere", "to_be_found", (2,), unique=True)) != first


def test_a_schedule_is_not_unique(queue: Queue) -> None:
    vars(functions.add).clear()
    delayed(queue, unique=True).every("5m")(functions.add)
    with pytest.raises(ConfigError, match="leave out unique"):
        queue.schedules()
    vars(functions.add).clear()


# -- lost answers --------------------------------------------------------------------------------------------------


class Mute(MemoryBroker):
    """A store that takes what it gets and does not answer, as long as it is mute."""

    mute = False

    def enqueue_once(self, *args: Any) -> int:
        id = super().enqueue_once(*args)
        if self.mute:
            raise BrokerUnavailable("no answer", sent=True)
        return id


def test_an_uncertain_enqueue_is_settled_by_its_retry() -> None:
    broker = Mute(f"memory://{secrets.token_hex(8)}")
    queue = Queue("q", broker, enqueue_timeout=0.1)
    broker.mute = True
    with pytest.raises(EnqueueUncertain) as stored:
        queue.enqueue(Task.create(functions.add, (1,), unique=True))
    with pytest.raises(EnqueueUncertain) as refused:
        queue.enqueue(Task.create(functions.add, (1,), unique=True))
    broker.mute = False
    own = list(stored.value.ids)

    stored.value.retry()
    refused.value.retry()

    assert waiting(queue) == stored.value.ids == refused.value.ids == own
    queue.cancel(own[0])
    stored.value.retry()
    assert waiting(queue) == [], "what was stored is not stored again"
