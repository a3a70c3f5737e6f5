"""Forks, and returns in both processes."""

from __future__ import annotations

import os

from tests.workers.deaths import RETURNED, Death, ends


def die(ledger: str) -> None:
    os.fork()


async def die_on_the_loop(ledger: str) -> None:
    os.fork()


DEATHS = [Death(die, ends(RETURNED)), Death(die_on_the_loop, ends(RETURNED))]
