"""Objects that are sent as plain data, to functions whose parameters say what they are."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from delayed import NotEnqueueable, Queue, SignatureMismatch, Task, delayed, hints
from delayed.codec import Codec
from tests import functions, orders
from tests.orders import Color, LoudTag, Order, Shop, SpecialOrder, Tag

ID = UUID(int=7)
ORDER = Order(
    ID,
    Decimal("3.10"),
    datetime(2026, 5, 4, 3, 2, 1, tzinfo=timezone(timedelta(hours=2))),
    Color.BLUE,
    [Tag("a", [Tag("b")])],
    (3, 4.5),
    ("x", "y"),
    frozenset({"p", "q"}),
    {"k": Tag("c")},
    timedelta(days=2, milliseconds=5),
    date(2026, 6, 7),
    time(8, 9),
    "fast",
)


@pytest.fixture(params=["json", "msgpack"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return Codec(request.param, allow=["*"])


@pytest.fixture(params=["with pydantic", "without"], autouse=True)
def pydantic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether pydantic can be imported. What is known of functions is forgotten, since it depends on that."""
    monkeypatch.setattr(hints, "_known", {})
    if request.param == "without":
        monkeypatch.setitem(sys.modules, "pydantic", None)
        return False
    return True


def sent(codec: Codec, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Task:
    """The task as a worker has it."""
    return Task.from_message(Task.create(func, args, kwargs).to_message(codec, 1, None), codec)


def by_hand(codec: Codec, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Task:
    """The task of a message that no `.delay()` has checked."""
    message = Task.create(func).to_message(codec, 1, None)
    return Task.from_message(message._replace(payload=codec.encode(args, kwargs)), codec)


# -- what arrives --------------------------------------------------------------------------------------------------


def test_a_dataclass_arrives_as_what_it_was(codec: Codec) -> None:
    when = datetime(2026, 1, 1)

    assert sent(codec, orders.ship, ORDER).run() == (ORDER, None, None)
    assert sent(codec, orders.ship, Order(ID), when, tags=[Tag("x")]).run() == (Order(ID), when, [Tag("x")])
    assert Order(ID).serial == 7


def test_any_kind_of_parameter_and_function(codec: Codec) -> None:
    order, tag = Order(ID), Tag("t")

    assert sent(codec, orders.gather, 1, order, ORDER, plain="p", x=tag).run() == (
        1,
        (order, ORDER),
        "p",
        None,
        {"x": tag},
    )
    assert sent(codec, orders.small, ID, {"a"}, (3, 4)).run() == (ID, {"a"}, (3, 4))
    assert sent(codec, orders.ship_later, order).run() == order
    assert sent(codec, Shop.static, order).run() == order
    assert sent(codec, Shop.of_class, order, tag=tag).run() == (Shop, order, tag)
    assert sent(codec, orders.decorated, order).run() == (order, order)


def test_plain_data_given_for_an_object_is_made_into_it(codec: Codec) -> None:
    task = sent(codec, orders.ship, {"id": str(ID), "color": "blue"}, "2026-01-01T00:00:00")

    assert task.run() == (Order(ID, color=Color.BLUE), datetime(2026, 1, 1), None)


def test_text_stays_text_where_it_may(codec: Codec) -> None:
    assert sent(codec, orders.text_or_date, "2026-01-01").run() == "2026-01-01"


def test_an_annotation_that_leads_nowhere_spoils_no_other(codec: Codec) -> None:
    assert sent(codec, orders.only_for_checkers, {"id": 1}).run() == {"id": 1}
    assert sent(codec, orders.gather, 1, Order(ID), nothing=[2]).run()[3] == [2]


def test_the_arguments_are_made_when_the_task_is_run() -> None:
    codec = Codec("json", allow=["*"])
    task = sent(codec, orders.ship, ORDER)
    assert task.args[0]["price"] == "3.10"

    task.run()

    assert task.args == (ORDER,)
    assert task.run() == (ORDER, None, None), "again, without making them twice"
    assert Task.from_message(task.to_message(codec, 2, None), codec).run() == (ORDER, None, None), "and enqueued again"


def test_a_decorated_function_takes_them_too(queue: Queue) -> None:
    queue = Queue("plain", queue.broker, serializer="json", allow=["*"])
    try:
        delayed(queue)(orders.ship).delay(ORDER, tags=[])  # type: ignore[arg-type]
        taken = queue.dequeue()
    finally:
        vars(orders.ship).clear()

    assert taken is not None
    assert taken.run() == (ORDER, None, [])


@pytest.mark.parametrize("serializer", ["pickle", "cloudpickle"])
def test_pickles_carry_objects_as_they_are(serializer: str) -> None:
    special = SpecialOrder(ID)

    assert type(sent(Codec(serializer, allow=["*"]), orders.ship, special).run()[0]) is SpecialOrder
    assert sent(Codec(serializer, allow=["*"]), orders.ship, "no order").run()[0] == "no order"


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({}, r"order.*: .*(missing|required).*got \{\}"),
        ({"id": "seven"}, r"order\.id: .*UUID.*got 'seven'"),
        ({"id": str(ID), "tags": [{"name": "a"}, {"name": 3}]}, r"order\.tags\[1\]\.name: .*got 3"),
        ({"id": str(ID), "by_name": {"k": []}}, r"order\.by_name.*k.*: .*got \[\]"),
        ({"id": str(ID), "size": [1]}, r"order\.size.*: .*got"),
        ({"id": str(ID), "color": "green"}, r"order\.color: .*got 'green'"),
        ({"id": str(ID), "at": "soon"}, r"order\.at: .*got 'soon'"),
        ({"id": str(ID), "how": "never"}, r"order\.how: .*got 'never'"),
        ({"id": str(ID), "price": "-1"}, r"order: .*the price is below zero"),
        (None, r"order: .*got None"),
        ([1], r"order: .*got \[1\]"),
        ("x" * 5000, r"order: .*got 'xxx"),
    ],
)
def test_a_wrong_payload_is_a_mismatch_on_both_ends(codec: Codec, order: Any, words: str) -> None:
    words = r"^tests\.orders:ship: " + words
    with pytest.raises(SignatureMismatch, match=words.partition("got ")[0]):
        by_hand(codec, orders.ship, order).run()
    with pytest.raises(SignatureMismatch, match=words) as caught:
        sent(codec, orders.ship, order)

    assert len(str(caught.value)) < 500


def test_several_problems_are_told_in_one_line(pydantic: bool) -> None:
    with pytest.raises(SignatureMismatch) as caught:
        by_hand(Codec("json", allow=["*"]), orders.ship, {"id": 1, "price": [], "at": "", "color": 0, "how": 0}).run()

    assert "\n" not in str(caught.value)
    assert not pydantic or str(caught.value).endswith("; and 2 more")


def test_a_wrong_number_of_arguments_is_still_told(codec: Codec) -> None:
    with pytest.raises(SignatureMismatch, match="positional"):
        by_hand(codec, orders.ship, {"id": str(ID)}, None, None, 4).run()
    with pytest.raises(SignatureMismatch, match="other"):
        by_hand(codec, orders.ship, {"id": str(ID)}, other=4).run()


@pytest.mark.parametrize(
    ("func", "value", "words"),
    [
        (orders.ship, SpecialOrder(ID), "would arrive as Order.*not as SpecialOrder|no field 'reason'"),
        (orders.ship, Order(ID, tags=[LoudTag("x")]), "would arrive as"),
        (orders.either, LoudTag("x"), "would arrive as Tag"),
        (orders.text_or_date, datetime(2026, 1, 1), "would arrive as '2026"),
        (orders.ship, Order(ID, words=frozenset({object()})), "object"),  # type: ignore[arg-type]
        (orders.unannotated, ORDER, r"tests\.orders\.Order, which would not arrive as that .*annotate the param"),
        (orders.only_for_checkers, ORDER, "annotate"),
        (functions.add, ORDER, "annotate"),
    ],
)
def test_what_would_arrive_as_something_else_is_refused(
    codec: Codec, func: Callable[..., Any], value: Any, words: str
) -> None:
    with pytest.raises((NotEnqueueable, SignatureMismatch), match=words):
        sent(codec, func, value)


@pytest.mark.parametrize("pydantic", ["without"], indirect=True)
def test_a_payload_that_is_nested_too_deeply_is_a_mismatch() -> None:
    deep: dict[str, Any] = {"name": "x"}
    for _ in range(45):
        deep = {"name": "x", "below": [deep]}
    task = by_hand(Codec("msgpack", allow=["*"]), orders.either, deep)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)
    try:
        with pytest.raises(SignatureMismatch, match="nested too deeply"):
            task.run()
    finally:
        sys.setrecursionlimit(limit)


def test_an_object_that_contains_itself_is_refused(codec: Codec) -> None:
    tag = Tag("round")
    tag.below.append(tag)

    with pytest.raises(NotEnqueueable, match="can't travel as plain data: RecursionError"):
        sent(codec, orders.ship, Order(ID, tags=[tag]))


# -- what it costs -------------------------------------------------------------------------------------------------


def test_plain_parameters_are_not_looked_at(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "delayed.typed", None)  # so that its import fails

    assert sent(codec, orders.plain, "wrong", 3, None).run() == ("wrong", 3, (None,))
    assert sent(codec, orders.unannotated, {"a": [1]}).run() == {"a": [1]}
    assert sent(codec, max, 1, 2).run() == 2
    with pytest.raises(ImportError):
        sent(codec, orders.ship, {})
