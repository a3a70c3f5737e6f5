"""Dead letters from Python: ``queue.dead``."""

from __future__ import annotations

import builtins
import fnmatch
import re
from collections.abc import Callable, Iterator
from math import inf

from delayed.brokers import Broker
from delayed.durations import seconds_of
from delayed.errors import ConfigError
from delayed.message import Bounds, Entry, State

PAGE, PAGE_MAX = 500, 8000  # messages that are looked at together: at first, and at most
MOST_MAX = 2**31 - 1  # what stores can count


def bounds_of(value: object) -> Bounds | None:
    """What ``Queue(dead_letters=...)`` means: the bounds of the letters; None if tasks that failed are not kept.

    Raises:
        ConfigError: When it means nothing.
    """
    if value is None or value is False:
        return None
    if value is True:
        return Bounds()
    most, *rest = value if isinstance(value, (tuple, list)) and value else (value,)
    if not isinstance(most, int) or isinstance(most, bool) or not 0 < most <= MOST_MAX or len(rest) > 1:
        raise ConfigError(f"dead_letters is True, or how many are kept, or (5000, '7d'), not {value!r}")
    age = seconds_of("the age of dead letters", rest[0], 1.0) if rest else Bounds().age
    return Bounds(most, age)


def matcher(function: str | None = None, reason: str | None = None) -> Callable[[Entry], bool]:
    """What tells whether an entry is wanted.

    Args:
        function: a pattern of the dotted path of its function, such as ``app.tasks.*``; None: any.
        reason: a part of its reason, in letters of any case; None: any.
    """
    fits = re.compile(fnmatch.translate(function.replace(":", "."))).match if function is not None else None
    part = reason.lower() if reason is not None else ""

    def matches(entry: Entry) -> bool:
        if fits is not None and fits(entry.message.func.replace(":", ".", 1)) is None:
            return False
        return part in entry.reason.lower()

    return matches


def walk(broker: Broker, queue: str, state: State, most: float = inf) -> Iterator[Entry]:
    """The messages of one state, `most` of them, in the order of :meth:`Broker.peek`, without their payloads.

    One that arrives, leaves or gets another place meanwhile may be missed; the others come, and none comes twice.
    """
    seen: set[int] = set()
    last: Entry | None = None
    size = PAGE
    while len(seen) < most:
        page = broker.peek(queue, state, int(min(size, most)), last, payloads=False)
        if not page:
            return
        last = page[-1]
        size = min(size * 2, PAGE_MAX)
        for entry in page:
            if entry.message.id not in seen and len(seen) < most:
                seen.add(entry.message.id)
                yield entry


class DeadLetters:
    """The dead letters of a queue. Made by :attr:`Queue.dead`; all of it asks the store.

    Iterating gives all of them, newest first, without their payloads.
    """

    def __init__(self, broker: Broker, queue: str) -> None:
        self._broker = broker
        self._queue = queue

    def list(self, limit: int = 100, *, function: str | None = None, reason: str | None = None) -> builtins.list[Entry]:
        """The newest ones: message (without its payload), attempts, deliveries, why and for how long they are dead.

        Args:
            limit: how many at most.
            function: only those whose function fits a pattern such as ``app.tasks.*``.
            reason: only those whose reason has this text in it, in letters of any case.
        """
        matches = matcher(function, reason)
        found: builtins.list[Entry] = []
        for entry in self:
            if len(found) >= limit:
                break
            if matches(entry):
                found.append(entry)
        return found

    def get(self, id: int) -> Entry | None:
        """One of them, with its payload; None if there is no such dead letter."""
        entry = self._broker.get(self._queue, id)
        return entry if entry is not None and entry.state == "dead" else None

    def requeue(self, *ids: int) -> builtins.list[int]:
        """Let them run again, behind what waits, as if they had just been enqueued: with the same ids and arguments,
        and all of their retries.

        Returns:
            The ids of those that were dead letters.

        Raises:
            BrokerFull: When the store has no room.
        """
        return self._broker.revive(self._queue, ids)

    def drop(self, *ids: int) -> builtins.list[int]:
        """Remove them; the ids of those that were dead letters."""
        return self._broker.drop(self._queue, ids)

    def __iter__(self) -> Iterator[Entry]:
        return walk(self._broker, self._queue, "dead")

    def __len__(self) -> int:
        return self._broker.counts(self._queue).dead

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<dead letters of {self._queue!r} on {self._broker!r}>"
