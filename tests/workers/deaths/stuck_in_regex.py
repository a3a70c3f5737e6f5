"""A regular expression that backtracks without end. It holds the GIL, but lets signal handlers in."""

from __future__ import annotations

import re

from tests.workers.deaths import KILLED, LIMIT, TIMED_OUT, Death, ends


def die(ledger: str) -> None:
    re.match(r"(a+)+$", "a" * 40 + "b")


DEATHS = [Death(die, ends(TIMED_OUT, threaded=KILLED, loop=KILLED), timeout=LIMIT)]
