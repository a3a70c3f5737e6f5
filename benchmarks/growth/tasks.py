"""What the workers run, beside :mod:`benchmarks.peers.work`: everybody notes what he does in the same folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator

from benchmarks.peers import work

SLEPT = "slept"


def take(data: bytes) -> None:
    """Has got it."""
    work.count()


@contextlib.contextmanager
def _noting(name: str) -> Iterator[None]:
    """Notes in that file the process and the time when it begins, and the time when it ends by an exception."""
    work.note(name, f"{os.getpid()} {time.monotonic()}")
    try:
        yield
    finally:
        work.note(name, f"{time.monotonic()}")


def spin(name: str) -> None:
    with _noting(name):
        while True:
            pass


def match(name: str) -> None:
    """C code that holds the GIL, and looks at signals now and then."""
    import re

    with _noting(name):
        re.match(r"(a+)+$", "a" * 40 + "b")


def consume(name: str) -> None:
    """C code that holds the GIL, and never looks at signals."""
    import collections
    import itertools

    with _noting(name):
        collections.deque(itertools.repeat(0), maxlen=0)


def sleep(seconds: float) -> None:
    begun = time.monotonic()
    time.sleep(seconds)
    work.note(SLEPT, f"{begun} {time.monotonic()}")


async def sleep_async(seconds: float) -> None:
    begun = time.monotonic()
    await asyncio.sleep(seconds)
    work.note(SLEPT, f"{begun} {time.monotonic()}")
