"""Raises an exception that has no words."""

from __future__ import annotations

from tests.workers.deaths import Death, ends, raised


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def die(ledger: str) -> None:
    raise Unspeakable


DEATHS = [Death(die, ends(raised(f"{__name__}.Unspeakable")))]
