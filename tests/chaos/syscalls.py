"""Death between any two system calls of a process: strace counts them, and sends SIGKILL as the k-th begins.

A first run of the same scene without harm says which calls there are. Each is a crash point: ``fsync#3 courier sqlite``
is the third fsync of that thread since it was warm, or since it began (``call_scenes.py`` says which). As nothing
happens in quite the same order twice, a run may end before the call comes; then it was judged without harm, and counts
as *not reached*.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.chaos.crash_scenes import NotReached, Stage
from tests.chaos.processes import send, state_of
from tests.chaos.records import now

TRACE = "trace"  # the file that strace writes
RETURNED = '\\"what\\":\\"E\\"'  # in the trace of a child: its task has noted that it returns
DYING = 2.0  # seconds that a process may take to die
NOTED = "fchdir("  # the first call of a child that has noted on the board how a task ended
_CALL = re.compile(r"^(\d+\.\d+) (\w+)\(")


def missing() -> str:
    """Why there can be no such points here; "" if there can."""
    if not shutil.which("strace"):
        return "there is no strace"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            with traced(process.pid, Path("/dev/null")):
                return ""
        except NotReached as error:
            return str(error)
        finally:
            process.kill()


@contextlib.contextmanager
def traced(
    tid: int,
    path: Path,
    call: str = "",
    count: int | str = 0,
    *,
    effect: str = "signal=SIGKILL",
    threads: bool = False,
) -> Iterator[None]:
    """Write the calls of one thread, or of all `threads` of its process, to a file; at the `count`-th of one name it
    is killed, or whatever else strace is to do then.

    Raises:
        NotReached: When the thread can't be traced.
    """
    trap = ["-e", f"inject={call}:{effect}:when={count}"] if call else []
    command = ["strace", *(["-f"] if threads else []), "-p", str(tid), "-ttt", "-s", "64", "-o", str(path), *trap]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as strace:
        assert strace.stderr is not None
        try:
            said = strace.stderr.readline().decode()
            if "attached" not in said:
                raise NotReached(f"strace says {said.strip()!r}")
            yield
        finally:
            send(strace.pid, signal.SIGINT)  # it lets go of whom it traces
            strace.wait()


def calls(path: Path) -> list[str]:
    """The names of the calls in a trace, each with its number: ``fsync#3``."""
    seen: Counter[str] = Counter()
    found = []
    for line in path.read_text(errors="replace").splitlines():
        if match := _CALL.match(line):
            seen[match[2]] += 1
            found.append(f"{match[2]}#{seen[match[2]]}")
    return found


def trap(stage: Stage, role: str, pid: int, tid: int, point: str, burst: Callable[[], None]) -> bool:
    """Do something while a thread is traced, and note the death of its process, if it came to that."""
    path = stage.arena.folder / TRACE
    call, _, count = point.partition("#")
    with traced(tid, path, call, int(count or 0)):
        burst()
    if not point or calls(path)[-1:] != [point]:
        return False
    deadline = now() + DYING
    while state_of(pid) not in ("", "Z"):
        if now() > deadline:  # it was let go of when it was just about to
            return False
        time.sleep(0.01)
    unsaid = False
    for line in path.read_text(errors="replace").splitlines():
        if match := _CALL.match(line):
            at = float(match[1])
            unsaid = (unsaid or RETURNED in line) and NOTED not in line
    stage.arena.note("kill", role=role.rpartition("-")[2], pid=pid, sent=at + now() - time.time(), unsaid=unsaid)
    return True
