"""Passwords of stores, looked for in whatever is raised, logged and printed."""

from __future__ import annotations

import io
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from delayed import Queue
from delayed.brokers import broker_for
from delayed.errors import ConfigError, DelayedError
from tests.servers import free_port
from tests.servers.mongo import mongo_server
from tests.servers.postgres import postgres_server
from tests.servers.redis import redis_server
from tests.test_cli import Terminal
from tests.workers.conftest import children_of, wait_for

S = "hunter2"  # of which nothing may be seen


def told(error: BaseException) -> str:
    """All that anybody may print of an error, and of what led to it."""
    return "".join([str(error), repr(error), *traceback.format_exception(error)]).replace(__file__, "")


def trouble(url: str) -> str:
    """What is told where a store is used that can't be."""
    words = []
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    try:
        try:
            broker = broker_for(url)
        except ConfigError as error:
            return told(error)
        queue = Queue("q", broker, enqueue_timeout=0.1)
        words += [repr(broker), repr(queue)]
        uses: list[Callable[[], Any]] = [broker.check, lambda: queue.enqueue(queue.task(divmod, 7, 2)), queue.len]
        for use in uses:
            with pytest.raises(DelayedError) as caught:
                use()
            words.append(told(caught.value))
        broker.close()
    finally:
        logging.getLogger().removeHandler(handler)
    return "\n".join([*words, log.getvalue()])


@pytest.mark.parametrize("where", ["127.0.0.1:{port}", "nowhere.invalid:{port}", "[::1]:{port}"])
@pytest.mark.parametrize(
    "url",
    [
        f"redis://me:{S}@{{where}}/0",
        f"redis://{{where}}/0?username=me&password={S}",
        f"redis://me:%40{S}%2F@{{where}}/?cluster=1",
        f"redis://me:{S}@{{where}}/0?sentinel=m&sentinel_password={S}",
        f"postgresql://me:{S}@{{where}}/db",
        f"postgresql://me@{{where}}/db?password={S}",
        f"postgresql://me@{{where}}/db?sslmode=require&sslpassword={S}",
        f"mongodb://me:{S}@{{where}}/db?serverSelectionTimeoutMS=50",
        f"mongodb://me:{S}%3A{S}@{{where}}/db?serverSelectionTimeoutMS=50&authSource=admin",
    ],
)
def test_a_store_that_is_not_there(url: str, where: str) -> None:
    text = trouble(url.format(where=where.format(port=free_port())))

    assert S not in text
    assert where.partition(":{")[0] in text


@pytest.mark.parametrize("scheme", ["redis", "postgresql", "mongodb"])
@pytest.mark.parametrize(
    "rest",
    [
        f"me:{S}/{S}@127.0.0.1/db",
        f"me:1/{S}@127.0.0.1/db",
        f"me:1?{S}@127.0.0.1/db",
        f"me:1#{S}@127.0.0.1/db",
        f"me:{S}@{S}@127.0.0.1:1/db",
        f"me:{S}[{S}@127.0.0.1:1/db",
        f"me:{S}%@127.0.0.1:1/db",
        f"me:{S}\u2100{S}@127.0.0.1:1/db",
        f":{S}",
        f"me:{S}/db",
        f"127.0.0.1:1/db?{S}",
    ],
)
def test_a_password_that_is_not_escaped(scheme: str, rest: str) -> None:
    limit = "?serverSelectionTimeoutMS=50" if scheme == "mongodb" and "?" not in rest else ""

    assert S not in trouble(f"{scheme}://{rest}{limit}").replace(f"no option '{S}'", "")


def test_a_text_that_is_no_url() -> None:
    for text in (f"host=a password={S}", f"me:{S}@host", f"//me:{S}@host/0", f"nosql://me:{S}@host"):
        assert S not in trouble(text)


def test_a_queue_that_has_not_looked_at_its_url_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELAYED_URL", f"redis://me:{S}@host/0")

    assert repr(Queue("q")) == "<Queue q on redis://me:***@host/0>"


def test_a_wrong_password_of_redis() -> None:
    with redis_server("--requirepass", "right") as server:
        for url in (f"redis://:{S}@127.0.0.1:{server.port}/0", f"redis://me:{S}@127.0.0.1:{server.port}/0?protocol=3"):
            text = trouble(url)
            assert S not in text
            assert "WRONGPASS" in text or "invalid" in text


def test_a_server_that_repeats_the_command_with_the_password() -> None:
    with redis_server("--rename-command", "AUTH", "") as server:
        text = trouble(f"redis://me:{S}@127.0.0.1:{server.port}/0")

    assert S not in text
    assert "unknown command" in text


def test_a_wrong_password_of_postgresql() -> None:
    with postgres_server(password_encryption="scram-sha-256") as server:
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute("CREATE ROLE me LOGIN PASSWORD 'right'")
            rules = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
            (server.folder / "data" / "pg_hba.conf").write_text(rules)
            conn.execute("SELECT pg_reload_conf()")
        wait_for(lambda: not opens(f"postgresql://me@127.0.0.1:{server.port}/postgres"))
        for url in (
            f"postgresql://me:{S}@127.0.0.1:{server.port}/postgres",
            f"postgresql://127.0.0.1:{server.port}/postgres?user=me&password={S}",
        ):
            text = trouble(url)
            assert S not in text
            assert "password authentication failed" in text


def opens(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def test_a_wrong_password_of_mongodb() -> None:
    with mongo_server("--auth", replica_set="") as server:
        text = trouble(f"mongodb://me:{S}@127.0.0.1:{server.port}/db")

    assert S not in text
    assert "Authentication failed" in text


APP = """
from pathlib import Path
from delayed import Queue, delayed

queue = Queue("letters", Path("url").read_text())

@delayed(queue)
def send(word):
    Path("sent").write_text(word)
    raise ValueError(word)
"""


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path)
    opened.write("app.py", APP)
    yield opened
    opened.close()


def below(pid: int) -> list[int]:
    return [pid, *(each for child in children_of(pid) for each in below(child))]


def processes(pid: int) -> list[bytes]:
    """The command lines and environments of a supervisor, its worker's monitor and fork server, and a child; none if
    they are not all there.
    """
    try:
        found = [Path(f"/proc/{each}/{name}").read_bytes() for each in below(pid) for name in ("cmdline", "environ")]
    except (ProcessLookupError, FileNotFoundError):
        return []
    return found if len(found) >= 8 and all(found) else []


def test_what_a_worker_says_and_shows(terminal: Terminal) -> None:
    """In its log and what it announces, in the command lines and environments of its processes, and in an outage."""
    with redis_server("--requirepass", S) as server:
        where = f"127.0.0.1:{server.port}/0"
        terminal.write("url", f"redis://:{S}@{where}")
        terminal.environ.pop("DELAYED_URL")
        worker = terminal.start("worker", "app", "--workers", "1", "--mode", "preforked", "--log-level", "debug")
        terminal.python("import app; app.send.delay('tea')")
        wait_for(lambda: "raised ValueError" in terminal.output())
        shown = wait_for(lambda: processes(worker.pid))
        with redis.Redis(port=server.port, password=S) as client:
            stored = [client.dump(key) for key in client.scan_iter()]
        terminal.environ["DELAYED_URL"] = f"redis://:{S}@{where}"
        for command in (["status"], ["status", "--json"], ["workers"], ["workers", "--json"], ["stop", "nothing"]):
            done = terminal.run(*command)
            shown.append((done.stdout + done.stderr).encode())
        server.kill()
        wait_for(lambda: "it goes on trying" in terminal.output())
        shown.append(terminal.run("status").stderr.encode())

    assert f"redis://:***@{where}" in terminal.output()
    assert S not in terminal.output()
    assert stored and S.encode() not in b"".join(data for data in stored if isinstance(data, bytes))
    assert S.encode() not in b"".join(shown)
