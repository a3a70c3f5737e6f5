"""Raises an exception that can't be sent to another process."""

from __future__ import annotations

import threading

from tests.workers.deaths import Death, ends, raised


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def die(ledger: str) -> None:
    raise Unpicklable


DEATHS = [Death(die, ends(raised(f"{__name__}.Unpicklable", "holds a lock")))]
