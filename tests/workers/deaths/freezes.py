"""Stops its process with SIGSTOP, so that no other signal reaches it but SIGKILL."""

from __future__ import annotations

import os
import signal
import time

from tests.workers.deaths import KILLED, LIMIT, Death, ends


def die(ledger: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(3600)  # another thread may take the signal, and this one go on for a moment


DEATHS = [Death(die, ends(KILLED), timeout=LIMIT)]
