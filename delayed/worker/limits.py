"""The limits of a single task, which its child puts on itself while it runs.

Memory is what the process may allocate on top of what it has when the task begins (RLIMIT_DATA): what was imported or
left before is not the task's. Not RLIMIT_AS: that counts addresses, which cost nothing. Eight threads that do nothing
reserve 540 MB of them, a file that is mapped to be read its whole size; of these RLIMIT_DATA counts 33 MB and nothing.
It counts all that Python, numpy and malloc allocate, and private mappings; not shared ones (``mmap.mmap(-1, …)``),
which only the worker's `kill_memory` sees.

CPU time is the process's (RLIMIT_CPU), which has whole seconds and counts from its start.

Only the soft limits are lowered: whoever may run a preforked child's next task has to raise them again.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from delayed.errors import LimitsRefused, TaskTimeout
from delayed.sizes import size_text
from delayed.worker.ladder import read_stack
from delayed.worker.verdict import Verdict

HOLD = sys.platform.startswith("linux")  # elsewhere RLIMIT_DATA does not count what malloc maps


class Limits:
    """Holds this process to the limits of one task, from its making until :meth:`release`.

    Args:
        limits: of the message.
        stack: descriptor of the file that stacks are dumped to.
        on_cpu_used: called by a signal handler when the CPU time is used up, and after each further second of it.
    """

    def __init__(self, limits: Mapping[str, Any], stack: int, on_cpu_used: Callable[[], None]) -> None:
        self.memory: float | None = limits.get("memory")
        self.cpu: float | None = limits.get("cpu")
        self.stack = stack
        self.where = ""  # the stacks at the end of the CPU time
        self.saved: list[tuple[int, int]] = []  # which limit, and what it was
        if self.cpu is not None:
            self.handler = signal.signal(signal.SIGXCPU, lambda number, frame: on_cpu_used())
            self.lower(resource.RLIMIT_CPU, math.ceil(time.process_time() + self.cpu))
        if self.memory is not None:
            self.lower(resource.RLIMIT_DATA, _data() + int(self.memory))

    def lower(self, which: int, limit: int) -> None:
        """Lower a soft limit, if it is not lower already."""
        soft, hard = resource.getrlimit(which)
        for other in (soft, hard):
            if other != resource.RLIM_INFINITY:
                limit = min(limit, other)
        resource.setrlimit(which, (limit, hard))
        self.saved.append((which, soft))

    def release(self) -> bool:
        """Give the process its former limits back. False if that can't be: the task has lowered the hard ones."""
        try:
            for which, soft in self.saved:
                resource.setrlimit(which, (soft, resource.getrlimit(which)[1]))
        except (ValueError, OSError):
            return False
        finally:
            if self.cpu is not None:  # only now: a signal that comes before would end the process
                signal.signal(signal.SIGXCPU, self.handler)
        return True

    def over_cpu(self) -> TaskTimeout:
        """What to raise in the task when its CPU time is used up."""
        with contextlib.suppress(OSError):
            self.clear_stack()
            faulthandler.dump_traceback(self.stack)
            self.where = read_stack(self.stack)
            self.clear_stack()  # else it would be taken for the stack of whoever comes next
        return TaskTimeout(cpu_words(self.cpu or 0.0))

    def clear_stack(self) -> None:
        os.lseek(self.stack, 0, os.SEEK_SET)
        os.ftruncate(self.stack, 0)

    def explain(self, found: Verdict, error: BaseException) -> Verdict:
        """The verdict on a run that failed, with the limit if it ran into that."""
        if self.where and isinstance(error, TaskTimeout):
            return found._replace(limit=str(error), stack=self.where)
        if self.memory and (isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM):
            return found._replace(limit=memory_words(self.memory))
        return found


def hold(limits: Mapping[str, Any], holds: bool, stack: int, on_cpu_used: Callable[[], None]) -> Limits:
    """The limits of a task, which hold from now on.

    Args:
        holds: whether this kind of worker can hold them.

    Raises:
        LimitsRefused: When it can't, or this system can't.
    """
    if holds and HOLD:
        return Limits(limits, stack, on_cpu_used)
    why = "its tasks share processes" if HOLD else f"{sys.platform} has none of that kind"
    raise LimitsRefused(
        f"this worker can't hold a task to limits of its own ({', '.join(limits)}): {why}; "
        "serve the queue with a forked or preforked worker on Linux, or enqueue the task without them"
    )


def cpu_words(seconds: float) -> str:
    """What a verdict says of a task that was over its limit."""
    return f"used its {seconds:g} s of CPU"


def memory_words(size: float) -> str:
    """What a verdict says of a task that may have failed for want of memory."""
    return f"its limit was {size_text(size)} of memory"


def _data() -> int:
    """Bytes that RLIMIT_DATA counts now; a little more, for the stack is in it."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
