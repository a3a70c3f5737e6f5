"""Bad messages of every kind, each with what the dead letter has to say of it.

A poison is made for one of the queues in QUEUES. What no Message would write is stored by one whose header is given.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from delayed import Queue, delayed
from delayed.compressors import COMPRESSORS
from delayed.message import Message
from delayed.seals import TASK, Seals, about
from tests.workers import tasks

SECRET = "a secret of this test alone"
OTHER = "a secret of somebody else's"
LIMIT = 100_000  # bytes of a payload

ALLOWED = ["tests.workers.tasks.*"]
QUEUES: dict[str, dict[str, Any]] = {
    "pickle": {"max_size": LIMIT},
    "json": {"serializer": "json", "max_size": LIMIT, "allow": ALLOWED},
    "open": {"serializer": "json"},  # runs what is decorated
    "msgpack": {"serializer": "msgpack", "max_size": LIMIT, "allow": ALLOWED},
    "signed": {"secret": SECRET, "max_size": LIMIT},
    "encrypted": {"secret": SECRET, "max_size": LIMIT, "encrypt": True},
}


class Raw(Message):
    """A message whose header is given."""

    raw: bytes

    def header(self) -> bytes:
        return self.raw


class Poison(NamedTuple):
    """One bad message.

    Attributes:
        name: what is bad.
        queue: for which of QUEUES it is.
        make: makes the message of a good one; the queue is given, and a file that is there if the poison has worked.
        reason: a regular expression that is found in the reason of the dead letter.
    """

    name: str
    queue: str
    make: Callable[[Message, Queue, str], Message]
    reason: str


class Mark:
    """Its pickle makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


# -- payloads ----------------------------------------------------------------------------------------------------------


def payload(data: bytes) -> Callable[[Message, Queue, str], Message]:
    return lambda good, queue, mark: good._replace(payload=data)


def altered(change: Callable[[bytes], bytes]) -> Callable[[Message, Queue, str], Message]:
    return lambda good, queue, mark: good._replace(payload=change(good.payload))


def path(func: str) -> Callable[[Message, Queue, str], Message]:
    def make(good: Message, queue: Queue, mark: str) -> Message:
        return good._replace(func=func, payload=queue.codec.encode((f"touch {mark}",), {}))

    return make


def packed(tag: int, data: bytes) -> bytes:
    """A payload of a pickle, said to be compressed."""
    return bytes((1, 1, tag, 0)) + data


BOMB = bytes(20 * 2**20)


def bombs() -> Iterator[tuple[str, bytes]]:
    for kind in COMPRESSORS:
        yield kind.name, packed(kind.tag, kind().compress(BOMB))


def on_pickles() -> Iterator[Poison]:
    known = {
        "garbage": (b"garbage", "payload has version 103"),
        "nothing": (b"", "payload has 0 bytes"),
        "three bytes": (b"\x01\x01\x00", "payload has 3 bytes"),
        "no body": (b"\x01\x01\x00\x00", "can't be decoded with pickle: EOFError"),
        "another version": (
            b"\x63\x01\x00\x00" + pickle.dumps([[], {}]),
            "payload has version 99; this worker reads 1",
        ),
        "version 0": (b"\x00\x01\x00\x00" + pickle.dumps([[], {}]), "payload has version 0"),
        "an unknown serializer": (b"\x01\x63\x00\x00[]", "made with unknown serializer 99"),
        "no serializer": (b"\x01\x00\x00\x00[]", "made with unknown serializer 0"),
        "another serializer": (b"\x01\x04\x00\x00[[], {}]", "made with json, but this queue takes only pickle"),
        "an unknown compressor": (packed(99, b"x"), "compressor 99"),
        "signed": (b"\x01\x01\x00\x01" + bytes(32), "is signed, and this queue has no secret"),
        "encrypted": (b"\x01\x01\x00\x02" + bytes(40), "is encrypted, and this queue has no secret"),
        "unknown flags": (b"\x01\x01\x00\xff" + bytes(40), r"of an unknown kind \(flags 255\)"),
        "no call": (b"\x01\x01\x00\x00" + pickle.dumps(5), "can't be decoded with pickle: TypeError"),
        "half a call": (b"\x01\x01\x00\x00" + pickle.dumps([[]]), "can't be decoded with pickle: ValueError"),
        "args that are none": (b"\x01\x01\x00\x00" + pickle.dumps(["ab", {}]), "it is no call"),
        "kwargs that are none": (b"\x01\x01\x00\x00" + pickle.dumps([[], []]), "it is no call"),
        "too large": (b"\x01\x01\x00\x00" + bytes(2 * LIMIT), "200004 bytes, more than the queue's limit of 100000"),
        "a missing class": (b"\x01\x01\x00\x00cnowhere\nNo\x1bthing\n.", "No module named 'nowhere'"),
    }
    for name, (data, reason) in known.items():
        yield Poison(name, "pickle", payload(data), reason)
    for kept in (5, 12, -20, -1):
        yield Poison(f"cut at {kept}", "pickle", altered(lambda data, kept=kept: data[:kept]), "can't be decoded")  # type: ignore[misc]
    for kind, data in bombs():
        yield Poison(f"a bomb of {kind}", "pickle", payload(data), "inflates to more than the queue's limit of 100000")
        yield Poison(
            f"half a bomb of {kind}", "pickle", payload(data[: len(data) // 2]), "inflates|can't be decompress"
        )
    small = pickle.dumps([[], {}])
    for name, data in {
        "broken zlib": packed(1, b"\0" + zlib.compress(small)[1:]),
        "cut gzip": packed(2, gzip.compress(small)[:-3]),
        "bzip2 with a tail": packed(3, bz2.compress(small) + b"tail"),
        "empty lzma": packed(4, b""),
        "lzma of another kind": packed(4, lzma.compress(small, lzma.FORMAT_ALONE)),
    }.items():
        yield Poison(name, "pickle", payload(data), "can't be decompressed with")


def on_plain_data() -> Iterator[Poison]:
    def json_(text: str) -> Callable[[Message, Queue, str], Message]:
        return payload(b"\x01\x04\x00\x00" + text.encode())

    def msgpack_(data: bytes) -> Callable[[Message, Queue, str], Message]:
        return payload(b"\x01\x03\x00\x00" + data)

    def leave_a_mark(good: Message, queue: Queue, mark: str) -> Message:
        return good._replace(payload=b"\x01\x01\x00\x00" + pickle.dumps([[Mark(mark)], {}]))

    def disguise(good: Message, queue: Queue, mark: str) -> Message:
        return good._replace(payload=queue.codec.encode((), {})[:4] + pickle.dumps([[Mark(mark)], {}]))

    for name in ("json", "msgpack", "open"):
        yield Poison("a pickle", name, leave_a_mark, "was made with pickle, but this queue takes only")
        yield Poison("a pickle that says it is none", name, disguise, "can't be decoded with")
    for text, reason in {
        "[" * 10_000: "RecursionError",
        "[[" + "[" * 150 + "]" * 150 + "], {}]": "nested more than 100 deep",
        "[[NaN], {}]": "JSON has no number NaN",
        f"[[{'9' * 5000}], {{}}]": "ValueError",
        "[[], {}, 5]": "it is no call",
        "[{}, {}]": "it is no call",
        "null": "TypeError",
        "[[], {}": "JSONDecodeError",
        "": "JSONDecodeError",
    }.items():
        yield Poison(f"json {text[:9]}", "json", json_(text), reason)
    yield Poison("no utf-8", "json", payload(b"\x01\x04\x00\x00\xff\xfe"), "UnicodeDecodeError")
    for data, reason in {
        b"\x91" * 10_000: "can't be decoded with msgpack",
        b"\xc7\x01\x01" * 3000: "can't be decoded with msgpack",
        b"\xdd\xff\xff\xff\xff": "can't be decoded with msgpack",
        b"\x92\x91\xd4\x63\x00\x80": "extended type 99",
        b"\x92\x91\xd4\x04\xff\x80": "can't be decoded with msgpack",
        b"\xc1": "can't be decoded with msgpack",
    }.items():
        yield Poison(f"msgpack {data[:3].hex()}", "msgpack", msgpack_(data), reason)
    listed = r"is not on this queue's list of what may be run: tests\.workers\.tasks\.\*"
    for name in ("json", "msgpack"):
        yield Poison("a path that is not listed", name, path("os:system"), f"os:system {listed}")
        yield Poison("a path through", name, path("tests.workers.tasks:os.system"), "posix.system, which is not on")
    yield Poison("a path that is not decorated", "open", path("os:system"), "os:system is not decorated with @delayed")


def on_sealed() -> Iterator[Poison]:
    def unsigned(good: Message, queue: Queue, mark: str) -> Message:
        return good._replace(payload=b"\x01\x01\x00\x00" + pickle.dumps([[Mark(mark)], {}]))

    def wrong(good: Message, queue: Queue, mark: str) -> Message:
        other = Queue(queue.name, queue.broker, secret=OTHER, encrypt=queue.codec.seals.encrypt)  # type: ignore[union-attr]
        bare = good._replace(payload=b"\x01\x01\x00\x00" + pickle.dumps([[Mark(mark)], {}]))
        return other.codec.seal(bare)

    def moved(good: Message, queue: Queue, mark: str) -> Message:
        return good._replace(payload=queue.codec.seal(bare(good)._replace(id=good.id + 10**6)).payload)

    def from_elsewhere(good: Message, queue: Queue, mark: str) -> Message:
        other = Queue("elsewhere", queue.broker, secret=SECRET, encrypt=queue.codec.seals.encrypt)  # type: ignore[union-attr]
        return other.codec.seal(bare(good))

    def another_function(good: Message, queue: Queue, mark: str) -> Message:
        return good._replace(func="tests.workers.tasks:fail")

    def another_header(good: Message, queue: Queue, mark: str) -> Message:
        raw = Raw(*good)
        raw.raw = good.header() + b" "
        return raw

    def sealed_bomb(good: Message, queue: Queue, mark: str) -> Message:
        seals, name = queue.codec.seals, queue.name.encode()
        assert isinstance(seals, Seals)
        bomb = packed(1, zlib.compress(BOMB))
        return good._replace(payload=seals.seal(about(TASK, name, good.id, good.header()), bomb))

    other_words = "but not with a secret of this queue, or"
    for name in ("signed", "encrypted"):
        yield Poison("unsigned", name, unsigned, "is unsigned, and this queue has a secret")
        yield Poison("a wrong secret", name, wrong, other_words)
        yield Poison("of another task", name, moved, other_words)
        yield Poison("of another queue", name, from_elsewhere, other_words)
        yield Poison("another function", name, another_function, other_words)
        yield Poison("an altered header", name, another_header, other_words)
        yield Poison("a sealed bomb", name, sealed_bomb, "inflates to more than")
        yield Poison("unknown flags", name, altered(lambda data: data[:3] + b"\x03" + data[4:]), "the flags 3")
        yield Poison("a flipped bit", name, altered(lambda data: data[:-1] + bytes((data[-1] ^ 1,))), other_words)
        yield Poison("another serializer", name, altered(lambda data: b"\x01\x04" + data[2:]), other_words)
        yield Poison("a cut seal", name, altered(lambda data: data[:20]), other_words)
        yield Poison("only a seal", name, altered(lambda data: data[:36]), other_words)
        yield Poison("nothing", name, payload(b""), "payload has 0 bytes")
        yield Poison("too large", name, altered(lambda data: data + bytes(2 * LIMIT)), "more than the queue's limit")


def bare(good: Message) -> Message:
    return good._replace(payload=b"\x01\x01\x00\x00" + pickle.dumps([[], {}]))


# -- headers -----------------------------------------------------------------------------------------------------------

WELL = {"v": 1, "f": "tests.workers.tasks:mark"}
NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "-1", f"1{'0' * 400}", '"5"', "[]", "{}", "true"]
WRONG = {
    "t": (NUMBERS, "has the timeout .*, which is not a number of seconds"),
    "p": ([*NUMBERS[:4], "40000", "-40000", "1.5", '"5"', "null", "[]"], "has the priority .*, which is not a whole"),
    "d": ([*NUMBERS, "null", "1e12"], "has the delay .*, which is not a number of seconds"),
    "e": ([*NUMBERS[:4], f"1{'0' * 400}", "null", '"now"', "false"], "has the enqueued_at .*, which is not a time"),
    "m": (["0", *NUMBERS, "1.5", "null", "2147483648"], "has the max_deliveries .*, which is not a whole number"),
    "k": (["5", "[]", "true"], "has the key .*, which is not text"),
    "x": (["5", "{}"], "has the trace .*, which is not text"),
    "r": (
        ["5", "[]", '"3"', "true", '{"max": "3"}', '{"max": -2}', '{"max": 1.5}', '{"max": NaN}', '{"max": true}']
        + [f'{{"max": 1, "{key}": {value}}}' for key in ("delay", "factor", "max_delay") for value in NUMBERS[:9]]
        + [f'{{"max": 1, "{key}": 1e10}}' for key in ("delay", "max_delay")]
        + [f'{{"max": 1, "pauses": [1, {value}]}}' for value in (*NUMBERS, "null")]
        + [f'{{"max": 1, "{key}": {value}}}' for key in ("on", "never") for value in ("5", '"a"', "[5]", '[""]', "{}")]
        + ['{"max": 1, "never": null}', '{"max": 1, "policy": 5}', '{"max": 1, "policy": "a\\nb"}']
        + ['{"max": 1, "step": null}', '{"max": 1, "jitter": "yes"}', '{"max": 1, "until": 5}'],
        "has the retry .*, which is not a retry policy that this version knows",
    ),
    "l": (
        ["5", "[]", '{"disk": 5}']
        + [f'{{"{key}": {value}}}' for key in ("cpu", "memory") for value in ["0", *NUMBERS]],
        "has the limits .*, which is not limits that this version knows",
    ),
    "a": ([*NUMBERS, "0", "1e12"], "has the keep .*, which is not a number of seconds above 0"),
    "f": (
        ["null", "5", "[]", '""', f'"{"a" * 60_000}:c"']
        + [f'"a\\u{code}b:c"' for code in ("0000", "000a", "001b", "007f", "0085", "2028", "d800", "dc80")],
        "has the func .*, which is not the path of a function",
    ),
    "v": (["99", "0", "null", '"1"', "true", "1.0", "[]", "{}", "NaN", f"1{'0' * 400}"], "has version .*; this worker"),
}
BROKEN = {
    b"": "can't be read: JSONDecodeError",
    b"garbage": "can't be read: JSONDecodeError",
    b"\xff\xfe\x00": "can't be read: UnicodeDecodeError",
    b"null": "is not one JSON object: 'null'",
    b"5": "is not one JSON object",
    b'"text"': "is not one JSON object",
    b"[]": "is not one JSON object",
    b"[" * 10_000: "can't be read: RecursionError",
    b'{"v":1,"f":"a:b"} more': "is not one JSON object",
    b'{"v":1,"f":"a:b"': "can't be read: JSONDecodeError",
    b'{"v":1}': "has no function path",
    b'{"f":"a:b"}': "has version None",
    b"{}": "has version None",
    b'{"v":1,"f":"a:b","t":' + b"9" * 5000 + b"}": "can't be read: ValueError",
    b'{"v":1,"f":"a:b","new":NaN}': "can't be handed on",
    b'{"v":1,"f":"a:b","new":1e999}': "can't be handed on",
    b'{"v":1,"f":"a:b","new":' + b"[" * 10_000 + b"]" * 10_000 + b"}": "can't be read: RecursionError",
    b'{"v":1,"f":"a:b","k":"' + b"x" * 10_000_000 + b'"}': r"has \d+ bytes, and may have 65536",
}


def headers() -> Iterator[tuple[str, bytes, str]]:
    """(name, header, reason) of each."""
    for header, reason in BROKEN.items():
        yield repr(header[:24]), header, reason
    for key, (values, reason) in WRONG.items():
        for value in values:
            fields = {each: json.dumps(well) for each, well in WELL.items()} | {key: value}
            text = "{" + ",".join(f'"{each}":{text}' for each, text in fields.items()) + "}"
            yield f"{key} {value[:24]}", text.encode(), reason


def in_headers() -> Iterator[Poison]:
    for name, header, reason in headers():

        def make(good: Message, queue: Queue, mark: str, header: bytes = header) -> Message:
            raw = Raw(*good)
            raw.raw = header
            return raw

        yield Poison(f"header {name}", "pickle", make, reason)


POISONS = [*on_pickles(), *on_plain_data(), *on_sealed(), *in_headers()]


@delayed(Queue("unused", "memory://poisons"))
def decorated(ledger: str, word: str) -> None:
    tasks.note(ledger, word)


def good(queue: Queue, ledger: str, word: str, id: int) -> Message:
    """A message that notes a word."""
    task = queue.task(decorated if queue.codec.plain and queue.codec.allow is None else tasks.mark, ledger, word)
    return task.to_message(queue.codec, id, 60.0)
