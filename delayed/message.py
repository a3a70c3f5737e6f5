"""What brokers store and hand out: all that they know of a task.

Named tuples, not dataclasses: the module `dataclasses` brings `inspect`, and what a fork server has loaded makes each
of its forks slower (`benchmarks/`).

A message is a header, which brokers, workers and tools read, and a payload, which only the child that runs the
task decodes. On the wire the header is compact JSON with short keys (only what differs from the default is
written), so that a script in any language can read it beside the payload; docs/wire-format.md has all of it:

    v version · f function path · t timeout (s) · p priority · e enqueued_at (unix s) · d delay (s)
    r retry policy (plain data) · m max deliveries · k key · x trace context
    l limits of a run, {"memory": bytes, "cpu": s}, either of them or both · a how long its answer is kept (s)
    u when it expires (unix s) · o whether it may never run in two places at once
    gu gates, {"limit": …, "after": …}: what has to be so before it runs
    and what later versions add
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, overload

from delayed.errors import DecodeError, NewerFormat, NotEnqueueable
from delayed.fields import FIELDS, ID_MAX, short

HEADER_VERSION = 1
NEWER_PAUSE = 30.0  # seconds before a message that only a later version can read may be claimed again
NEWER = 8  # formats from the one that is known on that are taken for later versions'; beyond there is garbage
HEADER_MAX = 65536  # bytes
DEFAULT_MAX_DELIVERIES = 11  # one run and ten deaths of its watchers, then a message counts as poison
# Deliveries of a dead letter that is revived go on at the next multiple of this, so that their number is never lowered
# (it is a part of the token, and what tasks fence their own writes with), and yet counts anew. Up to a limit, for some
# stores have 32 bits for it.
LIFE = 1_000_000
LIVES_END = 2_000_000_000

COUNT_MAX = (1 << 31) - 1  # deliveries, or attempts, that every store has room for
NONCE_MAX = (1 << 64) - 1

KEEP_MIN = 0.001  # seconds that an answer is kept for at least
NOTES_MAX = 20  # attempts of a task that a store has a note of; the oldest go
NOTE_MAX = 800  # bytes of such a note

State = Literal["scheduled", "ready", "running", "dead"]
STATES: tuple[State, ...] = ("scheduled", "ready", "running", "dead")

EXPIRES = b'"u"'  # in the header of whatever expires
EXCLUSIVE = b'"o"'  # ... of whatever may never run in two places at once
GATES = b'"gu"'  # ... of whatever has gates
ASKING = b'u"'  # in the header of both, so that one look is enough for most

SHAPES_MAX = 1000  # headers of other functions, or with other options, that are remembered
SHAPE_SIZE = 1000  # bytes of one that is

NO_EXTRA: Mapping[str, Any] = MappingProxyType({})


class Message(NamedTuple):
    """One task as a broker sees it.

    Attributes:
        id: the task's number, unique in its queue, from :meth:`Broker.reserve_ids`.
        func: where the function is, ``package.module:qualname``.
        payload: the arguments, opaque to everybody but the child that runs the task.
        timeout: seconds the task may run; None means no limit.
        priority: higher is claimed first; between -32768 and 32767.
        delay: seconds, counted by the store's clock from when it takes the message, before it may be claimed.
        enqueued_at: unix time by the producer's clock, or by the store's if it expires; for people to read, never to
            decide by.
        retry: the retry policy as plain data (see :class:`delayed.retry.Retry`); None means no retry.
        max_deliveries: attempts after which a message that always loses its watchers is dead.
        key: a name the caller gave the task; None if he gave none.
        trace: the W3C traceparent it was enqueued with, if any; see :mod:`delayed.tracing`.
        limits: what one run may use: "memory" in bytes, "cpu" in seconds, each only if limited; None means no limits.
        keep: seconds that its answer is kept for after its end; None means that none is kept.
        expires: unix time by the store's clock, see :meth:`Broker.clock`, after which it is not begun any more; None
            means that any time will do. Of a template, whose `enqueued_at` is 0, it is the seconds from each enqueue.
        exclusive: whether its run is ended in time where its lease can't be renewed, so that it never runs in two
            places.
        gates: what has to be so before it is handed to a child: "limit", a list of the name, how many run at once, and
            the seconds between two that begin; "after", ids of tasks that have to have returned, by queues; "with", 1
            or 2, if the result of that, or the list of them, is the first argument; and "runs", after how many it is
            dead, for its deliveries count how often it has waited too. None means none.
        extra: header fields of later versions: kept and handed on untouched.
        tenant: 32 hex digits that stand for whose it is, among whom turns are taken; None: it is not fair. The store
            has it beside the header, which has it not.
    """

    id: int
    func: str
    payload: bytes
    timeout: float | None = None
    priority: int = 0
    delay: float = 0.0
    enqueued_at: float = 0.0
    retry: Mapping[str, Any] | None = None
    max_deliveries: int = DEFAULT_MAX_DELIVERIES
    key: str | None = None
    trace: str | None = None
    limits: Mapping[str, Any] | None = None
    keep: float | None = None
    expires: float | None = None
    exclusive: bool = False
    gates: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = NO_EXTRA
    tenant: str | None = None

    def dated(self, clock: float) -> Message:
        """This template as it is enqueued when the store's clock shows `clock`."""
        expires = None if self.expires is None else round(clock + self.expires, 3)
        return self._replace(enqueued_at=round(clock, 3), expires=expires)

    @property
    def lifetime(self) -> float | None:
        """Seconds from its enqueue after which it expires; None if it does not."""
        return None if self.expires is None else max(round(self.expires - self.enqueued_at, 3), 0.001)

    def header(self) -> bytes:
        """The header as it is stored; `id` and `payload` are stored beside it.

        Raises:
            NotEnqueueable: When it is larger than any worker reads.
        """
        if self._is_plain() and 0 < self.enqueued_at < 1e15:
            shape = self[1:2] + self[3:6] + self[7:-2]
            try:
                ends = _written.get(shape)
            except TypeError:  # a table is in it
                return self._dumped()
            if ends is None:
                ends = self.header_around_date()
                if len(ends[0]) + len(ends[1]) > SHAPE_SIZE:
                    return self._dumped()
                _remember(_written, shape, ends)
            return b"%b%b%b" % (ends[0], repr(float(self.enqueued_at)).encode(), ends[1])
        return self._dumped()

    def header_around_date(self) -> tuple[bytes, bytes]:
        """What its header has before and behind the date of its enqueue. Raises what :meth:`header` does."""
        before, _, after = self._replace(enqueued_at=1.0)._dumped().partition(_TIME + b"1.0")
        return before + _TIME, after

    def _is_plain(self) -> bool:
        """Whether its header may be that of many."""
        return self.key is None and self.trace is None and self.expires is None and not self.extra

    def _dumped(self) -> bytes:
        data: dict[str, Any] = {"v": HEADER_VERSION, "f": self.func}
        if self.timeout is not None:
            data["t"] = float(self.timeout)
        if self.priority:
            data["p"] = self.priority
        if self.delay:
            data["d"] = float(self.delay)
        if self.enqueued_at:
            data["e"] = float(self.enqueued_at)
        if self.retry is not None:
            data["r"] = self.retry
        if self.max_deliveries != DEFAULT_MAX_DELIVERIES:
            data["m"] = self.max_deliveries
        if self.key is not None:
            data["k"] = self.key
        if self.trace is not None:
            data["x"] = self.trace
        if self.limits is not None:
            data["l"] = self.limits
        if self.keep is not None:
            data["a"] = float(self.keep)
        if self.expires is not None:
            data["u"] = float(self.expires)
        if self.exclusive:
            data["o"] = True
        if self.gates is not None:
            data["gu"] = self.gates
        if self.extra:
            data.update(self.extra)
        header = _dumps(data).encode("ascii")
        if len(header) > HEADER_MAX:
            raise NotEnqueueable(
                f"the header of a task of {self.func[:100]} takes {len(header)} bytes, and may take {HEADER_MAX}: "
                "give it a shorter key"
            )
        return header

    @classmethod
    def parse(cls, id: int, header: bytes, payload: bytes) -> Message:
        """The message of a stored header and payload. What it returns, guardians may count with: no header makes them
        fail, or wait for ever.

        Raises:
            DecodeError: When the header is not one that this version can read.
        """
        if len(header) > HEADER_MAX:
            raise DecodeError(f"the header of task {id} has {len(header)} bytes, and may have {HEADER_MAX}")
        try:
            text = header.decode()
            data, end = _read(text)
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"the header of task {id} can't be read: {type(error).__name__}: {error}") from error
        if type(data) is not dict or text[end:].strip(" \t\r\n"):
            raise DecodeError(f"the header of task {id} is not one JSON object: {short(text)}")
        version = data.pop("v", None)
        if type(version) is not int or version != HEADER_VERSION:
            newer = type(version) is int and HEADER_VERSION < version <= HEADER_VERSION + NEWER
            raise (NewerFormat if newer else DecodeError)(
                f"the header of task {id} has version {short(version)}; this worker reads {HEADER_VERSION}: "
                "upgrade delayed on this host, or it was not made by it"
            )
        fields: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for key, value in data.items():
            field = FIELDS.get(key)
            if field is None:
                extra[key] = value
                continue
            name, is_right, what = field
            if not is_right(value):
                raise DecodeError(f"the header of task {id} has the {name} {short(value)}, which is not {what}")
            fields[name] = value
        if "func" not in fields:
            raise DecodeError(f"the header of task {id} has no function path")
        if extra:
            try:
                _dumps(extra)
            except (ValueError, RecursionError) as error:
                raise DecodeError(f"the header of task {id} can't be handed on: {error}") from error
            return cls(id=id, payload=payload, extra=extra, **fields)
        return cls(id=id, payload=payload, **fields)

    @classmethod
    def parse_another(cls, id: int, header: bytes, payload: bytes) -> Message:
        """:meth:`parse` for who reads many: what a header has in common with earlier ones is not read again."""
        global _latest
        latest, func, options, more = _latest
        if header == latest:
            same: Message = tuple.__new__(cls, (id, *func, payload, *options, *more))
            return same
        parts = around_date(header)
        if parts is None:
            return cls.parse(id, header, payload)
        number, ends = parts
        shape = _parsed.get(ends)
        if shape is None:
            message = cls.parse(id, header, payload)
            # It is the message's own, and not one in a table, nor one that is there twice.
            if message.enqueued_at == number and message._is_plain() and len(header) <= SHAPE_SIZE:
                other = cls.parse(id, b"%b%b%b" % (ends[0], repr(number / 2).encode(), ends[1]), payload)
                if other == message._replace(enqueued_at=number / 2):
                    _remember(_parsed, ends, (message[1:2], message[3:6], message[7:]))
            return message
        func, options, more = shape
        more = (number, *more)
        _latest = (header, func, options, more)
        made: Message = tuple.__new__(cls, (id, *func, payload, *options, *more))
        return made

    @classmethod
    def glimpse(cls, id: int, header: bytes, payload: bytes) -> Message:
        """The message of a stored header and payload, to be looked at: its function is "?" where the header can't be
        read.
        """
        try:
            return cls.parse(id, header, payload)
        except DecodeError:
            return cls(id=id, func="?", payload=payload)


class Alike(Message):
    """A message whose header was written already, for others; it is any other message if one of its fields changes.

    Attributes:
        written: what :meth:`Message.header` returns.
    """

    written: bytes

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Message:  # type: ignore[override]  # of _replace()
        return Message._make(iterable)

    def header(self) -> bytes:
        return self.written


class Series(Sequence[Message]):
    """Messages that differ in their ids and payloads only. Each is made when somebody wants to see it: many brokers can
    do without.

    Args:
        model: what they have in common, with any id and payload.
        header: of each.
        ids: theirs.
        payloads: theirs, in the same order.
    """

    def __init__(self, model: Message, header: bytes, ids: Sequence[int], payloads: Sequence[bytes]) -> None:
        self.model = model
        self.header = header
        self.ids = ids
        self.payloads = payloads

    def __len__(self) -> int:
        return len(self.payloads)

    def __iter__(self) -> Iterator[Message]:
        func, header, rest, new = self.model.func, self.header, self.model[3:], tuple.__new__
        for id, payload in zip(self.ids, self.payloads, strict=True):
            made: Alike = new(Alike, (id, func, payload, *rest))
            made.written = header
            yield made

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> Series: ...
    def __getitem__(self, index: int | slice) -> Message | Series:
        ids, payloads = self.ids[index], self.payloads[index]
        if isinstance(index, slice):
            return Series(self.model, self.header, ids, payloads)  # type: ignore[arg-type]
        (made,) = Series(self.model, self.header, (ids,), (payloads,))  # type: ignore[arg-type]
        return made


# The headers of one function's tasks differ in one number. What comes before and behind it is written, and read, once.
_TIME = b',"e":'
_EXTRA = Message._fields.index("extra")  # what is behind it is in no header
_written: dict[tuple[Any, ...], tuple[bytes, bytes]] = {}
_parsed: dict[tuple[bytes, bytes], tuple[tuple[Any, ...], ...]] = {}
# The last header, and the fields of its messages before the payload, behind it, and from the date on.
_latest: tuple[bytes | None, tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]] = (None, (), (), ())
_times: dict[bytes, float] = {}  # the last one that was read: many are enqueued in one millisecond
# A number as it is written here, without an exponent, or zeros in front.
_NUMBER = re.compile(rb"[1-9][0-9]{0,15}(\.[0-9]{1,9})?", re.ASCII).fullmatch


def around_date(header: bytes) -> tuple[float, tuple[bytes, bytes]] | None:
    """The date of the enqueue in a stored header, and what is before and behind it; None where it has none that may be
    left out of account.
    """
    at = header.find(_TIME) + len(_TIME)
    end = header.find(b",", at)
    time = header[at:end]
    number = _times.get(time)
    if number is None:
        if _NUMBER(time) is None:
            return None
        _times.clear()
        number = _times[time] = float(time)
    return number, (header[:at], header[end:])


def _remember(shapes: dict[Any, Any], key: object, value: object) -> None:
    if len(shapes) >= SHAPES_MAX:
        shapes.clear()
    shapes[key] = value


_read = json.JSONDecoder().raw_decode
_dumps = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode


class Ref(NamedTuple):
    """The name of one claim: what every settle and renew compares with the store.

    Attributes:
        queue: the queue's name.
        id: the task's id in it.
        delivery: 1 for the first claim of the task, 2 for the next; never lowered. See :data:`LIFE`.
        nonce: 64 random bits of the claim call, so that a store which lost its last second can't repeat a token.
    """

    queue: str
    id: int
    delivery: int
    nonce: int


class Claim(NamedTuple):
    """A message that a worker holds, for as long as it renews the lease.

    Attributes:
        queue, id, delivery, nonce: see :class:`Ref`.
        attempt: 1 for the first run that counts; giving a task back does not charge one.
        header: the stored header, not parsed.
        payload: the stored payload.
    """

    queue: str
    id: int
    delivery: int
    nonce: int
    attempt: int
    header: bytes
    payload: bytes

    @property
    def ref(self) -> Ref:
        ref: Ref = tuple.__new__(Ref, self[:4])
        return ref

    @property
    def begin_by(self) -> float:
        """Until when its first run has to begin, in unix time by the store's clock (:meth:`Broker.clock`); inf if it
        may at any time, or has begun before.
        """
        if EXPIRES not in self.header or self.attempt != 1 or self.delivery >= LIFE:
            return inf
        try:
            expires = self.message().expires
        except DecodeError:
            return inf
        return inf if expires is None else expires

    @property
    def is_exclusive(self) -> bool:
        """Whether its run is to be ended in time where its lease can't be renewed."""
        try:
            return self.message().exclusive
        except DecodeError:
            return False

    def message(self) -> Message:
        """The parsed message.

        Raises:
            DecodeError: When the header can't be read.
        """
        return Message.parse(self.id, self.header, self.payload)

    @property
    def deliveries(self) -> int:
        """How often it was claimed since it was enqueued, or revived."""
        return self.delivery % LIFE


def is_task(claim: Claim) -> bool:
    """Whether a claim has what guardians count with and children are sent: others can write to a store too."""
    _, id, delivery, nonce, attempt, header, payload = claim
    return (
        type(id) is type(delivery) is type(nonce) is type(attempt) is int
        and type(header) is type(payload) is bytes
        and 0 < id <= ID_MAX
        and 0 < delivery <= COUNT_MAX
        and 0 <= attempt <= COUNT_MAX
        and 0 <= nonce <= NONCE_MAX
    )


Action = Literal["done", "retry", "back", "dead"]


class Answer(NamedTuple):
    """What is kept of a task after its end.

    Attributes:
        data: opaque to brokers.
        ttl: seconds, counted by the store's clock from when it takes the answer, after which it is forgotten.
    """

    data: bytes
    ttl: float


class Stored(NamedTuple):
    """A small value that is kept under a name of a queue.

    Attributes:
        value: opaque to brokers, unless it is counted with.
        version: higher with each change of what has this name, also after it was removed.
        left: seconds, by the store's clock, after which it is forgotten; None: it has no end.
    """

    value: bytes
    version: int
    left: float | None


class Settlement(NamedTuple):
    """How a claim ends.

    Attributes:
        ref: the claim.
        action: ``done`` removes the task; ``retry`` makes it due again after `delay` seconds; ``back`` returns
            it to the front of its queue and takes back the attempt; ``dead`` keeps it as a dead letter.
        delay: seconds, for ``retry`` and ``back``; 0 means at once. A ``back`` with a delay waits, still uncharged.
        reason: for ``dead``: why, in words.
        answer: for ``done`` and ``dead``: what is kept of the task, stored in the same step, if the claim holds; None:
            nothing.
        note: for ``retry`` and ``dead``: one line of :data:`NOTE_MAX` bytes at most, opaque to brokers, that says how
            the attempt ended. It is kept beside the message until that is gone or revived; empty: there is none.
    """

    ref: Ref
    action: Action
    delay: float = 0.0
    reason: str = ""
    answer: Answer | None = None
    note: bytes = b""


def done(claim: Claim) -> Settlement:
    """The end of most claims: the task has returned, and nothing is kept of it."""
    ref: Ref = tuple.__new__(Ref, claim[:4])
    settlement: Settlement = tuple.__new__(Settlement, (ref, "done", 0.0, "", None, b""))
    return settlement


def next_life(delivery: int) -> int:
    """The number of deliveries of a dead letter that is revived; see :data:`LIFE`."""
    return (delivery // LIFE + 1) * LIFE if delivery < LIVES_END else delivery


class Renewal(NamedTuple):
    """What a renewal found.

    Attributes:
        held: the claims that still hold, now for a full lease.
        lost: those that are no longer this worker's: settled, swept, or given to another.
        unknown: claims that the store holds for this worker and that the worker did not name: the reply of
            their claim was lost. The worker gives them back.
    """

    held: list[Ref]
    lost: list[Ref]
    unknown: list[Claim]


class Swept(NamedTuple):
    """What one sweep did.

    Attributes:
        returned: tasks whose lease had ended, now ready again.
        dead: tasks that had been delivered too often, now dead letters.
        grace: True if nothing was returned because sweeping had been interrupted for too long: the workers get
            one lease of time to renew first.
        idle: True if no task of the queue was claimed by anybody; False also where that is not looked for.
    """

    returned: int
    dead: int
    grace: bool
    idle: bool = False


class Bounds(NamedTuple):
    """How many dead letters a queue keeps.

    Attributes:
        most: letters at most; the oldest go first.
        age: seconds, counted by the store's clock from the death of a letter, after which it goes.
    """

    most: int = 10_000
    age: float = 30 * 86400.0


class Counts(NamedTuple):
    """How many messages a queue has in each state."""

    scheduled: int
    ready: int
    running: int
    dead: int


class Once(NamedTuple):
    """What keeps a second task of one key out of a queue: the task that holds the key.

    Attributes:
        key: 32 hex digits.
        begun: whether the key is free once the task's first run has begun; else it is when the task has ended, was
            removed, or is a dead letter.
        period: seconds, counted by the store's clock from the enqueue, for which the key is held whatever becomes of
            the task; None: not by time.
        replace: whether the new task takes the key away from the one that holds it: one that waits is then removed, one
            that runs is left alone.
    """

    key: str
    begun: bool = False
    period: float | None = None
    replace: bool = False


class Entry(NamedTuple):
    """One stored message, for looking at.

    Attributes:
        message: the message.
        state: scheduled, ready, running or dead.
        attempt: runs charged so far.
        delivery: claims so far, since it was enqueued or revived.
        worker: who holds it (running), else "".
        due: seconds until it is due (scheduled) or until its lease ends (running), by the store's clock; else 0.
        reason: why it is dead, else "".
        died: seconds since it died (dead), by the store's clock; else 0.
        header: the stored header, not parsed.
        notes: what settlements have noted of its attempts, oldest first, :data:`NOTES_MAX` at most; see
            :func:`delayed.attempts.attempts_of`.
        place: of the last one that :meth:`Broker.peek` gives: where that is to go on, as the store tells it.
    """

    message: Message
    state: State
    attempt: int
    delivery: int
    worker: str
    due: float
    reason: str
    died: float = 0.0
    header: bytes = b""
    notes: Sequence[bytes] = ()
    place: Any = None


class WorkerInfo(NamedTuple):
    """What a worker said of itself when it last announced itself.

    Attributes:
        worker: its id.
        info: plain data: host, pid, mode, queues, started (unix time), running (a list of tasks).
    """

    worker: str
    info: Mapping[str, Any]
