"""Limits as users write them, and as headers have them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from delayed import ConfigError, Limit, NotEnqueueable, Queue
from delayed.delay import Call
from delayed.options import Options
from tests.test_handle import double

PATH = "tests.test_handle:double"


def fetch(host: str, page: int = 1, *, fast: bool = False) -> None:
    """Takes what limits are made by."""


def call(queue: Queue, func: Callable[..., Any] = double, **options: Any) -> Call[..., Any]:
    return Call(func, queue, Options().updated(options))


def limit_of(queue: Queue) -> Any:
    """What the header of the last task has of its limit."""
    gates = queue.broker.peek(queue.name, "ready", 1000)[-1].message.gates
    return None if gates is None else gates["limit"]


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({"at_once": 3}, [PATH, 3, None]),
        ({"rate": "20/s"}, [PATH, None, 0.05]),
        ({"rate": "100/m"}, [PATH, None, 0.6]),
        ({"rate": " 5 / 10s "}, [PATH, None, 2.0]),
        ({"rate": "1/1h30m"}, [PATH, None, 5400.0]),
        ({"rate": "7/d", "at_once": 1}, [PATH, 1, 86400 / 7]),
        ({"limit": Limit(3, "1/s", name="the bank")}, ["the bank", 3, 1.0]),
        ({"limit": None}, None),
    ],
)
def test_a_header_has_the_limit(queue: Queue, options: Any, data: Any) -> None:
    call(queue, **options).delay(1)
    assert limit_of(queue) == data


def test_the_last_one_given_counts(queue: Queue) -> None:
    call(queue, at_once=3).options(rate="1/s").delay(1)
    assert limit_of(queue) == [PATH, None, 1.0]
    call(queue, at_once=3).options(limit=None).delay(1)
    assert limit_of(queue) is None


@pytest.mark.parametrize(
    ("by", "ask", "name"),
    [
        ("host", lambda it: it.delay("a.org"), "a.org"),
        ("host", lambda it: it.delay(page=2, host="a.org"), "a.org"),
        ("page", lambda it: it.delay("a.org"), "1"),
        ("fast", lambda it: it.delay("a.org", fast=True), "True"),
        ("host", lambda it: it.delay(UUID(int=1)), str(UUID(int=1))),
        ("host", lambda it: it.map(["a.org", "b.org"]), "b.org"),
    ],
)
def test_each_value_of_an_argument_is_a_limit_of_its_own(queue: Queue, by: str, ask: Any, name: str) -> None:
    ask(call(queue, fetch, limit=Limit(1, by=by)))
    assert limit_of(queue) == [f"tests.test_limit:fetch:{name}", 1, None]


def test_long_values_are_told_apart_all_the_same(queue: Queue) -> None:
    names = []
    for host in ("x" * 1000, "x" * 1000 + "y", "new\nline"):
        call(queue, fetch, limit=Limit(1, by="host")).delay(host)
        names.append(limit_of(queue)[0])

    assert len(set(names)) == 3 and {len(name) for name in names} == {64}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Limit(),
        lambda: Limit(0),
        lambda: Limit(1001),
        lambda: Limit(True),
        lambda: Limit("3"),  # type: ignore[arg-type]
        lambda: Limit(rate="20"),
        lambda: Limit(rate="0/s"),
        lambda: Limit(rate="20/fortnight"),
        lambda: Limit(rate="20/0s"),
        lambda: Limit(rate="x/s"),
        lambda: Limit(rate=20),  # type: ignore[arg-type]
        lambda: Limit(1, by="not a name"),
        lambda: Limit(1, by=3),  # type: ignore[arg-type]
        lambda: Limit(1, name=""),
        lambda: Limit(1, name="x" * 201),
        lambda: Limit(1, name="new\nline"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(make: Callable[[], Limit]) -> None:
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("options", [{"limit": 3}, {"at_once": 0}, {"rate": 3}, {"limit": Limit(1), "at_once": 1}])
def test_an_option_that_makes_no_sense_is_refused(queue: Queue, options: Any) -> None:
    with pytest.raises(ConfigError):
        call(queue, **options)


def test_an_argument_that_names_no_limit_is_refused(queue: Queue) -> None:
    with pytest.raises(ConfigError, match=r"has no parameter 'hots'"):
        call(queue, fetch, limit=Limit(1, by="hots")).delay("a.org")
    with pytest.raises(NotEnqueueable, match="no text that could"):
        call(queue, fetch, limit=Limit(1, by="host")).delay(object())
    with pytest.raises(NotEnqueueable, match="no text that could"):
        call(queue, keep="1h").delay(1).then(call(queue, fetch, limit=Limit(1, by="host")))


def test_it_is_plain_data() -> None:
    limit = Limit(3, "5/10s", by="host", name="x")

    assert pickle.loads(pickle.dumps(limit)) == limit
    assert repr(limit) == "Limit(at_once=3, rate='5/10s', by='host', name='x')"
