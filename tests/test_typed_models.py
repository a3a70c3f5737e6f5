"""Models of pydantic, sent as plain data."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from delayed import NotEnqueueable, SignatureMismatch, Task
from delayed.codec import Codec
from tests import models
from tests.test_typed import by_hand, sent

ID = UUID(int=7)
AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


@pytest.fixture(params=["json", "msgpack"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return Codec(request.param, allow=["*"])


def invoice(**fields: Any) -> Any:
    return models.Invoice(number=ID, at=AT, **fields)


def test_a_model_arrives_as_what_it_was(codec: Codec) -> None:
    """Also a strict one, with an alias, that forbids other keys and has private attributes."""
    given = invoice(lines=[models.Line(what="tea", count=2)], sum=3.5)

    arrived, others = sent(codec, models.bill, given, others=[models.Line(what="x", count=1), given]).run()

    assert type(arrived) is models.Invoice
    assert arrived.model_dump() == given.model_dump()
    assert [type(each) for each in others] == [models.Line, models.Invoice]


def test_a_model_in_a_dataclass(codec: Codec) -> None:
    arrived = sent(codec, models.send, models.Parcel(invoice(), 2.5)).run()

    assert type(arrived) is models.Parcel
    assert (arrived.invoice.number, arrived.weight) == (ID, 2.5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, r"invoice\.at: Field required"),
        ({"at": "soon"}, r"invoice\.at: .*got 'soon'"),
        (
            {"at": "2026-05-04T03:02:01Z", "lines": [{"what": "tea", "count": 0}]},
            r"lines\[0\]\.count: .*greater.*got 0",
        ),
        ({"at": "2026-05-04T03:02:01Z", "more": 1}, r"invoice\.more: Extra inputs"),
    ],
)
def test_a_wrong_payload_is_a_mismatch(codec: Codec, fields: dict[str, Any], words: str) -> None:
    fields = {"number": str(ID), **fields}
    with pytest.raises(SignatureMismatch, match=r"^tests\.models:bill: .*" + words.partition("got ")[0]):
        by_hand(codec, models.bill, fields).run()
    with pytest.raises(SignatureMismatch, match=words):
        Task.create(models.bill, (fields,)).to_message(codec, 1, None)


def test_a_model_that_was_changed_into_nonsense_is_refused_by_the_sender(codec: Codec) -> None:
    given = invoice(lines=[models.Line(what="tea", count=2)])
    given.lines[0].count = -1

    with pytest.raises(SignatureMismatch, match=r"lines\[0\]\.count"):
        sent(codec, models.bill, given)


def test_a_secret_does_not_arrive_as_asterisks(codec: Codec) -> None:
    with pytest.raises(NotEnqueueable, match="would arrive as"):
        sent(codec, models.log_in, models.Login(password="geheim"))
