"""What fuzzing checks, whoever thinks up the bytes: a decoder returns, or raises what it says, and nothing else."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import struct
from collections.abc import Callable
from typing import Any

from delayed.codec import Codec
from delayed.compressors import COMPRESSORS, TooLarge
from delayed.errors import ConfigError, DecodeError, NotAllowed, NotEnqueueable
from delayed.extended import Reader
from delayed.message import Message
from delayed.retry import delay_before_next
from delayed.schedule import Schedule
from delayed.serializers import SERIALIZERS
from delayed.worker import channel
from delayed.worker.verdict import Verdict

LIMIT = 10_000  # bytes that anything may inflate to
SECRET = "a secret of this test alone"
QUEUE = "fuzzed"


def settings() -> dict[str, dict[str, Any]]:
    """The codecs: each serializer that runs no code, without a seal and with each."""
    kinds = {"json": {"serializer": "json"}, "msgpack": {"serializer": "msgpack"}}
    return {
        f"{name}{seal and '-'}{seal}": {**kind, **how}
        for name, kind in kinds.items()
        for seal, how in {
            "": {"secret": []},
            "signed": {"secret": SECRET},
            "encrypted": {"secret": SECRET, "encrypt": True},
            "either": {"secret": SECRET, "accept_unsigned": True},
        }.items()
    }


CODECS = {name: Codec(max_size=LIMIT, queue=QUEUE, allow=["tests.*"], **how) for name, how in settings().items()}


def schedules_of(codec: Codec) -> list[bytes]:
    """Stored schedules."""
    rules: list[dict[str, Any]] = [{"every": 0.5}, {"cron": "*/5 9-17 1,15 * mon-fri", "tz": "Europe/Rome"}]
    message = Message(0, "tests.functions:add", codec.encode((1,), {"c": [3]}), timeout=1.5, key="key")
    return [Schedule.of(rule, 5.0, message, "x").dump(codec) for rule in rules]


def message_of(codec: Codec, *args: Any, **fields: Any) -> Message:
    """A sealed message of a call."""
    return codec.seal(Message(7, "tests.functions:add", codec.encode(args, {"c": [3]}), **fields))


# -- what is checked ---------------------------------------------------------------------------------------------------


def header(data: bytes) -> bool:
    """A header: what is read, guardians can count with, and can be written again. Whether it was read."""
    try:
        message = Message.parse(7, data, b"")
    except DecodeError as error:
        assert len(str(error)) < 1000
        return False
    assert message.timeout is None or 0 <= float(message.timeout) < math.inf
    assert struct.pack("<dd", message.timeout or 0.0, message.enqueued_at)
    assert 1 <= message.max_deliveries < 2**31 and -(2**15) <= message.priority < 2**15
    for attempt in (1, 2, 100, 10**6):
        pause = delay_before_next(message.retry, attempt)
        assert pause is None or 0 <= pause < 2**32
    assert "\n" not in message.func and message.func.encode()
    assert Message.parse(7, message.header(), b"") == message
    return True


def payload(codec: Codec, message: Message, data: bytes) -> bool:
    """A payload, opened and decoded as a child does; whether it could be. What can, encodes to the same again."""
    try:
        args, kwargs, func = codec.decode(codec.open(message._replace(payload=data), message.header()).payload)
    except (DecodeError, NotAllowed) as error:
        assert str(error)
        return False
    assert func is None and type(args) is tuple and type(kwargs) is dict
    with contextlib.suppress(ValueError, TypeError):  # who writes it otherwise may write what we do not
        again = codec.decode(codec.encode(args, kwargs))
        assert repr(again[:2]) == repr((args, kwargs))
    return True


def result(codec: Codec, data: bytes) -> bool:
    """The bytes of an answer."""
    try:
        codec.decode_result(7, data)
    except DecodeError:
        return False
    return True


def schedule(codec: Codec, data: bytes) -> bool:
    """A schedule in the store: what is read, can be kept, and stored again."""
    try:
        found = Schedule.load("x", data, codec)
    except (DecodeError, ConfigError):
        return False
    assert found.ticks().after(1.7e9) > 1.7e9 and 0 <= found.late <= 1800
    with contextlib.suppress(NotEnqueueable):  # with its key, it may be too large
        message = found.message(7, 1.7e9, codec, 1.7e9)
        assert Message.parse(7, message.header(), message.payload) == message
        again = Schedule.load("x", found.dump(codec), codec)
        assert repr(again) == repr(found)
    return True


def inflated(name: str, data: bytes) -> bool:
    """What a compressor should have made. It never inflates to more than the limit."""
    compressor = COMPRESSORS.make(name)
    try:
        found = compressor.decompress(data, LIMIT)
    except (TooLarge, Exception) as error:  # each module has its own
        assert not isinstance(error, (MemoryError, AssertionError))
        return False
    assert len(found) <= LIMIT
    assert compressor.decompress(compressor.compress(found), LIMIT) == found
    return True


def extended(data: bytes) -> bool:
    """What msgpack should have made."""
    try:
        Reader().read(data)
    except ValueError:
        return False
    return True


def verdict(data: bytes) -> bool:
    """A verdict: what is read, can be told, and sent on."""
    try:
        found = Verdict.load(data)
    except ValueError:
        return False
    assert str(found).isprintable() and found.kind
    assert Verdict.load(found.dump())
    return True


FRAMES: dict[str, Callable[[socket.socket, bytearray], Any]] = {
    "task": lambda sock, buffer: channel.receive_tasks(sock, buffer, channel.NO_WAIT),
    "report": lambda sock, buffer: channel.receive_report(sock, buffer),
    "control": lambda sock, buffer: channel.receive_control(sock),
}
BUFFER = bytearray(channel.BUFFER_SIZE)


def frame(kind: str, data: bytes) -> bool:
    """A packet of a channel, which is none or all that is read, and leaves the next one alone."""
    mine, theirs = channel.pair()
    with mine, theirs:
        theirs.send(data)
        channel.send_report(theirs, channel.HANDLED, 1, 2)
        try:
            found = FRAMES[kind](mine, BUFFER)
        except (channel.BadFrame, OSError) as error:
            assert not isinstance(error, BlockingIOError)
            found = None
        if kind == "report" and found is not None and found[0] == channel.RETURNED:
            with contextlib.suppress(channel.BadFrame):
                assert all(0 <= slot < 2**16 for slot in channel.unpack_slots(found[4]))
        assert channel.receive_report(mine, BUFFER) == (channel.HANDLED, 0, 1, 2, b"")
    return bool(found)


# -- what to begin with ------------------------------------------------------------------------------------------------


def good() -> dict[str, list[bytes]]:
    """Good bytes for each of the checks, for whoever alters them."""
    full = Message(
        7,
        "tests.functions:add",
        b"",
        timeout=1.5,
        priority=1,
        delay=2.0,
        enqueued_at=1700000000.0,
        retry={"max": 3, "delay": 1.0, "factor": 2.0, "max_delay": 600.0, "jitter": True},
        max_deliveries=14,
        key="key",
        trace="00-1-1-01",
        limits={"memory": 10**9, "cpu": 5},
        keep=60.0,
        extra={"new": [None, {"a": "é"}]},
    )
    call = json.dumps([[1, -2.5, None, True, "é", {"a": [[]]}], {"b": 2**70}]).encode()
    packed = SERIALIZERS.make("msgpack").dumps([[(1, {2}), 2**70, b"b"], {"x": frozenset((1, (2,)))}])
    dated = _dated()
    found = Verdict(2, "ValueError", "no", "Traceback\n", timeout=5.0, delay=1.5, out_of_memory=True, rss=2**20)
    task = struct.pack("<BBHHHQQIIQIII", 1, 0, 5, 1, 0, 9, 7, 1, 1, 2**63, 4, 2, 7) + b"headdepayload"
    report = struct.pack("<BBHIQ", 1, 2, 3, 2, 9) + b"{}"
    returned = struct.pack("<BBHIQ3H", 3, 0, 0, 6, 0, 1, 2, 3)
    control = struct.pack("<BxhiidddQ", 13, 1, 99, 9, 1.0, 2.0, 0.0, 2**20) + b"text"
    return {
        "header": [full.header(), Message(7, "a:b", b"").header()],
        "json": [call],
        "msgpack": [packed, dated],
        "inflated": [bytes(5000), call * 20],
        "extended": [packed, dated],
        "verdict": [found.dump(), Verdict(1).dump()],
        "task": [task, task * 3],
        "report": [report, returned],
        "control": [control],
    }


def _dated() -> bytes:
    import datetime
    import decimal
    import uuid

    day = datetime.datetime(2026, 1, 2, 3, 4, 5, 6, datetime.UTC)
    rest = [day.date(), day.timetz(), datetime.timedelta(1, 2, 3), decimal.Decimal("1.5"), uuid.UUID(int=7)]
    return SERIALIZERS.make("msgpack").dumps([[day, *rest], {}])
