"""Stops its process with SIGSTOP, so that no other signal reaches it but SIGKILL."""

from __future__ import annotations

import os
import signal

from tests.workers.deaths import KILLED, LIMIT, Death, ends


def die(ledger: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


DEATHS = [Death(die, ends(KILLED), timeout=LIMIT)]
