"""The stores that peers stand on: a server of our own for each kind, emptied before each measurement."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import sqlite3
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from tests.servers.mongo import MongoServer, mongo_server
from tests.servers.postgres import postgres_server
from tests.servers.redis import redis_server


class Stand(ABC):
    """One server.

    Attributes:
        version: of the server, for the report.
    """

    unit: ClassVar[str] = ""  # what `asked` counts; empty where nothing can be counted

    def __init__(self, url: str) -> None:
        self.url = url
        self.version = ""

    @abstractmethod
    def fresh(self) -> str:
        """The URL of a place in it where nobody has been."""

    def asked(self, url: str, seconds: float) -> float:
        """Waits so long; how many units a second it was asked for in that time."""
        raise NotImplementedError(f"nothing is counted on {type(self).__name__}")

    @abstractmethod
    def size(self, url: str) -> int:
        """Bytes that everything in that place takes."""


class RedisStand(Stand):
    unit = "commands"

    def __init__(self, url: str) -> None:
        import redis

        super().__init__(url)
        self.client = redis.Redis.from_url(url)
        self.version = f"Redis {self.client.info('server')['redis_version']} (which keeps nothing on disk)"

    def fresh(self) -> str:
        self.client.flushall()
        return self.url

    def asked(self, url: str, seconds: float) -> float:
        """Counts what clients send, and not what their scripts do."""
        address = urlsplit(url)
        seen = b""
        with socket.create_connection((address.hostname, address.port), 1.0) as watcher:
            watcher.sendall(b"MONITOR\r\n")
            deadline = time.monotonic() + seconds
            while (left := deadline - time.monotonic()) > 0:
                watcher.settimeout(left)
                with contextlib.suppress(TimeoutError):
                    seen += watcher.recv(65536)
        lines = seen.splitlines()[1:]  # the first is "+OK"
        return sum(b" lua]" not in line for line in lines) / seconds

    def size(self, url: str) -> int:
        return int(self.client.info("memory")["used_memory"])


class SqliteStand(Stand):
    """A file in a folder; its `url` is the folder."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.version = f"SQLite {sqlite3.sqlite_version}"

    def fresh(self) -> str:
        for path in Path(self.url).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return f"sqlite:///{self.url}/{secrets.token_hex(4)}.db"

    def size(self, url: str) -> int:
        """Of the file, when all of its log has been moved there."""
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as conn:
            conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            ((pages, size),) = conn.execute("SELECT page_count, page_size FROM pragma_page_count, pragma_page_size")
            return int(pages * size)


class PostgresStand(Stand):
    unit = "transactions"

    def __init__(self, url: str) -> None:
        import psycopg

        super().__init__(url)
        self.conn = psycopg.connect(url, autocommit=True)
        self.version = f"PostgreSQL {self.conn.info.server_version // 10000}"
        self.made = 0

    def fresh(self) -> str:
        self.conn.execute(f"DROP DATABASE IF EXISTS peers{self.made} WITH (FORCE)".encode())
        self.made += 1
        self.conn.execute(f"CREATE DATABASE peers{self.made}".encode())
        return self.url.rpartition("/")[0] + f"/peers{self.made}"

    def asked(self, url: str, seconds: float) -> float:
        before = self._ended(url)
        time.sleep(seconds)
        return (self._ended(url) - before) / seconds

    def _ended(self, url: str) -> int:
        row = self.conn.execute(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s", [url.rpartition("/")[2]]
        ).fetchone()
        assert row
        return int(row[0])

    def size(self, url: str) -> int:
        """Of all tables of the database that are not the server's own, with their indexes."""
        import psycopg

        with psycopg.connect(url) as conn:
            row = conn.execute(
                "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
                "WHERE relkind = 'r' AND nspname NOT IN ('pg_catalog', 'information_schema')"
            ).fetchone()
        return int(row[0] or 0) if row else 0


class MongoStand(Stand):
    def __init__(self, server: MongoServer) -> None:
        import pymongo

        super().__init__(server.url)
        self.server = server
        self.client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(server.url)
        self.version = f"MongoDB {self.client.server_info()['version']}"
        self.name = ""

    def fresh(self) -> str:
        if self.name:
            self.client.drop_database(self.name)
        self.name = f"peers{secrets.token_hex(4)}"
        return self.server.url_of(self.name)

    def size(self, url: str) -> int:
        stats = self.client[url.rpartition("/")[2]].command("dbStats")
        return int(stats["dataSize"] + stats["indexSize"])


@contextlib.contextmanager
def stand(store: str) -> Iterator[Stand]:
    match store:
        case "redis":
            with redis_server() as redis:
                yield RedisStand(redis.url)
        case "sqlite":
            with tempfile.TemporaryDirectory(prefix="peers-") as folder:
                yield SqliteStand(folder)
        case "postgres":
            with postgres_server(durable=True, shared_buffers="256MB", autovacuum_naptime="60s") as postgres:
                yield PostgresStand(postgres.url)
        case "mongodb":
            with mongo_server() as mongo:
                yield MongoStand(mongo)
        case _:
            raise ValueError(f"no store {store!r}")
