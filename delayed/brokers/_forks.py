"""What brokers do in a child that was forked: their connections, and the locks around them, stay the parent's."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Afresh(Protocol):
    """What has to begin anew in a forked child."""

    def start_afresh(self) -> None: ...


_afresh: weakref.WeakSet[Afresh] = weakref.WeakSet()


def afresh_after_fork(thing: Afresh) -> None:
    """Have `thing.start_afresh()` called in every forked child, where a lock that a thread of the parent held at that
    moment stays held for ever.
    """
    _afresh.add(thing)


def _after_fork() -> None:
    for thing in list(_afresh):
        thing.start_afresh()


os.register_at_fork(after_in_child=_after_fork)
