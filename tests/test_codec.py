"""What a queue makes of the arguments of a task, and what it refuses to make of a payload."""

from __future__ import annotations

import datetime as dt
import pickle
import random
import secrets
import subprocess
import sys
import threading
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from delayed import (
    ConfigError,
    DecodeError,
    MissingDependency,
    NotAllowed,
    NotAuthentic,
    NotEnqueueable,
    NotSerializable,
    Queue,
    Task,
    delayed,
)
from delayed.codec import Codec
from delayed.compressors import COMPRESSORS, TooLarge
from delayed.errors import NotReadable
from delayed.message import Message
from delayed.plugs import Plugs
from tests import functions, plugs

SERIALIZERS = ("pickle", "cloudpickle", "msgpack", "json")
ALL = [kind.name for kind in COMPRESSORS]
SECRET = "a secret that is long enough"
OTHER = b"another one, \xff\xfe, long enough"
TEXT = {"text": "the same words again and again, " * 200}


def sent(codec: Codec, *args: Any, id: int = 7, **kwargs: Any) -> Message:
    """The message of a call, as a store has it."""
    return Task.create(functions.add, args, kwargs).to_message(codec, id, 60)


def received(codec: Codec, message: Message, header: bytes | None = None) -> Task:
    """What a worker makes of it."""
    header = message.header() if header is None else header
    return Task.from_message(codec.open(Message.parse(message.id, header, message.payload), header), codec)


def codec_of(serializer: str = "pickle", **settings: Any) -> Codec:
    return Codec(serializer, queue="q", **{"secret": [], "allow": ["tests.*"], **settings})


# -- serializers and compressors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"secret": SECRET}, {"secret": SECRET, "encrypt": True}], ids=str)
@pytest.mark.parametrize("compressor", [None, *ALL])
@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_any_combination_arrives_and_can_be_read_by_any_other_worker_of_the_queue(
    serializer: str, compressor: str | None, settings: dict[str, Any]
) -> None:
    codec = codec_of(serializer, compressor=compressor, **settings)
    message = sent(codec, TEXT, [1], x=None)
    others = [Codec.from_spec(codec.spec()), codec_of(serializer, **settings)]
    others.append(codec_of("json", accept=SERIALIZERS, compressor="lz4", **settings))

    for other in others:
        task = received(other, message)
        assert (task.args, task.kwargs) == ((TEXT, [1]), {"x": None})
    assert (len(message.payload) < 1500) == (compressor is not None)
    assert b"again and again" not in message.payload or (compressor is None and "encrypt" not in settings)


@pytest.mark.parametrize("compressor", [None, "zlib"])
@pytest.mark.parametrize("func", [None, functions.add])
def test_many_calls_are_encoded_as_each_is(compressor: str | None, func: Any) -> None:
    codec = Queue("q", "memory://", compressor=compressor, max_size=5000).codec
    calls: list[tuple[Any, ...]] = [(), (1,), ("a", 2), (["x" * 999],), ([random.Random(7).randbytes(2000)],)]
    assert codec.encode_all(calls, func) == [codec.encode(args, {}, func) for args in calls]
    assert codec.encode_all(([1, 2], (1, 2))) == [codec.encode((1, 2), {})] * 2


@pytest.mark.parametrize(
    ("args", "words"), [((1, threading.Lock()), "lock"), (("x" * 5000,), "more than the queue's limit of 5000")]
)
@pytest.mark.parametrize("compressor", [None, "zlib"])
def test_one_of_many_that_can_not_be_encoded_is_told(args: tuple[Any, ...], words: str, compressor: str | None) -> None:
    codec = Queue("q", "memory://", compressor=compressor, max_size=5000).codec
    with pytest.raises(NotEnqueueable, match=words) as one:
        codec.encode(args, {})
    with pytest.raises(NotEnqueueable) as many:
        codec.encode_all([(1,), args, (2,)])
    assert str(many.value) == str(one.value)


def test_what_is_short_or_gets_no_shorter_is_not_compressed() -> None:
    codec = codec_of("json", compressor="zlib", compress_above=100)

    assert codec.encode(("x" * 80,), {})[:4] == b"\1\4\0\0"
    assert codec.encode(("x" * 101,), {})[:4] == b"\1\4\1\0"
    assert codec_of("json", compressor="zlib", compress_above=0).encode((1,), {})[:4] == b"\1\4\0\0"


MOMENT = dt.datetime(2026, 10, 25, 2, 30, 1, 17)
VALUES = [
    (1, (2, [3, (4,)])),
    {1, "two", (3,)},
    frozenset({frozenset(), b"x"}),
    MOMENT,
    MOMENT.replace(tzinfo=dt.UTC),
    MOMENT.replace(tzinfo=dt.timezone(dt.timedelta(hours=-3, minutes=-30))),
    MOMENT.date(),
    MOMENT.time(),
    MOMENT.time().replace(tzinfo=dt.UTC),
    dt.timedelta(days=-3, seconds=5, microseconds=7),
    dt.timedelta.max,
    Decimal("-1.10"),
    Decimal("Infinity"),
    uuid.UUID("12345678123456781234567812345678"),
    2**64,
    -(2**200),
    {1: {None: {b"k": 1.5, (1, 2): set()}}},
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_msgpack_keeps_what_is_more_than_plain_data(value: Any) -> None:
    (again,) = received(codec_of("msgpack"), sent(codec_of("msgpack"), value)).args

    assert again == value and type(again) is type(value)


@pytest.mark.parametrize("fold", [0, 1])
def test_msgpack_keeps_the_zone_of_a_datetime_and_its_second_hour(fold: int) -> None:
    value = MOMENT.replace(tzinfo=ZoneInfo("Europe/Rome"), fold=fold)

    (again,) = received(codec_of("msgpack"), sent(codec_of("msgpack"), value)).args

    assert (again, again.tzinfo, again.fold) == (value, value.tzinfo, fold)


def test_msgpack_refuses_a_zone_that_would_not_arrive() -> None:
    class Odd(dt.tzinfo):
        def utcoffset(self, when: dt.datetime | None) -> dt.timedelta:
            return dt.timedelta(hours=1)

    with pytest.raises(NotEnqueueable, match="ZoneInfo or UTC"):
        codec_of("msgpack").encode((MOMENT.replace(tzinfo=Odd()),), {})


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
def test_what_is_nested_deeply_is_refused_on_both_ends(serializer: str) -> None:
    codec = codec_of(serializer)
    fits: list[Any] = []
    for _ in range(97):  # in the argument, in the list of arguments, in the call
        fits = [fits]
    assert codec.decode(codec.encode((fits,), {}))[0] == (fits,)

    with pytest.raises(NotEnqueueable, match=r"argument 0\[0\] is nested more than 100 deep"):
        codec.encode(([[fits]],), {})
    deep = codec.encode((fits,), {})[4:]
    one = {"json": (b"[", b"]"), "msgpack": (b"\x91", b"")}[serializer]
    for more in (2, 200, 2000):
        with pytest.raises(DecodeError, match=r"deep|StackError|RecursionError"):
            codec.decode(codec.prefix + one[0] * more + deep + one[1] * more)


def test_an_argument_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotEnqueueable, match="holds itself"):
        codec_of("msgpack").encode((loop,), {})


def test_tuples_in_tuples_have_the_same_limit() -> None:
    import msgpack

    data = msgpack.packb([])
    for _ in range(120):
        data = msgpack.packb(msgpack.ExtType(1, msgpack.packb([1]) if data is None else b"\x91" + data))
    with pytest.raises(DecodeError, match="nested more than 100 deep"):
        codec_of("msgpack").decode(b"\1\3\0\0\x92\x91" + data + b"\x80")


def test_too_many_extended_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = codec_of("msgpack")
    payload = codec.encode([(1,)] * 12, {})
    assert len(codec.decode(payload)[0]) == 12

    monkeypatch.setattr("delayed.extended.EXTENDED_MAX", 11)
    with pytest.raises(DecodeError, match="more than 11 values of extended types"):
        codec.decode(payload)


@pytest.mark.parametrize("name", ALL)
def test_a_bomb_is_stopped_while_it_inflates(name: str) -> None:
    code = f"""
import resource
from delayed.compressors import COMPRESSORS, TooLarge
from delayed.errors import NotReadable
kind = COMPRESSORS.make({name!r})
import io
bomb = open("/dev/stdin", "rb").read()
kind.decompress(kind.compress(bytes(1000)), 1000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    kind.decompress(bomb, 2**20)
except TooLarge:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    bomb = COMPRESSORS.make(name).compress(bytes(200 * 2**20))

    done = subprocess.run([sys.executable, "-c", code], input=bomb, capture_output=True, check=True, timeout=50)

    assert int(done.stdout) < 30 * 1024, "kilobytes, where the data would take 204,800"


@pytest.mark.parametrize("name", ALL)
def test_damaged_data_is_refused(name: str) -> None:
    codec = codec_of("json", compressor=name, max_size=10_000)
    good = codec.encode((TEXT,), {})
    assert good[2] == COMPRESSORS.make(name).tag

    for bad in (good[:-1], good[:20], good[:4], good + b"x"):
        with pytest.raises(DecodeError, match="can't be decompressed"):
            codec.decode(bad)
    with pytest.raises(DecodeError, match="inflates to more than the queue's limit of 6000 bytes"):
        codec_of("json", max_size=6000).decode(good)
    assert issubclass(TooLarge, ValueError)


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"compressor": "lz4"}, "lz4"),
        ({"compressor": "zstd"}, "backports.zstd"),
        ({"secret": SECRET, "encrypt": True}, "cryptography"),
    ],
)
def test_a_missing_package_comes_with_its_command(
    settings: dict[str, Any], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("delayed.seals._loaded", [])
    for name in ("lz4", "compression", "backports", "cryptography.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(MissingDependency, match=rf"{package}.*pip install 'delayed\[(zstd|lz4|encrypt)\]'"):
        Queue("q", "memory://", **settings)


def test_a_payload_that_needs_a_missing_package_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = sent(codec_of(compressor="lz4"), TEXT)
    sealed = sent(codec_of(secret=SECRET, encrypt=True), TEXT)
    monkeypatch.setattr("delayed.seals._loaded", [])
    for name in ("lz4", "cryptography.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(NotReadable, match=r"can't be read here: .*pip install 'delayed\[lz4\]'"):
        received(codec_of(), packed)
    with pytest.raises(NotReadable, match=r"can't be read here: .*pip install 'delayed\[encrypt\]'"):
        received(codec_of(secret=SECRET), sealed)


# -- one's own -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [plugs.Base64, "tests.plugs:Base64"])
def test_a_serializer_of_ones_own(given: Any) -> None:
    codec = codec_of(given, compressor=plugs.Best, compress_above=100)
    message = sent(codec, TEXT)
    assert message.payload[1:3] == b"\xc8\1"

    spec = codec.spec()
    assert (spec["serializer"], spec["compressor"]) == ("tests.plugs:Base64", "tests.plugs:Best")
    assert received(Codec.from_spec(spec), message).args == (TEXT,)
    assert received(codec_of("json", accept=[given]), message).args == (TEXT,)
    with pytest.raises(DecodeError, match="unknown serializer 200"):
        received(codec_of("json"), message)


def test_a_compressor_of_ones_own_is_read_where_it_is_named() -> None:
    packed = b"\1\4\xc9\0" + plugs.Halves().compress(b"[[")
    for which in (plugs.Halves, "tests.plugs:Halves"):
        with pytest.raises(DecodeError, match="can't be decoded with json: JSONDecodeError"):  # so it was inflated
            codec_of("json", accept=[which]).decode(packed)
    with pytest.raises(DecodeError, match="the compressor 201, which this queue does not know"):
        codec_of("json").decode(packed)


def test_what_is_given_by_a_path_is_not_loaded_before_it_is_needed() -> None:
    code = (
        "import sys; from delayed import Queue; "
        "queue = Queue('q', 'memory://', serializer='tests.plugs:Base64', accept=['tests.plugs:Halves']); "
        "Queue.from_spec({**queue.spec(), 'url': 'memory://'}) if queue.broker.spec() else queue.codec.spec(); "
        "print('tests.plugs' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)

    assert done.stdout == "False\n"


class Nameless:
    tag = 130


class Taken(plugs.Base64):
    name = "json"


class Low(plugs.Base64):
    name, tag = "low", 5


@pytest.mark.parametrize(
    ("kind", "words"),
    [(Nameless, "it has no name, plain, dumps, loads"), (Taken, "already"), (Low, "from 128 to 255")],
)
def test_a_plug_that_is_none_is_refused(kind: type[Any], words: str) -> None:
    from delayed.serializers import SERIALIZERS as registry

    with pytest.raises(ConfigError, match=words):
        registry.register(kind)
    if kind is not Taken:
        with pytest.raises(ConfigError, match=words):
            Codec(kind)


def test_a_registered_plug_is_known_by_its_name() -> None:
    registry: Plugs[Any] = Plugs("serializer", ("plain", "dumps", "loads"), ())

    assert registry.register(plugs.Base64) is plugs.Base64
    assert registry.make("base64").tag == 200
    assert registry.spec("base64") == "tests.plugs:Base64"
    with pytest.raises(ConfigError, match="has the tag 200 of"):
        registry.register(type("Again", (), {**vars(plugs.Base64), "name": "again"}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"compressor": "rar"}, "no compressor 'rar'; there are zlib, gzip"),
        ({"accept": "pickle"}, r"accept is a list such as \['pickle'\]"),
        ({"compress_above": -1}, "from 0, not -1"),
        ({"max_size": 0}, "above 0, not 0"),
        ({"secret": "short"}, "secret number 1 has 5 bytes, and needs 16 at least; make one with: python -c"),
        ({"secret": [SECRET, 5]}, "text or bytes, or a list of such, not a int"),
        ({"encrypt": True, "secret": []}, "encrypt=True needs a secret"),
        ({"encrypt": "false", "secret": SECRET}, "encrypt is True or False, not 'false'"),
        ({"accept_unsigned": 1}, "accept_unsigned is True or False, not 1"),
        ({"secret": ""}, "secret number 1 has 0 bytes"),
        ({"serializer": plugs.Base64, "accept": [plugs.Twin]}, "'twin' has the tag 200 of 'base64'"),
        ({"allow": "app.*"}, r"allow is a list of patterns such as \['app.tasks.\*'\]"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Queue("q", "memory://", **settings)


# -- seals ---------------------------------------------------------------------------------------------------------


def leave_mark(where: str) -> None:
    Path(where).touch()


class Marking:
    """Leaves a mark when its pickle is loaded."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __reduce__(self) -> Any:
        return leave_mark, (str(self.where),)


@pytest.mark.parametrize("encrypt", [False, True])
def test_what_is_not_signed_is_refused_before_it_is_decoded(encrypt: bool, tmp_path: Path) -> None:
    codec = codec_of(secret=SECRET, encrypt=encrypt)
    mark = tmp_path / "mark"
    for stranger in (codec_of(), codec_of(secret=OTHER), codec_of(secret=OTHER, encrypt=True)):
        message = sent(stranger, Marking(mark))
        with pytest.raises(NotAuthentic):
            received(codec, message)
        assert not mark.exists()

    received(codec, sent(codec, Marking(mark)))
    assert mark.exists()


@pytest.mark.parametrize("encrypt", [False, True])
def test_nothing_of_a_sealed_message_can_be_altered(encrypt: bool) -> None:
    codec = codec_of("json", secret=SECRET, encrypt=encrypt)
    message = sent(codec, 1, 2)
    header = message.header()
    assert received(codec, message, header).args == (1, 2)

    for position in range(len(message.payload)):
        for bit in (1, 128):
            bad = bytearray(message.payload)
            bad[position] ^= bit
            with pytest.raises(DecodeError):
                received(codec, message._replace(payload=bytes(bad)), header)
    for size in range(len(message.payload)):
        with pytest.raises(DecodeError):
            received(codec, message._replace(payload=message.payload[:size]), header)
    for other in (
        message._replace(id=8),
        message._replace(func="tests.functions:other"),
        message._replace(timeout=9.0),
        message._replace(extra={"new": 1}),
    ):
        with pytest.raises(NotAuthentic, match="not those that it was made for"):
            received(codec, other)
    with pytest.raises(NotAuthentic):
        received(codec, message, header + b" ")
    elsewhere = Codec("json", queue="p", secret=SECRET, allow=["*"])
    with pytest.raises(NotAuthentic):
        received(elsewhere, message)


def test_a_secret_is_changed_without_losing_a_task() -> None:
    old, both, new = (codec_of(secret=secret) for secret in (SECRET, [OTHER, SECRET], OTHER))

    assert received(both, sent(old, 1)).args == (1,)
    assert received(new, sent(both, 1)).args == (1,)
    with pytest.raises(NotAuthentic, match="not with a secret of this queue"):
        received(new, sent(old, 1))


def test_signing_begins_without_losing_a_task() -> None:
    without, between, strict = codec_of(), codec_of(secret=SECRET, accept_unsigned=True), codec_of(secret=SECRET)

    assert received(between, sent(without, 1)).args == (1,)
    assert received(strict, sent(between, 1)).args == (1,)
    assert received(codec_of(secret=SECRET, encrypt=True), sent(strict, 1)).args == (1,)
    assert received(strict, sent(codec_of(secret=SECRET, encrypt=True), 1)).args == (1,)
    with pytest.raises(DecodeError, match="is signed, and this queue has no secret: set DELAYED_SECRET"):
        received(without, sent(strict, 1))
    with pytest.raises(NotAuthentic):  # even then what has a seal must have a right one
        received(between, sent(codec_of(secret=OTHER), 1))


def test_two_encryptions_of_the_same_have_nothing_in_common() -> None:
    codec = codec_of(secret=SECRET, encrypt=True)
    one, other = sent(codec, 1).payload, sent(codec, 1).payload

    assert one[:4] == other[:4] and one[4:16] != other[4:16] and one[-16:] != other[-16:]


def test_the_secret_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELAYED_SECRET", f" {SECRET},{SECRET}-older ")
    queue, without = Queue("q", "memory://"), Queue("q", "memory://", secret=[])

    assert sent(queue.codec, 1).payload[3] == 1
    assert sent(without.codec, 1).payload[3] == 0
    assert received(queue.codec, sent(codec_of(secret=f"{SECRET}-older"), 1)).args == (1,)


@pytest.mark.parametrize("value", ["", " ", f"{SECRET},"])
def test_an_empty_secret_in_the_environment_is_told(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELAYED_SECRET", value)  # of a file that was not there

    with pytest.raises(ConfigError, match=r"DELAYED_SECRET number \d has 0 bytes"):
        Queue("q", "memory://")


def test_secrets_are_shown_to_nobody(tmp_path: Path) -> None:
    queue = Queue("whispers", f"sqlite:///{tmp_path}/a.db", secret=SECRET)

    shown = [repr(queue), repr(queue.codec), str(pickle.dumps(queue)), str(vars(queue.codec.seals))]
    assert not [text for text in shown if SECRET in text or SECRET.encode().hex() in text]
    assert Queue.from_spec(queue.spec()).codec.spec() == queue.codec.spec()
    again: Queue = pickle.loads(pickle.dumps(queue))
    assert again.codec.spec() == queue.codec.spec(), "this process knows the secrets of its queues"


def test_a_process_that_does_not_know_the_secret_of_a_pickled_queue_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps(Queue("unheard", f"sqlite:///{tmp_path}/a.db", secret=SECRET))
    monkeypatch.setattr("delayed.codec._known", {})

    with pytest.raises(ConfigError, match="'unheard' has a secret that this process does not know: set DELAYED_SECRET"):
        pickle.loads(data)
    monkeypatch.setenv("DELAYED_SECRET", SECRET)
    assert pickle.loads(data).codec.spec()["secret"] == [SECRET.encode().hex()]


# -- downgrade, and what may be run --------------------------------------------------------------------------------


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_a_queue_of_plain_data_never_unpickles(serializer: str, tmp_path: Path) -> None:
    message = sent(codec_of(), Marking(tmp_path / "mark"))

    with pytest.raises(DecodeError, match=f"made with pickle, but this queue takes only {serializer}"):
        received(codec_of(serializer), message)
    assert not (tmp_path / "mark").exists()
    for tag in range(256):  # whatever the tag says
        with pytest.raises(DecodeError):
            received(codec_of(serializer), message._replace(payload=bytes((1, tag)) + message.payload[2:]))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("path", ["os:system", "tests.functions:os.system", "tests.test_codec:subprocess.run"])
def test_only_decorated_functions_are_run_for_plain_data(path: str) -> None:
    codec = codec_of("json", allow=None)
    message = Message(id=1, func=path, payload=codec.encode(("touch mark",), {}))

    with pytest.raises((NotAllowed, ImportError), match=r"is not decorated with @delayed|has no os"):
        received(codec, message).run()


QUEUE = Queue("q", "memory://codec", serializer="json")


@delayed(QUEUE)
def double(x: int) -> int:
    return 2 * x


class Maths:
    @staticmethod
    @delayed(QUEUE)
    def half(x: int) -> float:
        return x / 2

    @delayed(QUEUE)
    @classmethod
    def name(cls) -> str:
        return cls.__name__


@pytest.mark.parametrize(("func", "result"), [(double, 6), (Maths.half, 1.5), (Maths.name, "Maths")])
def test_decorated_functions_are_run_for_plain_data(func: Any, result: Any) -> None:
    codec = codec_of("json", allow=None)
    args = [] if func == Maths.name else [3]
    assert received(codec, Task.create(func, args).to_message(codec, 1, 60)).run() == result


def test_an_undecorated_function_is_refused_by_the_sender_too() -> None:
    with pytest.raises(
        NotEnqueueable, match=r"no worker would run it: .* decorate it, or put it on the queue's list: Queue\('q'"
    ):
        QUEUE.enqueue(Task.create(functions.add, (1, 2)))
    assert QUEUE.len() == 0


@pytest.mark.parametrize("serializer", ["pickle", "json"])
def test_an_allow_list_admits_what_is_defined_there_and_nothing_else(serializer: str, tmp_path: Path) -> None:
    codec = codec_of(serializer, allow=["tests.functions.*", "app.jobs.send"])
    other = codec_of(serializer, allow=["*"])

    assert received(codec, sent(codec, 1, 2)).run() == functions.add(1, 2)
    for path in ("os:system", "tests.test_codec:leave_mark", "app.jobs:send_all", "tests.functions", "cloudpickle:x"):
        bad = Message(id=1, func=path, payload=other.encode((Marking(tmp_path / "mark"),) * (other.plain is False), {}))
        with pytest.raises(NotAllowed, match=r"is not on this queue's list of what may be run: tests.func.*, app"):
            received(codec, bad)
    assert not (tmp_path / "mark").exists(), "it is refused before it is decoded"


def test_an_allow_list_is_not_walked_around(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(functions, "os", os, raising=False)
    codec = codec_of("json", allow=["tests.functions.*"])
    message = Message(id=1, func="tests.functions:os.system", payload=codec.encode(("true",), {}))

    with pytest.raises(NotAllowed, match=r"leads to posix.system, which is not on"):
        received(codec, message).run()


@pytest.mark.parametrize(
    ("pattern", "path", "allowed"),
    [
        ("app.tasks:send", "app.tasks:send", True),
        ("/srv/s.py:*", "/srv/s.py:run", True),
        ("*.tasks.*", "/uploads/x.tasks.py:run", False),
        ("*", "/uploads/x.py:run", True),
        ("app.*", "app.tasks.send", True),
    ],
)
def test_patterns_of_an_allow_list(pattern: str, path: str, allowed: bool) -> None:
    codec = codec_of(allow=[pattern])
    message = Message(id=1, func=path, payload=codec.encode((), {}))

    if allowed:
        codec.open(message, message.header())
    else:
        with pytest.raises(NotAllowed):
            codec.open(message, message.header())


def test_an_empty_allow_list_admits_nothing() -> None:
    with pytest.raises(NotAllowed):
        received(codec_of(allow=[]), sent(codec_of()))


# -- results -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"secret": SECRET}, {"secret": SECRET, "encrypt": True}], ids=str)
def test_results_are_sealed_and_limited_as_tasks_are(settings: dict[str, Any], tmp_path: Path) -> None:
    codec = codec_of(compressor="zlib", max_size=10_000, **settings)
    data = codec.encode_result(5, TEXT)

    assert codec.decode_result(5, data) == TEXT and len(data) < 1000
    with pytest.raises(NotSerializable, match=r"takes 2\d{4} bytes, more than the queue's limit of 10000"):
        codec.encode_result(5, b"x" * 20_000)
    with pytest.raises(NotSerializable, match="can't be serialized with pickle"):
        codec.encode_result(5, sys)
    with pytest.raises(DecodeError, match="more than the queue's limit of 3000"):
        codec_of(max_size=3000, **settings).decode_result(5, data)
    with pytest.raises(DecodeError, match="takes only json"):
        codec_of("json", **settings).decode_result(5, data)
    if settings:
        with pytest.raises(NotAuthentic):
            codec.decode_result(6, data)
        with pytest.raises(NotAuthentic):
            codec.decode_result(5, codec_of().encode_result(5, Marking(tmp_path / "mark")))
        call = sent(codec, 1, id=5)
        with pytest.raises(NotAuthentic):
            codec.decode_result(5, call.payload)
        assert not (tmp_path / "mark").exists()


# -- what is imported ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("{name}.evil:run", "is in {name}, a folder without __init__.py; if it is yours, .*allow="),
        ("proper_{name}.{name}.evil:run", "is in proper_{name}.{name}, a folder without __init__.py"),
        ("{folder}/{name}/evil.py:run", "in a script outside of the folders that modules are imported from"),
        ("{name}.evil.run", "a folder without __init__.py"),
    ],
)
def test_uploaded_files_are_not_imported_for_plain_data(
    path: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = f"from pathlib import Path\nPath({str(tmp_path / 'mark')!r}).touch()\ndef run(): pass\nrun.adelay = 1\n"
    name = f"uploads_{secrets.token_hex(4)}"
    for folder in (name, f"proper_{name}/{name}"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "evil.py").write_text(evil)
    (tmp_path / f"proper_{name}" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    codec = codec_of("json", allow=None)
    message = Message(id=1, func=path.format(folder=tmp_path, name=name), payload=codec.encode((), {}))

    with pytest.raises(NotAllowed, match=words.format(name=name)):
        received(codec, message).run()
    assert not (tmp_path / "mark").exists()

    for trusting in (codec_of("json", allow=["*"]), codec_of("json", allow=None, secret=SECRET)):
        received(trusting, trusting.seal(message)).run()
    assert (tmp_path / "mark").exists()


def test_a_program_is_not_imported_for_plain_data() -> None:
    codec = codec_of("json", allow=None)
    for path in ("unittest.__main__:main", "__main__:main"):
        with pytest.raises(NotAllowed, match="in a program, which runs when it is imported"):
            received(codec, Message(id=1, func=path, payload=codec.encode((), {})))


def test_pickles_of_a_change_over_are_not_held_to_the_rules_of_plain_data() -> None:
    codec, old = codec_of("json", allow=None, accept=["pickle"]), codec_of()
    message = Message(id=1, func="/elsewhere/script.py:run", payload=old.encode((), {}))

    codec.open(message, message.header())


class Fails(plugs.Base64):
    def __init__(self) -> None:
        raise ImportError("no such module")


def test_a_plug_that_can_not_be_made_here_leaves_the_task_to_another_worker() -> None:
    codec = codec_of("tests.test_codec:Fails")

    with pytest.raises(NotReadable, match="of queue 'q' can't be loaded: no such module"):
        codec.decode(b"\1\xc8\0\0x")


def test_scripts_of_the_workers_folder_are_run_for_plain_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script.py").write_text("def run(): return 5\nrun.adelay = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    codec = codec_of("json", allow=None)
    message = Message(id=1, func=f"{tmp_path}/script.py:run", payload=codec.encode((), {}))

    assert received(codec, message).run() == 5


def test_a_function_in_the_payload_is_not_run_in_the_place_of_the_one_that_is_named() -> None:
    codec = codec_of("cloudpickle", allow=["tests.functions.*"])
    message = Message(id=1, func="tests.functions:add", payload=codec.encode((1, 2), {}, lambda a, b: "smuggled"))

    assert received(codec, message).run() == functions.add(1, 2)
