"""Takes every signal that a process may take, and keeps them. Threads can't."""

from __future__ import annotations

import contextlib
import signal

from tests.workers.deaths import RETIRED, RETURNED, Death, ends, raised


def die(ledger: str) -> None:
    for number in signal.valid_signals():
        with contextlib.suppress(OSError):
            signal.signal(number, lambda number, frame: None)


async def die_on_the_loop(ledger: str) -> None:
    die(ledger)


REFUSED = raised("ValueError", "signal only works in main thread")
DEATHS = [
    Death(die, ends(RETURNED, preforked=RETIRED, threaded=REFUSED, loop=REFUSED)),
    Death(die_on_the_loop, ends(RETURNED, preforked=RETIRED, threaded=REFUSED, loop=RETIRED)),
]
