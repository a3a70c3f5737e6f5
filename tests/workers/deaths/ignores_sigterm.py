"""Lets the first step of the kill ladder pass it by. Threads can't."""

from __future__ import annotations

import signal
import time

from tests.workers.deaths import KILLED, LIMIT, Death, ends, raised


def die(ledger: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600)


REFUSED = raised("ValueError", "signal only works in main thread")
DEATHS = [Death(die, ends(KILLED, threaded=REFUSED, loop=REFUSED), timeout=LIMIT)]
