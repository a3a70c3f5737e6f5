"""``python -m benchmarks.payloads [--write]``: what serializers and compressors cost and save.

Each figure is the best of several rounds of encoding, or decoding, the arguments of one task in one process. With
`--write` the tables replace those in docs/payloads.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from delayed.codec import Codec

PAGE = Path(__file__).parent.parent / "docs" / "payloads.md"
BEGIN, END = "<!-- measured by benchmarks/payloads.py -->", "<!-- end -->"
ROUNDS = 7
ROUND = 0.02  # seconds
TEXT = "the task of a queue waits until a worker takes it and runs it in a process that can be killed"
WORDS = TEXT.split()


def kinds() -> dict[str, tuple[Any, ...]]:
    """Arguments of several kinds, the same in each run."""
    rng = random.Random(1)

    def text(size: int) -> str:
        words: list[str] = []
        while sum(map(len, words)) + len(words) < size:
            words.append(rng.choice(WORDS))
        return " ".join(words)

    def record(number: int) -> dict[str, Any]:
        return {
            "id": number,
            "name": text(12),
            "price": round(rng.uniform(1, 100), 2),
            "tags": [rng.choice(WORDS) for _ in range(3)],
            "active": bool(number % 2),
            "parent": None,
        }

    return {
        'a small call: `(17, "ada@example.org")`': (17, "ada@example.org"),
        "20 records (dicts of text and numbers)": ([record(number) for number in range(20)],),
        "a page of 50 kB of text": (text(50_000),),
        "10,000 floats": ([rng.random() for _ in range(10_000)],),
        "200 kB of an image (random bytes)": (rng.randbytes(200_000),),
    }


def best(call: Callable[[], Any]) -> float:
    """Microseconds of a call, at best."""
    call()
    found = float("inf")
    for _ in range(ROUNDS):
        done, begun = 0, time.perf_counter()
        while True:
            call()
            done += 1
            taken = time.perf_counter() - begun
            if taken > ROUND:
                break
        found = min(found, taken / done)
    return found * 1e6


def tables() -> str:
    lines = [
        f"Measured with Python {platform.python_version()} on one core; microseconds for one task, bytes as the store "
        "has them.",
        "",
    ]
    for name, args in kinds().items():
        lines += [f"**{name}**", "", "| serializer | compressor | bytes | encode, µs | decode, µs |"]
        lines += ["| --- | --- | ---: | ---: | ---: |"]
        for serializer in ("pickle", "msgpack", "json"):
            if serializer == "json" and isinstance(args[0], bytes):
                continue
            for compressor in (None, "lz4", "zstd", "zlib", "bzip2", "lzma"):
                codec = Codec(serializer, compressor=compressor, secret=[])
                payload = codec.encode(args, {})
                if compressor and not payload[2]:
                    continue  # it is not compressed: too short, or no shorter
                encode = best(lambda codec=codec, args=args: codec.encode(args, {}))  # type: ignore[misc]
                decode = best(lambda codec=codec, payload=payload: codec.decode(payload))  # type: ignore[misc]
                lines.append(
                    f"| {serializer} | {compressor or 'none'} | {len(payload):,} | {encode:,.1f} | {decode:,.1f} |"
                )
        lines.append("")
    lines += ["**What a seal adds to the small call**", "", "| seal | bytes | seal, µs | open, µs |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    for name, settings in (("signed", {}), ("encrypted", {"encrypt": True})):
        lines.append(seal_line(name, Codec(secret=os.urandom(32), **settings), (17, "ada@example.org")))
    for name, settings in (("signed, 200 kB", {}), ("encrypted, 200 kB", {"encrypt": True})):
        lines.append(seal_line(name, Codec(secret=os.urandom(32), **settings), (os.urandom(200_000),)))
    return "\n".join(lines) + "\n"


def seal_line(name: str, codec: Codec, args: tuple[Any, ...]) -> str:
    assert codec.seals is not None
    payload, place = codec.encode(args, {}), b"x" * 120
    sealed, seals = codec.seals.seal(place, payload), codec.seals
    seal, opened = best(lambda: seals.seal(place, payload)), best(lambda: seals.open(place, sealed))
    return f"| {name} | +{len(sealed) - len(payload)} | {seal:,.1f} | {opened:,.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/payloads.md")
    found = tables()
    print(found)
    if parser.parse_args().write:
        page = PAGE.read_text()
        head, _, rest = page.partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n\n{found}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
