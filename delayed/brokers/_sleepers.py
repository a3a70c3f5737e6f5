"""What waits on sockets have in common: sleepers, each with connections of its own and a socket pair that wakes it."""

from __future__ import annotations

import contextlib
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from delayed.brokers._forks import afresh_after_fork


class Sleeper(ABC):
    """What one thread waits with, kept for the next wait.

    Attributes:
        leaving: whether its broker was closed: its connections end with the wait.
    """

    def __init__(self) -> None:
        self.leaving = False
        self._ear, self._bell = socket.socketpair()
        self._ear.setblocking(False)
        self._bell.setblocking(False)

    @abstractmethod
    def hang_up(self) -> None:
        """Close its connections."""

    def wake(self) -> None:
        """End its wait. Never blocks."""
        with contextlib.suppress(OSError):  # full: it rings already; closed: it is awake
            self._bell.send(b"!")

    def drain(self) -> None:
        """Forget that it was woken."""
        with contextlib.suppress(OSError):
            while self._ear.recv(64):
                pass

    def close(self) -> None:
        """Close everything."""
        self.hang_up()
        self._ear.close()
        self._bell.close()

    def __del__(self) -> None:  # of a broker that nobody closed
        self.close()


S = TypeVar("S", bound=Sleeper)


class Sleepers(Generic[S]):
    """All sleepers of one broker in one process. After a fork the child starts without any: the connections and the
    lock of the parent's are left alone.

    Args:
        make: makes one.
    """

    def __init__(self, make: Callable[[], S]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._idle: list[S] = []
        self._asleep: set[S] = set()
        self._rung = False  # woken while nobody slept: the next one does not begin
        afresh_after_fork(self)

    def start_afresh(self) -> None:
        """See :func:`afresh_after_fork`."""
        _parents.append((self._idle, self._asleep))
        self._lock = threading.Lock()
        self._idle = []
        self._asleep = set()
        self._rung = False

    @contextlib.contextmanager
    def one(self) -> Iterator[S | None]:
        """A sleeper for one wait; None if the wait is over before it begins."""
        with self._lock:
            rung, self._rung = self._rung, False
            sleeper = None
            if not rung:
                sleeper = self._idle.pop() if self._idle else self._make()
                self._asleep.add(sleeper)
        if sleeper is None:
            yield None
            return
        kept = False
        try:
            yield sleeper
            kept = True
        finally:
            with self._lock:
                kept = kept and sleeper in self._asleep  # else close() was called meanwhile
                self._asleep.discard(sleeper)
                sleeper.drain()
                if kept:
                    self._idle.append(sleeper)
            if not kept:
                sleeper.close()

    def wake(self) -> None:
        """End the waits that are under way, or the next one if none is."""
        with self._lock:
            self._rung = not self._asleep
            for sleeper in self._asleep:
                sleeper.wake()

    def close(self) -> None:
        """End all waits, and close the connections."""
        with self._lock:
            idle, self._idle = self._idle, []
            asleep, self._asleep = self._asleep, set()
            self._rung = False
            for sleeper in asleep:
                sleeper.leaving = True
                sleeper.wake()  # its thread closes it
        for sleeper in idle:
            sleeper.close()


_parents: list[Any] = []  # sleepers of the parent's, kept because their end might say goodbye to the server
