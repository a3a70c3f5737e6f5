"""Keeps 100 MB at each call, more than `max_memory` allows its child to grow."""

from __future__ import annotations

from tests.workers.deaths import RETIRED, Death, ends

kept = []


def die(ledger: str) -> None:
    kept.append(b"x" * (100 << 20))


DEATHS = [Death(die, ends(RETIRED), slow=True)]
