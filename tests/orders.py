"""Tasks that take dataclasses and what Python itself has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType
from uuid import UUID

if TYPE_CHECKING:
    from nowhere import Nothing  # type: ignore[import-not-found]


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Tag:
    name: str
    below: list[Tag] = field(default_factory=list)


@dataclass
class LoudTag(Tag):
    """Nothing but another name."""


@dataclass(frozen=True, slots=True)
class Order:
    id: UUID
    price: Decimal = Decimal("1.50")
    at: datetime = datetime(2026, 1, 2, 3, 4, 5, 678)
    color: Color = Color.RED
    tags: list[Tag] = field(default_factory=list)
    size: tuple[int, float] = (1, 2.5)
    path: tuple[str, ...] = ()
    words: frozenset[str] = frozenset()
    by_name: dict[str, Tag] = field(default_factory=dict)
    patience: timedelta | None = None
    day: date | None = None
    hour: time | None = None
    how: Literal["slow", "fast"] = "slow"
    serial: int = field(init=False, default=7)

    def __post_init__(self) -> None:
        if self.price < 0:
            raise ValueError("the price is below zero")


@dataclass(frozen=True, slots=True)
class SpecialOrder(Order):
    """What an Order has, and more."""

    reason: str = "none"


Number = NewType("Number", UUID)


def ship(order: Order, when: datetime | None = None, tags: list[Tag] | None = None) -> Any:
    return order, when, tags


async def ship_later(order: Order) -> Order:
    return order


def gather(first: int, /, *orders: Order, plain: str = "", nothing: Nothing = None, **tags: Tag) -> Any:
    return first, orders, plain, nothing, tags


def small(number: Number, tags: set[str], pair: Annotated[tuple[int, int], "a note"] = (0, 0)) -> Any:
    return number, tags, pair


def text_or_date(value: str | datetime) -> Any:
    return value


def either(value: Tag | LoudTag) -> Any:
    return value


def unannotated(order):  # type: ignore[no-untyped-def]
    return order


def only_for_checkers(order: Nothing) -> Any:
    return order


def plain(a: int, b: str | None = None, *rest: dict[str, list[float]]) -> Any:
    return a, b, rest


class Shop:
    @staticmethod
    def static(order: Order) -> Any:
        return order

    @classmethod
    def of_class(cls, order: Order, *, tag: Tag) -> Any:
        return cls, order, tag


def twice(func: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs), func(*args, **kwargs)

    return wrapper


@twice
def decorated(order: Order) -> Any:
    return order


# -- in workers: the ledger's path comes first ------------------------------------------------------------------------


def note_order(ledger: str, order: Order, when: datetime | None = None) -> None:
    from tests.workers.tasks import note

    note(ledger, type(order).__name__, order.id.int, order.tags, when)


async def note_order_later(ledger: str, order: Order, when: datetime | None = None) -> None:
    note_order(ledger, order, when)
