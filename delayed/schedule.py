"""A schedule: a task that is enqueued again and again, as plain data, for which a worker needs no code of the user."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from delayed.codec import Codec
from delayed.errors import ConfigError
from delayed.message import Message

if TYPE_CHECKING:
    from delayed.ticks import Ticks

# Seconds after its moment at which a tick is still made up for, by default and at most. The most is well below the time
# after which a store forgets that it was enqueued.
LATE, LATE_MAX = 300.0, 1800.0


class Schedule(NamedTuple):
    """One schedule.

    Attributes:
        name: unique in its queue: the path of its function.
        rule: when it is due, see :func:`delayed.ticks.ticks_of`.
        late: seconds after its moment at which a tick is still made up for.
        fields: of the message, but for id and payload.
        payload: of the message, not sealed.
    """

    name: str
    rule: Mapping[str, Any]
    late: float
    fields: Mapping[str, Any]
    payload: bytes

    @classmethod
    def of(cls, rule: Mapping[str, Any], late: float, message: Message) -> Schedule:
        """The schedule of a message that is not sealed.

        Raises:
            ConfigError: When the rule is none.
        """
        from delayed.ticks import ticks_of

        ticks_of(rule)
        fields = message._asdict()
        del fields["id"], fields["payload"]
        fields["extra"] = dict(message.extra)
        return cls(message.func, dict(rule), late, fields, message.payload)

    def ticks(self) -> Ticks:
        """Its rule."""
        from delayed.ticks import ticks_of  # which few who have queues need

        return ticks_of(self.rule)

    def session(self, queue: str, tick: float) -> str:
        """The name under which every scheduler enqueues the same tick, so that the store takes it once."""
        import hashlib

        text = f"delayed schedule\0{queue}\0{self.name}\0{round(tick * 1000)}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def message(self, id: int, tick: float, codec: Codec) -> Message:
        """The message of one tick. Its key, unless the function has one, is the same whoever enqueues it."""
        fields = dict(self.fields)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(tick))
        fields["key"] = fields["key"] or f"{self.name}@{moment}.{round(tick * 1000) % 1000:03d}Z"
        fields["enqueued_at"] = round(time.time(), 3)
        return codec.seal(Message(id=id, payload=self.payload, **fields))

    def data(self) -> dict[str, Any]:
        """The schedule as plain data."""
        return {**self._asdict(), "payload": self.payload.hex()}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Schedule:
        """The schedule of :meth:`data`."""
        return cls(**{**data, "payload": bytes.fromhex(data["payload"])})


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
