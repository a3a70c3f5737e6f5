"""Stores that are reached over TLS.

MongoDB speaks it by itself. The servers of the wheels for Redis and PostgreSQL were built without, so something of the
tests' own speaks TLS before them, see :func:`tests.servers.tls.terminated`. Servers that can are taken from
``DELAYED_TEST_REDIS_TLS_URL`` and ``DELAYED_TEST_POSTGRES_TLS_URL``: with their authority in the URL, and certificates
for no other address than the one in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import psycopg
import psycopg_pool
import pymongo
import pytest
import redis

from delayed import Queue
from delayed.brokers import broker_for
from delayed.errors import BrokerError, BrokerUnavailable
from delayed.message import Answer, Counts
from delayed.task import Task
from tests.bank import bank_at
from tests.servers.mongo import mongo_server
from tests.servers.tls import POSTGRES_ASKS, Authority, terminated
from tests.workers import tasks, transfers
from tests.workers.conftest import Bench, alive, fork_server_of, wait_for

AUTHORITY = {"redis": "ssl_ca_certs", "postgres": "sslrootcert", "mongodb": "tlsCAFile"}
PROMPTLY = 30.0  # seconds for a program to start and say what is wrong


class Secured:
    """A store that speaks nothing but TLS.

    Attributes:
        store: "redis", "postgres" or "mongodb".
        url: with the authority that signed its certificate.
    """

    def __init__(self, store: str, url: str, **options: str) -> None:
        self.store = store
        self.url = _with(url, **options)

    def trusting(self, authority: Path) -> str:
        """The URL with another authority."""
        return _with(self.url, **{AUTHORITY[self.store]: str(authority)})


def _with(url: str, **options: str) -> str:
    parts = urlsplit(url)
    return parts._replace(query=urlencode(dict(parse_qsl(parts.query)) | options)).geturl()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module", params=AUTHORITY)
def secured(request: pytest.FixtureRequest, folder: Path) -> Iterator[Secured]:
    store = request.param
    given = os.environ.get(f"DELAYED_TEST_{store.upper()}_TLS_URL")
    if given:
        yield Secured(store, given)
        return
    authority = Authority(folder / store)
    certificate, trusted = authority.issue("127.0.0.1"), str(authority.file)
    if store == "redis":
        with terminated(request.getfixturevalue("redis_url"), certificate) as url:
            yield Secured(store, url.replace("redis:", "rediss:", 1), ssl_ca_certs=trusted)
    elif store == "postgres":
        with terminated(request.getfixturevalue("postgres_url"), certificate, asked=POSTGRES_ASKS) as url:
            yield Secured(store, url, sslmode="verify-full", sslrootcert=trusted)
    else:
        speak = ("--tlsMode", "requireTLS", "--tlsCertificateKeyFile", str(certificate), "--tlsCAFile", trusted)
        with mongo_server(*speak, "--tlsAllowConnectionsWithoutCertificates", tls="true", tlsCAFile=trusted) as server:
            yield Secured(store, server.url)


@pytest.fixture
def bench(secured: Secured, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(secured.url, tmp_path)
    yield bench
    bench.close()


def test_a_worker_and_its_children_speak_it(bench: Bench, secured: Secured) -> None:
    bank = None
    if secured.store != "redis":
        bench.queue.broker.check()
        bank = bank_at(bench.url, f"bank_{bench.queue.name.replace('-', '_')}")
        bank.open()
        bench.put(transfers.transfer, bench.url, bank.name, 1)
    for number in range(20):
        bench.put(tasks.mark, number)
    bench.start()
    wait_for(bench.settled)
    for number in range(20, 23):  # it waits for each of them
        bench.put(tasks.mark, number)
        wait_for(bench.settled)

    assert sorted(map(int, bench.ledger.lines)) == list(range(23))
    if bank:
        bank.check([1])


def test_an_answer_is_heard_of(bench: Bench, secured: Secured) -> None:
    """Who listens waits on the socket itself, below what decrypts it."""
    listener = bench.queue.broker.listen(bench.queue.name)
    another = broker_for(secured.url)
    another.put_result(bench.queue.name, 1, Answer(b"answer", 60.0))

    start = time.monotonic()
    listener.wait(50.0)

    assert time.monotonic() - start < 20.0
    assert bench.queue.broker.get_results(bench.queue.name, [1]) == {1: b"answer"}
    listener.close()
    another.close()


def test_a_stand_in_speaks_it(bench: Bench) -> None:
    bench.put(tasks.nap, "long", 1.0)
    bench.put(tasks.nap, "next", 0.0)
    worker = bench.start()
    wait_for(lambda: bench.ledger.find("begin"))
    server = fork_server_of(worker)

    worker.kill()

    wait_for(lambda: not alive(server), 10.0)
    assert bench.ledger.find("end") == ["long"]
    assert bench.queue.broker.counts(bench.queue.name) == Counts(scheduled=0, ready=1, running=0, dead=0)


def test_who_is_not_known_gets_nothing(bench: Bench, secured: Secured, folder: Path) -> None:
    wrong = secured.trusting(Authority(folder / "another").file)
    elsewhere = secured.url.replace("127.0.0.1", "localhost", 1)
    bench.put(tasks.mark, "kept")

    for url in (wrong, elsewhere):
        queue = Queue(bench.queue.name, url)
        with pytest.raises(BrokerError, match=f"signed by an authority in {AUTHORITY[secured.store]}=") as caught:
            queue.enqueue(Task.create(tasks.mark, (str(bench.ledger.path), "refused")))
        assert not isinstance(caught.value, BrokerUnavailable)
        queue.broker.close()
    command = [sys.executable, "-m", "delayed", "worker", "--burst", "--queue", bench.queue.name, "--url", wrong]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROMPTLY)

    assert done.returncode == 1
    assert "signed by an authority in" in done.stderr
    assert "Traceback" not in done.stderr
    assert bench.queue.broker.counts(bench.queue.name) == Counts(scheduled=0, ready=1, running=0, dead=0)
    bench.burst()
    assert bench.ledger.lines == ["kept"]


def test_these_stores_speak_nothing_else(secured: Secured) -> None:
    url = secured.url.partition("?")[0].replace("rediss:", "redis:")
    broker = broker_for(url + ("?sslmode=disable" if secured.store == "postgres" else ""))

    with pytest.raises(BrokerError):
        broker.check()
    broker.close()


def _redis_client(url: str) -> redis.Redis:
    parts = urlsplit(url)
    return redis.Redis(
        host=str(parts.hostname),
        port=int(parts.port or 0),
        ssl=True,
        **{name: value for name, value in parse_qsl(parts.query) if name.startswith("ssl_")},
    )


CLIENTS: dict[str, list[Callable[[str], Any]]] = {
    "redis": [_redis_client],
    "postgres": [psycopg.connect, lambda url: psycopg_pool.ConnectionPool(url, min_size=1, open=True)],
    "mongodb": [pymongo.MongoClient],
}


def test_workers_trust_whom_the_client_that_was_given_trusts(bench: Bench, secured: Secured, tmp_path: Path) -> None:
    for number, connect in enumerate(CLIENTS[secured.store]):
        client = connect(secured.url)
        queue = Queue(bench.queue.name, client)
        queue.enqueue(Task.create(tasks.mark, (str(bench.ledger.path), number)))
        url = queue.broker.spec()
        if secured.store == "mongodb":
            assert url is None
        else:
            assert url
            assert AUTHORITY[secured.store] in url
            bench.url = url
        bench.burst()
        assert bench.ledger.lines[number:] == [str(number)]
        queue.broker.close()
        client.close()
