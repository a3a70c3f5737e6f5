"""A coroutine that does not let itself be cancelled."""

from __future__ import annotations

import asyncio
import contextlib

from tests.workers.deaths import KILLED, LIMIT, Death, ends


async def die(ledger: str) -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


DEATHS = [Death(die, ends(KILLED), timeout=LIMIT)]
