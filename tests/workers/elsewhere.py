"""Preloaded: makes a system without limits of this one."""

from delayed.worker import limits

limits.HOLD = False
