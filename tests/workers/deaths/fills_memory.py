"""Takes more memory than `kill_memory` allows its child to use, and keeps it for long."""

from __future__ import annotations

import time

from tests.workers.deaths import Death, died, ends


def die(ledger: str) -> None:
    data = b"x" * (300 << 20)
    while data:
        time.sleep(0.01)


DEATHS = [Death(die, ends(died("killed by its worker: it used", 9)), slow=True)]
