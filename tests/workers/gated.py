"""A module whose import, in a worker, lasts until the ledger says that it may end."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.workers.tasks import note

if "LEDGER" in os.environ:
    note(os.environ["LEDGER"], "importing")
    while "import may end" not in Path(os.environ["LEDGER"]).read_text():
        time.sleep(0.01)


def run(ledger: str) -> None:
    note(ledger, "imported")


async def run_async(ledger: str) -> None:
    note(ledger, "imported")
