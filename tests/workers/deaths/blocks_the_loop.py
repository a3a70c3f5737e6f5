"""A coroutine that never comes back to its event loop, and holds up all others on it."""

from __future__ import annotations

from tests.workers.deaths import LIMIT, TIMED_OUT, Death, ends


async def die(ledger: str) -> None:
    while True:
        pass


DEATHS = [Death(die, ends(TIMED_OUT), timeout=LIMIT)]
