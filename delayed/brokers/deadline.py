"""Until when a caller waits for the store, which brokers ask before each step that may take long; and what the caller
has to do meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

BACKOFF = (0.05, 1.0)  # seconds before the first and the slowest further attempt
LEAST = 0.5  # seconds that an attempt gets, however little is left
SLACK = 0.25  # seconds by which a driver's own limit may be too long, where to change it costs something

_until: ContextVar[float | None] = ContextVar("delayed_until", default=None)
_work: ContextVar[Callable[[], object] | None] = ContextVar("delayed_work", default=None)
waited: ContextVar[float] = ContextVar("delayed_waited", default=0.0)  # seconds that a call has waited for its turn

T = TypeVar("T")


class Attempts:
    """Questions to a store, which share one time; what is done between them does not count.

    Args:
        timeout: seconds that they take together, and :data:`LEAST` more at most. What was :data:`waited` before counts,
            what is done :func:`meanwhile` does not.
    """

    def __init__(self, timeout: float) -> None:
        self._left = timeout - waited.get()
        self._pause = BACKOFF[0]

    def make(self, call: Callable[[], T]) -> T:
        """Ask; what is asked of a store meanwhile is given up when the time is over."""
        begun = time.monotonic()
        until = begun + max(self._left, LEAST)
        before = _until.get()
        try:  # a signal handler may raise right after it is set
            _until.set(until)
            return call()
        finally:
            try:  # it may raise here, too
                self._left -= time.monotonic() - begun - ((_until.get() or until) - until)
            finally:
                _until.set(before)

    def again(self) -> bool:
        """Sleep before the next attempt; False if there is no time for one."""
        if self._pause >= self._left:
            return False
        begun = time.monotonic()
        time.sleep(self._pause)
        self._left -= time.monotonic() - begun
        self._pause = min(self._pause * 2, BACKOFF[1])
        return True


def left(most: float) -> float:
    """Seconds that a step may take: `most`, or what is left if that is less; always some."""
    until = _until.get()
    return most if until is None else min(most, max(until - time.monotonic(), 0.001))


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """Let whoever asks the store do something else while it waits for the answer; once, or not at all.

    Args:
        work: keeps for later what goes wrong in it: the answer is still to come.
    """
    try:
        _work.set(work)
        yield
    finally:
        _work.set(None)


def idle() -> None:
    """Brokers call this when they have asked, and before they wait for the answer: do what is to be done meanwhile."""
    work = _work.get()
    if work is None:
        return
    _work.set(None)
    begun = time.monotonic()
    work()
    until = _until.get()
    if until is not None:
        _until.set(until + time.monotonic() - begun)


def is_set() -> bool:
    """Whether there is a deadline here."""
    return _until.get() is not None


def aside(call: Callable[[], T], dispose: Callable[[T], object], most: float) -> T:
    """What `call` returns; where there is a deadline, it runs in a thread, and is left behind there at its end.

    For what no limit of a driver bounds: looking up names, several addresses, one after the other.

    Args:
        dispose: gets what it returns later than that.

    Raises:
        TimeoutError: When it is left behind.
    """
    if not is_set():
        return call()
    found: Future[T] = Future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:
            if found.set_running_or_notify_cancel():
                found.set_exception(error)
            return
        if found.set_running_or_notify_cancel():
            found.set_result(result)
        else:
            dispose(result)

    try:
        threading.Thread(target=run, name="delayed-connect", daemon=True).start()
    except RuntimeError:  # too late: the interpreter ends
        return call()
    try:
        return found.result(left(most))
    except TimeoutError:
        if found.cancel():
            raise
        return found.result()  # it came in that very moment, or it raised that itself
