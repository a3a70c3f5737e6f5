"""What the kernel offers to keep processes in order, each with its fallback where it is missing.

Linux has all of it, from 5.6 on. Elsewhere: without ``PR_SET_CHILD_SUBREAPER`` daemons that a task forks and that leave
its session go on running; without pidfds the exit of a child whose fork server died is found by polling; without the
life pipe's signal a child whose monitor and fork server both died ends when it next reads its channel; and without
``MADV_WIPEONFORK`` a child asks for its own number at each task, to know that it is no copy.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import re
import select
import signal
import sys
from collections.abc import Collection
from typing import Literal, Protocol

from delayed.clock import now as now

PR_SET_CHILD_SUBREAPER = 36
MADV_WIPEONFORK = 18
_LINUX = sys.platform.startswith("linux")
# Before, the end of any descriptor of a pipe, and not only the last one, signalled everybody who hung on it.
_PIPES_TELL_THE_END = _LINUX and [int(part) for part in re.findall(r"\d+", os.uname().release)[:2]] >= [5, 6]
# Plain numbers: a child that has just been forked pays for every object that it touches.
_SIGKILL = int(signal.SIGKILL)
_LIFE_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_LIFE_ASYNC = os.O_NONBLOCK | getattr(os, "O_ASYNC", 0)
F_SETSIG = 10  # fcntl(2), Linux; the fcntl module lacks it before Python 3.13

# Makes a child write its Python stacks. A real-time signal, because programs use SIGUSR1 and SIGUSR2 themselves.
STACK_SIGNAL: int = signal.SIGRTMIN + 7 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR1


class Mark(Protocol):
    """Whose first item is true in one process, and false in its forks."""

    def __getitem__(self, index: Literal[0], /) -> int: ...


class Original:
    """A mark of this process."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, index: Literal[0], /) -> bool:
        return os.getpid() == self._pid


def mark_original() -> Mark:
    """A mark of this process, that takes a while to make and a tenth of the time to look at: a page of memory that is
    empty in every fork with a memory of its own, also in one that Python does not notice.
    """
    if _LINUX:
        with contextlib.suppress(OSError, ValueError):
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(MADV_WIPEONFORK)
            page[0] = 1
            try:
                page.madvise(-1)
            except OSError:
                return page
            # It takes any advice, and follows none, as some emulators of single programs do.
    return Original()


def set_subreaper(on: bool) -> bool:
    """Let the orphans among this process's descendants become its children, so that it can reap them.

    Returns False where the system can't do that.
    """
    if not _LINUX:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0) == 0)


def is_readable(fd: int, timeout: float = 0.0) -> bool:
    """Whether there is something to read, or its end, within so many seconds.

    Not select(2): that fails at the 1,024th open file.
    """
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(timeout * 1000))


def life_line(life: int) -> int:
    """A descriptor to hang a process on with :func:`die_with`: of the pipe `life`, whose end kills what hangs on it."""
    if not _PIPES_TELL_THE_END:
        return os.dup(life)
    # Who is killed belongs to the open file description, which a fork shares: open another.
    own = os.open(f"/proc/self/fd/{life}", _LIFE_FLAGS)
    fcntl.fcntl(own, F_SETSIG, _SIGKILL)
    fcntl.fcntl(own, fcntl.F_SETFL, _LIFE_ASYNC)
    return own


def die_with(line: int, group: int) -> None:
    """Make the kernel kill the process group `group`, and no other that hung on `line` before, when the last write end
    of its pipe is closed.

    Not PR_SET_PDEATHSIG: that belongs to the forking thread, and fires when one guardian dies while the other lives.
    """
    if _PIPES_TELL_THE_END:
        fcntl.fcntl(line, fcntl.F_SETOWN, -group)


def prefer_for_oom() -> None:
    """If memory runs out, the kernel should take a child, or the fork server, rather than anything else of the host.

    It is inherited: the children, being larger, go first.
    """
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        try:
            os.write(fd, b"500")
        finally:
            os.close(fd)


def kill_group(pid: int, number: int) -> None:
    """Send a signal to the process group that `pid` leads, or to `pid` alone if it leads none. Gone is fine."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def children_of_self() -> list[int]:
    """The pids of this process's living children, as far as the kernel tells (CONFIG_PROC_CHILDREN)."""
    try:
        fd = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        text = b""
        while part := os.read(fd, 65536):
            text += part
    finally:
        os.close(fd)
    return [int(pid) for pid in text.split()]


alone = False  # whether this process is there for a worker, and has no children of its own: set by `delayed worker`


def reap_others(ours: Collection[int]) -> None:
    """Bury children that are none of `ours` and have ended: the orphans that come to the first process of a container.

    One of `ours` that has ended, and that nobody has buried yet, may keep them waiting.
    """
    with contextlib.suppress(ChildProcessError):
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid in ours:
                return
            os.waitpid(found.si_pid, 0)


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since boot; 0 where that isn't told."""
    try:
        with open("/proc/vmstat", "rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


def anonymous_file(name: str) -> int:
    """A descriptor of a new, empty, unnamed file in memory (on disk where memfd_create is missing)."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    import tempfile

    with tempfile.TemporaryFile(prefix=name) as file:
        return os.dup(file.fileno())
