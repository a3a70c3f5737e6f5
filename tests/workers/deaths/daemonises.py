"""Leaves its session for another, and lets the process end that it was begun in. The rest returns as if nothing was."""

from __future__ import annotations

import os

from tests.workers.deaths import Death, died, ends


def die(ledger: str) -> None:
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)


DEATHS = [Death(die, ends(died("exited with 0: the process ended without an outcome")))]
