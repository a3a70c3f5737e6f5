"""Writes the golden files: ``python -m tests.golden.make``.

They show that a later version reads what an earlier one has written. So what is in them is never written again: this
adds what is missing (a new serializer, say), and changes nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from delayed.codec import Codec
from delayed.compressors import COMPRESSORS
from delayed.message import Message
from delayed.serializers import Pickle

FOLDER = Path(__file__).parent
QUEUE, ID, SECRET = "golden", 4_611_686_018, "the golden secret"
FUNC = "app.tasks:add"
ARGS: list[Any] = [1, "é", [None, True, -2.5]]
KWARGS: dict[str, Any] = {"name": {"key": "x" * 400}}
ANSWER: Any = {"sum": [3, "é"], "log": "x" * 400}


class Pickle4(Pickle):
    """What Python 3.8 and later write unless told otherwise."""

    def __init__(self) -> None:
        super().__init__(4)


class Pickle5(Pickle):
    """The highest protocol of Python 3.8 to 3.14 at least."""

    def __init__(self) -> None:
        super().__init__(5)


SERIALIZERS: dict[str, Any] = {
    "pickle4": Pickle4,
    "pickle5": Pickle5,
    "cloudpickle": "cloudpickle",
    "msgpack": "msgpack",
    "json": "json",
}
SEALS: dict[str, dict[str, Any]] = {
    "bare": {"secret": []},
    "signed": {"secret": SECRET},
    "encrypted": {"secret": SECRET, "encrypt": True},
}
HEADERS = {
    "least": Message(1, FUNC, b""),
    "usual": Message(1, FUNC, b"", timeout=600.0, enqueued_at=1767225600.123),
    "retry": Message(
        1,
        FUNC,
        b"",
        retry={"max": 3, "delay": 1.0, "factor": 2.0, "max_delay": 600.0, "jitter": True},
        max_deliveries=14,
    ),
    "later": Message(1, FUNC, b"", delay=90.5, priority=-3),
    "all": Message(
        1,
        "/srv/app/é.py:Class.method",
        b"",
        timeout=10,
        priority=7,
        delay=1,
        enqueued_at=1767225600.0,
        retry={"max": -1, "delay": 1.0, "factor": 1.0, "max_delay": 60.0, "jitter": False, "step": 5.0}
        | {"pauses": [1.0, 5.0], "on": ["OSError"], "never": ["app.Never"], "policy": "app.tasks:again"},
        max_deliveries=2147483647,
        key="order 7 \u2713",
        trace="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        limits={"memory": 536870912, "cpu": 30},
        keep=3600.0,
        extra={"zz": {"of": ["a later version"]}},
    ),
    "expires": Message(1, FUNC, b"", expires=1.8e9),
    "exclusive": Message(1, FUNC, b"", exclusive=True),
    "gates": Message(
        1,
        FUNC,
        b"",
        max_deliveries=2147483647,
        gates={"after": {"golden": [1, 9007199254740991]}, "with": 2, "limit": ["the bank:7", 3, 0.05], "runs": 11},
    ),
    "by value": Message(1, "cloudpickle:main.<locals>.<lambda>", b""),
}


def codec_of(serializer: str, compressor: str, seal: str) -> Codec:
    """The codec of a golden payload."""
    squeeze = None if compressor == "plain" else compressor
    return Codec(SERIALIZERS[serializer], queue=QUEUE, compressor=squeeze, compress_above=0, **SEALS[seal])


def kinds() -> Iterator[tuple[str, str, str]]:
    """(serializer, compressor, seal) of each payload."""
    for serializer in SERIALIZERS:
        for compressor in ("plain", *(kind.name for kind in COMPRESSORS)):
            for seal in SEALS:
                yield serializer, compressor, seal


def call(kind: tuple[str, str, str]) -> str:
    codec = codec_of(*kind)
    return codec.seal(Message(ID, FUNC, codec.encode(ARGS, KWARGS))).payload.hex()


def answer(kind: tuple[str, str, str]) -> str:
    return codec_of(*kind).encode_result(ID, ANSWER).hex()


def add(file: str, fresh: dict[str, Any]) -> None:
    path = FOLDER / file
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(fresh | known, indent=0) + "\n")


def main() -> None:
    add("calls.json", {" ".join(kind): call(kind) for kind in kinds()})
    add("answers.json", {" ".join(kind): answer(kind) for kind in kinds() if kind[1] in ("plain", "zlib")})
    add("headers.json", {name: message.header().hex() for name, message in HEADERS.items()})


if __name__ == "__main__":
    main()
