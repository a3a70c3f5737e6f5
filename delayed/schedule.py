"""A schedule: a task that is enqueued again and again, as plain data, for which a worker needs no code of the user."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from delayed.codec import Codec
from delayed.errors import ConfigError, DecodeError
from delayed.message import Message

if TYPE_CHECKING:
    from delayed.ticks import Ticks

# Seconds after its moment at which a tick is still made up for, by default and at most. The most is well below the time
# after which a store forgets that it was enqueued.
LATE, LATE_MAX = 300.0, 1800.0

VERSION = 1  # of what is stored
TIME_MAX = 2.0**43  # unix time
_SIZE = 4  # bytes of a length


class Schedule(NamedTuple):
    """One schedule.

    Attributes:
        name: unique in its queue: the path of its function, or what :meth:`Queue.schedule` was given.
        rule: when it is due, see :func:`delayed.ticks.ticks_of`.
        late: seconds after its moment at which a tick is still made up for.
        fields: of the message, but for id and payload.
        payload: of the message, not sealed.
        stored: whether it lies in the store, and is no decorated function's.
        since: when it was stored, in unix time by the store's clock: earlier ticks are none of its own.
    """

    name: str
    rule: Mapping[str, Any]
    late: float
    fields: Mapping[str, Any]
    payload: bytes
    stored: bool = False
    since: float = 0.0

    @classmethod
    def of(cls, rule: Mapping[str, Any], late: float, message: Message, name: str | None = None) -> Schedule:
        """The schedule of a message that is not sealed.

        Args:
            name: of one that is to be stored; None: the path of its function.

        Raises:
            ConfigError: When the rule is none.
        """
        from delayed.ticks import ticks_of

        ticks_of(rule)
        fields = message._asdict()
        del fields["id"], fields["payload"]
        fields["extra"] = dict(message.extra)
        fields["enqueued_at"] = 0.0  # each has its own
        return cls(name or message.func, dict(rule), late, fields, message.payload, name is not None)

    def ticks(self) -> Ticks:
        """Its rule."""
        from delayed.ticks import ticks_of  # which few who have queues need

        return ticks_of(self.rule)

    def session(self, queue: str, tick: float) -> str:
        """The name under which every scheduler enqueues the same tick, so that the store takes it once."""
        import hashlib

        kind = "stored schedule" if self.stored else "schedule"
        text = f"delayed {kind}\0{queue}\0{self.name}\0{round(tick * 1000)}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def message(self, id: int, tick: float, codec: Codec, clock: float) -> Message:
        """The message of one tick. Its key, unless the function has one, is the same whoever enqueues it.

        Args:
            clock: what the store's clock shows.
        """
        fields = dict(self.fields)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(tick))
        fields["key"] = fields["key"] or f"{self.name}@{moment}.{round(tick * 1000) % 1000:03d}Z"
        return codec.seal(Message(id=id, payload=self.payload, **fields).dated(clock))

    def data(self) -> dict[str, Any]:
        """The schedule as plain data."""
        return {**self._asdict(), "payload": self.payload.hex()}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Schedule:
        """The schedule of :meth:`data`."""
        return cls(**{**data, "payload": bytes.fromhex(data["payload"])})

    def dump(self, codec: Codec) -> bytes:
        """The schedule as it is stored: JSON and the header of its message, each behind its length in four bytes, and
        the payload, whose seal holds all of it together.
        """
        plain = {"v": VERSION, "n": self.name, "r": self.rule, "l": self.late, "s": self.since}
        if self.fields["tenant"] is not None:  # which no header has
            plain["t"] = self.fields["tenant"]
        parts = (json.dumps(plain, separators=(",", ":")).encode(), Message(0, payload=b"", **self.fields).header())
        head = b"".join(len(part).to_bytes(_SIZE, "big") + part for part in parts)
        return head + codec.seal_schedule(head, self.payload)

    @classmethod
    def load(cls, name: str, data: bytes, codec: Codec) -> Schedule:
        """The schedule of :meth:`dump` that is stored under a name.

        Raises:
            DecodeError: When it can't be read, or is not what somebody with the queue's secret has stored there.
            NotReadable: When this process lacks what it takes to open it.
            ConfigError: When its rule is none, or can't be kept here.
        """
        first, at = _part(data, 0)
        header, end = _part(data, at)
        payload = codec.open_schedule(data[:end], data[end:])
        try:
            plain = json.loads(first)
            version, named, rule, late, since = plain["v"], plain["n"], plain["r"], plain["l"], plain.get("s", 0.0)
            tenant = bytes.fromhex(plain["t"]).hex() if "t" in plain else None
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DecodeError(f"the stored schedule can't be read: {type(error).__name__}: {error}") from error
        if version != VERSION:
            raise DecodeError(
                f"the stored schedule has version {str(version)[:20]}; this process reads {VERSION}: upgrade delayed "
                "on this host"
            )
        if named != name or type(rule) is not dict or type(late) not in (int, float) or not 0 <= late <= LATE_MAX:
            raise DecodeError("the stored schedule has another name, or no rule, or is made up for too late")
        if type(since) not in (int, float) or not 0 <= since < TIME_MAX:
            raise DecodeError("the stored schedule does not say since when it is there")
        return cls.of(rule, late, Message.parse(0, header, payload)._replace(tenant=tenant), name)._replace(since=since)


def rule_of(every: Any, cron: str | None, tz: str | None) -> dict[str, Any]:
    """The rule of a period or an expression of cron, as plain data.

    Raises:
        ConfigError: When it makes no sense.
        MissingDependency: When `cron` is given and ``cronsim`` is not installed.
    """
    from delayed.ticks import ticks_of

    if tz is not None and cron is None:
        raise ConfigError("tz goes with cron=...; a period is counted in UTC")
    return ticks_of({"every": every, "cron": cron, **({"tz": tz} if tz is not None else {})}).data()


def _part(data: bytes, at: int) -> tuple[bytes, int]:
    """What follows its length at this place, and where it ends."""
    begin = at + _SIZE
    end = begin + int.from_bytes(data[at:begin], "big")
    if begin > len(data) or end > len(data):
        raise DecodeError("the stored schedule is not whole")
    return data[begin:end], end


def checked_late(value: float) -> float:
    """Seconds that a tick may be late.

    Raises:
        ConfigError: When it is more than half an hour.
    """
    if value > LATE_MAX:
        raise ConfigError(
            f"late may be half an hour at most, not {value:g} s: a store remembers for an hour what was enqueued, and "
            "an older tick could come twice"
        )
    return value
