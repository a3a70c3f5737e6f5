"""Every decoder under hypothesis, with examples that are the same each time. `make fuzz` goes on where this ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from delayed.compressors import COMPRESSORS
from delayed.errors import DecodeError
from delayed.message import Message
from delayed.serializers import SERIALIZERS
from tests import fuzzed

GOOD = fuzzed.good()
few = settings(
    max_examples=30, derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
extended = st.recursive(
    plain
    | st.binary(max_size=8)
    | st.datetimes().map(lambda at: at.replace(fold=0))
    | st.dates()
    | st.timedeltas()
    | st.uuids()
    | st.decimals(),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.lists(inner, max_size=4),
    max_leaves=12,
)


@st.composite
def mutated(draw: Any, seeds: list[bytes]) -> bytes:
    """Good bytes with some of them flipped, cut out, put in or repeated."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "cut", "insert", "repeat", "end"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at : at + draw(st.integers(1, 16))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 32))]
            case "end":
                del data[at:]
    return bytes(data)


def any_of(name: str) -> st.SearchStrategy[bytes]:
    return st.binary(max_size=300) | mutated(GOOD[name])


@few
@given(any_of("header") | anything.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_for_a_header(data: bytes) -> None:
    fuzzed.header(data)


@few
@given(st.dictionaries(st.sampled_from("vftpedrmkxlaz"), anything | st.floats() | st.integers()), anything)
def test_any_values_for_the_keys_of_a_header(fields: dict[str, Any], policy: Any) -> None:
    retry = {"max": policy, "delay": policy} if not isinstance(policy, dict) else policy
    fuzzed.header(json.dumps({"v": 1, "f": "a:b", **fields}).encode())
    fuzzed.header(json.dumps({"v": 1, "f": "a:b", "r": retry}).encode())


@pytest.mark.parametrize("name", fuzzed.CODECS)
def test_any_bytes_for_a_payload(name: str) -> None:
    codec = fuzzed.CODECS[name]
    message = fuzzed.message_of(codec, 1, {"b": [2.5, "é"]})
    assert fuzzed.payload(codec, message, message.payload)

    @few
    @given(st.binary(max_size=100) | mutated([message.payload, message.payload[:4]]))
    def check(data: bytes) -> None:
        was_read = fuzzed.payload(codec, message, data)
        sealed = codec.seals is not None and not codec.accept_unsigned
        assert not (was_read and sealed and data != message.payload)
        fuzzed.result(codec, data)

    check()


@pytest.mark.parametrize("name", fuzzed.CODECS)
def test_any_bytes_for_a_stored_schedule(name: str) -> None:
    codec = fuzzed.CODECS[name]
    good = fuzzed.schedules_of(codec)
    assert all(fuzzed.schedule(codec, data) for data in good)

    @few
    @given(st.binary(max_size=100) | mutated(good))
    def check(data: bytes) -> None:
        was_read = fuzzed.schedule(codec, data)
        sealed = codec.seals is not None and not codec.accept_unsigned
        assert not (was_read and sealed and data not in good)

    check()


@few
@given(st.dictionaries(st.sampled_from(["every", "cron", "tz"]), anything | st.text("0123456789*/,-LW# ", max_size=20)))
def test_any_rule_of_a_stored_schedule(rule: dict[str, Any]) -> None:
    plain = json.dumps({"v": 1, "n": "x", "r": rule, "l": 5}).encode()
    header = b'{"v":1,"f":"a:b"}'
    parts = b"".join(len(part).to_bytes(4, "big") + part for part in (plain, header))
    fuzzed.schedule(fuzzed.CODECS["json"], parts + b"\1\4\0\0[[],{}]")


@pytest.mark.parametrize("name", ["json", "msgpack"])
def test_any_bytes_for_a_body(name: str) -> None:
    codec = fuzzed.CODECS[name]
    message = fuzzed.message_of(codec)

    @few
    @given(any_of(name), st.integers(0, 8), st.integers(0, 3))
    def check(data: bytes, compression: int, flags: int) -> None:
        fuzzed.payload(codec, message, message.payload[:4] + data)
        fuzzed.payload(codec, message, message.payload[:2] + bytes((compression, flags)) + data)

    check()


@pytest.mark.parametrize(("name", "values"), [("json", plain), ("msgpack", extended)])
def test_any_plain_value_comes_back_equal(name: str, values: st.SearchStrategy[Any]) -> None:
    codec = fuzzed.CODECS[name]

    @few
    @given(values)
    def check(value: Any) -> None:
        ((found,), kwargs, _) = codec.decode(codec.encode([value], {}))
        assert repr(found) == repr(value) and kwargs == {}
        assert repr(codec.decode_result(7, codec.encode_result(7, value))) == repr(value)

    check()


@pytest.mark.parametrize("name", [kind.name for kind in COMPRESSORS])
def test_any_bytes_for_a_decompressor(name: str) -> None:
    compressor = COMPRESSORS.make(name)
    seeds = [compressor.compress(data) for data in GOOD["inflated"]]
    assert all(fuzzed.inflated(name, seed) for seed in seeds)

    @few
    @given(st.binary(max_size=200) | mutated(seeds))
    def check(data: bytes) -> None:
        fuzzed.inflated(name, data)

    check()


@pytest.mark.parametrize("name", ["extended", "verdict", "task", "report", "control"])
def test_any_bytes_for_what_else_is_read(name: str) -> None:
    check_one: Callable[[bytes], bool] = getattr(fuzzed, name, lambda data: fuzzed.frame(name, data))
    assert all(check_one(data) for data in GOOD[name])

    @few
    @given(st.binary(min_size=1, max_size=200) | mutated(GOOD[name]).filter(bool))
    def check(data: bytes) -> None:
        check_one(data)

    check()


@few
@given(st.dictionaries(st.sampled_from(["code", "text", "type", "stack", "rss", "delay", "wall", "limit"]), anything))
def test_any_values_for_a_verdict(fields: dict[str, Any]) -> None:
    fuzzed.verdict(json.dumps({"code": 2, **fields}).encode())


@pytest.mark.parametrize("name", [name for name in fuzzed.CODECS if name.endswith(("signed", "encrypted"))])
def test_no_bit_of_what_is_sealed_can_be_flipped(name: str) -> None:
    codec = fuzzed.CODECS[name]
    message = fuzzed.message_of(codec, "some text", timeout=10.0)
    header, payload = message.header(), message.payload
    answer = codec.encode_result(7, "some text")
    assert codec.open(message, header) and codec.decode_result(7, answer) == "some text"

    for flipped in flips(payload):
        with pytest.raises(DecodeError):
            codec.open(message._replace(payload=flipped), header)
    for flipped in flips(header):
        with pytest.raises(DecodeError):
            codec.open(Message.parse(7, flipped, payload), flipped)
    for flipped in flips(answer):
        with pytest.raises(DecodeError):
            codec.decode_result(7, flipped)


def flips(data: bytes) -> list[bytes]:
    """The data with one bit flipped, for each of its bits."""
    return [data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :] for at in range(len(data)) for bit in range(8)]


def test_a_bomb_in_a_bomb_is_one_value() -> None:
    """What inflates is inflated once: its body is data."""
    codec = fuzzed.CODECS["msgpack"]
    inner = COMPRESSORS.make("zlib").compress(SERIALIZERS.make("msgpack").dumps([[], {}]))
    payload = bytes((1, 3, 1, 0)) + COMPRESSORS.make("zlib").compress(inner)
    with pytest.raises(DecodeError):
        codec.decode(payload)
