"""The transactions of a SQLite file: what the connections of the driver, SQLAlchemy and Django differ in."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from delayed.delay import delay
from delayed.errors import BrokerError, BrokerUnavailable, ConfigError
from delayed.message import Claim
from delayed.queue import Queue


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def queue(path: Path) -> Iterator[Queue]:
    queue = Queue("q", f"sqlite:///{path}")
    queue.broker.check()
    yield queue
    queue.broker.close()


def put(queue: Queue) -> None:
    delay(queue)(divmod)(7, 2)


def take(queue: Queue) -> Claim:
    (claim,) = queue.broker.claim(["q"], "w", 1, 7, 1, 30.0)
    return claim


MODES: list[dict[str, Any]] = [{}, {"isolation_level": "IMMEDIATE"}]
if sys.version_info >= (3, 12):
    MODES.append({"autocommit": False})


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_driver_begins_the_transaction_as_before_any_write(path: Path, queue: Queue, mode: dict[str, Any]) -> None:
    conn = sqlite3.connect(path, **mode)
    with queue.transaction(conn):
        put(queue)
    conn.rollback()
    assert queue.len() == 0

    with queue.transaction(conn):
        put(queue)
    assert queue.len() == 0
    conn.commit()
    assert queue.len() == 1
    conn.close()


AUTOCOMMIT: list[dict[str, Any]] = [{"isolation_level": None}]
if sys.version_info >= (3, 12):
    AUTOCOMMIT.append({"autocommit": True})


@pytest.mark.parametrize("mode", AUTOCOMMIT, ids=str)
def test_in_autocommit_the_transaction_is_the_callers_to_begin(path: Path, queue: Queue, mode: dict[str, Any]) -> None:
    conn = sqlite3.connect(path, **mode)
    conn.execute("BEGIN IMMEDIATE")
    with queue.transaction(conn):
        put(queue)
    conn.execute("ROLLBACK")
    assert queue.len() == 0

    with queue.transaction(conn):
        put(queue)
    assert queue.len() == 1, "without one each enqueue commits by itself"
    conn.close()


def test_the_rows_of_the_connection_may_look_like_anything(path: Path, queue: Queue) -> None:
    conn = sqlite3.connect(path)
    conn.row_factory = lambda cursor, row: {
        column[0]: value for column, value in zip(cursor.description, row, strict=True)
    }
    conn.text_factory = bytes
    with queue.transaction(conn):
        put(queue)
    conn.commit()

    assert conn.execute("SELECT 1 AS one").fetchall() == [{"one": 1}]
    assert queue.len() == 1
    conn.close()


def test_a_failed_enqueue_leaves_the_transaction_as_it_was(path: Path, queue: Queue) -> None:
    conn = sqlite3.connect(path)
    conn.execute("CREATE TABLE mine (n int)")
    conn.execute("INSERT INTO mine VALUES (1)")
    conn.execute("ALTER TABLE delayed_task RENAME TO away")
    with queue.transaction(conn), pytest.raises(BrokerError, match="delayed_task"):
        put(queue)
    conn.execute("ALTER TABLE away RENAME TO delayed_task")
    conn.commit()

    assert conn.execute("SELECT n FROM mine").fetchall() == [(1,)]
    assert queue.len() == 0
    conn.close()


def test_a_connection_to_another_file_is_refused(tmp_path: Path, queue: Queue) -> None:
    conn = sqlite3.connect(tmp_path / "other.db")
    with pytest.raises(ConfigError, match=r"other\.db"), queue.transaction(conn):
        pass
    conn.close()


def test_a_connection_to_memory_is_refused(queue: Queue) -> None:
    conn = sqlite3.connect(":memory:")
    with pytest.raises(ConfigError, match="in memory"), queue.transaction(conn):
        pass
    conn.close()


def test_a_transaction_that_can_not_write_any_more_says_how_to_begin_it(path: Path, queue: Queue) -> None:
    put(queue)
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("BEGIN")
    conn.execute("SELECT count(*) FROM delayed_task").fetchall()
    put(queue)
    with queue.transaction(conn), pytest.raises(BrokerUnavailable, match="BEGIN IMMEDIATE"):
        put(queue)
    conn.execute("ROLLBACK")
    conn.close()

    assert queue.len() == 2


def test_tables_that_can_not_be_made_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delayed.brokers.sqlite_file.LOCK_TIMEOUT", 0.2)
    path = tmp_path / "new.db"
    conn = sqlite3.connect(path)
    conn.execute("CREATE TABLE mine (n int)")
    conn.execute("INSERT INTO mine VALUES (1)")
    fresh = Queue("q", f"sqlite:///{path}")
    with pytest.raises(BrokerUnavailable, match=r"queue\.broker\.check\(\)"), fresh.transaction(conn):
        pass
    conn.commit()

    with fresh.transaction(conn):
        put(fresh)
    conn.commit()
    assert fresh.len() == 1
    conn.close()
    fresh.broker.close()


@pytest.mark.parametrize("statement", ["tx.commit()", "tx.rollback()", "tx.executescript('SELECT 1')"])
def test_the_transaction_of_a_task_can_not_be_ended_early(queue: Queue, statement: str) -> None:
    put(queue)
    claim = take(queue)
    with pytest.raises(sqlite3.ProgrammingError), queue.broker.transaction(claim.ref) as joined:
        tx = joined.connection
        tx.execute("CREATE TABLE mine (n int)")
        exec(statement, {"tx": tx})

    assert queue.broker.counts("q").running == 1


def test_a_with_block_of_the_tasks_connection_commits_nothing(path: Path, queue: Queue) -> None:
    put(queue)
    claim = take(queue)
    with pytest.raises(ZeroDivisionError), queue.broker.transaction(claim.ref) as joined:
        with joined.connection as tx:
            tx.execute("CREATE TABLE mine (n int)")
        raise ZeroDivisionError

    conn = sqlite3.connect(path)
    assert conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'mine'").fetchall() == []
    conn.close()


def test_a_commit_by_hand_is_told(queue: Queue) -> None:
    put(queue)
    claim = take(queue)
    with pytest.raises(BrokerError, match="ended it early"), queue.broker.transaction(claim.ref) as joined:
        joined.connection.execute("COMMIT")

    assert queue.broker.counts("q").running == 1


def test_an_error_of_the_tasks_own_statements_comes_out_as_it_is(queue: Queue) -> None:
    put(queue)
    claim = take(queue)
    with pytest.raises(sqlite3.OperationalError, match="nowhere"), queue.broker.transaction(claim.ref) as joined:
        joined.connection.execute("INSERT INTO nowhere VALUES (1)")


# -- SQLAlchemy and Django -----------------------------------------------------------------------------------------


@pytest.fixture
def engine(path: Path) -> Iterator[Any]:
    import sqlalchemy

    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    yield engine
    engine.dispose()


def test_a_session_of_sqlalchemy(engine: Any, queue: Queue) -> None:
    from sqlalchemy import text
    from sqlalchemy.orm import Session, scoped_session, sessionmaker

    with Session(engine) as session:
        session.execute(text("CREATE TABLE mine (n int)"))
        session.commit()
        with queue.transaction(session):
            put(queue)
        session.rollback()
        assert queue.len() == 0
        session.execute(text("INSERT INTO mine VALUES (1)"))
        with queue.transaction(session):
            put(queue)
        session.commit()
    assert queue.len() == 1

    registry = scoped_session(sessionmaker(engine))
    with queue.transaction(registry):
        put(queue)
    registry.commit()
    registry.remove()
    assert queue.len() == 2


def test_a_connection_of_sqlalchemy(engine: Any, queue: Queue) -> None:
    with engine.connect() as conn:
        with queue.transaction(conn):
            put(queue)
        conn.rollback()
        assert queue.len() == 0
        with queue.transaction(conn):
            put(queue)
        assert queue.len() == 0
        conn.commit()
    with pytest.raises(ZeroDivisionError), engine.begin() as conn, queue.transaction(conn):
        put(queue)
        raise ZeroDivisionError

    assert queue.len() == 1


def test_django(path: Path, queue: Queue) -> None:
    code = """
import sys
import django
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]}})
django.setup()
from django.db import connection, connections, transaction
from delayed import Queue
from delayed.delay import delay

queue = Queue("q", "sqlite:///" + sys.argv[1])
with transaction.atomic(), queue.transaction(connection):
    delay(queue)(divmod)(7, 2)
    assert queue.len() == 0
assert queue.len() == 1
try:
    with transaction.atomic(), queue.transaction(connections["default"]):
        delay(queue)(divmod)(7, 2)
        raise ZeroDivisionError
except ZeroDivisionError:
    assert queue.len() == 1
with queue.transaction(connection):
    delay(queue)(divmod)(7, 2)
assert queue.len() == 2  # outside atomic() Django commits each statement
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
