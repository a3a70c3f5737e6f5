"""How processes that share a SQLite file wake each other: one FIFO per queue, in a folder beside the file."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import threading
import time
from collections.abc import Sequence

NO_FIFOS = (OSError, AttributeError, NotImplementedError)  # what a file system or a system without FIFOs raises


class Bell:
    """Wakes the sleepers of a queue, in this process and in others. A hint only: a ring may be lost.

    Whoever uses a FIFO opens it for reading and writing, so nobody ever sees its end or is refused for lack of a
    reader. Every sleeper polls it, one of them gets the byte, and the others sleep on; who claims and leaves tasks
    behind rings again, so that they wake one after the other.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._fifos: dict[int, int | None] = {}
        self._wake_read, self._wake_write = os.pipe()  # ends a sleep in this process alone
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._mutex = threading.RLock()  # a signal handler may call wake()
        self._sleepers = 0
        self._closed = False

    def ring(self, queue: int) -> None:
        """Wake one sleeper of `queue`. Never blocks."""
        with self._mutex:  # else a close could hand the descriptor's number to somebody else's file
            fifo = self._fifo(queue)
            _put(self._wake_write if fifo is None else fifo)

    def wake(self) -> None:
        """End the sleep of this object, or the next one if none is under way. Never blocks."""
        with self._mutex:
            _put(self._wake_write)

    def reaches(self, queues: Sequence[int]) -> bool:
        """Whether other processes can ring for all of `queues`; the file system may know no FIFOs."""
        return all(self._fifo(queue) is not None for queue in queues)

    def sleep(self, queues: Sequence[int], timeout: float) -> bool:
        """Sleep until someone rings for one of `queues`, at most `timeout` seconds.

        Returns:
            True if it was ended by a ring, a wake or a close; False at the timeout.
        """
        with self._mutex:
            if self._closed:
                return True
            self._sleepers += 1
        try:
            return self._poll(queues, timeout)
        finally:
            with self._mutex:
                self._sleepers -= 1
                if self._closed and not self._sleepers:
                    self._release()

    def close(self) -> None:
        """End all sleeps; the last sleeper to leave closes the descriptors, so none is reused under a poll."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            if self._sleepers:
                _put(self._wake_write)
            else:
                self._release()

    def abandon(self) -> None:
        """Close everything in a child that was forked, where nobody sleeps whatever the parent was doing."""
        self._mutex = threading.RLock()
        if not self._closed or self._sleepers:
            self._closed = True
            self._sleepers = 0
            self._release()

    def _poll(self, queues: Sequence[int], timeout: float) -> bool:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        for queue in queues:
            fifo = self._fifo(queue)
            if fifo is not None:
                poll.register(fifo, select.POLLIN)
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            rung = [descriptor for descriptor, _ in poll.poll(left * 1000 + 1)]
            if self._closed:  # the byte stays in the pipe, for the other sleepers
                return True
            if any(_take(descriptor) for descriptor in rung):
                return True
        return False

    def _fifo(self, queue: int) -> int | None:
        """The descriptor of the queue's FIFO; None where there can be none."""
        try:
            return self._fifos[queue]
        except KeyError:
            pass
        with self._mutex:
            if queue not in self._fifos and not self._closed:
                self._fifos[queue] = _open_fifo(self._folder, str(queue))
            return self._fifos.get(queue)

    def _release(self) -> None:
        fifos, self._fifos = self._fifos, {}
        for descriptor in (self._wake_read, self._wake_write, *fifos.values()):
            if descriptor is not None:
                os.close(descriptor)
        self._wake_read = self._wake_write = -1


def _open_fifo(folder: str, name: str) -> int | None:
    try:
        place = open_folder(folder)
        try:
            with contextlib.suppress(FileExistsError):
                make_fifo(name, place)
            return open_fifo(name, place, os.O_RDWR)
        finally:
            os.close(place)
    except NO_FIFOS:
        return None


def open_folder(folder: str) -> int:
    """A descriptor of the folder of the FIFOs; it is made for its owner only, whatever the umask, where there is none.

    Neither the folder nor what is in it may be a link, which others could have put there to lead us anywhere.

    Raises:
        OSError: When there can be no such folder.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
        os.chmod(folder, 0o700)
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def make_fifo(name: str, place: int) -> None:
    """Make a FIFO, for its owner only, in the folder that is open as `place`."""
    os.mkfifo(name, 0o600, dir_fd=place)
    os.chmod(name, 0o600, dir_fd=place)


def open_fifo(name: str, place: int, access: int) -> int:
    """A descriptor of a FIFO in the folder that is open as `place`.

    Raises:
        OSError: When there is none, or something else has its name.
    """
    descriptor = os.open(name, access | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileExistsError(errno.EEXIST, "this is no FIFO", name)
    return descriptor


def _put(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # full: whoever sleeps is woken by what is in it; closed: nobody sleeps
        os.write(descriptor, b"!")


def _take(descriptor: int) -> bool:
    """Empty a FIFO or pipe; False if someone else was quicker."""
    try:
        return bool(os.read(descriptor, 65536))
    except OSError:
        return False
