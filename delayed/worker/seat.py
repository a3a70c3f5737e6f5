"""A seat as its monitor sees it: a place for one child at a time, with a channel that outlives the child."""

from __future__ import annotations

import os

from delayed.worker import channel, process
from delayed.worker.channel import TaskFrame
from delayed.worker.courier import Held


class Seat:
    """One seat.

    Attributes:
        index: its number on the board.
        mine: the monitor's end of the channel.
        theirs: the child's end, which the monitor reads only to take tasks back.
        stack: descriptor of the file that the child's stacks are dumped to.
        pid: of its child; 0 while there is none.
        pidfd: a descriptor of that process once it is an orphan, -1 where there is none.
        orphan: whether the fork server that forked the child is dead.
        forking: whether a child was asked for and has not been reported yet.
        fork_at: not before when to ask for the next child.
        failures: children in a row that ended before they did anything.
        retiring: whether its child takes nothing more, and goes when what it runs has ended.
        blocked: whether its child does not begin what it was handed, though it has room for it.
        garbled: whether it was told of its child that it sends what is no report.
        recalled: the last task that was recalled from its child, and not only taken out of the channel; 0 if none was.
        recalled_at: when that was.
        handed_at: when something was handed over last.
        still: seconds for which its child has begun nothing of what it was handed.
        idle_since: since when its child, which is to leave, has nothing to do; 0 if it has, or need not leave.
        asked, reported: the last beat of a blocked event loop about which its stack was asked for, and reported.
        reports: how often its tasks had said how far they are when that was looked at last.
        tasks: what was handed over and has not been reported back, by slot.
        slots: free slots.
        handling: the error handler's frame that the child works on, if any.
    """

    def __init__(self, index: int, slots: int) -> None:
        self.index = index
        self.open_channel()
        self.stack = process.anonymous_file("delayed-stack")
        self.pid = 0
        self.pidfd = -1
        self.orphan = False
        self.forking = False
        self.fork_at = 0.0
        self.failures = 0
        self.retiring = False
        self.blocked = False
        self.garbled = False
        self.recalled = 0
        self.recalled_at = 0.0
        self.handed_at = 0.0
        self.still = 0.0
        self.idle_since = 0.0
        self.asked = self.reported = 0.0
        self.reports = 0
        self.tasks: dict[int, Held] = {}
        self.slots = list(range(slots))
        self.handling: TaskFrame | None = None

    def open_channel(self) -> None:
        self.mine, self.theirs = channel.pair()
        self.mine.setblocking(False)

    def renew_channel(self) -> None:
        """Take another channel, which the next fork server inherits."""
        self.mine.close()
        self.theirs.close()
        self.open_channel()

    @property
    def busy(self) -> bool:
        return bool(self.tasks) or self.handling is not None

    def open(self, lanes: int) -> bool:
        """Whether a task can be handed to its child, which has `lanes` lanes."""
        return bool(
            self.pid
            and self.slots
            and not (self.orphan or self.retiring or self.blocked)
            and (self.handling is None or lanes > 1)
        )

    def seated(self, pid: int) -> None:
        """A child has come."""
        self.pid = pid
        self.forking = False

    def orphaned(self) -> bool:
        """The fork server of the child is gone. False if the child is too."""
        self.orphan = True
        try:
            # Being the nearest subreaper, the monitor is its parent now. Who is not its child was given its number.
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if hasattr(os, "pidfd_open"):
                self.pidfd = os.pidfd_open(self.pid)
        except (ChildProcessError, ProcessLookupError):
            return False
        return True

    def vacated(self) -> None:
        """The child is gone."""
        self.pid = 0
        self.still = 0.0
        self.orphan = self.retiring = self.blocked = self.garbled = False
        self.idle_since = 0.0
        self.recalled = 0
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def close(self) -> None:
        self.vacated()
        self.mine.close()
        self.theirs.close()
        os.close(self.stack)

    def descriptors(self) -> tuple[int, int, int]:
        """What the fork server inherits."""
        return self.mine.fileno(), self.theirs.fileno(), self.stack
