"""The tasks of the demo, and the two handlers that note how each one ended."""

from __future__ import annotations

import bz2
import hashlib
import json
import lzma
import os
import re
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from delayed.demo.evidence import note
from delayed.task import Task

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"zlib": zlib.compress, "bz2": bz2.compress, "lzma": lzma.compress}
HASHES = ("sha256", "blake2b")

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def digest(path: str, method: str) -> None:
    """Hash a file."""
    note(result=hashlib.new(method, Path(path).read_bytes()).hexdigest(), path=path, method=method)


def compress(path: str, method: str) -> None:
    """Compress a file."""
    note(result=len(COMPRESSORS[method](Path(path).read_bytes())), path=path, method=method)


def parse(path: str) -> None:
    """Read a file as JSON, which fails."""
    note(result=json.loads(Path(path).read_text()), path=path, method="json")


def stick() -> None:
    """Backtrack for longer than anybody lives, in C code that holds the GIL."""
    note(result=str(re.match(r"(a+)+$", "a" * 40 + "b")), path="", method="re")


def die() -> None:
    """Be killed from outside, as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def succeeded(task: Task) -> None:
    """The worker's success handler."""
    note(id=task.id, verdict="succeeded")


def failed(task: Task, kill_signal: int | None, exc_info: ExcInfo | None) -> None:
    """The worker's error handler."""
    verdict = task.verdict
    if verdict is None:  # never; but a verdict that is missing must show in the sum
        return
    kind = verdict.kind if verdict.kind in ("timed out", "killed") else "failed"
    note(id=task.id, verdict=kind, text=str(verdict), stack=verdict.stack or verdict.traceback)
