"""How long is waited: for what others do, and for a store that can't be reached."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Self, TypeVar

from delayed.durations import seconds_of
from delayed.errors import BrokerUnavailable

if TYPE_CHECKING:
    from datetime import timedelta

SLICE = 0.25  # seconds that one wait lasts at most: an exception that is thrown into a thread arrives only between two
LOOK = 1.0  # seconds that a look may take although time is over: with a timeout of 0 it is made too
BACKOFF = (0.05, 1.0)  # seconds: first and longest pause while the store can't be reached

R = TypeVar("R")


class Patience:
    """Waits until one deadline. What is waited for longer than that ends with :class:`TimeoutError`.

    Args:
        timeout: how long it waits; None: as long as it takes.
        outage: seconds that a store which can't be reached is asked again without a timeout; with one, until its end.

    Raises:
        ConfigError: When the timeout is no duration.

    Attributes:
        timeout: in seconds, or None.
        away: why the store can't be reached, if it could not when it was asked last; else None.
    """

    def __init__(self, timeout: float | timedelta | str | None, outage: float) -> None:
        self.timeout = None if timeout is None else seconds_of("timeout", timeout)
        self.away: BrokerUnavailable | None = None
        self._outage = outage
        self._deadline = None if self.timeout is None else time.monotonic() + self.timeout

    @property
    def left(self) -> float | None:
        """Seconds until the deadline; None: there is none."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def looking(self) -> Self:
        """The same for a look, which gets a second in any case."""
        found = copy.copy(self)
        if self._deadline is not None:
            found._deadline = max(self._deadline, time.monotonic() + LOOK)
        return found

    def insist(self, call: Callable[[], R]) -> R:
        """What a question to the store finds, asked again while that can't be reached.

        Raises:
            BrokerUnavailable: When it could not for all the time there is.
        """
        end = self.looking()._deadline or time.monotonic() + self._outage
        pause = BACKOFF[0]
        while True:
            try:
                found = call()
                self.away = None
                return found
            except BrokerUnavailable as error:
                self.away = error
                left = end - time.monotonic()
                if left <= 0:
                    raise
                time.sleep(min(pause, left))
                pause = min(pause * 2, BACKOFF[1])

    def look(self, call: Callable[[], R]) -> R:
        """As :meth:`insist`, and left behind where a store that gives no answer would hold it up for longer.

        Raises:
            BrokerUnavailable: When it could not be reached, and there is no timeout.
        """
        if self._deadline is None:
            return self.insist(call)
        found: Future[R] = Future()
        threading.Thread(target=_settle, args=(found, self.insist, call), name="delayed-look", daemon=True).start()
        patience = self.looking()
        try:
            return patience.wait(found)
        except BrokerUnavailable:
            raise TimeoutError from None

    async def alook(self, call: Callable[[], R]) -> R:
        """:meth:`look` without blocking the event loop."""
        import asyncio

        looking = asyncio.to_thread(self.insist, call)
        if self._deadline is None:
            return await looking
        try:
            return await asyncio.wait_for(looking, self.looking().left)
        except BrokerUnavailable:
            raise TimeoutError from None

    def wait(self, future: Future[R]) -> R:
        """The result of a future."""
        while not future.done():
            seconds = self._slice()
            with suppress(TimeoutError):
                future.exception(seconds)
        return future.result()

    def get(self, inbox: SimpleQueue[R]) -> R:
        """The next thing from a queue."""
        while True:
            seconds = self._slice(inbox.empty())
            with suppress(Empty):
                return inbox.get(timeout=seconds)

    async def await_(self, future: Future[R]) -> R:
        """:meth:`wait` without blocking the event loop."""
        import asyncio

        return await asyncio.wait_for(asyncio.wrap_future(future), self.left)

    def _slice(self, wait: bool = True) -> float:
        """Seconds until it has to be looked how much is left."""
        left = self.left
        if left == 0.0 and wait:
            raise TimeoutError
        return SLICE if left is None else min(left, SLICE)


def _settle(found: Future[R], insist: Callable[[Callable[[], R]], R], call: Callable[[], R]) -> None:
    try:
        found.set_result(insist(call))
    except BaseException as error:
        found.set_exception(error)
