"""How often a monitor looks for garbage that refers to itself.

It makes next to none, and holds hundreds of claims, each for a moment. With Python's own settings, a look at all that
is young for each 700 objects, and now and then at all that there is, that took a tenth of its time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG = 10_000  # objects more than before, after which it looks


@contextmanager
def seldom_sought() -> Iterator[None]:
    """Look less often in here, in all threads: for who runs in the main one, which is what the process is there for."""
    often, *rest = gc.get_threshold()
    if often:  # else it never looks
        gc.set_threshold(max(often, YOUNG), *rest)
    try:
        yield
    finally:
        gc.set_threshold(often, *rest)
