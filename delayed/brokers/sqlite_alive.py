"""Which workers live: each holds a lock on a file of its own, in the folder of the wake-ups, in all of its processes.

The kernel lets go of the lock when the last of them is gone, however it went. Whoever can have it for himself alone
knows that nobody runs the worker's tasks any more, and need not wait for the end of its leases. A supervisor shares it,
for it knows more: which of the tasks had ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from urllib.parse import quote, unquote

from delayed.brokers.sqlite_wake import open_folder

PREFIX = "worker-"


@contextlib.contextmanager
def held(folder: str, worker: str) -> Iterator[int]:
    """Hold a worker's lock; the descriptor, for its other processes to inherit. -1 where files can't be locked."""
    name = PREFIX + quote(worker, safe=":")
    try:
        place = open_folder(folder)
    except OSError:
        yield -1
        return
    try:
        fd = _take(place, name)
        try:
            yield fd
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=place)
        finally:
            if fd >= 0:
                os.close(fd)
    finally:
        os.close(place)


def _take(place: int, name: str) -> int:
    while True:
        try:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=place)
        except OSError:
            return -1
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            if os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=place, follow_symlinks=False)):
                return fd
        except FileNotFoundError:
            pass  # somebody found it between its making and its locking
        except OSError:
            os.close(fd)
            return -1
        os.close(fd)


@contextlib.contextmanager
def gone(folder: str) -> Iterator[list[str]]:
    """The workers of which no process is left. When the block ends well they are forgotten."""
    found: list[tuple[str, int]] = []
    try:
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield []
        return
    try:
        for name in os.listdir(place):
            if not name.startswith(PREFIX):
                continue
            with contextlib.suppress(OSError):
                fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    os.close(fd)  # it lives
                    continue
                found.append((name, fd))
        yield [unquote(name.removeprefix(PREFIX)) for name, _ in found]
        for name, _ in found:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=place)
    finally:
        for _, fd in found:
            os.close(fd)
        os.close(place)
