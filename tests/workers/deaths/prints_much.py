"""Prints 100 MB."""

from __future__ import annotations

import sys

from tests.workers.deaths import RETURNED, Death, ends


def die(ledger: str) -> None:
    line = "x" * 1023 + "\n"
    for _ in range(100_000):
        sys.stdout.write(line)


DEATHS = [Death(die, ends(RETURNED), slow=True)]
