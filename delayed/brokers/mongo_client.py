"""The way to a MongoDB: a client for each process, the collections, and what the driver's errors mean."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pymongo
from bson.codec_options import CodecOptions
from bson.errors import BSONError
from pymongo import errors as driver
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from delayed.brokers import deadline
from delayed.brokers.mongo_schema import prepare
from delayed.brokers.mongo_url import DATABASE, Parsed, parse
from delayed.errors import BrokerError, BrokerFull, BrokerUnavailable, ConfigError

Document = dict[str, Any]

MIN_WIRE = 13  # MongoDB 5.0, the first that uses an index for a comparison with $$NOW
# Milliseconds; the URL may have others. Whoever calls sends again, so it is better to hear soon that nobody is there.
LIMITS = {"serverSelectionTimeoutMS": 2000, "connectTimeoutMS": 3000, "socketTimeoutMS": 10000}

DURABLE = WriteConcern(w="majority", j=True, wtimeout=8000)

_FULL = {14031, 12501}  # OutOfDiskSpace, and the quota of hosted ones
_AUTH = {13, 18, 8000}
_NOT_NOW = {
    6, 7, 50, 89, 91, 112, 133, 134, 189, 202, 216, 246, 251, 262, 290, 317, 9001,
    10058, 10107, 11600, 11602, 13388, 13435, 13436,
}  # fmt: skip

# What the driver raises: its own, and these for what can't be in a document, or be read from one.
REFUSED = (driver.PyMongoError, BSONError, OverflowError, UnicodeError)

_abandoned: list[Any] = []  # clients of a parent: not even freed here, for their sockets are not ours


class Opened(NamedTuple):
    """The database as one process has it open.

    Attributes:
        pid: of the process.
        client: its client.
        tasks: tasks, and what has to change in one command with them: the sessions of producers and of claimers.
        leases: the ends of renewed leases.
        queues: one document for each queue.
        workers: announcements.
        keys: small values.
        transactions: whether the server has them: a replica set or a cluster, not a standalone.
        members: the servers by the names that they have themselves, as far as they have any.
    """

    pid: int
    client: pymongo.MongoClient[Document]
    tasks: Collection[Document]
    leases: Collection[Document]
    queues: Collection[Document]
    workers: Collection[Document]
    keys: Collection[Document]
    transactions: bool
    members: frozenset[str]


class MongoAccess:
    """One database, opened when it is first used, by each process for itself.

    Args:
        conn: a URL, a client, or a database of one.

    Raises:
        ConfigError: When the URL is wrong.
    """

    def __init__(self, conn: Any) -> None:
        self._lock = threading.Lock()
        self._opened: Opened | None = None
        self._closed = 0
        self._given: pymongo.MongoClient[Document] | None = None
        self._given_pid = os.getpid()
        self.url: str | None = None
        self._parsed: Parsed | None = None
        if isinstance(conn, Database):
            self._given, self.database = conn.client, conn.name
        elif isinstance(conn, pymongo.MongoClient):
            self._given = conn
            self.database = conn.get_default_database(DATABASE).name
        elif isinstance(conn, str):
            self.url = conn
            self._parsed = parse(conn)
            self.database = self._parsed.database
        else:
            kind = type(conn)
            raise ConfigError(
                f"no broker takes a {kind.__module__}.{kind.__qualname__}; give a mongodb:// URL, a "
                "pymongo.MongoClient or a pymongo Database"
            )
        self.name = self._name()

    def _name(self) -> str:
        """The store, without its password."""
        if self._parsed is not None:
            return self._parsed.shown
        return f"{type(self._given).__name__} for {self.database!r}"

    def start_afresh(self) -> None:
        """What a fork inherited belongs to its parent."""
        self._lock = threading.Lock()
        if self._opened is not None:
            _abandoned.append(self._opened.client)
            self._opened = None

    @contextlib.contextmanager
    def use(self) -> Iterator[Opened]:
        """The open database; errors of the driver come out of the block as ours."""
        with translated(self.name), _deadline():
            opened = self._opened
            if opened is None or opened.pid != os.getpid():
                opened = self._open()
            yield opened

    def _open(self) -> Opened:
        """Connect without the lock: to a server that does not answer it takes seconds, and nobody has to wait for the
        attempt of another.
        """
        closed = self._closed
        client = self._client()
        mine: Opened | None = None
        try:
            mine = self._look_around(client)
            with self._lock:
                opened = self._opened
                if opened is not None and opened.pid != os.getpid():
                    _abandoned.append(opened.client)
                    opened = None
                if opened is None and self._closed == closed:
                    self._opened = opened = mine
            if opened is None:
                raise BrokerUnavailable(f"{self.name}: closed by another thread", sent=False)
            return opened
        finally:
            # Another was quicker, or it did not succeed.
            if client is not self._given and (mine is None or self._opened is not mine):
                client.close()

    def _client(self) -> pymongo.MongoClient[Document]:
        if self.url is not None:
            assert self._parsed is not None
            given = self._parsed.options
            limits: dict[str, Any] = {name: value for name, value in LIMITS.items() if name.lower() not in given}
            if "appname" not in given:
                limits["appname"] = "delayed"
            try:
                return pymongo.MongoClient(self.url, **limits)
            except ValueError as error:
                raise ConfigError(f"{self.name}: the driver takes no such URL") from error
        assert self._given is not None
        if os.getpid() == self._given_pid:
            return self._given
        _abandoned.append(self._given)  # a client is no good after a fork; one like it is
        duplicate: pymongo.MongoClient[Document] = self._given._duplicate()
        return duplicate

    def _look_around(self, client: pymongo.MongoClient[Document]) -> Opened:
        hello = client.admin.command("hello")
        if hello.get("maxWireVersion", 0) < MIN_WIRE:
            version = client.server_info().get("version", "?")
            raise ConfigError(f"{self.name} is MongoDB {version}; MongoDB 5.0 or later is needed")
        if not hello.get("isWritablePrimary"):
            raise BrokerUnavailable(
                f"{self.name} is a member of a replica set that takes no writes: name the set (?replicaSet=…) or all "
                "its members instead of directConnection=true",
                sent=False,
            )
        database = client.get_database(
            self.database,
            codec_options=CodecOptions(),
            read_preference=ReadPreference.PRIMARY,
            write_concern=DURABLE,
            read_concern=ReadConcern("local"),
        )
        prepare(database, self.name)
        return Opened(
            os.getpid(),
            client,
            database["delayed_tasks"],
            database["delayed_leases"],
            database["delayed_queues"],
            database["delayed_workers"],
            database["delayed_keys"],
            "setName" in hello or hello.get("msg") == "isdbgrid",
            frozenset(f"{hello['setName']}/{host}" for host in hello.get("hosts", ()))
            if "setName" in hello
            else frozenset(f"{host}:{port}" for host, port in client.nodes),
        )

    def is_same(self, other: MongoAccess) -> bool:
        """Whether `other` leads to the same database. That takes the servers, if both have a URL of their own."""
        if self.database != other.database:
            return False
        if self is other or (self.url, self._given) == (other.url, other._given):
            return True
        with self.use() as ours, other.use() as theirs:
            return not ours.members.isdisjoint(theirs.members)

    def close(self) -> None:
        with self._lock:
            opened, self._opened = self._opened, None
            self._closed += 1
        if opened is None:
            return
        if opened.pid != os.getpid():
            _abandoned.append(opened.client)
        elif opened.client is not self._given:
            opened.client.close()


def _deadline() -> contextlib.AbstractContextManager[Any]:
    """Lets the driver know until when the caller waits: for all that it does, its own attempts included."""
    if not deadline.is_set():
        return contextlib.nullcontext()
    return pymongo.timeout(deadline.left(math.inf))


# -- errors ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def translated(name: str) -> Iterator[None]:
    """Errors of the driver come out of the block as ours."""
    try:
        yield
    except REFUSED as error:
        raise translate(name, error) from error


@contextlib.contextmanager
def unsent(name: str) -> Iterator[None]:
    """As :func:`translated`, for a block after whose errors the request has certainly not taken effect."""
    try:
        yield
    except REFUSED as error:
        found = translate(name, error)
        if isinstance(found, BrokerUnavailable):
            found.sent = False
        raise found from error


def translate(name: str, error: Exception) -> BrokerError | ConfigError:
    """Ours for an error of the driver.

    Args:
        name: the store, without its password.
    """
    text = f"{name}: {_text(error)}"
    if isinstance(error, driver.ConnectionFailure) and "CERTIFICATE_VERIFY_FAILED" in text:
        return BrokerError(f"{text}; the certificate must be for this host, and signed by an authority in tlsCAFile=")
    if isinstance(error, (driver.ServerSelectionTimeoutError, driver.WaitQueueTimeoutError)):
        return BrokerUnavailable(text, sent=False)
    if isinstance(error, driver.ConfigurationError):
        return ConfigError(text)
    if isinstance(error, driver.DocumentTooLarge):
        return BrokerError(f"{text}; MongoDB takes documents of at most 16 MB: store the data elsewhere, pass its name")
    if isinstance(error, (driver.ConnectionFailure, driver.WTimeoutError)):
        return BrokerUnavailable(text)
    if isinstance(error, driver.InvalidOperation):
        return BrokerUnavailable(text)  # the client was closed by another thread
    if isinstance(error, driver.OperationFailure):
        codes = _codes(error)
        if codes & _FULL:
            return BrokerFull(text)
        if codes & _AUTH:
            return BrokerError(f"{text}; the user needs the role readWrite on the database, and the right password")
        if codes & _NOT_NOW or error.has_error_label("TransientTransactionError"):
            return BrokerUnavailable(text)
        if isinstance(error, driver.BulkWriteError) and error.details.get("writeConcernErrors"):
            return BrokerUnavailable(text)
    return BrokerError(text)


def _codes(error: driver.OperationFailure) -> set[int]:
    codes = {error.code}
    details: Mapping[str, Any] = error.details or {}
    for kind in ("writeErrors", "writeConcernErrors"):
        codes |= {item.get("code") for item in details.get(kind, ())}
    return {code for code in codes if code is not None}


def _text(error: Exception) -> str:
    details: Mapping[str, Any] = getattr(error, "details", None) or {}
    for kind in ("writeErrors", "writeConcernErrors"):
        for item in details.get(kind, ()):
            return str(item.get("errmsg", item))
    return str(error).partition(", full error:")[0].partition(", Topology Description:")[0]
