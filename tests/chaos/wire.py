"""What goes over the wire to a store, read far enough to say which operation of a broker a request is.

reserve, enqueue, claim, settle, renew, held, sweep, remove; a request may be several (a worker's turn settles and
claims), or none of these. How claims end is told too: done, retry, back, dead, and answer, if one is kept; and on
PostgreSQL where a transaction ends: commit. Redis's scripts are told apart by the keys that they are called with,
PostgreSQL's functions by their names, MongoDB's commands by what is in them (there also by their own names).
"""

from __future__ import annotations

import re
import struct
from abc import ABC, abstractmethod
from typing import NamedTuple


class Request(NamedTuple):
    """One request, whole.

    Attributes:
        ops: what it is.
        data: its bytes.
        replies: how many replies end it.
    """

    ops: frozenset[str]
    data: bytes
    replies: int


class Wire(ABC):
    """One connection, both its directions."""

    def __init__(self) -> None:
        self._sent = b""
        self._answered = b""

    def requests(self, data: bytes) -> list[Request]:
        """The requests that are complete with these bytes of the client's."""
        self._sent += data
        found = []
        while request := self._next_request():
            self._sent = self._sent[len(request.data) :]
            found.append(request)
        return found

    def replies(self, data: bytes) -> int:
        """How many replies are complete with these bytes of the server's."""
        self._answered += data
        count = 0
        while (end := self._end_of_reply(0)) is not None:
            count += self._counts(self._answered[:1])
            self._answered = self._answered[end:]
        return count

    @abstractmethod
    def _next_request(self) -> Request | None:
        """The first request that is not read yet; None if it is not complete."""

    @abstractmethod
    def _end_of_reply(self, start: int) -> int | None:
        """Where the answer that begins at `start` ends; None if it is not complete."""

    def _counts(self, kind: bytes) -> bool:
        return True


class RedisWire(Wire):
    """RESP 2, which our clients speak. A command is a list of texts."""

    def _next_request(self) -> Request | None:
        found = self._command(self._sent)
        if found is None:
            return None
        words, end = found
        if words[0].upper() == b"BLPOP":  # a script may follow it at once, as one request
            behind = self._command(self._sent[end:])
            if behind is not None:
                return Request(_redis_ops(behind[0]), self._sent[: end + behind[1]], 2)
        return Request(_redis_ops(words), self._sent[:end], 1)

    @staticmethod
    def _command(data: bytes) -> tuple[list[bytes], int] | None:
        line, end, _ = data.partition(b"\r\n")
        if not end:
            return None
        words, at = [], len(line) + 2
        for _ in range(int(line[1:])):
            stop = data.find(b"\r\n", at)
            if stop < 0:
                return None
            size = int(data[at + 1 : stop])
            at = stop + 2 + size + 2
            if at > len(data):
                return None
            words.append(data[at - 2 - size : at - 2])
        return words, at

    def _end_of_reply(self, start: int) -> int | None:
        data = self._answered
        stop = data.find(b"\r\n", start)
        if stop < 0:
            return None
        kind, at = data[start : start + 1], stop + 2
        if kind == b"$":
            size = int(data[start + 1 : stop])
            at += size + 2 if size >= 0 else 0  # -1 is none
            return at if at <= len(data) else None
        if kind == b"*":
            end: int | None = at
            for _ in range(int(data[start + 1 : stop])):
                if end is None:
                    return None
                end = self._end_of_reply(end)
            return end
        return at


def _redis_ops(words: list[bytes]) -> frozenset[str]:
    if words[0].upper() not in (b"EVAL", b"EVALSHA"):
        return frozenset()
    count = int(words[2])
    # Suffixes of a queue's name, which has none of these characters itself here.
    keys = {word.rpartition(b"_")[2] for word in words[3 : 3 + count]}
    values = words[3 + count :]
    if {b"prodt", b"workers"} <= keys:
        return frozenset({"sweep"})
    if b"prodt" in keys:
        return frozenset({"enqueue"})
    if b"last" in keys:
        return _work(claims=values[3] != b"0", ends=_redis_ends(values[7:]))
    if {b"held", b"claim", b"msg"} <= keys:
        return frozenset({"renew" if values[1] != b"0" else "held"})
    if keys == {b"id"}:
        return frozenset({"reserve"})
    if {b"dequeued", b"dead", b"noti"} <= keys:
        return frozenset({"remove"})
    return frozenset()


_REDIS_ENDS = {b"d": "done", b"r": "retry", b"b": "back", b"x": "dead"}


def _redis_ends(values: list[bytes]) -> set[str]:
    """How claims end, of how many answers there are, three values of each, and three of each settlement."""
    if not values:
        return set()
    answers = int(values[0])
    ends = {_REDIS_ENDS[action[:1]] for action in values[2 + 3 * answers :: 3]}
    return ends | {"answer"} if answers else ends


class PostgresWire(Wire):
    """The protocol of PostgreSQL, version 3, without encryption. A request ends with Sync, or is one Query."""

    _greeted = False

    def _next_request(self) -> Request | None:
        data = self._sent
        if not self._greeted:  # the first message has no letter
            if len(data) < 4 or len(data) < (size := int.from_bytes(data[:4], "big")):
                return None
            self._greeted = True
            return Request(frozenset(), data[:size], 1)
        at, ops = 0, frozenset[str]()
        while len(data) >= at + 5:
            kind, size = data[at : at + 1], 1 + int.from_bytes(data[at + 1 : at + 5], "big")
            if len(data) < at + size:
                return None
            body, at = data[at + 5 : at + size], at + size
            if kind in b"PQ":
                ops |= _postgres_ops(body)
            elif kind == b"B" and "work" in ops:
                ops = ops - {"work"} | _work_of_bind(body)
            if kind in b"SQXp":
                return Request(ops, data[:at], kind in b"SQp")
        return None

    def _end_of_reply(self, start: int) -> int | None:
        data = self._answered
        if len(data) < start + 5:
            return None
        end = start + 1 + int.from_bytes(data[start + 1 : start + 5], "big")
        return end if end <= len(data) else None

    def _counts(self, kind: bytes) -> bool:
        return kind == b"Z"  # ready for the next one


_FUNCTION = re.compile(rb"delayed_(reserve|enqueue|work|renew|held|sweep)(?:_once|_answered)?\(")
_REMOVE = re.compile(rb"DELETE FROM [^;]*delayed_task\s+WHERE [^;]*\(state \+ 0 = 3 AND ")
_COMMIT = re.compile(rb"(?:^|\0)COMMIT\0")


def _postgres_ops(statement: bytes) -> frozenset[str]:
    if b"CREATE FUNCTION" in statement:
        return frozenset()
    found = {name.decode() for name in _FUNCTION.findall(statement)}
    found |= {name for name, sign in (("remove", _REMOVE), ("commit", _COMMIT)) if sign.search(statement)}
    return frozenset(found)


def _work_of_bind(body: bytes) -> frozenset[str]:
    """Whether delayed_work() is called to claim, to settle, or both: by its parameters `room`, `ids_0`, `actions`."""
    at = body.index(b"\0", body.index(b"\0") + 1) + 1
    (count,) = struct.unpack_from(">H", body, at)
    formats = struct.unpack_from(f">{count}H", body, at + 2)
    at += 2 + 2 * count
    (count,) = struct.unpack_from(">H", body, at)
    at += 2
    values = []
    for _ in range(count):
        (size,) = struct.unpack_from(">i", body, at)
        values.append(body[at + 4 : at + 4 + max(size, 0)])
        at += 4 + max(size, 0)
    room = values[16]
    claims = int.from_bytes(room, "big") > 0 if formats[16 % len(formats)] else room != b"0"
    ends = {name.decode() for name in re.findall(rb"retry|back|dead", values[9])}
    if values[2] != b"{}":  # an array, which is sent as text if it is empty
        ends.add("done")
    return _work(claims=claims, ends=ends | {"answer"} if len(values) > 18 else ends)


def _work(claims: bool, ends: set[str]) -> frozenset[str]:
    return frozenset(ends | {name for name, is_it in (("claim", claims), ("settle", bool(ends))) if is_it})


class MongoWire(Wire):
    """OP_MSG, without compression. What a driver asks again and again by itself, ``hello``, may have many replies."""

    _MESSAGE = 2013
    _NO_REPLY = 2  # a flag: the client expects none

    def _next_request(self) -> Request | None:
        data = self._sent
        if (size := self._size(data, 0)) is None:
            return None
        whole = data[:size]
        if struct.unpack_from("<i", whole, 12)[0] != self._MESSAGE or whole[20] != 0:
            return Request(frozenset(), whole, 1)
        name = whole[26 : whole.index(b"\0", 26)].decode()  # of the first element of the command
        return Request(frozenset({name, *_mongo_ops(name, whole)}), whole, 0 if whole[16] & self._NO_REPLY else 1)

    def _end_of_reply(self, start: int) -> int | None:
        size = self._size(self._answered, start)
        return None if size is None else start + size

    @staticmethod
    def _size(data: bytes, start: int) -> int | None:
        """How long the message is that begins there; None if it is not complete."""
        if len(data) < start + 4:
            return None
        size: int = struct.unpack_from("<i", data, start)[0]
        return size if len(data) >= start + size else None


_SESSION = re.compile(rb"\x02_id\0....s/", re.DOTALL)
_CLAIMER = re.compile(rb"\x02_id\0....c/", re.DOTALL)
_HELD = re.compile(rb"\x02s\0....h/", re.DOTALL)  # in a condition: what is set is a $literal
_LOSS = b"\x10l\0\x01\0\0\0"
_HELD_BY = re.compile(rb"\x02w\0.*\x02\d\0....h/", re.DOTALL)
_WAITS = re.compile(rb"\x02(?:s|\d|\$literal)\0....[rl]/", re.DOTALL)
_ANSWERS = re.compile(rb"\x02\$literal\0....a/", re.DOTALL)
_UNCHARGED = (b"\x10a\0\xff\xff\xff\xff", b"$subtract")  # one attempt less


def _mongo_ops(name: str, command: bytes) -> frozenset[str]:
    if name == "findAndModify" and b"delayed_queues" in command:
        return frozenset({"sweep" if b"untidy" in command else "reserve"})
    if name == "commitTransaction":
        return frozenset({"commit"})
    if name == "find" and b"delayed_tasks" in command and _HELD_BY.search(command):
        return frozenset({"held"})
    if name not in ("update", "delete"):
        return frozenset()
    if b"delayed_leases" in command:
        return frozenset({"sweep" if b"$ifNull" in command else "renew"})
    if b"delayed_tasks" not in command:
        return frozenset()
    if _SESSION.search(command):
        return frozenset({"enqueue"})
    if _CLAIMER.search(command):
        return frozenset({"claim"})
    if _HELD.search(command):
        return frozenset({"sweep"} if _LOSS in command else {"settle", _mongo_end(name, command)})
    return frozenset({"remove"} if name == "delete" and _WAITS.search(command) else ())


def _mongo_end(name: str, command: bytes) -> str:
    """Which kind of settlement it is; of several, one of them."""
    if name == "delete":
        return "done"
    if _ANSWERS.search(command):
        return "answer"
    if any(sign in command for sign in _UNCHARGED):
        return "back"
    return "retry" if _WAITS.search(command) else "dead"


WIRES: dict[str, type[Wire]] = {"redis": RedisWire, "postgresql": PostgresWire, "mongodb": MongoWire}
