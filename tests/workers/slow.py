"""A module that takes long to import, in a worker."""

from __future__ import annotations

import os
import time

from tests.workers.tasks import note

if "LEDGER" in os.environ:
    time.sleep(0.5)


def run(ledger: str) -> None:
    note(ledger, "ran")
    time.sleep(60)
