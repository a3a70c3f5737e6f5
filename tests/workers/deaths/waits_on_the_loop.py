"""A coroutine that waits for what never comes."""

from __future__ import annotations

import asyncio

from tests.workers.deaths import KILLED, LIMIT, TIMED_OUT, Death, ends


async def die(ledger: str) -> None:
    await asyncio.Event().wait()


DEATHS = [Death(die, ends(TIMED_OUT, threaded=KILLED), timeout=LIMIT)]
