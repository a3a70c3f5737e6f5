"""Telling a loop to stop."""

from __future__ import annotations

import contextlib
import threading


class Stop:
    """Set by other threads and by signal handlers, and waited for by one thread.

    Not a threading.Event: that has a lock of its own, and a handler waits for ever for what the thread that it has
    interrupted is holding. Here every step is one call that a handler can't come in between.
    """

    def __init__(self) -> None:
        self._set = False
        self._lock = threading.Lock()  # free when it is set
        self._lock.acquire()

    def __bool__(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        self._free()

    def clear(self) -> None:
        self._set = False
        self._lock.acquire(blocking=False)

    def wait(self, seconds: float) -> None:
        """Return when it is set, after `seconds` at most."""
        if self._lock.acquire(timeout=seconds):
            self._free()

    def _free(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is
            self._lock.release()
