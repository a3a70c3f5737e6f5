"""What is kept of a task: the bytes that brokers store, and that handles read.

They are six bytes, and what these tell of::

    0  version, 1
    1  1 if the task has ended; 0 if its own transaction has committed and the rest of it still runs
    2  length of the verdict, 4 bytes, little-endian
    6… the verdict, JSON; then what the codec of its queue made of the result or the exception, or nothing

Whoever can write to the store can forge the verdict, which is for people to read. What counts is in the last part,
which is sealed if the queue has a secret: a result is one, and an exception is a :class:`Raised`.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from delayed.errors import DecodeError
from delayed.message import Answer
from delayed.worker import verdict
from delayed.worker.verdict import Verdict

VERSION = 1
_HEAD = Struct("<BBI")


class Raised(NamedTuple):
    """An exception on its way to whoever asks for the result."""

    error: Exception


class Kept(NamedTuple):
    """What is kept of a task.

    Attributes:
        verdict: how it ended.
        body: its result or exception, encoded; empty if there is none, or none that can be encoded.
        final: False as long as the task's own transaction has committed and the rest of it runs.
    """

    verdict: Verdict
    body: bytes
    final: bool


def pack(found: Verdict, body: bytes = b"", *, final: bool = True) -> bytes:
    """The bytes to be stored."""
    words = found.dump()
    return _HEAD.pack(VERSION, final, len(words)) + words + body


def unpack(data: bytes) -> Kept:
    """What :func:`pack` packed.

    Raises:
        DecodeError: When it is something else.
    """
    try:
        version, final, length = _HEAD.unpack_from(data)
        if version != VERSION:
            raise DecodeError(f"the answer has version {version}, and {VERSION} is read here: upgrade delayed")
        end = _HEAD.size + length
        return Kept(Verdict.load(data[_HEAD.size : end]), data[end:], bool(final))
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(f"the answer can't be read: {type(error).__name__}: {error}") from error


def cancelled(keep: float) -> Answer:
    """The answer of a task that was taken out of its queue before it ran."""
    return Answer(pack(Verdict(verdict.CANCELLED, text="cancelled before it began")), keep)


def committed(keep: float) -> Answer:
    """The answer of a task whose own transaction has committed, until it has ended."""
    return Answer(pack(Verdict(verdict.COMMITTED, text="its transaction has committed"), final=False), keep)
