"""Small values that programs share through a queue's store: ``queue.keys``."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from delayed.brokers.base import Broker
from delayed.brokers.deadline import Attempts
from delayed.brokers.keys import checked, shown
from delayed.durations import seconds_of
from delayed.errors import BrokerFull, BrokerUnavailable, ConfigError
from delayed.message import Stored

if TYPE_CHECKING:
    from datetime import timedelta

PREFIX = "key:"  # of the names here, beside those of locks and the like
TTL_MIN = 0.001  # seconds

R = TypeVar("R")


class Keys:
    """Values under names of one queue: bytes, or text, which becomes UTF-8. For small things: flags, cursors, counters.

    A value has 64 KB at most, a name 496 characters. All of it asks the store, and tries again for as long as the
    queue's `enqueue_timeout` while that can't be reached. Nothing of it is a part of a transaction.

    >>> queue.keys.set("cursor", "2030-01-01", ttl="7d")
    3661235345408001
    >>> queue.keys.get("cursor")
    b'2030-01-01'
    >>> queue.keys.add("visits")
    1

    Args:
        broker: the store.
        queue: the queue's name.
        timeout: seconds that it goes on trying while the store can't be reached.

    Raises:
        ConfigError: When a name, a value or a time makes no sense or is too long.
        BrokerUnavailable: When the store can't be reached.
        BrokerFull: When a value is to be kept, and the store has no room.
    """

    def __init__(self, broker: Broker, queue: str, timeout: float) -> None:
        self._broker = broker
        self._queue = queue
        self._timeout = timeout

    def get(self, name: str) -> bytes | None:
        """The value under a name; None if there is none, or its time is over."""
        found = self.entry(name)
        return found.value if found is not None else None

    def entry(self, name: str) -> Stored | None:
        """The value under a name with its version, and the seconds that are left to it (None: it has no end)."""
        key = _named(name)
        found, _ = insist(lambda: self._broker.get_keys(self._queue, (key,)), self._timeout)
        return found.get(key)

    def set(self, name: str, value: bytes | str, ttl: float | timedelta | str | None = None) -> int:
        """Keep a value, in the place of what is there, and return its version.

        Args:
            ttl: how long it is kept, by the store's clock: seconds, a :class:`datetime.timedelta`, or text such as
                ``10m``; None: for ever.
        """
        key, data, seconds = _named(name), _bytes_of(name, value), ttl_of(ttl)
        return insist(lambda: self._broker.put_key(self._queue, key, data, ttl=seconds), self._timeout)[0]

    def set_if(
        self, name: str, value: bytes | str, version: int, ttl: float | timedelta | str | None = None
    ) -> int | None:
        """Keep a value if what is there has this version (:meth:`entry` says it), or, with 0, if nothing is there.

        Returns:
            The new version; None if it is refused: somebody else was quicker.

        Raises:
            BrokerUnavailable: Also when the first answer was lost and the same value is there now, for then nobody
                knows who put it. With a random part in your values it would tell.
        """
        key, data, seconds = _named(name), _bytes_of(name, value), ttl_of(ttl)
        if isinstance(version, bool) or not isinstance(version, int) or version < 0:
            raise ConfigError(f"a version is what entry() has said, or 0 for none, not {version!r}")
        put, sent = insist(
            lambda: self._broker.put_key(self._queue, key, data, ttl=seconds, version=version), self._timeout
        )
        if not put and sent and self.get(name) == data:
            raise BrokerUnavailable(
                f"an answer of {self._broker!r} was lost, and {name!r} has the value that it was to have: put by this "
                "call, or by somebody else"
            )
        return put or None

    def delete(self, name: str) -> bool:
        """Remove a value. False if there was none (or if it was removed by this call, whose first answer was lost)."""
        key = _named(name)
        return bool(insist(lambda: self._broker.put_key(self._queue, key, None), self._timeout)[0])

    def add(self, name: str, by: int = 1, ttl: float | timedelta | str | None = None) -> int:
        """Add to the number that is kept as text under a name, from 0 if there is none, and return the sum.

        Args:
            by: what to add, or below 0 to take away.
            ttl: how long the number is kept, if this call makes it; one that is there keeps its end. None: for ever.

        Raises:
            BrokerError: When what is there is no number, or the sum is not between -(2**53) and 2**53.
            BrokerUnavailable: When the store can't be reached, or the answer is lost. Then `sent` says whether it may
                have been counted: it is not tried again.
        """
        key, seconds = _named(name), ttl_of(ttl)
        if isinstance(by, bool) or not isinstance(by, int):
            raise ConfigError(f"a whole number is added, not {by!r}")
        return insist(lambda: self._broker.add_key(self._queue, key, by, seconds), self._timeout, again=False)[0]

    def list(self, prefix: str = "", limit: int = 1000) -> builtins.list[str]:
        """The first `limit` names that begin with `prefix`, sorted.

        Args:
            limit: how many at most, from 1.
        """
        start = _named(prefix)
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ConfigError(f"limit is how many names are listed at most, a whole number from 1, not {limit!r}")
        found, _ = insist(lambda: self._broker.list_keys(self._queue, start, limit), self._timeout)
        return [name.removeprefix(PREFIX) for name in found]


def insist(call: Callable[[], R], timeout: float, *, again: bool = True) -> tuple[R, bool]:
    """Ask the store until it answers; that, and whether an earlier sending of the same may have been done.

    Args:
        timeout: seconds to go on trying.
        again: whether it may be sent again after it may have been done.

    Raises:
        BrokerUnavailable: When there is no answer; `sent` says whether it may have been done.
    """
    attempts = Attempts(timeout)
    sent = False
    while True:
        try:
            return attempts.make(call), sent
        except BrokerUnavailable as error:
            sent = sent or error.sent
            full = isinstance(error, BrokerFull)  # which waiting does not help
            if full or (sent and not again) or not attempts.again():
                if sent == error.sent:
                    raise
                raise BrokerUnavailable(str(error), sent=sent) from error


def ttl_of(value: float | timedelta | str | None) -> float | None:
    """The seconds of a time to live.

    Raises:
        ConfigError: When it is none, or less than a millisecond.
    """
    return None if value is None else seconds_of("ttl", value, TTL_MIN)


def _named(name: Any) -> str:
    if not isinstance(name, str):
        raise ConfigError(f"a name is text, not {name!r}")
    return checked(PREFIX + name)


def _bytes_of(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"the value of {shown(name)} has half of a surrogate pair as its character {error.start}, which UTF-8 "
                "does not have: give bytes instead"
            ) from None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise ConfigError(
        f"the value of {shown(name)} is bytes or text, not a {type(value).__name__}: encode it, as JSON or so"
    )
