"""Functions that the tests enqueue."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def add(a: int, b: int = 2) -> int:
    return a + b


def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def raise_type_error() -> None:
    raise TypeError("add() missing 1 required positional argument: 'a'")  # looks like a wrong call, and is none


def only_names(*, name: str) -> str:
    return name


async def add_later(a: int, b: int) -> int:
    import asyncio

    await asyncio.sleep(0)
    return a + b


class Telling:
    """An argument that tells when it is pickled; it arrives as 1."""

    def __init__(self, tell: Callable[[], object]) -> None:
        self.tell = tell

    def __reduce__(self) -> tuple[type, tuple[int]]:
        self.tell()
        return int, (1,)


class Shop:
    """A class with every kind of method."""

    discount = 3

    @staticmethod
    def total(price: int) -> int:
        return price - Shop.discount

    @classmethod
    def named(cls, word: str) -> str:
        return f"{cls.__name__} {word}"

    def sell(self, item: str = "tea") -> str:
        return f"sold {item}"

    class Till:
        @staticmethod
        def ring() -> str:
            return "ring"


def loud(func: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    return wrapper


@loud
def wrapped(a: int) -> int:
    return a * 2


def replaced() -> int:
    return 1


original_of_replaced = replaced


def replaced() -> int:  # type: ignore[no-redef]
    return 2


anonymous = lambda: 1  # noqa: E731


def make_nested() -> Callable[[], int]:
    def nested() -> int:
        return 1

    return nested


def decide(error: BaseException, attempt: int) -> bool:
    """A retry policy."""
    return attempt < 3
