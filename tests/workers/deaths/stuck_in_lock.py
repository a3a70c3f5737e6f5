"""Waits for a lock that it holds itself. In a thread no signal interrupts that."""

from __future__ import annotations

import threading

from tests.workers.deaths import KILLED, LIMIT, TIMED_OUT, Death, ends


def die(ledger: str) -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


DEATHS = [Death(die, ends(TIMED_OUT, threaded=KILLED, loop=KILLED), timeout=LIMIT)]
