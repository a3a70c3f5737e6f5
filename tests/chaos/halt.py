"""A process stops itself as it begins, so that somebody is there for its first system call.

It has loaded what it needs by then: a process that dies while it loads holds nothing yet.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from tests.chaos.tasks import FOLDER

HALT = "CHAOS_HALT"  # the role that is to stop itself: the first process, or thread, of that role does
HALTED = "halted"  # the file in which its pid and the number of its thread stand then


def halt(role: str) -> None:
    """Stop, if this is the role, and the first of it; whoever knows the pid lets it go on."""
    if os.environ.get(HALT) != role:
        return
    try:
        file = os.open(Path(os.environ[FOLDER], HALTED), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
    except FileExistsError:
        return
    os.write(file, b"%d %d\n" % (os.getpid(), threading.get_native_id()))
    os.close(file)
    signal.raise_signal(signal.SIGSTOP)


def halt_in_thread(role: str, name: str) -> None:
    """The same, in the thread of this name, before it does anything."""
    if os.environ.get(HALT) != role:
        return

    def begins(*_: Any) -> None:
        sys.setprofile(None)
        if threading.current_thread().name == name:
            halt(role)

    threading.setprofile(begins)
