"""The clock by which durations are measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

# Seconds since boot, suspended time included, for a lease goes on while the machine sleeps; elsewhere those of a clock
# that is never set. No function of ours: each task asks twice, and to call one takes nearly as long as to look.
now: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
