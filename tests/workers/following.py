"""Tasks that follow others."""

from __future__ import annotations

import os
import time
from decimal import Decimal
from typing import Any
from uuid import UUID

from delayed import current
from tests.orders import Order
from tests.workers.tasks import note


def say(*words: Any) -> None:
    note(os.environ["LEDGER"], *words)


def give(value: Any) -> Any:
    say("give", value)
    return value


def add(result: int, value: int = 1) -> int:
    say("add", result, value, current.attempt)
    return result + value


def total(results: list[int], start: int = 0) -> int:
    say("total", len(results), current.attempt)
    return sum(results, start)


def give_large(size: int) -> bytes:
    return b"x" * size


def length_of(result: bytes) -> int:
    say("length", current.attempt)
    if current.attempt == 1:
        raise OSError("not yet")
    return len(result)


def plain() -> str:
    say("plain")
    return "plain"


def fail(*args: Any) -> None:
    say("fail")
    raise KeyError("key")


def wait_for_file(value: int) -> int:
    """Returns when there is the file that is named like the ledger with ``.go``."""
    say("begin", value)
    while not os.path.exists(os.environ["LEDGER"] + ".go"):
        time.sleep(0.01)
    return value


def order_total(orders: list[Order], discount: Decimal) -> str:
    """Both are made of plain data where that is what arrives."""
    say("orders", [type(order).__name__ for order in orders], type(discount).__name__)
    return "done"


def make_order(number: int) -> dict[str, Any]:
    return {"id": str(UUID(int=number))}


def occupy(seconds: float) -> None:
    say("in", time.monotonic())
    time.sleep(seconds)
    say("out", time.monotonic(), current.attempt)


def hold_first() -> None:
    """Does not end by itself in its first attempt."""
    if current.attempt > 1:
        say("again", current.attempt)
        return
    say("held")
    time.sleep(100)


def begin(number: int) -> None:
    say("at", time.monotonic())
