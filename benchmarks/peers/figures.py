"""What was measured, by whom and in which way; medians and spreads of it."""

from __future__ import annotations

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

MACHINE = "machine"  # whose figures are the limits


class Key(NamedTuple):
    """What was measured of whom, in which way of working, empty where that makes no difference."""

    peer: str
    what: str
    way: str = ""


class Figures:
    """Values of all rounds.

    Attributes:
        failed: what did not work, in words, by whom.
    """

    def __init__(self) -> None:
        self._values: defaultdict[Key, list[float]] = defaultdict(list)
        self.failed: dict[Key, str] = {}

    def add(self, key: Key, *values: float) -> None:
        self._values[key] += values

    def get(self, peer: str, what: str, way: str = "") -> float | None:
        """The median, or None if there is none."""
        values = self.values(peer, what, way)
        return statistics.median(values) if values else None

    def values(self, peer: str, what: str, way: str = "") -> list[float]:
        return self._values.get(Key(peer, what, way), [])

    def percentile(self, percent: int, peer: str, what: str, way: str = "") -> float | None:
        values = self.values(peer, what, way)
        if len(values) < 2:
            return values[0] if values else None
        return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]

    @contextlib.contextmanager
    def noting(self, key: Key, tell: Callable[[str], None]) -> Iterator[None]:
        """What fails in this block is told and reported, and the rest is measured nevertheless."""
        try:
            yield
        except Exception as error:
            self.failed[key] = f"{type(error).__name__}: {error}"
            tell(f"{' '.join(key)}: {self.failed[key]}")
