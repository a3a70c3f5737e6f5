"""Results on their way to the task that they are arguments of: from the guardian that found them to its child.

The guardian hands on the bytes of answers, and decodes none of them. They are the detail of the task's frame: a byte
that says whether one result or a list of them is passed, and for each the length of the queue's name, the id and the
length of the answer, these two, and so on.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import TYPE_CHECKING, Any

from delayed.answers import Raised
from delayed.errors import DecodeError

if TYPE_CHECKING:
    from delayed.codec import Codec

RESULT, RESULTS = 1, 2
_HEAD = Struct("<HQI")


def pack(passing: int, results: Iterable[tuple[str, int, bytes]]) -> bytes:
    """The detail of a frame.

    Args:
        passing: RESULT or RESULTS.
        results: (queue, id, what the codec of its queue made of the result) of each task.
    """
    parts = [bytes((passing,))]
    for queue, id, body in results:
        name = queue.encode()
        parts += [_HEAD.pack(len(name), id, len(body)), name, body]
    return b"".join(parts)


def unpack(detail: bytes, codec: Codec) -> Any:
    """What is passed: a result, or the list of them.

    Raises:
        DecodeError: When a result can't be decoded.
    """
    values = []
    at = 1
    while at < len(detail):
        length, id, size = _HEAD.unpack_from(detail, at)
        at += _HEAD.size
        name = detail[at : at + length].decode()
        at += length
        value = codec.decode_result(id, detail[at : at + size], name)
        at += size
        if isinstance(value, Raised):
            raise DecodeError(f"task {id} of queue {name!r} has no result, but an exception")
        values.append(value)
    return values[0] if detail[0] == RESULT else values
