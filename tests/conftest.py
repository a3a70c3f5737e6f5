"""Fixtures of all tests: one real Redis server for the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import redis_server


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a Redis server of this session's own."""
    with redis_server() as server:
        yield server.url
