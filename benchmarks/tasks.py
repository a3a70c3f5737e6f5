"""What the measured workers run."""

from __future__ import annotations

import os
import time


def nothing() -> None:
    pass


def note_time(path: str) -> None:
    """Append the time of the system-wide clock, in nanoseconds."""
    now = time.monotonic_ns()
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, b"%d\n" % now)
    os.close(fd)


async def nothing_async() -> None:
    pass


async def sleep_and_note(path: str, seconds: float) -> None:
    """Sleep; append when that began and ended, and the process's CPU time then."""
    import asyncio

    begun, before = time.monotonic(), time.process_time()
    await asyncio.sleep(seconds)
    line = f"{begun} {time.monotonic()} {before} {time.process_time()}\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, line.encode())
    os.close(fd)
