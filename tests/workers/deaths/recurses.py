"""Calls itself without end."""

from __future__ import annotations

from tests.workers.deaths import Death, ends, raised


def die(ledger: str) -> None:
    die(ledger)


DEATHS = [Death(die, ends(raised("RecursionError", "maximum recursion depth exceeded")))]
