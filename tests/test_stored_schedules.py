"""Schedules that are made at run time: what may be in them, who may have made them, and when they come."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from delayed import ConfigError, NotEnqueueable, Queue, Scheduler, SignatureMismatch, delayed, scheduler, schedules
from delayed.message import Message
from tests import functions
from tests.brokers.patience import eventually
from tests.brokers.test_schedules import running
from tests.flaky import FlakyKeys

SECRET = "a secret that is long enough"
KEY = "schedule:x"

home = Queue("home", "memory://stored-schedules")


@delayed(home, retry=2, timeout=5)
def worded(number: int, word: str = "") -> None: ...


def ticks(queue: Queue, seconds: float) -> list[Message]:
    """What is enqueued in a time."""
    with running(Scheduler(queue)):
        time.sleep(seconds)  # what is tested is what happens in a time
    return [entry.message for entry in queue.broker.peek(queue.name, "ready", 1000)]


def stored(queue: Queue, key: str = KEY) -> bytes:
    return queue.broker.get_keys(queue.name, [key])[key].value


def names(queue: Queue) -> list[str]:
    return [each.name for each in queue.schedules()]


def test_options_and_arguments_go_with_each_task(queue: Queue) -> None:
    queue.schedule("one", worded, 1, word="two", every=0.1)
    queue.schedule("two", worded.options(priority=3, key="mine"), 3, every=0.1)
    queue.schedule("three", functions.add, 5, cron="0 0 29 2 *", tz="Europe/Rome")

    first, second, third = queue.schedules()
    messages = ticks(queue, 0.4)

    assert [first.name, second.name, third.name] == ["one", "three", "two"]
    assert second.rule == {"cron": "0 0 29 2 *", "tz": "Europe/Rome"}
    one = [message for message in messages if (message.key or "").startswith("one@")]
    two = [message for message in messages if message.key == "mine"]
    assert len(one) >= 2 and len(two) >= 2 and len(one) + len(two) == len(messages)
    assert queue.codec.decode(one[0].payload)[:2] == ((1,), {"word": "two"})
    assert queue.codec.decode(two[0].payload)[:2] == ((3,), {})
    assert (one[0].timeout, one[0].priority, two[0].timeout, two[0].priority) == (5, 0, 5, 3)
    assert one[0].retry is not None and one[0].enqueued_at > time.time() - 60


@pytest.mark.parametrize(
    ("error", "words", "arguments", "options"),
    [
        (ConfigError, "a schedule's name is text, not ''", ("", functions.add, 1), {"every": 5}),
        (ConfigError, "can't name a value", ("x" * 492, functions.add, 1), {"every": 5}),
        (ConfigError, "give a period or an expression of cron", ("x", functions.add, 1), {}),
        (ConfigError, "tz goes with cron", ("x", functions.add, 1), {"every": 5, "tz": "UTC"}),
        (ConfigError, "every must be a duration from 0.1 s", ("x", functions.add, 1), {"every": 0}),
        (ConfigError, "no expression of cron", ("x", functions.add, 1), {"cron": "often"}),
        (ConfigError, "late may be half an hour at most", ("x", functions.add, 1), {"every": 5, "late": "1h"}),
        (ConfigError, "has 99... bytes, and may have 65536", ("x", functions.add, b"x" * 99800), {"every": 5}),
        (ConfigError, "leave out unique", ("x", worded.options(unique=True), 1), {"every": 5}),
        (SignatureMismatch, "missing a required argument: 'a'", ("x", functions.add), {"every": 5}),
        (NotEnqueueable, "lambda", ("x", lambda: None), {"every": 5}),
        (NotEnqueueable, "can't be serialized", ("x", functions.add, threading.Lock()), {"every": 5}),
    ],
)
def test_what_no_worker_could_keep_is_refused(
    queue: Queue, error: type[Exception], words: str, arguments: Any, options: Any
) -> None:
    with pytest.raises(error, match=words):
        queue.schedule(*arguments, **options)

    assert queue.schedules() == []


def test_what_is_scheduled_again_to_the_letter_changes_nothing() -> None:
    queue = Queue("q", f"memory://{secrets.token_hex(8)}", secret=SECRET)

    def version() -> int:
        return queue.broker.get_keys("q", [KEY])[KEY].version

    queue.schedule("x", functions.add, 1, every="5m")
    first = version()
    queue.schedule("x", functions.add, 1, every=300)
    assert version() == first
    for arguments, options in (((2,), {"every": 300}), ((2,), {"every": 301}), ((2,), {"every": 301, "late": 5})):
        before = version()
        queue.schedule("x", functions.add, *arguments, **options)  # type: ignore[arg-type]
        assert version() > before
    queue.broker.put_key("q", KEY, b"spoiled")
    queue.schedule("x", functions.add, 1, every="5m")
    assert names(queue) == ["x"]


def test_those_of_decorated_functions_are_listed_first(queue: Queue) -> None:
    queue.add_schedule(lambda: every(queue, functions.raise_type_error, 3600))
    queue.schedule("a", functions.add, 1, every="1h")

    assert names(queue) == ["tests.functions:raise_type_error", "a"]
    assert [each.stored for each in queue.schedules()] == [False, True]


def test_a_name_may_be_the_path_of_a_decorated_function(queue: Queue) -> None:
    queue.add_schedule(lambda: every(queue, functions.raise_type_error, 0.1))
    queue.schedule("tests.functions:raise_type_error", functions.add, 1, every=0.1)

    functions_of = {message.func for message in ticks(queue, 0.4)}

    assert functions_of == {"tests.functions:raise_type_error", "tests.functions:add"}


def every(queue: Queue, func: Callable[..., Any], period: float) -> Any:
    from delayed.delay import Call
    from delayed.options import Options

    return Call(func, queue, Options()).schedule({"every": period}, 1)


# -- when they come ------------------------------------------------------------------------------------------------


def test_a_tick_before_it_was_scheduled_is_none_of_its_own(queue: Queue) -> None:
    queue.schedule("x", functions.add, 1, every=1800, late=1800)

    assert ticks(queue, 0.2) == [] or time.time() % 1800 < 5


def test_a_tick_that_nobody_was_there_for_is_made_up_for_once(queue: Queue) -> None:
    queue.schedule("x", functions.add, 1, every=1)
    time.sleep(1.1)  # a tick has passed
    begun = time.time()

    first, *_ = ticks(queue, 0.2)
    keys = [message.key or "" for message in ticks(queue, 0.2)]

    assert (first.key or "") < time.strftime("x@%Y-%m-%dT%H:%M:%S.999Z", time.gmtime(begun))
    assert len(keys) == len(set(keys)), "the next scheduler does not make up for it again"


def test_a_tick_after_it_was_unscheduled_or_replaced_does_not_come(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if nobody has looked for changes since."""
    queue.schedule("x", functions.add, 1, every=0.5)
    queue.schedule("y", functions.add, 1, every=0.5)
    monkeypatch.setattr(scheduler, "LOOK", 60.0)
    with running(Scheduler(queue)):
        eventually(lambda: queue.len() >= 2)

        assert queue.unschedule("x")
        queue.schedule("y", functions.echo, "new", every=0.5)
        before = {entry.message.id for entry in queue.broker.peek(queue.name, "ready")}
        eventually(lambda: queue.len() >= len(before) + 2)

    later = [entry.message for entry in queue.broker.peek(queue.name, "ready") if entry.message.id not in before]
    assert {message.func for message in later} <= {"tests.functions:echo", "tests.functions:add"}
    assert [message.func for message in later[1:]].count("tests.functions:add") == 0, "one may have been under way"


def test_to_follow_what_does_not_change_costs_one_request_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "LOOK", 0.02)
    broker = FlakyKeys()
    queue = Queue("q", broker)
    queue.schedule("x", functions.add, 1, cron="0 0 29 2 *")
    broker.requests.clear()

    with running(Scheduler(queue)):
        eventually(lambda: len(broker.requests) > 10)

    assert broker.requests[:3] == ["get", "list", "get"] and set(broker.requests[3:]) == {"get"}


def test_a_store_that_is_away_is_told_once_and_followed_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scheduler, "LOOK", 0.02)
    broker = FlakyKeys(*["refused"] * 5)
    queue = Queue("q", broker)
    with running(Scheduler(queue)):
        eventually(lambda: not broker.script)
        queue.schedule("x", functions.add, 1, every=0.1)
        eventually(queue.len)

    assert caplog.text.count("the schedules of q can't be read for now: no connection") == 1


def test_a_change_that_nobody_told_of_is_found(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made it died before he could."""
    monkeypatch.setattr(scheduler, "LOOK", 0.05)
    monkeypatch.setattr(schedules, "WHOLE", 0.1)
    queue.schedule("x", functions.add, 1, every=0.1)
    data = stored(queue)
    queue.unschedule("x")

    with running(Scheduler(queue)):
        assert queue.len() == 0
        queue.broker.put_key(queue.name, KEY, data)
        eventually(queue.len)


# -- who made them -------------------------------------------------------------------------------------------------


def other(queue: Queue, **options: Any) -> Queue:
    """Another program's queue of the same name in the same store."""
    return Queue(queue.name, queue.broker, **options)


def test_a_queue_with_a_secret_keeps_only_what_was_made_with_it(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    signed = other(queue, secret=SECRET)
    other(queue, secret=[]).schedule("unsigned", functions.add, 1, every=0.1)
    other(queue, secret="another secret of somebody").schedule("strange", functions.add, 1, every=0.1)
    signed.schedule("right", functions.add, 1, every=0.1)
    data = stored(signed, "schedule:right")
    for place, byte in ((8, 1), (len(data) // 2, 1), (len(data) - 1, 1)):
        altered = bytearray(data)
        altered[place] ^= byte
        queue.broker.put_key(queue.name, f"schedule:altered-{place}", bytes(altered))
    queue.broker.put_key(queue.name, "schedule:moved", data)
    elsewhere = Queue("elsewhere", queue.broker, secret=SECRET)
    queue.broker.put_key("elsewhere", "schedule:right", data)

    messages = ticks(signed, 0.4)

    assert {(message.key or "").partition("@")[0] for message in messages} == {"right"}
    assert signed.codec.open(messages[0], messages[0].header()).func == "tests.functions:add"
    assert caplog.text.count("is not kept") == 6, "once for each, however often it is looked at"
    assert elsewhere.schedules() == []
    assert names(other(queue, secret=[])) == ["unsigned"], "a seal needs the secret, whoever reads it"
    assert names(other(queue, secret=SECRET, accept_unsigned=True)) == ["right", "unsigned"]
    assert names(other(queue, secret=["a newer secret than that one", SECRET])) == ["right"]


def test_the_seal_of_a_task_is_none_of_a_schedule(queue: Queue) -> None:
    signed = other(queue, secret=SECRET)
    signed.schedule("x", functions.add, 1, every=300)
    data = stored(signed)
    (schedule,) = signed.schedules()
    end = len(data) - len(signed.codec.seal_schedule(b"", schedule.payload))
    message = signed.codec.seal(Message(0, "tests.functions:add", schedule.payload))

    queue.broker.put_key(queue.name, KEY, data[:end] + message.payload)

    assert signed.schedules() == []


def test_what_is_encrypted_shows_no_arguments(queue: Queue) -> None:
    sealed = other(queue, secret=SECRET, encrypt=True)

    sealed.schedule("x", functions.add, "a very private word", every=300)

    assert b"private" not in stored(sealed)
    (schedule,) = sealed.schedules()
    assert sealed.codec.decode(schedule.payload)[0] == ("a very private word",)


def made(plain: bytes, header: bytes = b'{"v":1,"f":"a:b"}', payload: bytes = b"\1\1\0\0") -> bytes:
    """A stored schedule of these parts."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in (plain, header)) + payload


GOOD = b'{"v":1,"n":"x","r":{"every":9},"l":5}'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        b"\xff" * 50,
        made(GOOD)[:60],
        made(GOOD, payload=b"\1"),
        made(GOOD, payload=b"\1\1\0\1"),
        made(GOOD, payload=b"\2\1\0\0"),
        made(GOOD, header=b"{}"),
        made(b"{}"),
        made(b"[" * 50_000),
        made(b"\xff"),
        *(made(GOOD.replace(*pair)) for pair in (
            (b'"v":1', b'"v":9'),
            (b'"n":"x"', b'"n":"y"'),
            (b'{"every":9}', b"5"),
            (b'{"every":9}', b'{"every":[]}'),
            (b'{"every":9}', b'{"every":1e300}'),
            (b'{"every":9}', b'{"cron":5}'),
            (b'{"every":9}', b'{"cron":"* * * * *","tz":"../../etc/passwd"}'),
            (b'{"every":9}', b'{"cron":"* * * * *","tz":["x"]}'),
            (b'"l":5', b'"l":NaN'),
            (b'"l":5', b'"l":true'),
            (b'"l":5', b'"l":1e9'),
        )),
    ],
)  # fmt: skip
def test_what_is_no_schedule_harms_no_other(queue: Queue, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    queue.schedule("w", functions.add, 1, every=60)
    queue.broker.put_key(queue.name, KEY, data)
    queue.schedule("y", functions.add, 1, every=60)

    assert names(queue) == ["w", "y"]

    assert "the schedule 'x' of default is not kept: " in caplog.text


def test_the_least_that_is_a_schedule_is_one(queue: Queue) -> None:
    """What the test before this one spoils."""
    queue.broker.put_key(queue.name, KEY, made(GOOD))

    (schedule,) = queue.schedules()

    assert (schedule.name, schedule.rule, schedule.late, schedule.fields["func"]) == ("x", {"every": 9}, 5, "a:b")
