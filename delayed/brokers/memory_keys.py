"""The small values of a queue in memory."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from delayed.brokers import keys
from delayed.message import Stored


class _Kept(NamedTuple):
    value: bytes
    version: int
    until: float


class MemoryKeys:
    """See :meth:`Broker.put_key`. Whoever calls holds the lock of the store, and has a new version at hand."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def get(self, names: Sequence[str], now: float) -> dict[str, Stored]:
        found = {name: self._kept[name] for name in names if name in self._kept}
        return {
            name: Stored(value, version, None if until == inf else until - now)
            for name, (value, version, until) in found.items()
            if until > now
        }

    def put(
        self, name: str, value: bytes | None, ttl: float | None, version: int | None, fresh: int, keep: bool, now: float
    ) -> int:
        found = self.get((name,), now).get(name)
        present = found.version if found is not None else 0
        if version is not None and version != present:
            return 0
        if value is None:
            self._kept.pop(name, None)
            return present
        new = present if keep and present else fresh
        self._kept[name] = _Kept(value, new, _end(ttl, now))
        return new

    def add(self, name: str, by: int, ttl: float | None, fresh: int, now: float) -> int:
        found = self.get((name,), now).get(name)
        number = by if found is None else keys.total(name, found.value, by)
        until = _end(ttl, now) if found is None else self._kept[name].until
        self._kept[name] = _Kept(b"%d" % number, fresh, until)
        return number

    def list(self, prefix: str, limit: int, now: float) -> list[str]:
        names = (name for name, kept in self._kept.items() if name.startswith(prefix) and kept.until > now)
        return sorted(names)[:limit]

    def forget(self, now: float) -> None:
        self._kept = {name: kept for name, kept in self._kept.items() if kept.until > now}


def _end(ttl: float | None, now: float) -> float:
    return inf if ttl is None else now + ttl
