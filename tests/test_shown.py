"""What the repr of a task, and errors, show of its arguments."""

from __future__ import annotations

import sys
import traceback
import tracemalloc
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack  # type: ignore[import-untyped, unused-ignore]
import pytest

from delayed import DecodeError, NotEnqueueable, SignatureMismatch, Task, hints
from delayed.codec import Codec
from tests import logins, orders
from tests.logins import Account, Login, Pair, Plain, Token, Tree
from tests.test_typed import by_hand, sent

S = "hunter2"  # of which nothing may be seen


def shown(value: object) -> str:
    """What the repr of a task shows of an argument."""
    text = repr(Task.create(logins.of_anything, (value,)))
    return text.removeprefix("<Task None tests.logins:of_anything(").removesuffix(")>")


# -- shortened -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((value, repr(value)) for value in (
            None, True, -3, 2.5, "text", "it's", b"bytes", bytearray(b"x"), (), (1,), (1, "2"), [], [1, [2, [3]]], {},
            {"a": 1, 2: [3]}, {1}, range(3), int, divmod, orders.Color.RED, Tree("a", [Tree("b")]), Plain(1, 2),
            OrderedDict(a=1) if sys.version_info >= (3, 12) else None,
        )),
        (set(), "{}"),
        (frozenset({1}), "frozenset([1])"),
        (deque([1, 2]), "deque([1, 2])"),
        (defaultdict(list, a=[1]), "defaultdict({'a': [1]})"),
        ([[[[1]]]], "[[[[…]]]]"),
        (list(range(9)), "[0, 1, 2, 3, 4, 5, 6, 7, …]"),
        (10**400, "<int of 1329 bits>"),
        (Account(name="x", pin=1), "Account(name='x', pin=***, login=None)"),
    ],
)  # fmt: skip
def test_values_are_shown_as_they_are_or_shorter(value: object, text: str) -> None:
    assert shown(value) == text


def test_long_ones_are_cut() -> None:
    assert shown("x" * 1000) == "'" + "x" * 59 + "…"
    assert len(repr(Task.create(logins.of_anything, ["x" * 1000] * 100))) < 400
    assert len(repr(Task.create(logins.many, (), {"k" * 1000 + str(number): 1 for number in range(100)}))) < 400
    assert repr(Task.create(logins.of_anything, range(100))).endswith("10, 11, … 88 more)>")


@pytest.mark.parametrize(
    "value",
    [
        [0] * 10_000_000,
        {number: number for number in range(1_000_000)},
        set(range(1_000_000)),
        "x" * 50_000_000,
        b"x" * 50_000_000,
        bytearray(50_000_000),
        1 << 50_000_000,
        deque([0] * 1_000_000),
        Tree("x" * 1000, [[0]] * 5_000_000),  # type: ignore[list-item]
        Plain([0] * 5_000_000, 1),
        Account.model_construct(name=[0] * 5_000_000),
        [[[[0] * 100_000] * 100] * 100] * 100,
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_huge_one_is_not_written_out_to_be_cut(value: object) -> None:
    repr(Task.create(logins.of_anything, (Account(name=""), Tree(""))))  # loads what it needs
    tracemalloc.start()
    try:
        text = shown(value)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most < 100_000
    assert len(text) < 70


class Bad:
    def __init__(self, what: Any) -> None:
        self.what = what

    def __repr__(self) -> str:
        if isinstance(self.what, Exception):
            raise self.what
        return self.what  # type: ignore[no-any-return]


class BadList(list[Any]):
    def __iter__(self) -> Any:
        raise ValueError


class BadType(type):
    def __getattribute__(cls, name: str) -> Any:
        raise ValueError(name)


class Odd(metaclass=BadType):
    pass


def test_it_never_raises() -> None:
    for what in (ValueError(), RecursionError(), MemoryError(), 3, None, b"x"):
        assert shown(Bad(what)) == "<Bad without repr>"
        assert shown([Bad(what)]) == "<list without repr>"
    assert shown(BadList([1])) == "<BadList without repr>"
    assert "without repr" in shown(Odd())
    circle: list[Any] = []
    circle.append(circle)
    assert shown(circle) == "[[[[…]]]]"
    assert repr(Task(None, func_path="", args=(1,))) == "<Task None (<int>)>"
    assert repr(Task(1, "tests.logins", "nobody", (1,), {"a": "x"})) == "<Task 1 tests.logins:nobody(<int>, a=<str>)>"


class Discreet(str):
    def __repr__(self) -> str:
        return "'*'"


class DiscreetDict(dict[str, str]):
    def __repr__(self) -> str:
        return "{*}"


@dataclass
class DiscreetRecord:
    word: str

    def __repr__(self) -> str:
        return "<record>"


def test_what_has_a_repr_of_its_own_is_shown_so() -> None:
    assert shown(Discreet(S)) == "'*'"
    assert shown([DiscreetDict(a=S), DiscreetRecord(S)]) == "[{*}, <record>]"


# -- hidden --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("func", "args", "kwargs", "text"),
    [
        (logins.log_in, ("me", S), {}, "'me', ***"),
        (logins.log_in, ("me",), {"password": S}, "'me', password=***"),
        (logins.log_in, ("me", 3), {}, "'me', ***"),
        (logins.many, (S, S), {"a": S, "b": [S]}, "***, ***, a=***, b=***"),
        (logins.mixed, (1, [S]), {"c": Token(S), "d": 2}, "1, ***, c=***, d=2"),
        (logins.inside, ({"a": S},), {"keys": {"key": S}}, "***, keys=***"),
        (logins.unknown, (S, 1), {}, "***, 1"),
        (logins.decorated, ("me",), {"password": S}, "'me', password=***"),
        (logins.Shop.of_class, ("me", S), {}, "'me', ***"),
        (logins.Shop.static, ("me", S), {}, "'me', ***"),
        (logins.Shop.of_object, (None, S), {}, "None, ***"),
        (Login, ("me", S), {"old": [S]}, "'me', ***, old=***"),
        (Account, (), {"name": "me", "pin": S, "login": {"password": S}}, "name='me', pin=***, login=***"),
        (logins.of_login, (Login("me", S, [S], Login("you", S)),), {},
         "Login(user='me', password=***, old=***, again=Login(user='yo…"),
        (logins.of_login, ({"user": "me", "password": S}, [S, Login("a", S), None]), {},
         "***, [***, Login(user='a', password=***, old=***, again=None), No…"),
        (logins.of_account, (Account(name="a", login=Login("b", S)),), {},
         "Account(name='a', pin=***, login=Login(user='b', password=**…"),
        (logins.of_anything, (Login("me", S), [{"a": (Account(name="b", login=Login("c", S)),)}]), {}, None),
        (logins.of_anything, (OrderedDict(a=deque([Login("c", S)])), Plain(Login("c", S), S[:0])), {}, None),
        (logins.of_pair, (Pair("a", S),), {}, "Pair(name='a', key=***)"),
        (logins.of_pair, (("a", S),), {}, "(***, ***)"),
    ],
)  # fmt: skip
def test_hidden_ones_are_asterisks(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], text: str | None
) -> None:
    task = Task.create(func, args, kwargs)

    assert S not in repr(task)
    assert "***" in repr(task)
    assert text is None or repr(task) == f"<Task None {task.func_path}({text})>"


def test_of_a_function_that_is_not_loaded_types_are_shown() -> None:
    task = Task.deserialize(Task(3, "nowhere", "log_in", ("me",), {"password": S}).serialize())
    known = Task.deserialize(Task(3, "tests.logins", "log_in", ("me",), {"password": S}).serialize())

    assert repr(task) == "<Task 3 nowhere:log_in(<str>, password=<str>)>"
    assert repr(known) == "<Task 3 tests.logins:log_in('me', password=***)>"


# -- in errors -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["with pydantic", "without"])
def pydantic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints, "_known", {})
    if request.param == "without":
        monkeypatch.setitem(sys.modules, "pydantic", None)


@pytest.fixture(params=["json", "msgpack"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return Codec(request.param, allow=["*"])


def told(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(line for line in lines if not line.startswith("    "))  # the code


@pytest.mark.usefixtures("pydantic")
def test_a_hidden_field_is_treated_as_its_type(codec: Codec) -> None:
    given = Login("me", S, ["a"], Login("you", "b"))

    assert sent(codec, logins.of_login, given).run() == given
    assert sent(codec, logins.log_in, "me", S).run() == f"me {S}"
    account = Account(name="a", pin=3, login=given)
    assert sent(codec, logins.of_account, account).run() == account


@pytest.mark.usefixtures("pydantic")
@pytest.mark.parametrize(
    ("func", "value"),
    [
        (logins.of_login, {"user": "me", "password": [S]}),
        (logins.of_login, {"user": [S], "password": S}),
        (logins.of_login, {"password": S}),
        (logins.of_login, S),
        (logins.of_login, {"user": "me", "password": S, "old": S}),
        (logins.of_login, {"user": "me", "password": S, "again": {"password": S}}),
        (logins.of_login, Login("me", [S])),  # type: ignore[arg-type]
        (logins.of_login, Login("me", Bad(S))),  # type: ignore[arg-type]
        (logins.of_account, {"pin": S}),
        (logins.of_account, {"name": "a", "pin": S}),
        (logins.of_account, {"name": "a", "login": {"user": 1, "password": S}}),
        (logins.of_account, Account.model_construct(name="a", pin=S)),
    ],
)
def test_errors_do_not_show_what_is_hidden(codec: Codec, func: Callable[..., Any], value: Any) -> None:
    with pytest.raises((SignatureMismatch, NotEnqueueable)) as caught:
        sent(codec, func, value)
    assert S not in told(caught.value)
    assert "***" in str(caught.value) or "Bad" in str(caught.value)
    if isinstance(value, (dict, str)):
        with pytest.raises(SignatureMismatch) as caught:
            by_hand(codec, func, value).run()
        assert S not in told(caught.value)


@pytest.mark.usefixtures("pydantic")
def test_what_a_class_says_of_a_hidden_value_is_not_told(codec: Codec) -> None:
    with pytest.raises(SignatureMismatch, match=r"chatty.*: it is not what is annotated, got \*\*\*") as caught:
        by_hand(codec, logins.of_chatty, {"pin": S}).run()
    assert S not in told(caught.value)


@pytest.mark.usefixtures("pydantic")
@pytest.mark.parametrize(
    "order",
    [
        {"id": S},
        {"id": "00000000-0000-0000-0000-000000000007", "tags": [{"name": [S]}]},
        {"id": "00000000-0000-0000-0000-000000000007", "at": S, "color": S, "how": S, "price": S},
        [S],
        S,
    ],
)
def test_who_sends_is_told_the_value_and_a_worker_is_not(codec: Codec, order: Any) -> None:
    with pytest.raises(SignatureMismatch, match=f"order.*: .*got .*{S}"):
        sent(codec, orders.ship, order)
    with pytest.raises(SignatureMismatch, match=r"order.*: .*got <") as caught:
        by_hand(codec, orders.ship, order).run()
    assert S not in told(caught.value)


@pytest.mark.parametrize("text", [S, f"2026-01-01T00:00:00+00:00 {S}", f"2026-01-01T00:00:00+00:00 {S}/{S}"])
@pytest.mark.parametrize("code", [4, 5, 6, 8])
def test_a_damaged_payload_does_not_show_what_is_in_it(code: int, text: str) -> None:
    payload = b"\1\3\0\0" + msgpack.packb([[msgpack.ExtType(code, text.encode())], {}])
    with pytest.raises(DecodeError) as caught:
        Codec("msgpack").decode(payload)

    assert S not in told(caught.value)
