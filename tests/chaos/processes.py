"""The processes of a worker, told apart without the library's help: by who is whose child."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def state_of(pid: int) -> str:
    """The letter of ps: Z for a zombie, T for a stopped one; "" if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def born_at(pid: int) -> int:
    """When it was started, in ticks since boot; 0 if there is no such process. Tells it from a later one of its pid."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def fork_servers_of(monitor: int) -> list[int]:
    """Its children that do not lead a session: those that do are orphans of another fork server."""
    found = []
    for pid in children_of(monitor):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) != pid and state_of(pid) not in ("", "Z"):
                found.append(pid)
    return found


def command_of(pid: int) -> str:
    """The name of its program; "" if there is no such process any more."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return ""


def below(pid: int) -> Iterator[int]:
    """The process and all its descendants, parents first."""
    yield pid
    for child in children_of(pid):
        yield from below(child)


def with_marker(marker: str) -> list[int]:
    """Every process in whose environment this text is."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if marker.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
    return found


def descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal to this very process; False if it is gone. Never hits one that was given its number since."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if state_of(pid) in ("", "Z"):
            return False
        signal.pidfd_send_signal(fd, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
