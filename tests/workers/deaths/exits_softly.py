"""Asks Python to end its process. As everywhere, 0 and None mean that all is well."""

from __future__ import annotations

import sys
from typing import Any

from tests.workers.deaths import RETURNED, Death, End, ends


def die(ledger: str, code: Any) -> None:
    sys.exit(code)


DEATHS = [
    Death(die, ends(End("exited with 4", error="SystemExit")), (4,)),
    Death(die, ends(RETURNED), (0,)),
    Death(die, ends(RETURNED), (None,)),
]
