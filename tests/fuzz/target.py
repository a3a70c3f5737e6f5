"""Fuzzes one decoder: ``python -m tests.fuzz.target NAME [libFuzzer's options]``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["delayed", "tests.fuzzed"]):
    from delayed.compressors import COMPRESSORS
    from tests import fuzzed


def payload_of(name: str) -> tuple[Callable[[bytes], object], list[bytes]]:
    codec = fuzzed.CODECS[name]
    message = fuzzed.message_of(codec, 1, {"b": [2.5, "é"]})

    def check(data: bytes) -> None:
        was_read = fuzzed.payload(codec, message, data)
        sealed = codec.seals is not None and not codec.accept_unsigned
        assert not (was_read and sealed and data != message.payload), "a seal was forged"
        fuzzed.result(codec, data)

    return check, [message.payload, *(message.payload[:4] + body for body in GOOD[name.partition("-")[0]])]


def schedule_of(name: str) -> tuple[Callable[[bytes], object], list[bytes]]:
    codec = fuzzed.CODECS[name]
    return lambda data: fuzzed.schedule(codec, data), fuzzed.schedules_of(codec)


def compressed_by(name: str) -> tuple[Callable[[bytes], object], list[bytes]]:
    compressor = COMPRESSORS.make(name)
    return lambda data: fuzzed.inflated(name, data), [compressor.compress(data) for data in GOOD["inflated"]]


def frame_of(name: str) -> tuple[Callable[[bytes], object], list[bytes]]:
    # An empty packet is read as the end of the channel.
    return lambda data: fuzzed.frame(name, data or b"\0"), GOOD[name]


GOOD = fuzzed.good()
# What a name stands for: the check, and what it begins with.
TARGETS: dict[str, Callable[[], tuple[Callable[[bytes], object], list[bytes]]]] = {
    "header": lambda: (fuzzed.header, GOOD["header"]),
    "extended": lambda: (fuzzed.extended, GOOD["extended"]),
    "verdict": lambda: (fuzzed.verdict, GOOD["verdict"]),
    **{f"frame-{name}": lambda name=name: frame_of(name) for name in fuzzed.FRAMES},  # type: ignore[misc]
    **{f"payload-{name}": lambda name=name: payload_of(name) for name in fuzzed.CODECS},  # type: ignore[misc]
    **{f"schedule-{name}": lambda name=name: schedule_of(name) for name in fuzzed.CODECS},  # type: ignore[misc]
    **{f"inflate-{kind.name}": lambda name=kind.name: compressed_by(name) for kind in COMPRESSORS},  # type: ignore[misc]
}


def main(name: str, options: list[str]) -> None:
    check, seeds = TARGETS[name]()
    folder = Path(tempfile.mkdtemp(prefix="delayed-fuzz-"))
    for number, seed in enumerate(seeds):
        (folder / str(number)).write_bytes(seed)

    def one(data: bytes) -> None:
        check(data)

    atheris.Setup([sys.argv[0], *options, str(folder)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
