"""Reads from where there is no memory."""

from __future__ import annotations

import ctypes

from tests.workers.deaths import Death, died, ends


def die(ledger: str) -> None:
    ctypes.string_at(0)


DEATHS = [Death(die, ends(died("killed by signal 11 (SIGSEGV), not by its worker", 11)))]
