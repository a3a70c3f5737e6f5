"""The format of messages is what docs/wire-format.md says, and what it was before."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from delayed import Queue
from delayed.codec import Codec
from delayed.message import Message
from delayed.schedule import Schedule
from tests import functions, wire
from tests.golden import make

SECRET = "a secret of this test alone"
DOC = (Path(__file__).parent.parent / "docs" / "wire-format.md").read_text()
WIRE: Any = wire


def golden(name: str) -> dict[str, bytes]:
    found = json.loads((make.FOLDER / name).read_text())
    return {name: bytes.fromhex(text) for name, text in found.items()}


# -- what was written before -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", golden("calls.json"))
def test_a_golden_call_is_read(name: str) -> None:
    serializer, compressor, seal = name.split()
    message = Message(make.ID, make.FUNC, golden("calls.json")[name])
    codec = make.codec_of(serializer, "plain", seal)

    found = codec.decode(codec.open(message, message.header()).payload)

    assert found == (tuple(make.ARGS), make.KWARGS, None)
    assert message.payload[3] == ["bare", "signed", "encrypted"].index(seal)
    assert bool(message.payload[2]) == (compressor != "plain")


@pytest.mark.parametrize("name", golden("answers.json"))
def test_a_golden_answer_is_read(name: str) -> None:
    serializer, _, seal = name.split()

    assert make.codec_of(serializer, "plain", seal).decode_result(make.ID, golden("answers.json")[name]) == make.ANSWER


@pytest.mark.parametrize("name", golden("headers.json"))
def test_a_golden_header_is_read(name: str) -> None:
    assert Message.parse(1, golden("headers.json")[name], b"") == make.HEADERS[name]


def test_all_that_can_be_written_is_golden() -> None:
    """Else a new serializer, or seal, would have nothing to be compared with later: run python -m tests.golden.make."""
    assert golden("calls.json").keys() == {" ".join(kind) for kind in make.kinds()}
    assert golden("headers.json").keys() == make.HEADERS.keys()


# -- what others write -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [None, SECRET])
@pytest.mark.parametrize("compressor", [None, "zlib", "gzip", "bzip2", "lzma"])
def test_who_knows_the_document_only_writes_and_reads_the_same(compressor: str | None, secret: str | None) -> None:
    sealed = secret.encode() if secret else None
    codec = Codec("json", queue="q é", compressor=compressor, compress_above=0, secret=secret or [], allow=["*"])
    value = [[1, "é", None], {"b": ["x" * 100]}]
    header = WIRE.header_of("tests.functions:add", t=5, m=3)
    tag = codec.compressor.tag if codec.compressor is not None else 0

    payload = WIRE.write(value, "q é", 2**40, header, secret=sealed, compressor=tag)
    message = Message.parse(2**40, header, payload)
    args, kwargs, _ = codec.decode(codec.open(message, header).payload)
    assert [list(args), kwargs] == value
    assert (message.func, message.timeout, message.max_deliveries) == ("tests.functions:add", 5, 3)
    answer = WIRE.write("done é", "q é", 2**40, kind=b"R", secret=sealed, compressor=tag)
    assert codec.decode_result(2**40, answer) == "done é"

    ours = Message(7, "tests.functions:add", codec.encode(*value), timeout=5.0)
    ours = codec.seal(ours)
    assert WIRE.read(ours.payload, "q é", 7, ours.header(), secret=sealed) == value
    assert WIRE.read(codec.encode_result(7, [1.5]), "q é", 7, kind=b"R", secret=sealed) == [1.5]


@pytest.mark.parametrize("secret", [None, SECRET])
def test_who_knows_the_document_only_stores_schedules(secret: str | None) -> None:
    codec = Codec("json", queue="q é", secret=secret or [], allow=["*"])
    plain = json.dumps({"v": 1, "n": "näme", "r": {"every": 300}, "l": 5}).encode()
    header = WIRE.header_of("tests.functions:add", t=5)
    head = b"".join(len(part).to_bytes(4, "big") + part for part in (plain, header))
    payload = WIRE.write([[1], {}], "q é", 0, head, kind=b"S", secret=secret.encode() if secret else None)

    schedule = Schedule.load("näme", head + payload, codec)

    assert (schedule.name, schedule.rule, schedule.late) == ("näme", {"every": 300}, 5)
    message = schedule.message(2**40, 1.7e9, codec, 1.7e9)
    assert (message.func, message.timeout, message.key) == ("tests.functions:add", 5, "näme@2023-11-14T22:13:20.000Z")
    assert codec.decode(codec.open(message, message.header()).payload)[:2] == ((1,), {})


def test_the_example_of_the_document_is_right() -> None:
    def bytes_of(title: str) -> bytes:
        block = re.search(rf"{re.escape(title)}\n+```\n(.*?)```", DOC, re.DOTALL)
        assert block is not None, title
        lines = [line.split("  ")[0] for line in block[1].splitlines()]
        return bytes.fromhex("".join(lines))

    header, payload = bytes_of("The header of the example:"), bytes_of("Its payload:")
    codec = Codec("json", queue="default", secret="correct horse battery staple", allow=["app.*"])

    message = Message.parse(7, header, payload)

    assert (message.func, message.timeout) == ("app.tasks:add", 10)
    assert codec.decode(codec.open(message, header).payload) == ((1, 2), {"c": "é"}, None)
    value = [[1, 2], {"c": "é"}]
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    prefix = b"\x01\x04\x00\x01"
    seal = WIRE.sign(b"correct horse battery staple", b"T", "default", 7, header, prefix, body)
    assert payload == prefix + seal + body


def test_the_scripts_of_the_document_are_those_that_are_tested() -> None:
    assert WIRE.RESERVE.strip() in DOC and WIRE.STORE.strip() in DOC


# -- what others put into a store --------------------------------------------------------------------------------------


class Foreign:
    """A queue, and a program that knows its store and the document."""

    def __init__(self, queue: Queue, store: str, *where: Any) -> None:
        self.queue = queue
        self.reserve = getattr(WIRE, f"{store}_reserve")
        self.store = getattr(WIRE, f"{store}_store")
        self.where = where

    def put(self, *args: Any) -> int:
        name = self.queue.name
        id = self.reserve(*self.where, name)
        header = WIRE.header_of("tests.functions:add", t=60)
        self.store(*self.where, name, id, header, WIRE.write([args, {}], name, id, header, secret=SECRET.encode()))
        return int(id)


@pytest.fixture(params=["redis", "postgres", "sqlite"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Foreign]:
    url = f"sqlite:///{tmp_path}/tasks.db"
    if request.param != "sqlite":
        fixtures = {"redis": "redis_url", "postgres": "postgres_schema"}
        url = request.getfixturevalue(fixtures[request.param])
    queue = Queue(f"wire-{tmp_path.name}", url, serializer="json", secret=SECRET, allow=["tests.functions.*"])
    queue.enqueue(queue.task(functions.add, 0, 0))  # the first use makes the tables
    first = queue.dequeue()
    assert first is not None and queue.release(first)
    match request.param:
        case "redis":
            import redis

            with redis.Redis.from_url(url) as client:
                yield Foreign(queue, "redis", client)
        case "postgres":
            import psycopg

            server, _, schema = url.rpartition("schema=")
            with psycopg.connect(server.rstrip("?&"), autocommit=True) as connection, connection.cursor() as cursor:
                yield Foreign(queue, "postgres", cursor, schema)
        case _:
            with sqlite3.connect(tmp_path / "tasks.db", isolation_level=None) as db:
                yield Foreign(queue, "sqlite", db)
            db.close()
    queue.broker.close()


def test_what_others_put_into_a_store_is_run(foreign: Foreign) -> None:
    ids = [foreign.put(1, 2), foreign.put(3, 4)]
    ids.insert(1, foreign.queue.enqueue(foreign.queue.task(functions.add, 5, 6)))

    found = [foreign.queue.dequeue() for _ in range(3)]

    assert len(set(ids)) == 3
    assert sorted(task.run() for task in found if task is not None) == [3, 7, 11]
    assert {task.id for task in found if task is not None} == set(ids)
    assert all(foreign.queue.release(task) for task in found if task is not None)
    assert foreign.queue.broker.counts(foreign.queue.name) == (0, 0, 0, 0)
