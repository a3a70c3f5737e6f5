"""C code that holds the GIL and never looks at signals."""

from __future__ import annotations

import collections
import itertools

from tests.workers.deaths import KILLED, LIMIT, Death, ends


def die(ledger: str) -> None:
    collections.deque(itertools.repeat(0), maxlen=0)


DEATHS = [Death(die, ends(KILLED), timeout=LIMIT)]
