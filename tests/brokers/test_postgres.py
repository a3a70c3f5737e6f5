"""What is special to PostgreSQL: its tables, its ways to fail, its kinds of clients and servers."""

from __future__ import annotations

import contextlib
import secrets
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import psycopg_pool
import pytest

from delayed.brokers import broker_for, postgres_schema
from delayed.brokers.postgres import PostgresBroker
from delayed.brokers.postgres_schema import Schema
from delayed.delay import delay
from delayed.errors import (
    BrokerError,
    BrokerUnavailable,
    ConfigError,
    EnqueueRefused,
    TaskLost,
    UnknownOption,
)
from delayed.message import Answer, Claim, Message, Settlement
from delayed.queue import Queue
from tests.bank import PostgresBank
from tests.brokers.patience import eventually, insist
from tests.servers.postgres import PostgresServer, postgres_server

BOUND = 10.0
QUEUE = "default"


@pytest.fixture
def store(postgres_schema: str) -> str:
    return postgres_schema


@pytest.fixture
def open_broker(store: str) -> Iterator[Callable[..., PostgresBroker]]:
    opened: list[PostgresBroker] = []

    def opener(conn: Any = None) -> PostgresBroker:
        opened.append(PostgresBroker(store if conn is None else conn))
        return opened[-1]

    yield opener
    for broker in opened:
        broker.close()


@pytest.fixture
def broker(open_broker: Callable[..., PostgresBroker]) -> PostgresBroker:
    return open_broker()


@pytest.fixture
def admin(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A plain connection of the superuser."""
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        conn.execute("SET client_min_messages = error")
        yield conn


def schema_of(url: str) -> str:
    return url.partition("schema=")[2]


def with_option(url: str, option: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{option}"


def put(broker: PostgresBroker, n: int = 1, **options: Any) -> list[int]:
    first = broker.reserve_ids(QUEUE, n)
    messages = [Message(first + i, "os:getpid", b"payload", **options) for i in range(n)]
    broker.enqueue(QUEUE, messages, secrets.token_hex(16), 1)
    return [message.id for message in messages]


def take(broker: PostgresBroker, limit: int = 1, worker: str = "w", lease: float = 30.0) -> list[Claim]:
    return broker.claim([QUEUE], worker, time.monotonic_ns(), secrets.randbits(64), limit, lease)


# -- the schema ----------------------------------------------------------------------------------------------------


def test_many_processes_make_the_tables_once(open_broker: Callable[..., PostgresBroker]) -> None:
    brokers = [open_broker() for _ in range(8)]
    errors: list[BaseException] = []

    def use(broker: PostgresBroker) -> None:
        try:
            put(broker)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(broker,)) for broker in brokers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)

    assert not errors
    assert brokers[0].counts(QUEUE).ready == 8


def test_a_schema_that_is_dropped_is_made_again(broker: PostgresBroker, store: str, admin: Any) -> None:
    put(broker)
    admin.execute(f'DROP SCHEMA "{schema_of(store)}" CASCADE')

    with pytest.raises(BrokerUnavailable, match="is not whole"):
        broker.counts(QUEUE)
    assert broker.counts(QUEUE) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", ["Ünï-2", "select", 63 * "x"])
def test_names_of_schemas(postgres_url: str, open_broker: Callable[..., PostgresBroker], admin: Any, name: str) -> None:
    from urllib.parse import quote

    broker, other = (open_broker(with_option(postgres_url, f"schema={quote(name)}")) for _ in range(2))
    try:
        woken = sleeping(other)
        (id,) = put(broker)
        assert woken() < 1.0
        assert [claim.id for claim in take(other)] == [id]
    finally:
        broker.close()
        other.close()
        admin.execute('DROP SCHEMA "{}" CASCADE'.format(name.replace('"', '""')).encode())


def test_a_newer_schema_is_refused(broker: PostgresBroker, open_broker: Any, store: str, admin: Any) -> None:
    put(broker)
    admin.execute(f'UPDATE "{schema_of(store)}".delayed_meta SET version = 99, least = 98')

    with pytest.raises(ConfigError, match=r"version 99.*upgrade delayed"):
        open_broker().counts(QUEUE)


def test_a_newer_schema_is_used_if_it_says_so(broker: PostgresBroker, open_broker: Any, store: str, admin: Any) -> None:
    (id,) = put(broker)
    admin.execute(f'UPDATE "{schema_of(store)}".delayed_meta SET version = 99')

    assert [claim.id for claim in take(open_broker())] == [id]


def test_a_schema_of_the_first_version_is_brought_up_to_date(
    open_broker: Callable[..., PostgresBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(postgres_schema, "VERSION", 1)
        old = open_broker()
        (id,) = put(old)
    broker = open_broker()

    (claim,) = take(broker)
    assert broker.settle("w", [Settlement(claim.ref, "done", answer=Answer(b"kept", 100.0))]) == [True]

    assert broker.get_results(QUEUE, [id]) == {id: b"kept"}
    put(old)
    assert len(take(old)) == 1, "what runs since before the change goes on"


def test_values_whose_time_is_over_take_no_space(broker: PostgresBroker, admin: Any, store: str) -> None:
    for number in range(10):
        broker.put_key(QUEUE, f"short:{number}", b"value", ttl=0.01)
    broker.put_key(QUEUE, "long", b"value", ttl=100.0)
    broker.put_key(QUEUE, "ever", b"value")
    eventually(lambda: broker.list_keys(QUEUE, "") == ["ever", "long"])

    broker.sweep(QUEUE)

    rows = admin.execute(f'SELECT name FROM "{schema_of(store)}".delayed_key ORDER BY name').fetchall()
    assert [name for (name,) in rows] == ["ever", "long"]


def test_nobody_is_notified_of_answers_unless_somebody_waits(broker: PostgresBroker, admin: Any, store: str) -> None:
    admin.execute(f'LISTEN "{Schema(schema_of(store)).answers}"')
    broker.put_result(QUEUE, 1, Answer(b"answer", 100.0))
    listener = broker.listen(QUEUE)
    broker.put_result(QUEUE, 2, Answer(b"answer", 100.0))

    heard = list(admin.notifies(timeout=5, stop_after=1))

    assert len(heard) == 1 and heard[0].payload == QUEUE
    listener.close()


def test_answers_whose_time_is_over_take_no_space(broker: PostgresBroker, admin: Any, store: str) -> None:
    broker.put_result(QUEUE, 1, Answer(b"answer", 0.0))
    broker.put_result(QUEUE, 2, Answer(b"answer", 100.0))

    broker.sweep(QUEUE)

    assert admin.execute(f'SELECT id FROM "{schema_of(store)}".delayed_answer').fetchall() == [(2,)]


def test_who_may_not_create_is_told_what_to_run_and_then_may_work(
    open_broker: Callable[..., PostgresBroker], store: str, admin: Any
) -> None:
    name, schema = f"u_{secrets.token_hex(4)}", schema_of(store)
    admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'geheim'")
    try:
        poor = open_broker(store.replace("//postgres@", f"//{name}:geheim@"))
        with pytest.raises(BrokerError, match="delayed migrate --print"):
            put(poor)
        assert not admin.execute("SELECT FROM pg_namespace WHERE nspname = %s", [schema]).fetchall(), "half made"

        script = poor.schema()
        assert script is not None
        admin.execute(script)
        with pytest.raises(BrokerError, match="grant this user USAGE"):
            put(poor)
        admin.execute(f"GRANT USAGE ON SCHEMA {schema} TO {name}")
        admin.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {name}")
        admin.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {name}")
        put(poor)
        (claim,) = take(poor)
        assert poor.settle("w", [Settlement(claim.ref, "done")]) == [True]
        assert "geheim" not in repr(poor)
    finally:
        admin.execute(f"DROP OWNED BY {name}")
        admin.execute(f"DROP ROLE {name}")


def test_a_turn_reads_no_more_rows_when_there_are_more(broker: PostgresBroker, store: str, admin: Any) -> None:
    """With plans that were made when the table was empty."""
    sessions = "SELECT pid FROM pg_stat_activity WHERE application_name = 'delayed'"
    others = set(admin.execute(sessions).fetchall())

    def turns() -> None:
        for _ in range(12):
            put(broker)
            (claim,) = take(broker)
            broker.renew("w", [QUEUE], [claim.ref], 30.0)
            broker.sweep(QUEUE)
            broker.settle("w", [Settlement(claim.ref, "done")])

    turns()
    # Few dead letters: a sweep removes those that are too many, once a second.
    for state, more in ((0, 20_000), (1, 20_000), (2, 20_000), (3, 100)):
        admin.execute(
            f"""
            INSERT INTO {schema_of(store)}.delayed_task
                (queue, id, place, at, lease_end, max_deliveries, state, priority, worker, header, payload)
            SELECT 1, n, n, clock_timestamp() + interval '1 day', clock_timestamp() + interval '1 day', 11, {state}, -1,
                'worker', '', '' FROM generate_series({state * 20000 + 1}, {state * 20000 + more}) AS n
            """
        )
    turns()
    pids = set(admin.execute(sessions).fetchall()) - others
    broker.close()  # sessions tell what they have read when they end

    def read() -> int:
        admin.execute("SELECT pg_stat_clear_snapshot()")
        assert not admin.execute("SELECT FROM pg_stat_activity WHERE pid = ANY (%s)", [[p for (p,) in pids]]).fetchall()
        rows = admin.execute(
            "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE schemaname = %s", [schema_of(store)]
        ).fetchall()
        return int(rows[0][0])

    deadline = time.monotonic() + BOUND
    found = 0
    while not found:
        assert time.monotonic() < deadline
        with contextlib.suppress(AssertionError):
            found = read()
    assert 24 < found < 24 * 100


# -- waking --------------------------------------------------------------------------------------------------------


def sleeping(broker: PostgresBroker) -> Callable[[], float]:
    """Begin a wait in a thread, and return what tells how long after that call it has ended."""
    ended: list[float] = []
    insist(broker.check)

    def sleep() -> None:
        broker.wait([QUEUE], 20.0)
        ended.append(time.monotonic())

    thread = threading.Thread(target=sleep)
    thread.start()
    thread.join(0.3)  # until it sleeps
    assert thread.is_alive()
    start = time.monotonic()

    def woken() -> float:
        thread.join(BOUND)
        assert ended, "it still sleeps"
        return ended[0] - start

    return woken


def test_nobody_is_notified_when_nobody_sleeps(broker: PostgresBroker, store: str, admin: Any) -> None:
    broker.check()
    admin.execute(f'LISTEN "delayed {schema_of(store)}"')
    put(broker)
    assert list(admin.notifies(timeout=0.2, stop_after=1)) == []

    woken = sleeping(PostgresBroker(store)) if take(broker) else None
    put(broker)
    assert [notify.payload for notify in admin.notifies(timeout=5.0, stop_after=1)] == [QUEUE]
    assert woken is not None
    assert woken() < 1.0


def test_where_notifications_are_forbidden_it_polls(open_broker: Callable[..., PostgresBroker], store: str) -> None:
    woken = sleeping(open_broker(with_option(store, "listen=no")))
    put(open_broker())
    assert woken() < 1.0


class PoolingProxy:
    """Shows its clients another number than the server's process, and passes no notifications on, as proxies do that
    give each transaction any of their connections.

    Args:
        port: of the server.
        notifies: whether it passes them on nevertheless.
        stalls: the last message, as its letter and its body, that it passes on of each connection; None: all.
    """

    def __init__(self, port: int, notifies: bool, stalls: bytes | None = None) -> None:
        self._target = port
        self._notifies = notifies
        self._stalls = stalls
        self.stalled = 0  # how often it has
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._up, args=(client, server), daemon=True).start()
                threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            while data := client.recv(65536):
                server.sendall(data)
            server.shutdown(socket.SHUT_RDWR)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), server, server.makefile("rb") as answers:
            while head := answers.read(5):  # a letter, and the length of the rest
                body = answers.read(int.from_bytes(head[1:], "big") - 4)
                if head[:1] == b"K":
                    body = b"\0\0\0\7" + body[4:]
                if head[:1] != b"A" or self._notifies:
                    client.sendall(head + body)
                if head[:1] + body == self._stalls:
                    self.stalled += 1
                    while answers.read(65536):
                        pass

    def close(self) -> None:
        self._server.close()


@pytest.mark.parametrize(("notifies", "bound"), [(False, 1.0), (True, 0.2)])
def test_behind_a_proxy_it_finds_out_whether_notifications_arrive(
    open_broker: Callable[..., PostgresBroker], store: str, admin: Any, notifies: bool, bound: float
) -> None:
    proxy = PoolingProxy(admin.info.port, notifies)
    url = store.replace(f":{admin.info.port}/", f":{proxy.port}/")
    broker = open_broker(with_option(url, "sslmode=disable&gssencmode=disable"))
    try:
        broker.check()
        broker.wait([QUEUE], 1.5)  # the first one finds out, which may take a second
        for _ in range(3):
            woken = sleeping(broker)
            put(open_broker())
            assert woken() < bound
            (claim,) = take(broker)
            assert broker.settle("w", [Settlement(claim.ref, "done")]) == [True]
    finally:
        broker.close()
        proxy.close()


def test_a_wait_ends_though_half_of_an_answer_never_comes(store: str, admin: Any) -> None:
    proxy = PoolingProxy(admin.info.port, notifies=True, stalls=b"CUNLISTEN\0")
    url = with_option(store.replace(f":{admin.info.port}/", f":{proxy.port}/"), "sslmode=disable&gssencmode=disable")
    waits = "import sys; from delayed.brokers.postgres import PostgresBroker; broker = PostgresBroker(sys.argv[1])"
    for _ in range(3):
        waits += f"; broker.wait(['{QUEUE}'], 0.1)"
    try:  # in a process of its own, for who waits in libpq lets no other thread run
        subprocess.run([sys.executable, "-c", waits, url], check=True, timeout=BOUND)
        assert proxy.stalled >= 2  # the process may have gone before the last one
    finally:
        proxy.close()


def test_a_wait_whose_connection_is_ended_begins_again(broker: PostgresBroker, store: str, admin: Any) -> None:
    broker.check()
    errors: list[BaseException] = []

    def sleep() -> None:
        try:
            broker.wait([QUEUE], 20.0)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=sleep)
    thread.start()
    thread.join(0.3)
    terminate_all(admin)
    thread.join(BOUND)

    assert isinstance(errors[0], BrokerUnavailable)
    woken = sleeping(broker)
    put(PostgresBroker(store))
    assert woken() < 1.0


# -- ways to fail --------------------------------------------------------------------------------------------------


def terminate_all(admin: Any) -> int:
    return len(
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'delayed'"
        ).fetchall()
    )


def test_sessions_that_are_ended_at_any_moment_lose_and_repeat_nothing(
    open_broker: Callable[..., PostgresBroker], postgres_url: str, store: str
) -> None:
    total = 600
    open_broker().check()  # makes the tables, which takes longer than a session lives here
    over = threading.Event()
    killed = [0]

    def kill() -> None:
        with psycopg.connect(postgres_url, autocommit=True) as conn:
            while not over.wait(0.05):
                killed[0] += terminate_all(conn)

    def produce() -> None:
        queue = Queue(QUEUE, open_broker())
        for number in range(total):
            delay(queue)(divmod)(number, 1)

    done: list[int] = []
    killer, producer = threading.Thread(target=kill), threading.Thread(target=produce)
    killer.start()
    producer.start()
    worker = open_broker()
    seq = 0
    deadline = time.monotonic() + 40
    while len(done) < total and time.monotonic() < deadline:
        seq += 1
        nonce = secrets.randbits(64)
        claims = insist(lambda seq=seq, nonce=nonce: worker.claim([QUEUE], "w", seq, nonce, 10, 60.0))
        done += [claim.id for claim in claims]
        settlements = [Settlement(claim.ref, "done") for claim in claims]
        insist(lambda settlements=settlements: worker.settle("w", settlements))
    producer.join(BOUND)
    over.set()
    killer.join(BOUND)

    assert killed[0] > 10
    assert len(done) == len(set(done)) == total
    assert insist(lambda: worker.counts(QUEUE)) == (0, 0, 0, 0)


def test_wrong_names_and_passwords_are_told_at_once(open_broker: Callable[..., PostgresBroker], store: str) -> None:
    start = time.monotonic()
    with pytest.raises(BrokerError, match='database "nowhere" does not exist'):
        open_broker(store.replace("/postgres?", "/nowhere?")).check()
    with pytest.raises(BrokerError, match='role "nobody" does not exist') as caught:
        put(open_broker(store.replace("//postgres@", "//nobody:geheim@")))
    assert "geheim" not in str(caught.value)
    assert time.monotonic() - start < 3.0


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        broker = PostgresBroker(f"postgresql://me:geheim@127.0.0.1:{probe.getsockname()[1]}/db")
    with pytest.raises(BrokerUnavailable, match="refused") as caught:
        broker.check()
    assert not caught.value.sent
    assert "geheim" not in str(caught.value) + repr(broker)
    with pytest.raises(EnqueueRefused):
        Queue(QUEUE, broker, enqueue_timeout=0.2).enqueue_many([Queue(QUEUE, broker).task(divmod, 7, 2)])


def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, store: str, admin: Any) -> None:
    monkeypatch.setattr("delayed.brokers.postgres_link.ANSWER_TIMEOUT", 0.5)
    broker = PostgresBroker(store)
    put(broker)
    with admin.transaction():  # as if it hung: nobody can read the table
        admin.execute(f"LOCK TABLE {schema_of(store)}.delayed_task")
        start = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="no answer"):
            broker.counts(QUEUE)
        assert time.monotonic() - start < 3.0
    assert broker.counts(QUEUE).ready == 1
    broker.close()


@pytest.mark.parametrize(
    ("option", "error", "words"),
    [
        ("schme=x", UnknownOption, "did you mean schema"),
        ("sslmod=require", UnknownOption, "did you mean sslmode"),
        ("listen=maybe", ConfigError, "'yes'.*or 'no'"),
        ("schema=", ConfigError, "1 to 63 letters"),
        ("schema=" + 64 * "x", ConfigError, "1 to 63 letters"),
        ("schema=it's", ConfigError, "1 to 63 letters"),
    ],
)
def test_wrong_options_are_named(option: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        broker_for(f"postgresql://localhost/db?{option}")


def test_what_can_not_be_stored_is_refused(broker: PostgresBroker) -> None:
    with pytest.raises(ConfigError, match="can't store"):
        broker.reserve_ids("a\0b", 1)
    put(broker)
    (claim,) = take(broker)
    broker.settle("w", [Settlement(claim.ref, "dead", reason="zero \0 and \udc80")])
    (entry,) = broker.peek(QUEUE, "dead")
    assert entry.reason == "zero \\0 and ?"


def test_a_replica_is_told_apart() -> None:
    with postgres_server() as server:
        broker = PostgresBroker(server.url)
        put(broker)
        broker.close()
        server.stop()
        (server.folder / "data" / "standby.signal").touch()
        server.settings["primary_conninfo"] = ""
        server.start()
        with pytest.raises(BrokerUnavailable, match=r"replica.*primary"):
            broker.counts(QUEUE)
        broker.close()


def test_read_only_transactions_are_named(postgres_url: str, store: str) -> None:
    put(PostgresBroker(store))
    broker = PostgresBroker(with_option(store, "options=-c%20default_transaction_read_only%3Don"))
    with pytest.raises(BrokerUnavailable, match="read-only transaction"):
        put(broker)
    broker.close()


def test_settings_that_lose_tasks_are_warned_of(store: str) -> None:
    broker = PostgresBroker(with_option(store, "options=-c%20synchronous_commit%3Doff"))
    assert any("set synchronous_commit to on" in warning for warning in broker.check())
    broker.close()


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with postgres_server(durable=True) as server:
        yield server


def test_a_restart_loses_nothing(server: PostgresServer) -> None:
    broker = PostgresBroker(server.url)
    put(broker, 3)
    (claim,) = take(broker)
    server.kill()
    with pytest.raises(BrokerUnavailable):
        broker.counts(QUEUE)
    server.start()

    assert broker.counts(QUEUE) == (0, 2, 1, 0)
    assert broker.settle("w", [Settlement(claim.ref, "done")]) == [True]
    broker.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:100%SECRET@h/db",
        "postgresql://u:SECRET@[::1/db",
        "postgresql://u:SECRET@[::1]x/db",
        "postgresql://u:se/SECRET@127.0.0.1:1/db",
        "postgresql://u:se?SECRET@127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/db?password=SECRET",
    ],
)
def test_no_password_is_shown(url: str) -> None:
    try:
        broker = PostgresBroker(url)
        assert "SECRET" not in repr(broker)
        broker.check()
    except (ConfigError, BrokerError) as error:
        assert "SECRET" not in str(error)
    else:
        pytest.fail("nobody is there")


def test_a_string_without_a_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="write postgresql://") as caught:
        PostgresBroker("host=localhost password=SECRET")
    assert "SECRET" not in str(caught.value)


def test_a_plus_in_a_url_is_a_plus(store: str) -> None:
    broker = PostgresBroker(with_option(store, "application_name=x+y"))
    broker.check()
    with psycopg.connect(store.partition("?")[0]) as conn:
        rows = conn.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'x+y'").fetchall()
    assert rows == [(1,)]
    broker.close()


def test_more_than_the_protocol_takes_is_refused(broker: PostgresBroker) -> None:
    payload = bytes(100_000_000)
    with pytest.raises(BrokerError, match="10 tasks of 1,000 MB") as caught:
        broker.enqueue(QUEUE, [Message(i, "os:getpid", payload) for i in range(10)], secrets.token_hex(16), 1)
    assert not isinstance(caught.value, BrokerUnavailable)


def test_a_number_that_is_too_large_is_no_outage(broker: PostgresBroker) -> None:
    with pytest.raises(BrokerError, match="out of range") as caught:
        broker.reserve_ids(QUEUE, 1 << 31)
    assert not isinstance(caught.value, BrokerUnavailable)


# -- many at once --------------------------------------------------------------------------------------------------


def test_a_renewal_at_the_same_moment_refuses_no_settlement(
    broker: PostgresBroker, open_broker: Callable[..., PostgresBroker]
) -> None:
    put(broker, 300)
    claims = take(broker, 300)
    other = open_broker()
    over = threading.Event()

    def renew() -> None:
        while not over.is_set():
            other.renew("w", [QUEUE], [claim.ref for claim in claims], 30.0)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        for claim in claims:
            assert broker.settle("w", [Settlement(claim.ref, "done")]) == [True]
    finally:
        over.set()
        thread.join(BOUND)
    assert sum(broker.counts(QUEUE)) == 0


def test_a_token_ends_one_claim_once(broker: PostgresBroker) -> None:
    put(broker)
    (claim,) = take(broker)
    wrong = claim.ref._replace(nonce=claim.nonce ^ 1)
    settlements = [Settlement(wrong, "done"), Settlement(claim.ref, "done"), Settlement(claim.ref, "done")]
    assert broker.settle("w", settlements) == [False, True, False]


def test_what_somebody_has_locked_is_not_asked_for_all_the_time(broker: PostgresBroker, store: str, admin: Any) -> None:
    put(broker)
    turns = 0
    with admin.transaction():
        admin.execute(f"SELECT FROM {schema_of(store)}.delayed_task FOR UPDATE")
        start = time.monotonic()
        while time.monotonic() < start + 1.0:
            broker.wait([QUEUE], 1.0)
            assert take(broker) == []
            turns += 1
    assert turns < 30
    assert len(take(broker)) == 1


def test_nobody_listens_between_two_waits(broker: PostgresBroker, admin: Any) -> None:
    for _ in range(3):
        broker.wait([QUEUE], 0.01)
        deadline = time.monotonic() + BOUND
        while not admin.execute(
            "SELECT FROM pg_stat_activity WHERE query = 'UNLISTEN *' AND state = 'idle'"
        ).fetchall():
            assert time.monotonic() < deadline
    woken = sleeping(broker)
    put(PostgresBroker(broker.spec()))
    assert woken() < 1.0


# -- clients -------------------------------------------------------------------------------------------------------


def test_a_connection_is_used_for_its_address(open_broker: Any, store: str, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as conn:
        broker = open_broker(conn)
        queue = f"q-{secrets.token_hex(4)}"
        broker.reserve_ids(queue, 1)
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        url = broker.spec()
    assert queue in open_broker(url).queues()


def test_a_pool_is_used(postgres_url: str, open_broker: Any) -> None:
    from psycopg.rows import dict_row

    kwargs = {"row_factory": dict_row, "application_name": "of the pool"}
    with psycopg_pool.ConnectionPool(postgres_url, min_size=1, max_size=2, kwargs=kwargs) as pool:
        broker = open_broker(pool)
        queue = f"q-{secrets.token_hex(4)}"
        first = broker.reserve_ids(queue, 1)
        broker.enqueue(queue, [Message(first, "os:getpid", b"")], secrets.token_hex(16), 1)
        used = pool.get_stats()["requests_num"]
        (claim,) = broker.claim([queue], queue, 1, 7, 10, 30.0)
        assert pool.get_stats()["requests_num"] == used + 1
        assert broker.settle(queue, [Settlement(claim.ref, "done")]) == [True]
        assert sum(open_broker(broker.spec()).counts(queue)) == 0


@pytest.mark.parametrize("harm", ["lock_timeout", "pg_terminate_backend"])
def test_an_error_on_a_connection_of_a_pool_is_told_as_ours(postgres_url: str, open_broker: Any, harm: str) -> None:
    options = {"application_name": "harmed", **({"options": "-c lock_timeout=100"} if harm == "lock_timeout" else {})}
    level = psycopg.IsolationLevel.SERIALIZABLE
    with (
        psycopg_pool.ConnectionPool(
            postgres_url,
            min_size=1,
            max_size=1,
            kwargs=options,
            configure=lambda conn: setattr(conn, "isolation_level", level),
        ) as pool,
        psycopg.connect(postgres_url) as other,
    ):
        broker = open_broker(pool)
        queue = f"q-{secrets.token_hex(4)}"
        message = Message(broker.reserve_ids(queue, 1), "os:getpid", b"")
        other.execute("LOCK TABLE delayed.delayed_task IN ACCESS EXCLUSIVE MODE")
        ended = threading.Event()

        def end() -> None:
            with psycopg.connect(postgres_url, autocommit=True) as conn:
                while not ended.wait(0.05):
                    conn.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE application_name = 'harmed' AND wait_event_type = 'Lock'"
                    )

        harmer = threading.Thread(target=end if harm == "pg_terminate_backend" else ended.wait)
        harmer.start()
        try:
            with pytest.raises(BrokerUnavailable):
                broker.enqueue(queue, [message], secrets.token_hex(16), 1)
        finally:
            ended.set()
            harmer.join()
            other.rollback()

        broker.enqueue(queue, [message], secrets.token_hex(16), 1)
        assert broker.counts(queue).ready == 1
        with pool.connection() as conn:
            assert conn.isolation_level == level


def test_a_pool_that_is_exhausted_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, postgres_url: str, open_broker: Any
) -> None:
    monkeypatch.setattr("delayed.brokers.postgres_link.CONNECT_TIMEOUT", 0.2)
    with psycopg_pool.ConnectionPool(postgres_url, min_size=1, max_size=1) as pool:
        broker = open_broker(pool)
        with pool.connection(), pytest.raises(BrokerUnavailable, match="couldn't get a connection") as caught:
            broker.reserve_ids("q", 1)
        assert not caught.value.sent


@pytest.mark.parametrize("client", [psycopg.AsyncConnection, psycopg_pool.AsyncConnectionPool])
def test_clients_of_asyncio_are_refused(client: Any) -> None:
    with pytest.raises(ConfigError, match=r"psycopg.Connection or a psycopg_pool.ConnectionPool"):
        broker_for(object.__new__(client))


# -- transactions --------------------------------------------------------------------------------------------------


@pytest.fixture
def bank(broker: PostgresBroker, store: str) -> PostgresBank:
    broker.check()
    bank = PostgresBank(store)
    bank.open()
    return bank


def test_an_open_transaction_keeps_no_other_producer_waiting(broker: PostgresBroker, bank: PostgresBank) -> None:
    queue = Queue(QUEUE, broker)
    with bank.transaction() as conn, queue.transaction(conn):
        delay(queue)(divmod)(7, 2)
        threads = [threading.Thread(target=put, args=(PostgresBroker(broker.spec()),)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2.0)
        assert broker.counts(QUEUE).ready == 3


def test_with_autocommit_each_enqueue_is_committed(broker: PostgresBroker, postgres_url: str) -> None:
    queue = Queue(QUEUE, broker)
    with psycopg.connect(postgres_url, autocommit=True) as conn, queue.transaction(conn):
        delay(queue)(divmod)(7, 2)
        assert broker.counts(QUEUE).ready == 1


def test_a_connection_to_another_database_is_refused(broker: PostgresBroker, postgres_url: str, admin: Any) -> None:
    name = f"db_{secrets.token_hex(4)}"
    admin.execute(f"CREATE DATABASE {name}")
    try:
        with (
            psycopg.connect(postgres_url, dbname=name) as conn,
            pytest.raises(ConfigError, match=f"another database .{name}"),
            Queue(QUEUE, broker).transaction(conn),
        ):
            pass
    finally:
        admin.execute(f"DROP DATABASE {name}")


def test_other_drivers_are_refused_with_the_way_out(broker: PostgresBroker) -> None:
    kind = type("connection", (), {"__module__": "psycopg2.extensions"})
    with pytest.raises(ConfigError, match=r"postgresql\+psycopg://"), Queue(QUEUE, broker).transaction(kind()):
        pass
    with (
        pytest.raises(ConfigError, match=r"not of a sqlite3.Connection"),
        contextlib.closing(sqlite3.connect(":memory:")) as conn,
        Queue(QUEUE, broker).transaction(conn),
    ):
        pass


@pytest.mark.parametrize("how", ["connection", "session"])
def test_sqlalchemy(broker: PostgresBroker, postgres_url: str, how: str) -> None:
    import sqlalchemy
    from sqlalchemy.orm import Session

    engine = sqlalchemy.create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    queue = Queue(QUEUE, broker)
    try:
        for commit in (False, True):
            with engine.connect() if how == "connection" else Session(engine) as conn:
                with queue.transaction(conn):
                    delay(queue)(divmod)(7, 2)
                assert broker.counts(QUEUE).ready == 0
                if commit:
                    conn.commit()
            assert broker.counts(QUEUE).ready == int(commit)
    finally:
        engine.dispose()


def test_django(broker: PostgresBroker, store: str) -> None:
    code = """
import sys
import django
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict
url = sys.argv[1]
at = conninfo_to_dict(url.partition("?")[0])
settings.configure(DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": at["dbname"], "USER": at["user"],
    "PASSWORD": at.get("password", ""), "HOST": at["host"], "PORT": at["port"],
}})
django.setup()
from django.db import connection, connections, transaction
from delayed import Queue
from delayed.delay import delay

queue = Queue("default", url)
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
    done = subprocess.run([sys.executable, "-c", code, store], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_session_that_is_ended_in_the_transaction_rolls_back(
    broker: PostgresBroker, bank: PostgresBank, admin: Any
) -> None:
    put(broker)
    (claim,) = take(broker)
    with pytest.raises(BrokerUnavailable) as caught, broker.transaction(claim.ref) as joined:
        bank.move(joined.connection, 1)
        admin.execute("SELECT pg_terminate_backend(%s)", [joined.connection.info.backend_pid])

    assert not caught.value.sent
    bank.check([])
    assert broker.counts(QUEUE) == (0, 0, 1, 0)
    assert broker.settle("w", [Settlement(claim.ref, "done")]) == [True]


class LossyProxy:
    """Passes a connection on until it sees COMMIT, whose answer it keeps to itself."""

    def __init__(self, port: int, passes_commit: bool) -> None:
        self._target = port
        self._passes_commit = passes_commit
        self.armed = False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            while data := client.recv(65536):
                if self.armed and b"COMMIT" in data:
                    self.armed = False
                    if self._passes_commit:
                        server.sendall(data)
                        server.settimeout(5.0)
                    client.shutdown(socket.SHUT_RDWR)
                    if not self._passes_commit:
                        server.shutdown(socket.SHUT_RDWR)
                    return
                server.sendall(data)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError), server:
            while data := server.recv(65536):
                client.sendall(data)

    def close(self) -> None:
        self._server.close()


@pytest.mark.parametrize("committed", [True, False])
def test_a_commit_whose_answer_is_lost_is_looked_up(
    broker: PostgresBroker, bank: PostgresBank, store: str, admin: Any, committed: bool
) -> None:
    put(broker)
    (claim,) = take(broker)
    proxy = LossyProxy(admin.info.port, committed)
    behind = PostgresBroker(store.replace(f":{admin.info.port}/", f":{proxy.port}/"))

    def run() -> None:
        with behind.transaction(claim.ref) as joined:
            bank.move(joined.connection, 1)
            proxy.armed = True

    try:
        if committed:
            run()
        else:
            with pytest.raises(BrokerUnavailable, match="not committed"):
                run()
    finally:
        behind.close()
        proxy.close()
    bank.check([1] if committed else [])
    assert broker.counts(QUEUE).running == int(not committed)


def test_a_rollback_inside_does_not_count_as_done(broker: PostgresBroker, bank: PostgresBank) -> None:
    put(broker)
    (claim,) = take(broker)
    with pytest.raises(BrokerError, match="rolled back by the block"), broker.transaction(claim.ref) as joined:
        bank.move(joined.connection, 1)
        raise psycopg.Rollback
    bank.check([])
    assert broker.counts(QUEUE).running == 1


def test_what_one_transaction_sets_the_next_does_not_see(broker: PostgresBroker) -> None:
    from psycopg.rows import dict_row

    put(broker, 2)
    first, second = take(broker, 2)
    with broker.transaction(first.ref) as joined:
        joined.connection.execute("SET timezone = 'Asia/Tokyo'")
        joined.connection.execute("CREATE TEMPORARY TABLE mine (x int)")
        joined.connection.row_factory = dict_row
        pid = joined.connection.info.backend_pid
    with broker.transaction(second.ref) as joined:
        assert joined.connection.info.backend_pid == pid
        assert joined.connection.execute("SHOW timezone").fetchall() != [("Asia/Tokyo",)]
        assert joined.connection.execute("SELECT to_regclass('mine')").fetchall() == [(None,)]


def test_other_defaults_of_isolation_do_not_matter(store: str, bank: PostgresBank, open_broker: Any) -> None:
    broker = open_broker(with_option(store, "options=-c%20default_transaction_isolation%3Dserializable"))
    put(broker)
    (claim,) = take(broker)
    with broker.transaction(claim.ref) as joined:
        bank.move(joined.connection, 1)
        broker.renew("w", [QUEUE], [claim.ref], 30.0)
    bank.check([1])
    assert sum(broker.counts(QUEUE)) == 0


def test_rows_of_any_kind_can_be_joined(broker: PostgresBroker, postgres_url: str) -> None:
    from psycopg.rows import dict_row

    queue = Queue(QUEUE, broker)
    with psycopg.connect(postgres_url, row_factory=dict_row) as conn, queue.transaction(conn):
        delay(queue)(divmod)(7, 2)
    assert broker.counts(QUEUE).ready == 1


def test_what_holds_no_connection_is_refused(broker: PostgresBroker, postgres_url: str) -> None:
    import sqlalchemy
    from sqlalchemy.orm import sessionmaker

    queue = Queue(QUEUE, broker)
    engine = sqlalchemy.create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        for conn in (engine, sessionmaker(engine)):
            with pytest.raises(ConfigError, match=r"psycopg\.Connection, not of a sqlalchemy"), queue.transaction(conn):
                pass
        with contextlib.closing(engine.raw_connection()) as conn:
            with queue.transaction(conn):
                delay(queue)(divmod)(7, 2)
            conn.commit()
    finally:
        engine.dispose()
    assert broker.counts(QUEUE).ready == 1


def test_a_commit_inside_is_refused(broker: PostgresBroker, bank: PostgresBank) -> None:
    put(broker)
    (claim,) = take(broker)
    with (
        pytest.raises(psycopg.ProgrammingError, match="forbidden"),
        broker.transaction(claim.ref) as joined,
    ):
        bank.move(joined.connection, 1)
        joined.connection.commit()
    bank.check([])
    with (
        pytest.raises(BrokerError, match="has ended it early"),
        broker.transaction(claim.ref) as joined,
    ):
        joined.connection.execute("COMMIT")
    assert broker.counts(QUEUE).running == 1


def test_a_claim_that_is_swept_meanwhile_commits_nothing(broker: PostgresBroker, bank: PostgresBank) -> None:
    broker.sweep(QUEUE, 0.1)
    put(broker)
    (claim,) = take(broker, lease=0.05)
    with pytest.raises(TaskLost), broker.transaction(claim.ref) as joined:
        bank.move(joined.connection, 1)
        deadline = time.monotonic() + BOUND
        while not broker.sweep(QUEUE, 0.1).returned:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    bank.check([])
    assert broker.counts(QUEUE).ready == 1
