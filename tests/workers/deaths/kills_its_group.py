"""Kills its whole process group, which must not be its worker's."""

from __future__ import annotations

import os
import time

from tests.workers.deaths import Death, died, ends


def die(ledger: str) -> None:
    os.kill(0, 9)
    time.sleep(60)


DEATHS = [Death(die, ends(died("killed by signal 9 (SIGKILL), not by its worker", 9)))]
