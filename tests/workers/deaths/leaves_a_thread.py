"""Leaves a thread running, which is no daemon. Children that run one task at a time go for that."""

from __future__ import annotations

import threading
import time

from tests.workers.deaths import RETIRED, RETURNED, Death, ends


def die(ledger: str) -> None:
    threading.Thread(target=time.sleep, args=(3600,)).start()


DEATHS = [Death(die, ends(RETURNED, preforked=RETIRED))]
