"""What a worker takes of the machine: memory, descriptors, threads, processes, files."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.chaos.processes import children_of, descriptors, state_of, with_marker

MB = 1 << 20
MEMORY = 5 * MB  # bytes that a guardian may grow
DESCRIPTORS = 2  # that it may have more


class Figures(NamedTuple):
    """What one process takes.

    Attributes:
        memory: bytes of its own. What a fork has not copied yet counts for both, so that it does not matter which
            children there happen to be.
        shared: bytes of the largest file in memory that it holds: where tasks leave their answers, which has a page for
            each task that can be handed out, and is full in time.
        descriptors: that are open.
        threads: of it.
    """

    memory: int
    shared: int
    descriptors: int
    threads: int

    def __str__(self) -> str:
        files = f"{self.descriptors} descriptors, {self.threads} threads"
        return f"{self.memory / MB:.1f} + {self.shared / MB:.1f} MB, {files}"

    @classmethod
    def of(cls, pid: int) -> Figures:
        """Raises OSError if there is no such process."""
        folder = Path(f"/proc/{pid}")
        found = re.search(r"^Anonymous:\s+(\d+) kB", (folder / "smaps_rollup").read_text(), re.MULTILINE)
        assert found is not None
        return cls(int(found[1]) << 10, _in_memory(folder), descriptors(pid), len(os.listdir(folder / "task")))


class Residue(NamedTuple):
    """What there is of some workers when they have nothing to do.

    Attributes:
        guardians: the figures of each, by its role and pid.
        processes: all of them, children too.
        zombies: processes that have ended and that nobody has waited for.
        files: temporary ones, and those in shared memory that bear the library's name.
    """

    guardians: Mapping[str, Figures]
    processes: int
    zombies: int
    files: tuple[str, ...]

    def __str__(self) -> str:
        rest = f"{self.processes} processes, {self.zombies} zombies, {len(self.files)} files"
        return "\n".join([rest, *(f"{who:>22}: {figures}" for who, figures in self.guardians.items())])

    def grown(self, first: Residue) -> Iterator[str]:
        """In sentences, what there is more than there was."""
        for who in first.guardians.keys() - self.guardians.keys():
            yield f"{who} is gone"
        for who in self.guardians.keys() - first.guardians.keys():
            yield f"{who} is new"
        for who, now in self.guardians.items():
            then = first.guardians.get(who, now)
            if (more := now.memory - then.memory) > MEMORY:
                yield f"{who} has {more / MB:.1f} MB more"
            if (more := now.shared - then.shared) > MEMORY:
                yield f"{who} has {more / MB:.1f} MB more in memory that it shares"
            if (more := now.descriptors - then.descriptors) > DESCRIPTORS:
                yield f"{who} has {more} descriptors more"
            if (more := now.threads - then.threads) > 0:
                yield f"{who} has {more} threads more"
        if self.processes > first.processes:
            yield f"there are {self.processes - first.processes} processes more"
        if self.zombies:
            yield f"there are {self.zombies} zombies"
        if new := set(self.files) - set(first.files):
            yield f"there are {len(new)} files more, such as {min(new)}"


def residue(guardians: Mapping[str, int], marker: str, temporary: Path) -> Residue:
    """Look now.

    Args:
        guardians: the pid of each, by what it is called.
        marker: what all processes have in their environment.
        temporary: the folder that they have for temporary files.
    """
    shared = [name for name in os.listdir("/dev/shm") if "delayed" in name]
    zombies = {child for pid in guardians.values() for child in children_of(pid) if state_of(child) == "Z"}
    return Residue(
        {who: Figures.of(pid) for who, pid in guardians.items()},
        len(with_marker(marker)),
        len(zombies),
        (*os.listdir(temporary), *shared),
    )


def _in_memory(folder: Path) -> int:
    largest = 0
    for name in os.listdir(folder / "fd"):
        with contextlib.suppress(OSError):
            link = folder / "fd" / name
            if os.readlink(link).startswith("/memfd:"):
                largest = max(largest, os.stat(link).st_blocks * 512)
    return largest
