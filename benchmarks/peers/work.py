"""The tasks, the same for all peers.

A task that is counted does nothing but write a byte to a file that is open already: a system call of about a
microsecond (it is in the table of limits), by which a run can be checked without asking the store. Imports as little
as possible.
"""

from __future__ import annotations

import os
import time

FOLDER = "PEERS_FOLDER"  # the environment variable with the folder of both files
COUNT, STAMPS = "count", "stamps"

_files: dict[str, int] = {}


def note(name: str, line: str) -> None:
    """Append a line to that file of the folder."""
    _append(name, line.encode() + b"\n")


def count() -> None:
    _append(COUNT, b".")


def stamp() -> None:
    """Note the time of the system-wide clock, in nanoseconds, as the first thing."""
    _append(STAMPS, b"%d\n" % time.monotonic_ns())


async def count_async() -> None:
    count()


async def stamp_async() -> None:
    stamp()


def _append(name: str, data: bytes) -> None:
    file = _files.get(name)
    if file is None:  # by each process for itself, when it needs it
        path = os.path.join(os.environ[FOLDER], name)
        file = _files[name] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, data)
