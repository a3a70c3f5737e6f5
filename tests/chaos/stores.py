"""Each kind of store as the judge sees it: how to begin, to restart it under everybody's feet, and to read effects."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.chaos.processes import below, send
from tests.chaos.tasks import EFFECTS
from tests.servers import Server
from tests.servers.mongo import MongoServer
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer

_CREATE = f"CREATE TABLE {EFFECTS} (intent bigint, run text)"  # no unique key: what is there twice shall show
_SELECT = f"SELECT intent, run FROM {EFFECTS}"
_COUNT = "SELECT count(*) FROM delayed_task"


class Store(ABC):
    """One store of our own.

    Attributes:
        url: where it is.
        server: what can be restarted; None if it has none.
        transactional: whether tasks can commit with their end.
    """

    url: str
    server: Server | None = None
    transactional = True

    @abstractmethod
    def prepare(self) -> None:
        """Make the place that effects are written to."""

    @abstractmethod
    def effects(self) -> list[tuple[int, str]]:
        """(intent, run) of every effect that is there."""

    @abstractmethod
    def leftovers(self, queue: str, dead: int = 0) -> list[str]:
        """What there is of tasks, in words, although the queue is empty but for so many dead letters."""

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """For as long as the block runs the store answers nobody, and refuses nothing either."""
        assert self.server is not None
        pids = list(below(self.server.pid))
        pids += [pid for pid in below(self.server.pid) if pid not in pids]  # those that were forked meanwhile
        for pid in pids:
            send(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in reversed(pids):
                send(pid, signal.SIGCONT)

    @abstractmethod
    def inventory(self) -> dict[str, int]:
        """How many of each kind of thing there are: rows, elements of keys, documents, files. What the store itself
        is going to forget within the hour is left out.
        """

    @abstractmethod
    def size(self) -> int:
        """Bytes that all of it takes."""


class SQLiteStore(Store):
    def __init__(self, folder: Path) -> None:
        self.path = folder / "tasks.db"
        self.url = f"sqlite:///{self.path}"

    def prepare(self) -> None:
        self._run(_CREATE)

    def effects(self) -> list[tuple[int, str]]:
        return self._run(_SELECT)

    def leftovers(self, queue: str, dead: int = 0) -> list[str]:
        ((count,),) = self._run(_COUNT)
        return [f"{count} rows of tasks"] if count != dead else []

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Another program holds the file's lock."""
        import sqlite3

        with contextlib.closing(sqlite3.connect(self.path, timeout=30.0, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.rollback()

    def inventory(self) -> dict[str, int]:
        names = self._run("SELECT name FROM sqlite_master WHERE type = 'table'")
        rows = {f"rows of {name}": self._run(f"SELECT count(*) FROM {name}")[0][0] for (name,) in names}
        return {**rows, **Counter(f"files {bare(file.name)}" for file in self.path.parent.rglob("*"))}

    def size(self) -> int:
        return sum(file.stat().st_size for file in self.path.parent.glob(f"{self.path.name}*"))

    def _run(self, sql: str) -> list[Any]:
        import sqlite3

        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            return db.execute(sql).fetchall()


class RedisStore(Store):
    transactional = False

    def longest(self) -> float:
        """Seconds that the longest command took of late; 0 if none took more than 10 ms."""
        import redis

        with redis.Redis.from_url(self.url) as client:
            return max((entry["duration"] / 1e6 for entry in client.slowlog_get(1000)), default=0.0)

    def __init__(self, folder: Path) -> None:
        self.server: RedisServer = RedisServer(folder, aof=True)
        self.server.start()
        self.url = self.server.url

    def prepare(self) -> None:
        pass

    def effects(self) -> list[tuple[int, str]]:
        return []

    def leftovers(self, queue: str, dead: int = 0) -> list[str]:
        import redis

        parts = ("prior", "enqueued", "dequeued", "msg", "claim", "held", "fair")
        of_tasks = [queue, *[f"{queue}_{part}" for part in parts]]
        with redis.Redis.from_url(self.url) as client:
            return [f"the key {key}" for key in of_tasks if client.exists(key)]

    def inventory(self) -> dict[str, int]:
        import redis

        found: Counter[str] = Counter()
        with redis.Redis.from_url(self.url, decode_responses=True) as client:
            lengths = {"list": client.llen, "hash": client.hlen, "zset": client.zcard, "set": client.scard}
            for key in client.scan_iter(count=1000):
                kind = client.type(key)
                found[f"elements of the {kind} {bare(key)}"] += lengths.get(kind, lambda key: 1)(key)
        return dict(found)

    def size(self) -> int:
        import redis

        with redis.Redis.from_url(self.url) as client:
            return int(client.info("memory")["used_memory"])


class PostgresStore(Store):
    def __init__(self, folder: Path) -> None:
        self.server: PostgresServer = PostgresServer(folder, durable=True)
        self.server.start()
        self.url = self.server.url

    def prepare(self) -> None:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute(_CREATE)

    def effects(self) -> list[tuple[int, str]]:
        import psycopg

        with psycopg.connect(self.url) as conn:
            return conn.execute(_SELECT).fetchall()

    def leftovers(self, queue: str, dead: int = 0) -> list[str]:
        import psycopg

        with psycopg.connect(self.url) as conn:
            ((count,),) = conn.execute(_COUNT.replace("delayed_task", "delayed.delayed_task").encode()).fetchall()
        return [f"{count} rows of tasks"] if count != dead else []

    def inventory(self) -> dict[str, int]:
        import psycopg

        with psycopg.connect(self.url) as conn:
            names = conn.execute("SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname = 'delayed'")
            found = {}
            for (name,) in names.fetchall():
                ((found[f"rows of {name}"],),) = conn.execute(f"SELECT count(*) FROM {name}".encode()).fetchall()
        return found

    def size(self) -> int:
        import psycopg

        with psycopg.connect(self.url) as conn:
            ((size,),) = conn.execute("SELECT pg_database_size(current_database())").fetchall()
        return int(size)


class MongoStore(Store):
    def __init__(self, folder: Path) -> None:
        self.server: MongoServer = MongoServer(folder)
        self.server.start()
        self.url = self.server.url

    def prepare(self) -> None:
        import pymongo

        client: pymongo.MongoClient[Any]
        with pymongo.MongoClient(self.url) as client:
            client.get_default_database().create_collection(EFFECTS)

    def effects(self) -> list[tuple[int, str]]:
        import pymongo

        client: pymongo.MongoClient[Any]
        with pymongo.MongoClient(self.url) as client:
            rows: list[Any] = client.get_default_database()[EFFECTS].find().to_list()
            return [(row["intent"], row["run"]) for row in rows]

    def leftovers(self, queue: str, dead: int = 0) -> list[str]:
        import pymongo

        # One that was prepared by a producer that was killed stays until its session is forgotten.
        left = {"q": queue, "gone": {"$exists": False}, "s": {"$not": {"$regex": "^[pd]/"}}}
        client: pymongo.MongoClient[Any]
        with pymongo.MongoClient(self.url) as client:
            count = client.get_default_database()["delayed_tasks"].count_documents(left)
        return [f"{count} documents of tasks"] if count else []

    def inventory(self) -> dict[str, int]:
        import pymongo

        lasting = {field: {"$exists": False} for field in ("gone", "seen", "end", "until")}
        client: pymongo.MongoClient[Any]
        with pymongo.MongoClient(self.url) as client:
            database = client.get_default_database()
            return {
                f"documents of {name}": database[name].count_documents(lasting)
                for name in database.list_collection_names()
            }

    def size(self) -> int:
        import pymongo

        client: pymongo.MongoClient[Any]
        with pymongo.MongoClient(self.url) as client:
            stats: Any = client.get_default_database().command("dbstats")
            return int(stats["storageSize"] + stats["indexSize"])


def bare(name: str) -> str:
    """A name without what is different in each of its kind."""
    return re.sub(r"[0-9a-f]{8,}|\d+", "#", name)


STORES: dict[str, Callable[[Path], Store]] = {
    "sqlite": SQLiteStore,
    "redis": RedisStore,
    "postgres": PostgresStore,
    "mongodb": MongoStore,
}


@contextlib.contextmanager
def open_store(kind: str) -> Iterator[Store]:
    """A store of this kind in a folder of its own, gone with its data when the block ends."""
    folder = tempfile.mkdtemp(prefix="delayed-chaos-store-")
    store = None
    try:
        store = STORES[kind](Path(folder))
        store.prepare()
        yield store
    finally:
        if store is not None and store.server is not None:
            with contextlib.suppress(AssertionError):
                send(store.server.pid, signal.SIGCONT)
            store.server.kill()
        shutil.rmtree(folder, ignore_errors=True)
