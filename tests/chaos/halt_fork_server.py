"""Loaded by a fork server before it serves: lets that or its first child stop itself, see :mod:`tests.chaos.halt`."""

import os

from tests.chaos.halt import halt

halt("forkserver")
os.register_at_fork(after_in_child=lambda: halt("child"))
