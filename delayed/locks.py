"""Locks that hold across processes and hosts: ``queue.lock(name)``."""

from __future__ import annotations

import os
import random
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Self

from delayed.brokers.base import Broker
from delayed.brokers.keys import checked
from delayed.clock import now
from delayed.durations import seconds_of
from delayed.errors import BrokerError, BrokerFull, BrokerUnavailable, ConfigError, LockLost, LockTimeout
from delayed.keys import insist
from delayed.logger import logger

if TYPE_CHECKING:
    from datetime import timedelta

PREFIX = "lock:"
TTL_MIN = 0.01  # seconds
PAUSE = (0.01, 0.5)  # seconds between two tries: at first, and at most
IN_VAIN = 0.001  # seconds beyond the end of the one who holds it


class Lock:
    """A name that one holds at a time, for `ttl` at most: when a process dies with it, it is free again then.

    >>> with queue.lock("invoices", ttl="1m") as lock:
    ...     write(fencing_token=lock.fencing_token)
    >>> async with queue.lock("invoices"):
    ...     ...

    It is not re-entrant: who holds it and acquires it again, in whatever way, waits like anybody else. Let each holder
    have an object of its own; making one asks nobody. It does not survive a fork, in the child.

    **It can't keep you from writing too late.** A process that is frozen longer than the time to live believes that it
    holds the lock while another one does. Where that matters, send `fencing_token` along, and let whatever you write to
    refuse one that is lower than the highest it has seen.

    Args:
        broker: the store.
        queue: the queue's name.
        name: the lock's, unique in the queue; 1 to 495 characters.
        ttl: how long it holds, by the store's clock, unless it is extended: from 10 ms.
        wait: how long ``with`` and :meth:`acquire` wait for it; None: for ever.
        timeout: seconds that a store which can't be reached is tried.

    Raises:
        ConfigError: When an argument makes no sense.

    Attributes:
        name: its name.
    """

    def __init__(
        self,
        broker: Broker,
        queue: str,
        name: str,
        ttl: float | timedelta | str,
        wait: float | timedelta | str | None,
        timeout: float,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"a lock's name is text, not {name!r}")
        checked(PREFIX + name)
        self.name = name
        self._broker = broker
        self._queue = queue
        self._ttl = seconds_of("ttl", ttl, TTL_MIN)
        self._wait = wait_of("wait", wait)
        self._timeout = timeout
        self._hold: _Hold | None = None

    # -- what is known here ----------------------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether this object holds it, as far as can be said without asking the store: it was acquired, not released,
        and its time is not over.
        """
        return self.left > 0

    @property
    def left(self) -> float:
        """Seconds for which it is held at least; 0 if it is not."""
        return max(0.0, self._hold.until - now()) if self._hold is not None else 0.0

    @property
    def fencing_token(self) -> int:
        """A number that is higher with each holder of this lock, and is the same while one holds it.

        Raises:
            LockLost: When it was not acquired, or is released.
        """
        return self._mine().version

    # -- acquiring -------------------------------------------------------------------------------------------------

    def acquire(self, timeout: float | timedelta | str | None = None) -> bool:
        """Wait until nobody holds it, and hold it. Who waits is not served in order.

        Args:
            timeout: how long to wait; 0: try once; None: the lock's `wait`. A store that is frozen
                is waited for until the driver gives up, which may take some ten seconds.

        Returns:
            False if others held it all the time.

        Raises:
            BrokerUnavailable: When the store can't be reached for the queue's `enqueue_timeout`, or has no room.
        """
        attempt = self._attempt(timeout)
        try:
            while (pause := attempt.go()) is not None:
                time.sleep(pause)
        except BaseException:
            attempt.abandon()
            raise
        if attempt.hold is None:
            attempt.abandon()
        self._hold = attempt.hold or self._hold
        return attempt.hold is not None

    async def aacquire(self, timeout: float | timedelta | str | None = None) -> bool:
        """:meth:`acquire` without blocking the event loop. What is cancelled does not hold it."""
        import asyncio

        attempt = self._attempt(timeout)
        try:
            while True:
                step = asyncio.ensure_future(asyncio.to_thread(attempt.go))
                try:
                    pause = await asyncio.shield(step)
                except asyncio.CancelledError:
                    await asyncio.wait([step])  # its thread goes on, and may still get it
                    raise
                if pause is None:
                    break
                await asyncio.sleep(pause)
        except GeneratorExit:  # nothing can be awaited any more
            raise
        except BaseException:
            await asyncio.to_thread(attempt.abandon)
            raise
        if attempt.hold is None:
            await asyncio.to_thread(attempt.abandon)
        self._hold = attempt.hold or self._hold
        return attempt.hold is not None

    def _attempt(self, timeout: float | timedelta | str | None) -> _Attempt:
        wait = self._wait if timeout is None else wait_of("timeout", timeout)
        return _Attempt(self._broker, self._queue, PREFIX + self.name, self._ttl, wait, self._timeout)

    # -- holding ---------------------------------------------------------------------------------------------------

    def extend(self, ttl: float | timedelta | str | None = None) -> None:
        """Hold it for `ttl` from now, whatever is left. None: as long as at first.

        Raises:
            LockLost: When it is not held any more.
            BrokerUnavailable: When the store can't be reached; what is left of its time counts.
        """
        hold = self._mine()
        seconds = self._ttl if ttl is None else seconds_of("ttl", ttl, TTL_MIN)
        began = 0.0

        def put() -> int:
            nonlocal began
            began = now()
            key, version = PREFIX + self.name, hold.version
            return self._broker.put_key(self._queue, key, hold.value, ttl=seconds, version=version, keep_version=True)

        if not insist(put, self._timeout)[0]:
            self._hold = None
            raise self._lost()
        self._hold = hold._replace(until=began + seconds)

    def release(self) -> None:
        """Let others have it.

        Raises:
            LockLost: When it was not held any more: its time was over, and others may have had it.
            BrokerUnavailable: When the store can't be reached; then it is free when its time is over.
        """
        hold, in_time = self._mine(), self.held
        self._hold = None
        removed, sent = insist(
            lambda: self._broker.put_key(self._queue, PREFIX + self.name, None, version=hold.version), self._timeout
        )
        # After a lost answer it is the first sending that has removed it, if it was there by then.
        if not removed and not (sent and in_time):
            raise self._lost()

    async def aextend(self, ttl: float | timedelta | str | None = None) -> None:
        """:meth:`extend` without blocking the event loop."""
        import asyncio

        await asyncio.to_thread(self.extend, ttl)

    async def arelease(self) -> None:
        """:meth:`release` without blocking the event loop."""
        import asyncio

        await asyncio.to_thread(self.release)

    def holder(self) -> str | None:
        """Who holds it now, as ``host:process id``; None if nobody does. Asks the store.

        Raises:
            BrokerUnavailable: When the store can't be reached.
        """
        key = PREFIX + self.name
        found = insist(lambda: self._broker.get_keys(self._queue, (key,)), self._timeout)[0].get(key)
        return found.value.decode("utf-8", "replace").partition(" ")[2] if found is not None else None

    def _mine(self) -> _Hold:
        if self._hold is None:
            raise LockLost(f"the lock {self.name!r} is not held by this object: acquire it first", self.name)
        return self._hold

    def _lost(self) -> LockLost:
        holder = None
        with suppress(BrokerError):
            holder = self.holder()
        now = f"{holder} holds it now" if holder else "nobody is known to hold it now"
        return LockLost(
            f"the lock {self.name!r} is lost: its time was over, and {now}; give it a longer ttl, or extend() it",
            self.name,
            holder,
        )

    # -- with ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Acquire it.

        Raises:
            LockTimeout: When others held it all the time that it waits for.
        """
        if not self.acquire():
            raise self._late()
        return self

    async def __aenter__(self) -> Self:
        if not await self.aacquire():
            raise self._late()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Release it. That it was lost is raised, or added to what the block raises."""
        in_time = self.held
        try:
            self.release()
        except LockLost as lost:
            if error is None:
                raise
            error.add_note(str(lost))
        except BrokerError as away:
            if error is None and not in_time:
                raise
            logger.warning("the lock %s can't be released, and is free when its time is over: %s", self.name, away)

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import asyncio

        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def _late(self) -> LockTimeout:
        return LockTimeout(f"the lock {self.name!r} was held by others for {self._wait:g} s", self.name)

    def __repr__(self) -> str:
        return f"<Lock {self.name} of {self._queue}{', held' if self.held else ''}>"


class _Hold(NamedTuple):
    """A lock that was acquired: what is stored, its version, and until when it holds by :func:`~delayed.clock.now`."""

    value: bytes
    version: int
    until: float


class _Attempt:
    """The tries of one acquisition.

    Attributes:
        hold: what it got; None as long as that is nothing.
    """

    def __init__(self, broker: Broker, queue: str, key: str, ttl: float, wait: float | None, timeout: float) -> None:
        self._broker = broker
        self._queue = queue
        self._key = key
        self._ttl = ttl
        self._end = None if wait is None else now() + wait
        self._timeout = timeout
        self._away: float | None = None  # since when the store can't be reached
        self._unsure = False  # whether our value may be there
        self._pause = PAUSE[0]
        # Nobody else has it: so what a lost answer has stored is known again.
        self._value = f"{os.urandom(16).hex()} {socket.gethostname()}:{os.getpid()}".encode("utf-8", "replace")
        self.hold: _Hold | None = None

    def go(self) -> float | None:
        """Try once; seconds until the next try, None if there is none: it has it, or its time is over."""
        left = 0.0
        try:
            left = self._try()
            self._away = None
        except BrokerUnavailable as error:
            self._away = self._away or now()
            if isinstance(error, BrokerFull) or now() - self._away > self._timeout:
                raise
        if self.hold is not None:
            return None
        pause = self._pause * random.uniform(0.5, 1.0)
        self._pause = min(self._pause * 2, PAUSE[1])
        if left > 0:
            pause = min(pause, left + IN_VAIN)
        if self._end is None:
            return pause
        remaining = self._end - now()
        return min(pause, remaining) if remaining > 0 else None

    def _try(self) -> float:
        """Seconds that whoever holds it has left; 0 if that is not known."""
        began = now()
        self._unsure = True
        version = self._broker.put_key(self._queue, self._key, self._value, ttl=self._ttl, version=0)
        if version:
            self._note(version, began + self._ttl)
            return 0.0
        began = now()
        found = self._broker.get_keys(self._queue, (self._key,)).get(self._key)
        self._unsure = found is not None and found.value == self._value
        if found is None:
            return 0.0
        left = found.left or 0.0
        if self._unsure:  # the answer was lost
            self._note(found.version, began + left)
        return left

    def _note(self, version: int, until: float) -> None:
        if until > now():  # else the answer took too long
            self.hold = _Hold(self._value, version, until)

    def abandon(self) -> None:
        """Take away what may be there without anybody's knowledge."""
        hold, self.hold = self.hold, None
        if not self._unsure and hold is None:
            return
        with suppress(BrokerError):  # then it is free when its time is over
            found = self._broker.get_keys(self._queue, (self._key,)).get(self._key)
            if found is not None and found.value == self._value:
                self._broker.put_key(self._queue, self._key, None, version=found.version)


def wait_of(name: str, value: float | timedelta | str | None) -> float | None:
    """The seconds that are waited for a lock; None: for ever.

    Raises:
        ConfigError: When it means none.
    """
    return None if value is None else seconds_of(name, value)
