"""The transactions that are open here, which enqueues join. Each thread and each asyncio task has its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from delayed.brokers.base import Broker, Joined

_open: ContextVar[tuple[tuple[Broker, Joined], ...]] = ContextVar("delayed_transactions", default=())


@contextmanager
def open(broker: Broker, joined: Joined) -> Iterator[Joined]:
    """What is enqueued in the block, in the store of `broker`, becomes a part of `joined`."""
    token = _open.set((*_open.get(), (broker, joined)))
    try:
        yield joined
    finally:
        _open.reset(token)
        joined.leave()


def is_open() -> bool:
    """Whether any is open."""
    return bool(_open.get())


def find(broker: Broker) -> Joined | None:
    """The innermost one in the store of `broker`."""
    for other, joined in reversed(_open.get()):
        if broker.same_store(other):
            return joined
    return None
