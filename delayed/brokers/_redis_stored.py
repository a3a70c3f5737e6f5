"""How messages are stored in Redis, and how the claimed ones are read: each is the length of its header (4 bytes,
big-endian), the header, the payload, and perhaps one byte more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import Any, overload

from delayed.brokers._redis_client import Packed
from delayed.message import Claim, Message, Series

# In the length of a header: behind the payload follows one byte more, which is another in the next message. Messages
# pass through Lua, which files long strings by some of their bytes, always the last among them, and looks one by one
# through those that have all of these in common. Where tasks differ in a small number only, that took six times as long
# as all the rest.
_MARK = 1 << 31
READY_MAX = 1 << 22  # bytes of messages that are kept twice until it is their turn


def stored(messages: Iterable[Message]) -> list[bytes | int]:
    """The arguments for messages that are to be stored: the id of each, and itself."""
    args: list[bytes | int] = []
    for id, head, payload in _parts(messages):
        end = id + (id >> 11) & 255  # behind the eleventh bit is the time when it was reserved, see reserve_ids.lua
        args += (id, b"%b%b%c" % (head, payload, end))
    return args


def _parts(messages: Iterable[Message]) -> Iterable[tuple[int, bytes, bytes]]:
    """Of each message its id, its header behind the length of that, and its payload."""
    if isinstance(messages, Series):
        return zip(messages.ids, repeat(_head(messages.header), len(messages)), messages.payloads, strict=True)
    return _parts_of_each(messages)


def _parts_of_each(messages: Iterable[Message]) -> Iterator[tuple[int, bytes, bytes]]:
    last, head = None, b""
    for message in messages:
        header = message.header()
        if header is not last:  # that of calls in the same millisecond is one object
            last, head = header, _head(header)
        yield message.id, head, message.payload


def _head(header: bytes) -> bytes:
    return (_MARK | len(header)).to_bytes(4, "big") + header


class Ready(Sequence[Message]):
    """Messages as they are, and as they are sent to be stored.

    Attributes:
        packed: the arguments for them.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages = messages
        self.packed = Packed(partial(stored, messages))

    @classmethod
    def of(cls, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages, ready if they do not take much memory twice."""
        if isinstance(messages, Series):
            size = sum(map(len, messages.payloads)) + len(messages.header) * len(messages)
        else:
            size = sum(len(each.payload) + len(each.header()) for each in messages)
        return cls(messages) if size <= READY_MAX else messages

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self._messages)

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | Sequence[Message]:
        return self._messages[index]


def split(message: bytes) -> tuple[bytes, bytes]:
    """The header and the payload of a stored message; what it says of itself may be wrong."""
    marked, length = divmod(int.from_bytes(message[:4], "big"), _MARK)
    end = len(message) - marked
    middle = min(4 + length, end)
    return message[4:middle], message[middle:end]


class Claims(Sequence[Claim]):
    """The claims in answers of ``lua/work.lua``. They are read when somebody looks at one, for that takes a while in
    which the store may have been asked for more.
    """

    def __init__(self) -> None:
        self._size = 0
        self._unread: list[tuple[str, int, list[bytes], Sequence[bytes]]] = []
        self._read: list[Claim] = []

    def add(self, queue: str, nonce: int, answer: Sequence[Any]) -> None:
        """Those of one answer more."""
        ids = answer[2].split()
        self._size += len(ids)
        self._unread.append((queue, nonce, ids, answer[3:7]))

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Claim: ...
    @overload
    def __getitem__(self, index: slice) -> list[Claim]: ...
    def __getitem__(self, index: int | slice) -> Claim | list[Claim]:
        return self._all()[index]

    def __iter__(self) -> Iterator[Claim]:
        return iter(self._all())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._all() == list(other)

    def _all(self) -> list[Claim]:
        while self._unread:
            found = list(_claims(*self._unread[0]))
            del self._unread[0]
            self._read += found
        return self._read


def _claims(queue: str, nonce: int, ids: list[bytes], answer: Sequence[bytes]) -> Iterator[Claim]:
    """Those with these ids in a part of an answer: deliveries, attempts (empty: all are 1), sizes, messages."""
    deliveries, attempts = (map(int, it.split()) if it else repeat(1, len(ids)) for it in answer[:2])
    messages = answer[3]
    at, new = 0, tuple.__new__
    # How the last one begins, up to its payload: often the next one does so too, and gets the same object as a header.
    same, header, marked = None, b"", 0
    for id, delivery, attempt, size in zip(
        map(int, ids), deliveries, attempts, map(int, answer[2].split()), strict=True
    ):
        end = at + size
        if same is not None and messages.startswith(same, at, end - marked):
            payload = messages[at + len(same) : end - marked]
        else:
            message = messages[at:end]
            header, payload = split(message)
            marked, length = divmod(int.from_bytes(message[:4], "big"), _MARK)
            same = message[: 4 + length] if 4 + length + marked <= size else None  # else what it says is wrong
        yield new(Claim, (queue, id, delivery, nonce, attempt, header, payload))
        at = end
