"""Ends its process at once, past every ``finally`` and every exit handler."""

from __future__ import annotations

import os

from tests.workers.deaths import Death, died, ends


def die(ledger: str, code: int) -> None:
    os._exit(code)


DEATHS = [
    Death(die, ends(died("exited with 3")), (3,)),
    Death(die, ends(died("exited with 0: the process ended without an outcome")), (0,)),
    Death(die, ends(died("exited with 87")), (87,)),  # which the child itself uses when it can't speak any more
]
