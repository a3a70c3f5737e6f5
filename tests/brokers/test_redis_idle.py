"""The connections of a client of our own between two commands: who uses them, and when they are given up."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from delayed.brokers.deadline import Attempts
from delayed.brokers.redis import RedisBroker
from delayed.errors import BrokerError
from tests.brokers.patience import eventually
from tests.servers.redis import RedisServer, redis_server

QUEUE = "default"
NAME = "the-one"
WITHOUT_HOOKS: Callable[[], int] = ctypes.PyDLL(None).fork  # as uWSGI forks: Python is not told


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def store(server: RedisServer) -> Iterator[Any]:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        yield client


def opened(server: RedisServer, **options: Any) -> RedisBroker:
    """A broker whose connections are called `NAME`."""
    options["client_name"] = NAME
    return RedisBroker(f"{server.url}?" + "&".join(f"{name}={value}" for name, value in options.items()))


def connections(store: Any) -> list[int]:
    return [int(client["id"]) for client in store.client_list() if client["name"] == NAME]


def echo(broker: RedisBroker, name: str, text: str) -> bool:
    """Whether a command gets its own answer."""
    broker.put_key(QUEUE, name, text.encode())
    return broker.get_keys(QUEUE, [name])[name].value == text.encode()


def test_one_after_the_other_use_one_connection(server: RedisServer, store: Any) -> None:
    broker = opened(server)

    assert all(echo(broker, "k", str(number)) for number in range(10))

    assert len(connections(store)) == 1
    broker.close()
    eventually(lambda: not connections(store))


def test_each_thread_has_its_own(server: RedisServer, store: Any) -> None:
    broker = opened(server)
    wrong: list[str] = []

    def work(name: str) -> None:
        wrong.extend(name for number in range(200) if not echo(broker, name, f"{name}{number}"))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong
    assert len(connections(store)) <= 4
    broker.close()


def test_one_that_the_server_has_closed_is_opened_again(server: RedisServer, store: Any) -> None:
    broker = opened(server, max_connections=1)
    for _ in range(3):
        assert echo(broker, "k", "v")
        (number,) = connections(store)
        store.client_kill_filter(_id=number)

        assert echo(broker, "k", "v")

        assert number not in connections(store) and len(connections(store)) == 1
    broker.close()


def test_it_is_not_lost_if_the_look_at_it_is_interrupted(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = opened(server, max_connections=1)
    assert echo(broker, "k", "v")

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("delayed.brokers._redis_idle.select.poll", interrupted)
        echo(broker, "k", "v")

    assert echo(broker, "k", "v")
    broker.close()


@pytest.mark.parametrize(
    ("options", "plainly"),
    [({}, True), ({"protocol": 2}, True), ({"protocol": 3}, False), ({"health_check_interval": 30}, False)],
    ids=str,
)
def test_answers_are_read_by_redis_py_where_it_knows_more(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], plainly: bool
) -> None:
    broker = opened(server, **options)
    assert echo(broker, "k", "v")
    read = []
    usual = redis.Connection.read_response
    monkeypatch.setattr(redis.Connection, "read_response", lambda *a, **k: read.append(1) or usual(*a, **k))

    assert echo(broker, "k", "w")

    assert bool(read) is not plainly
    broker.close()


def test_one_that_has_to_log_in_anew_does(server: RedisServer, store: Any) -> None:
    store.config_set("requirepass", "secret")
    store.auth("secret")
    broker = opened(server, password="secret")
    assert echo(broker, "k", "v")
    broker._client.command(b"RESET")  # as if it had never said the password

    with pytest.raises(BrokerError, match="Authentication required"):
        broker.clock(QUEUE)

    assert echo(broker, "k", "v")
    broker.close()
    store.config_set("requirepass", "")


@pytest.mark.parametrize("step", ["send_command", "read_response"])
def test_one_whose_making_is_interrupted_is_not_used(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """With redis-py alone it would talk to another database."""
    usual, steps = getattr(redis.Connection, step), 0
    for at in range(1, 10):
        broker = RedisBroker(server.url.rpartition("/")[0] + f"/2?client_name={NAME}")
        seen = 0

        def interrupted(*args: Any, last: int = at, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == last:
                raise KeyboardInterrupt
            return usual(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(redis.Connection, step, interrupted)
            with contextlib.suppress(KeyboardInterrupt):
                echo(broker, "k", "v")
        steps = max(steps, seen)
        assert echo(broker, f"k{at}", "v")
        with redis.Redis.from_url(server.url) as raw:
            assert {client["db"] for client in raw.client_list() if client["name"] in (NAME, "")} - {"0"} == {"2"}
            assert raw.dbsize() == 0
        broker.close()
    assert steps >= 2, "a name, a database"


@pytest.mark.parametrize("fork", [os.fork, WITHOUT_HOOKS], ids=["fork", "fork without hooks"])
def test_a_forked_child_uses_none_of_its_parents(server: RedisServer, fork: Callable[[], int]) -> None:
    broker = opened(server)
    assert echo(broker, "k", "v")

    children = []
    for name in "abc":
        pid = fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if all(echo(broker, name, f"{name}{number}") for number in range(500)) else 2
            finally:
                os._exit(code)
        children.append(pid)
    mine = all(echo(broker, "mine", str(number)) for number in range(500))

    assert [_code(pid) for pid in children] == [0, 0, 0]
    assert mine
    broker.close()


def test_a_child_that_was_forked_amid_the_work_of_other_threads_works(server: RedisServer) -> None:
    broker = opened(server)
    ends = threading.Event()

    def work(name: str) -> None:
        while not ends.is_set():
            assert echo(broker, name, "v")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    codes = []
    try:
        for _ in range(30):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    code = 0 if echo(broker, "child", "v") else 2
                finally:
                    os._exit(code)
            codes.append(_code(pid))
    finally:
        ends.set()
        for thread in threads:
            thread.join()

    assert codes == [0] * 30
    broker.close()


def _code(pid: int) -> int | None:
    """The exit code of a child; None if it hangs."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return None


@pytest.mark.parametrize("first", [True, False], ids=["made in a hurry", "used in a hurry"])
def test_one_that_was_in_a_hurry_waits_as_long_as_others_later(server: RedisServer, store: Any, first: bool) -> None:
    broker = opened(server)
    if not first:
        assert echo(broker, "k", "v")
    assert Attempts(1.0).make(lambda: echo(broker, "k", "v"))

    store.client_pause(1600)

    assert echo(broker, "k", "v")
    assert len(connections(store)) == 1
    broker.close()


def test_those_of_a_client_that_was_given_go_back_to_its_pool(server: RedisServer) -> None:
    pool = redis.ConnectionPool.from_url(server.url, max_connections=1)
    client = redis.Redis(connection_pool=pool)
    broker = RedisBroker(client)

    for _ in range(3):
        assert echo(broker, "k", "v")
        assert client.ping()


def test_those_that_may_be_told_something_unasked_go_back_to_their_pool(server: RedisServer, store: Any) -> None:
    broker = opened(server, protocol=3, max_connections=1)

    assert all(echo(broker, "k", str(number)) for number in range(10))

    assert len(connections(store)) == 1
    broker.close()


def test_a_killed_process_leaves_no_connection_to_those_it_has_forked(server: RedisServer, store: Any) -> None:
    broker = opened(server)
    assert echo(broker, "k", "v")
    mine = connections(store)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            assert echo(broker, "child", "v")
            if os.fork() == 0:
                assert echo(broker, "grandchild", "v")
                os.write(writer, b"%d\n" % os.getpid())
            time.sleep(60)
        finally:
            os._exit(1)
    grandchild = int(os.read(reader, 100))
    assert len(connections(store)) == 3

    os.kill(pid, 9)
    os.waitpid(pid, 0)

    eventually(lambda: len(connections(store)) == 2)
    assert set(mine) < set(connections(store))
    os.kill(grandchild, 9)
    os.close(reader)
    os.close(writer)
    broker.close()
