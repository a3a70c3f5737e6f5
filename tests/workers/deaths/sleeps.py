"""Waits in a system call for what never comes. In a thread no signal interrupts that."""

from __future__ import annotations

import time

from tests.workers.deaths import KILLED, LIMIT, TIMED_OUT, Death, ends


def die(ledger: str) -> None:
    time.sleep(3600)


DEATHS = [Death(die, ends(TIMED_OUT, threaded=KILLED, loop=KILLED), timeout=LIMIT)]
