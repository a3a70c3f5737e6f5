"""What the calls of a function have in common is found once, and nobody notices."""

from __future__ import annotations

import ast
import copy
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest

from delayed import NotEnqueueable, Queue, Retry, Task, delayed, events, trace
from delayed.form import Calls, Form
from delayed.message import HEADER_MAX, Message, Series
from tests import functions

OPTIONS: list[dict[str, Any]] = [
    {},
    {"timeout": 5, "priority": 3, "delay": 60, "max_deliveries": 7},
    {"retry": Retry(3, delay=2.0)},
    {"key": 'a,"e":1.0,"b', "keep": "1h", "exclusive": True},
    {"memory": "64M", "cpu": 2},
    {"expires": "1h"},
]


@pytest.fixture
def decorated() -> Iterator[Callable[..., Any]]:
    """Decorates a function, for one test."""
    yield lambda queue, **options: delayed(queue, **options)(functions.add)
    vars(functions.add).clear()


def stored(queue: Queue) -> list[tuple[bytes, Message]]:
    """The header as it is stored, and what it says, of each task."""
    states: Sequence[Any] = ("ready", "scheduled")
    found = [entry for state in states for entry in queue.broker.peek(queue.name, state)]
    return [(entry.header, entry.message) for entry in found]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("secret", [None, "correct horse battery staple"])
def test_messages_are_those_of_tasks(queue: Queue, decorated: Any, options: dict[str, Any], secret: str | None) -> None:
    other = Queue(queue.name, queue.broker, secret=secret)
    add = decorated(other, **options)
    template = other.task(functions.add, 1, b=2)
    for name, value in add.options()._options._asdict().items():
        if name not in ("limit", "after"):
            setattr(template, name, value)
    other.enqueue(template)
    add.delay(1, b=2)
    add.starmap([(1, 2)] * 2)

    (one_header, one), *others = stored(other)
    assert len(others) == 3
    date = f'"e":{one.enqueued_at!r}'.encode()
    calls = []
    for header, message in others:
        dated = message._replace(enqueued_at=one.enqueued_at, expires=one.expires, id=one.id)
        assert dated == one._replace(payload=message.payload)
        until = (f'"u":{it.expires!r}'.encode() for it in (message, one))
        assert header.replace(f'"e":{message.enqueued_at!r}'.encode(), date).replace(*until) == one_header
        opened = other.codec.open(message, header)
        args, kwargs, _ = other.codec.decode(opened.payload)
        calls.append((args, kwargs))
    assert sorted(calls, key=str) == [((1, 2), {}), ((1, 2), {}), ((1,), {"b": 2})]


def test_calls_are_a_sequence_of_tasks(queue: Queue) -> None:
    form = Form.of(queue.task(functions.add), queue)
    assert form is not None
    calls = Calls(form, [(1, 2), (3, 4), (5, 6)])

    assert len(calls) == 3
    assert calls[-1].args == (5, 6)
    assert [task.args for task in calls[1:]] == [(3, 4), (5, 6)]
    assert calls[0] is not calls[0]
    queue.default_timeout = 7.0
    assert queue.enqueue_many(calls) == [message.id for _, message in stored(queue)]
    assert {message.timeout for _, message in stored(queue)} == {7.0}


def test_their_messages_are_a_sequence_too(queue: Queue) -> None:
    form = Form.of(queue.task(functions.add), queue)
    assert form is not None
    args = [(1, 2), (3, 4), (5, 6)]
    messages = form.messages(range(7, 10), args)
    one_by_one = [form.message(id, each, {}) for id, each in zip(range(7, 10), args, strict=True)]
    expected = [message._replace(enqueued_at=messages[0].enqueued_at) for message in one_by_one]

    assert isinstance(messages, Series)
    assert len(messages) == 3
    assert list(messages) == expected
    assert [messages[0], messages[-1]] == [expected[0], expected[-1]]
    assert list(messages[1:]) == expected[1:]
    assert {message.header() for message in messages} == {expected[0].header()} == {messages[-1].header()}
    with pytest.raises(IndexError):
        messages[3]


def test_a_queue_that_changes_is_heeded(queue: Queue, decorated: Any) -> None:
    add = decorated(queue)
    add.delay(1, 2)
    queue.default_timeout = 7.0
    add.delay(1, 2)
    add.map([1])

    assert [message.timeout for _, message in stored(queue)] == [600.0, 7.0, 7.0]


def test_a_trace_is_handed_on(queue: Queue, decorated: Any) -> None:
    add = decorated(queue)
    with trace() as parent:
        add.delay(1, 2)
        add.map([1, 2])
    add.map([1, 2])

    *inside, other, last = [message.trace for _, message in stored(queue)]
    assert [trace and trace[:36] for trace in inside] == [parent[:36]] * 3
    assert len(set(inside)) == 3  # each is an operation of its own
    assert other is last is None


def test_who_listens_gets_whole_tasks(queue: Queue, decorated: Any) -> None:
    add = decorated(queue, retry=2, key="k", keep=60)
    add.delay(0, 0)  # from now on it is known what they have in common
    seen: list[Task] = []
    events.on_enqueued(listener := lambda name, tasks: seen.extend(tasks))
    try:
        add.delay(1, b=2)
        add.starmap([(3, 4)])
    finally:
        events.listeners.remove(listener)

    assert [(task.args, task.kwargs) for task in seen] == [((1,), {"b": 2}), ((3, 4), {})]
    for task in seen:
        again = queue.task(functions.add)
        for name, value in {"retry": Retry(2), "key": "k", "keep": 60.0}.items():
            setattr(again, name, value)
        again.args, again.kwargs, again.id = task.args, task.kwargs, task.id
        for each in (task, copy.copy(task), pickle.loads(pickle.dumps(task))):
            assert repr(each) == repr(again)
            for name in ("timeout", "priority", "delay", "memory", "verdict", "unique", "attempt", "queue"):
                assert getattr(each, name) == getattr(again, name), name
            assert each.retry is not None and each.retry.data() == Retry(2).data()
            assert each.serialize() == again.serialize()
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            task.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_a_task_that_was_seen_can_be_enqueued_again_elsewhere(queue: Queue, decorated: Any) -> None:
    add = decorated(queue, timeout=5)
    other = Queue("other", queue.broker, default_timeout=7, serializer="json", allow=["tests.functions.add"])
    mirrored: list[int] = []

    def mirror(name: str, tasks: Sequence[Task]) -> None:
        for task in tasks if name == queue.name else ():
            task.priority = 7
            task.timeout = None
            mirrored.append(other.enqueue(task))

    events.on_enqueued(mirror)
    try:
        add.delay(1, b=2)
        add.map([3])
    finally:
        events.listeners.remove(mirror)

    again: list[Task] = []
    events.on_enqueued(listener := lambda name, tasks: again.extend(tasks))
    try:
        add.delay(5, 6)
    finally:
        events.listeners.remove(listener)
    (task,) = again
    likewise = task.with_args((7, 8), {})
    likewise.priority = 9
    task.id = None
    task.priority = 8
    ids = [queue.enqueue(task), queue.enqueue(likewise)]
    assert {message.id: message.priority for _, message in stored(queue) if message.priority} == dict(
        zip(ids, (8, 9), strict=True)
    )

    found = stored(other)
    assert [message.id for _, message in found] == mirrored
    assert [(message.priority, message.timeout) for _, message in found] == [(7, 7.0), (7, 7.0)]
    assert [other.codec.decode(message.payload)[:2] for _, message in found] == [((1,), {"b": 2}), ((3,), {})]


class Hurried(Queue):
    """A queue that changes what it is given."""

    def enqueue(self, task: Task) -> int:
        task.timeout = 1
        return super().enqueue(task)

    def enqueue_many(self, tasks: Iterable[Task]) -> list[int]:
        tasks = list(tasks)
        for task in tasks:
            task.timeout = 2
        return super().enqueue_many(tasks)


def test_a_queue_of_your_own_may_change_what_it_is_given(queue: Queue, decorated: Any) -> None:
    hurried = Hurried(queue.name, queue.broker)
    add = decorated(hurried, timeout=5)
    add.delay(1, 2)
    add.delay(1, 2)
    add.map([1])

    assert [message.timeout for _, message in stored(hurried)] == [1.0, 1.0, 2.0]


class OneArgument:
    """A serializer that takes calls of one argument only."""

    name = "one argument"
    tag = 200
    plain = False

    def dumps(self, value: Any) -> bytes:
        (argument,), _ = value
        return repr(argument).encode()

    def loads(self, data: bytes) -> Any:
        return [[ast.literal_eval(data.decode())], {}]


def test_nothing_is_serialized_that_nobody_calls(queue: Queue, decorated: Any) -> None:
    other = Queue(queue.name, queue.broker, serializer=OneArgument)
    add = decorated(other)
    add.delay((1, 2))
    add.delay((3, 4))

    assert [other.codec.decode(message.payload)[0] for _, message in stored(other)] == [((1, 2),), ((3, 4),)]


@pytest.mark.parametrize("now", [0, 1, 10**18])
def test_clocks_may_show_anything(queue: Queue, decorated: Any, monkeypatch: pytest.MonkeyPatch, now: int) -> None:
    monkeypatch.setattr("time.time_ns", lambda: now)
    add = decorated(queue)
    add.delay(1, 2)
    add.delay(1, 2)
    add.starmap([(1, 2)] * 2)
    queue.enqueue(queue.task(functions.add, 1, 2))

    (header, one), *others = stored(queue)
    assert one.func == "tests.functions:add"
    assert [other for other, _ in others] == [header] * 4


def test_a_header_is_never_larger_than_workers_read(
    queue: Queue, decorated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1_795_000_000_123_000_000)  # a date is shorter now and then
    add = decorated(queue)
    add.delay(1, 2)
    ((header, _),) = stored(queue)
    room = HEADER_MAX - len(header) - len(',"k":""')
    call = add.options(key="k" * room)
    call.delay(1, 2)
    call.delay(1, 2)
    for more in range(1, 15):
        call = add.options(key="k" * (room + more))
        for _ in range(2):
            with pytest.raises(NotEnqueueable, match="shorter key"):
                call.delay(1, 2)

    assert [len(header) for header, _ in stored(queue)][1:] == [HEADER_MAX] * 2


def test_a_message_that_is_changed_writes_its_header_anew(queue: Queue) -> None:
    form = Form.of(queue.task(functions.add), queue)
    assert form is not None
    message = form.message(7, (1, 2), {})

    assert message.header() == Message(*message).header()
    assert message._replace(priority=3).header() == Message(*message)._replace(priority=3).header()
    assert b'"p":3' in message._replace(priority=3).header()
