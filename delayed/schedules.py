"""Schedules that programs make while they run: kept in the store, as small values of their queue.

Each has a name of its own; beside them is a mark, whose version changes after each change of a schedule. So whoever
follows them asks for the mark alone, and reads the schedules when it has changed. Once a minute he does in any case:
who has changed one may have died before he said so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from delayed.errors import ConfigError, DelayedError
from delayed.keys import insist
from delayed.logger import logger
from delayed.message import Message, Stored
from delayed.schedule import Schedule

if TYPE_CHECKING:
    from delayed.delay import Call
    from delayed.queue import Queue

PREFIX = "schedule:"  # and the name
MARK = "schedules:"
MOST = 100_000  # schedules of one queue
PAGE = 100  # that are read at once
WHOLE = 60.0  # seconds after which all are read, whatever the mark says


class Found(NamedTuple):
    """A schedule as it is stored.

    Attributes:
        schedule: the schedule.
        version: of what is stored.
    """

    schedule: Schedule
    version: int


def message_of(queue: Queue, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Message:
    """The message of a call, without an id and not sealed.

    Args:
        function: any function, or a decorated one, or one with options.

    Raises:
        NotEnqueueable, SignatureMismatch: When no worker could run it.
    """
    if hasattr(function, "adelay"):
        call: Call[..., Any] = function.options()
        return call.message(queue, args, kwargs)
    from delayed.signature import signature_of  # loads inspect

    signature = signature_of(function)
    if signature is not None:
        signature.check(args, kwargs)
    return queue.task(function).with_args(args, kwargs).unsealed(queue.codec, 0, queue.default_timeout)


def checked_name(name: Any) -> str:
    """The name of a schedule.

    Raises:
        ConfigError: When it is none.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"a schedule's name is text, not {name!r}")
    return name


def put(queue: Queue, schedule: Schedule) -> None:
    """Store a schedule, unless the very same is there: then it goes on as before."""
    key, data = PREFIX + schedule.name, schedule.dump(queue.codec)
    same = Schedule.load(schedule.name, data, queue.codec)
    there = _ask(queue, lambda: queue.broker.get_keys(queue.name, (key,))).get(key)
    if there is not None:
        try:
            if Schedule.load(schedule.name, there.value, queue.codec)._replace(since=same.since) == same:
                return
        except DelayedError:
            pass  # what can't be read is replaced
    data = schedule._replace(since=_ask(queue, lambda: queue.broker.clock(queue.name))).dump(queue.codec)
    _ask(queue, lambda: queue.broker.put_key(queue.name, key, data))
    _mark(queue)


def remove(queue: Queue, name: str) -> bool:
    """Remove a schedule. False if there was none."""
    key = PREFIX + name
    removed, sent = insist(lambda: queue.broker.put_key(queue.name, key, None), queue.enqueue_timeout)
    _mark(queue)
    return bool(removed or sent)


def load(queue: Queue) -> list[Schedule]:
    """The schedules in the store that can be read, by name."""
    return [found.schedule for _, found in _ask(queue, lambda: list(_read(queue, {}))) if found is not None]


class Follower:
    """Tells what changes among the stored schedules of a queue.

    Args:
        queue: the queue.
    """

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self._mark: int | None = None  # None: all have to be read
        self._whole = 0.0  # when that is to be done in any case, monotonic
        self._versions: dict[str, int] = {}

    def changes(self) -> dict[str, Found | None]:
        """What is new or another since the last call, by name; None where it is gone, or can't be read (any more).

        Raises:
            BrokerError: When the store can't be asked.
        """
        mark = self.queue.broker.get_keys(self.queue.name, (MARK,)).get(MARK)
        version = mark.version if mark is not None else 0  # before they are read: a change meanwhile is seen next time
        if version == self._mark and time.monotonic() < self._whole:
            return {}
        versions: dict[str, int] = {}
        changed = dict(_read(self.queue, self._versions, versions))
        changed.update((name, None) for name in self._versions if name not in versions)
        self._mark, self._whole, self._versions = version, time.monotonic() + WHOLE, versions
        return changed

    def holds(self, name: str, version: int) -> bool:
        """Whether a schedule is there still, as it was. If not, the next :meth:`changes` says what became of it.

        Raises:
            BrokerError: When the store can't be asked.
        """
        key = PREFIX + name
        there = self.queue.broker.get_keys(self.queue.name, (key,)).get(key)
        if there is not None and there.version == version:
            return True
        self._mark = None
        return False


def _read(
    queue: Queue, known: Mapping[str, int], versions: dict[str, int] | None = None
) -> Iterator[tuple[str, Found | None]]:
    """The stored schedules whose versions are not those that are known; None for one that can't be read.

    Args:
        versions: gets the versions of all.
    """
    keys = queue.broker.list_keys(queue.name, PREFIX, MOST)
    for start in range(0, len(keys), PAGE):
        page = queue.broker.get_keys(queue.name, keys[start : start + PAGE])
        for key, stored in page.items():
            name = key.removeprefix(PREFIX)
            if versions is not None:
                versions[name] = stored.version
            if known.get(name) != stored.version:
                yield name, _found(queue, name, stored)


def _found(queue: Queue, name: str, stored: Stored) -> Found | None:
    try:
        return Found(Schedule.load(name, stored.value, queue.codec), stored.version)
    except DelayedError as error:
        logger.error(
            "the schedule %.100r of %s is not kept: %s", name, queue.name, error,
            extra={"action": "schedule_refused", "queue": queue.name, "schedule": name},
        )  # fmt: skip
        return None


def _mark(queue: Queue) -> None:
    """Say that something has changed."""
    _ask(queue, lambda: queue.broker.put_key(queue.name, MARK, b""))


def _ask(queue: Queue, call: Callable[[], Any]) -> Any:
    return insist(call, queue.enqueue_timeout)[0]
