"""Never comes to an end, in Python code."""

from __future__ import annotations

from tests.workers.deaths import LIMIT, TIMED_OUT, Death, ends


def die(ledger: str) -> None:
    while True:
        pass


DEATHS = [Death(die, ends(TIMED_OUT), timeout=LIMIT)]
