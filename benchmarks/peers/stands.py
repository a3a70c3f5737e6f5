"""The stores that peers stand on: a server of our own for each kind, emptied before each measurement."""

from __future__ import annotations

import contextlib
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar
from urllib.parse import urlsplit

from tests.servers.postgres import postgres_server
from tests.servers.redis import redis_server


class Stand(ABC):
    """One server.

    Attributes:
        version: of the server, for the report.
    """

    unit: ClassVar[str]  # what `asked` counts

    def __init__(self, url: str) -> None:
        self.url = url
        self.version = ""

    @abstractmethod
    def fresh(self) -> str:
        """The URL of a place in it where nobody has been."""

    @abstractmethod
    def asked(self, url: str, seconds: float) -> float:
        """Waits so long; how many units a second it was asked for in that time."""


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


class PostgresStand(Stand):
    unit = "transactions"

    def __init__(self, url: str) -> None:
        import psycopg

        super().__init__(url)
        self.conn = psycopg.connect(url, autocommit=True)
        self.version = f"PostgreSQL {self.conn.info.server_version // 10000}"
        self.made = 0

    def fresh(self) -> str:
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


@contextlib.contextmanager
def stand(store: str) -> Iterator[Stand]:
    if store == "redis":
        with redis_server() as server:
            yield RedisStand(server.url)
    else:
        with postgres_server(durable=True, shared_buffers="256MB", autovacuum_naptime="60s") as server:
            yield PostgresStand(server.url)
