"""One broker of each kind, each with a store of its own."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from delayed.brokers import Broker, broker_for

STORES = ("memory", "sqlite", "redis", "postgres", "mongodb")


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store."""
    if request.param == "memory":
        return f"memory://{secrets.token_hex(8)}"
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/tasks.db"
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_schema"))
    if request.param == "mongodb":
        return str(request.getfixturevalue("mongo_database"))
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def open_broker(store: str) -> Iterator[Callable[[], Broker]]:
    """Opens the store, as often as it is called: as many processes would."""
    opened: list[Broker] = []

    def opener() -> Broker:
        opened.append(broker_for(store))
        return opened[-1]

    yield opener
    for broker in opened:
        broker.close()


@pytest.fixture
def broker(open_broker: Callable[[], Broker]) -> Broker:
    return open_broker()


@pytest.fixture
def queue() -> str:
    """A name that no other test uses, for all tests share one server."""
    return f"q-{secrets.token_hex(6)}"
