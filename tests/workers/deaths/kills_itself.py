"""Sends its own process a deadly signal."""

from __future__ import annotations

import os
import time

from tests.workers.deaths import Death, died, ends


def die(ledger: str, number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


DEATHS = [
    Death(die, ends(died("killed by signal 9 (SIGKILL), not by its worker", 9)), (9,)),
    Death(die, ends(died("killed by signal 14 (SIGALRM), not by its worker", 14)), (14,)),
    Death(die, ends(died("killed by signal 15 (SIGTERM), not by its worker", 15)), (15,)),
]
