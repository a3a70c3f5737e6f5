"""A log that many processes append to, any of which may be killed at any moment."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LINE_MAX = 512  # bytes of a record, so that one write() appends it whole
LEDGER, ENQUEUED, NEMESIS = "ledger", "enqueued", "nemesis"  # the names of the three logs' files

Record = Mapping[str, Any]  # "what" it says, "at" what time, and more


class TornRecord(Exception):
    """Raised when a log has a line that nobody can have written whole."""


def now() -> float:
    """Seconds since the host started, suspended time included: the same clock in every process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def note(path: str | os.PathLike[str], what: str, **facts: Any) -> None:
    """Append one record.

    The file is opened for each, because a task may close what it does not know; it is not synced, because the death of
    a process takes nothing from the page cache.
    """
    text = json.dumps({"what": what, "at": round(now(), 6), **facts}, separators=(",", ":")).encode()
    line = b"%08x %b\n" % (zlib.crc32(text), text)
    assert len(line) <= LINE_MAX, f"a record of {len(line)} bytes: {line!r}"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, line)
    finally:
        os.close(file)


def read(path: str | os.PathLike[str]) -> list[Record]:
    """All records so far, in the order in which they were appended; none if there is no such file.

    Raises:
        TornRecord: When a line's checksum is wrong.
    """
    if not os.path.exists(path):
        return []
    lines, _, _unfinished = Path(path).read_bytes().rpartition(b"\n")
    return [_parse(line) for line in lines.splitlines()]


class Tail:
    """A log that is read while it grows."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> list[Record]:
        """The records since the last call. Raises as :func:`read`."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                lines, end, _unfinished = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._offset += len(lines) + len(end)
        return [_parse(line) for line in lines.splitlines()]


def _parse(line: bytes) -> Record:
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        raise TornRecord(f"a record with a wrong checksum: {line!r}")
    found: Record = json.loads(text)
    return found
