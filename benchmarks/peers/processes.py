"""The processes of a worker: to start them, to end them, and what they use."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

GRACE = 2.0  # seconds a worker gets to end by itself
TICK = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(commands: list[list[str]], environ: Mapping[str, str], log: Path) -> Iterator[list[int]]:
    """The process ids of these commands, which are ended, with all their descendants, when the block is."""
    with log.open("ab") as output:
        started = [
            subprocess.Popen(
                command,
                env=environ,
                cwd=environ["PYTHONPATH"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            for command in commands
        ]
    try:
        yield [process.pid for process in started]
    finally:
        everybody = family([process.pid for process in started])
        for process in started:
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for pid in everybody:  # their parents may be gone by now
            if _born(pid) == everybody[pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in started:
            process.wait()


def family(pids: list[int]) -> dict[int, str]:
    """These processes and their descendants, and when each was born, by which a pid that is used again is told."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (fields := _stat(int(folder.name))):
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found: dict[int, str] = {}
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        found[pid] = _born(pid)
        waiting += children.get(pid, [])
    return found


def memory(pids: list[int]) -> int:
    """Bytes of private memory of these processes and their descendants."""
    kilobytes = 0
    for pid in family(pids):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Private_"):
                    kilobytes += int(line.split()[1])
    return kilobytes * 1024


def cpu(pids: list[int]) -> float:
    """Seconds of CPU that these processes and their descendants have used."""
    return sum(map(_cpu, family(pids)))


def _cpu(pid: int) -> float:
    """By the scheduler's nanoseconds, where the kernel keeps them, of threads that still run; else by ticks."""
    with contextlib.suppress(OSError, IndexError):
        threads = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
    fields = _stat(pid)
    return sum(map(int, fields[11:13])) / TICK if fields else 0.0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third, the state, on; empty if there is no such process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _born(pid: int) -> str:
    fields = _stat(pid)
    return fields[19] if fields else ""
