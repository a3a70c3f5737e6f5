"""Fixtures of all tests: one real Redis server for the session, and queues in memory."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from delayed import Queue
from tests import servers


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a Redis server of this session's own, or of the one in DELAYED_TEST_REDIS_URL."""
    with servers.redis_url() as url:
        yield url


@pytest.fixture
def queue() -> Queue:
    """A queue in a store of its own in memory."""
    return Queue("default", f"memory://{secrets.token_hex(8)}")
