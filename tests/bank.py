"""Two accounts and a log of transfers, in the database that a queue is in: what transactions are tested with."""

from __future__ import annotations

import contextlib
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

START = 1_000_000  # what either account begins with


class Bank(ABC):
    """The bank in one database.

    Args:
        url: of the store.
        name: of this bank, so that several can be in one database.
    """

    def __init__(self, url: str, name: str = "bank") -> None:
        self.url = url
        self.name = name

    @abstractmethod
    def open(self) -> None:
        """Make the accounts."""

    @abstractmethod
    def transaction(self) -> contextlib.AbstractContextManager[Any]:
        """A connection (or session) of the caller's own, in a transaction: :meth:`commit`, else it is rolled back."""

    @abstractmethod
    def commit(self, conn: Any) -> None: ...

    @abstractmethod
    def move(self, conn: Any, number: int) -> None:
        """Transfer 1 from the first account to the second, and log it as `number`."""

    @abstractmethod
    def read(self) -> tuple[int, int, list[int]]:
        """Both balances, and the sorted log."""

    def check(self, numbers: list[int]) -> None:
        """These transfers, each once, are what has happened."""
        first, second, log = self.read()
        assert log == sorted(numbers)
        assert (first, second) == (START - len(numbers), START + len(numbers))


class SQLBank(Bank):
    """In a database that speaks SQL."""

    def __init__(self, url: str, name: str = "bank") -> None:
        super().__init__(url, name)
        self.table = name

    def move(self, conn: Any, number: int) -> None:
        conn.execute(f"UPDATE {self.table} SET amount = amount - 1 WHERE account = 1")
        conn.execute(f"INSERT INTO {self.table}_log VALUES ({number})")
        conn.execute(f"UPDATE {self.table} SET amount = amount + 1 WHERE account = 2")

    def commit(self, conn: Any) -> None:
        conn.commit()

    def open(self) -> None:
        with self.transaction() as conn:
            conn.execute(f"CREATE TABLE {self.table} (account int PRIMARY KEY, amount int)")
            conn.execute(f"CREATE TABLE {self.table}_log (number int)")
            conn.execute(f"INSERT INTO {self.table} VALUES (1, {START}), (2, {START})")
            conn.commit()

    def read(self) -> tuple[int, int, list[int]]:
        with self.transaction() as conn:
            rows = conn.execute(f"SELECT amount FROM {self.table} ORDER BY account").fetchall()
            log = conn.execute(f"SELECT number FROM {self.table}_log ORDER BY number").fetchall()
        (first,), (second,) = rows
        return first, second, [number for (number,) in log]


class SQLiteBank(SQLBank):
    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        conn = sqlite3.connect(urlsplit(self.url).path.removeprefix("/"), timeout=30.0)
        try:
            yield conn
        finally:
            conn.close()


class PostgresBank(SQLBank):
    def __init__(self, url: str, name: str = "bank") -> None:
        super().__init__(url, name)
        self._base, _, schema = url.partition("?schema=")
        self.table = f"{schema}.{name}" if schema else name  # beside the queues, to be gone with them

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        import psycopg

        with contextlib.closing(psycopg.connect(self._base)) as conn:
            yield conn


class MongoBank(Bank):
    def _accounts(self, client: Any) -> Any:
        return client.get_database(urlsplit(self.url).path.strip("/") or "delayed")[self.name]

    def move(self, conn: Any, number: int) -> None:
        accounts = self._accounts(conn.client)
        accounts.update_one({"_id": 1}, {"$inc": {"amount": -1}}, session=conn)
        accounts.update_one({"_id": f"log {number}"}, {"$inc": {"amount": 1}}, upsert=True, session=conn)
        accounts.update_one({"_id": 2}, {"$inc": {"amount": 1}}, session=conn)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        import pymongo

        with pymongo.MongoClient(self.url) as client, client.start_session() as session:
            session.start_transaction()
            yield session
            if session.in_transaction:
                session.abort_transaction()

    def commit(self, conn: Any) -> None:
        conn.commit_transaction()

    def open(self) -> None:
        with self.transaction() as conn:
            rows = [{"_id": 1, "amount": START}, {"_id": 2, "amount": START}]
            self._accounts(conn.client).insert_many(rows, session=conn)
            conn.commit_transaction()

    def read(self) -> tuple[int, int, list[int]]:
        with self.transaction() as conn:
            amounts = {row["_id"]: row["amount"] for row in self._accounts(conn.client).find({}, session=conn)}
        first, second = amounts.pop(1), amounts.pop(2)
        log = [int(name.split()[1]) for name, times in amounts.items() for _ in range(times)]
        return first, second, sorted(log)


def bank_at(url: str, name: str = "bank") -> Bank:
    """The bank in the database at `url`."""
    kinds = {"sqlite": SQLiteBank, "postgresql": PostgresBank, "postgres": PostgresBank, "mongodb": MongoBank}
    return kinds[urlsplit(url).scheme](url, name)
