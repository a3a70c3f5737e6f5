"""The orphans that come to a monitor, which is their nearest subreaper, and may be the first process of a container.

When a fork server dies the monitor inherits its children, the daemons of tasks that had come to it, and whatever the
last of those children leave behind. Who was started by a task is known by a mark in its environment: the monitor may be
a part of a program that has other children, which are none of its business.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection

from delayed.worker import process

MARK = "DELAYED_WORKER"  # the environment variable of a fork server, and so of all that its children start


class Orphans:
    """Those of one monitor.

    Args:
        worker: its id, which is in the mark.
        first: whether its process is the first of a container, and there for nothing else.

    Attributes:
        come_here: whether it is their subreaper.
        minded: whether a fork server has died, and what it left may still be there.
        strays: pids of those that end by themselves, or were killed, and are to be buried.
    """

    def __init__(self, worker: str, *, first: bool) -> None:
        self._mark = f"{MARK}={worker}".encode()
        self._first = first
        self._daemons: set[int] = set()
        self.come_here = False
        self.minded = False
        self.strays: set[int] = set()

    def mind(self, known: Collection[int], makers: Collection[int]) -> None:
        """Kill the daemons of tasks whose children are gone, and bury who has ended.

        Args:
            known: the pids of children that are no orphans, or that somebody else buries.
            makers: those of the children of a dead fork server, which may be using its daemons.
        """
        if not self.come_here:
            self.minded = False
            self.strays.clear()
            return
        if self.minded:
            unknown = set(process.children_of_self()) - set(known) - self.strays - self._daemons
            self._daemons.update(pid for pid in unknown if self._is_ours(pid, makers))
            if not makers:
                for pid in self._daemons:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)
                self.minded = bool(self._daemons)  # what they have started comes next
                self.strays |= self._daemons
                self._daemons.clear()
        for orphans in (self.strays, self._daemons):
            orphans -= {pid for pid in orphans if _is_buried(pid)}
        if self._first:
            process.reap_others(known)

    def _is_ours(self, pid: int, makers: Collection[int]) -> bool:
        """Whether a task of this worker has started it. Who has ended has no environment any more, but a session."""
        try:
            if os.getsid(pid) in makers:
                return True
            with open(f"/proc/{pid}/environ", "rb") as file:
                return self._mark in file.read().split(b"\0")
        except OSError:
            return False


def _is_buried(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
