"""Leaves a copy of its process behind, with a session of its own and all that the child has open."""

from __future__ import annotations

import os
import time

from tests.workers.deaths import RETURNED, Death, ends


def die(ledger: str) -> None:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(3600)
        os._exit(0)
    os.wait()


DEATHS = [Death(die, ends(RETURNED))]
