"""Fixtures of all tests: one real server of each kind for the session, and queues in memory."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator

import pytest

from delayed import Queue
from tests.servers.mongo import MongoServer
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A test may set the library's log up, as commands do: the next one shall find it as if nobody had."""
    logger = logging.getLogger("delayed")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagate


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis server of this session's own, or of the one in DELAYED_TEST_REDIS_URL.

    Where none can be started the tests fail: one store that is silently left out looks like one that works.
    """
    given = os.environ.get("DELAYED_TEST_REDIS_URL")
    if given:
        yield given
        return
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a PostgreSQL server of this session's own, or of the one in DELAYED_TEST_POSTGRES_URL. As above."""
    given = os.environ.get("DELAYED_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    # Not in pytest's folder, which every session closes to the user that the server runs as.
    with tempfile.TemporaryDirectory(prefix="delayed-postgres-") as folder, PostgresServer(folder) as server:
        yield server.url


@pytest.fixture
def postgres_schema(postgres_url: str) -> Iterator[str]:
    """The URL of a schema that no other test uses; it is gone afterwards."""
    import psycopg

    name = f"test_{secrets.token_hex(6)}"
    yield f"{postgres_url}{'&' if '?' in postgres_url else '?'}schema={name}"
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        conn.execute("SET client_min_messages = error")
        conn.execute(f'DROP SCHEMA IF EXISTS "{name}" CASCADE'.encode())


@pytest.fixture(scope="session")
def mongo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a MongoDB of this session's own, or of the one in DELAYED_TEST_MONGODB_URL; it names no database."""
    given = os.environ.get("DELAYED_TEST_MONGODB_URL")
    if given:
        yield given.rstrip("/")
        return
    with MongoServer(tmp_path_factory.mktemp("mongo")) as server:
        yield server.url_of("").rstrip("/")


@pytest.fixture
def mongo_database(mongo_url: str) -> Iterator[str]:
    """The URL of a database of this test's own."""
    import pymongo

    name = f"delayed_{secrets.token_hex(6)}"
    yield f"{mongo_url}/{name}"
    with pymongo.MongoClient(mongo_url) as client:
        with contextlib.suppress(pymongo.errors.OperationFailure):  # not allowed on a server of somebody else's
            # The transaction of a process that was killed at the end keeps its locks for a minute.
            client.admin.command("killAllSessions", [])
        client.drop_database(name)


@pytest.fixture
def queue() -> Queue:
    """A queue in a store of its own in memory."""
    return Queue("default", f"memory://{secrets.token_hex(8)}")
