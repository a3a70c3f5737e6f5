"""The spool: a file in memory that monitor, fork server and children of a worker hold, in which a child leaves what its
tasks answer, before it says on the board that they have ended. So an answer outlives whoever dies on the way.

Each slot of the board has a place of its own in it. The file is sparse: places take memory only for what lies in them.
"""

from __future__ import annotations

import contextlib
import mmap
import os

STRIDE = 256 << 20  # bytes of a place
SMALL = 16 << 10  # bytes that are left where they lie, for the next answer to write over


class Spool:
    """The whole spool, in the file `fd`.

    Args:
        slots: of each seat.
    """

    def __init__(self, fd: int, slots: int) -> None:
        self._fd = fd
        self._slots = slots
        self._inode = os.fstat(fd).st_ino

    def write(self, seat: int, slot: int, data: bytes) -> None:
        """Leave an answer, of `STRIDE` bytes at most.

        Raises:
            OSError: When it can't be left: there is no memory, or the task has closed the file.
        """
        if os.fstat(self._fd).st_ino != self._inode:  # another file may have taken the number
            raise OSError("the task has closed a descriptor of its process that answers are passed through")
        at = self._at(seat, slot)
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._fd, rest, at)
            at, rest = at + written, rest[written:]

    def read(self, seat: int, slot: int, size: int) -> bytes:
        """The answer in a place, `STRIDE` bytes of it at most, whatever a task has made of its size."""
        return os.pread(self._fd, min(size, STRIDE), self._at(seat, slot))

    def clear(self, seat: int, slot: int, size: int) -> None:
        """Let go of the memory of a place."""
        if SMALL < size <= STRIDE and hasattr(mmap, "MADV_REMOVE"):
            # Not supported by every file system that takes the place of memory; then the next answer writes over it.
            with contextlib.suppress(OSError), mmap.mmap(self._fd, size, offset=self._at(seat, slot)) as place:
                place.madvise(mmap.MADV_REMOVE)

    def _at(self, seat: int, slot: int) -> int:
        return (seat * self._slots + slot) * STRIDE
