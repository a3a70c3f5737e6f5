"""Asks Python to end its process from a coroutine, which would end the event loop with all others on it."""

from __future__ import annotations

import sys

from tests.workers.deaths import Death, End, ends


async def die(ledger: str) -> None:
    sys.exit(4)


DEATHS = [Death(die, ends(End("exited with 4", error="SystemExit")))]
