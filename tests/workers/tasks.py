"""Tasks that the worker tests run; each writes what it did to the ledger file named by its first argument."""

from __future__ import annotations

import collections
import ctypes
import itertools
import os
import re
import resource
import signal
import subprocess
import sys
import time
from typing import Any


def note(ledger: str, *words: object) -> None:
    """Append one line, in one write, so that lines of several processes do not mix."""
    fd = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    os.close(fd)


def mark(ledger: str, *words: object) -> None:
    note(ledger, *words)


def mark_pid(ledger: str) -> None:
    note(ledger, "pid", os.getpid())


async def mark_async(ledger: str, word: str) -> None:
    import asyncio

    await asyncio.sleep(0)
    note(ledger, word)


class Methods:
    @staticmethod
    def static(ledger: str) -> None:
        note(ledger, "static")

    @classmethod
    def of_class(cls, ledger: str) -> None:
        note(ledger, "class", cls.__name__)


def say(ledger: str, word: str) -> None:
    print(word)


def size(ledger: str, data: bytes) -> None:
    note(ledger, "size", len(data))


def note_loaded(ledger: str, word: str, numbers: list[int] | None = None) -> None:
    note(ledger, word, *sorted({"pydantic", "dataclasses", "inspect", "delayed.typed"} & set(sys.modules)))


def nap(ledger: str, word: str, seconds: float) -> None:
    note(ledger, "begin", word, os.getpid())
    time.sleep(seconds)
    note(ledger, "end", word)


class Lingering:
    """A stream that keeps the process which lets go of it for the second time, until somebody else has noted a word."""

    def __init__(self, ledger: str, word: str, seconds: float) -> None:
        self.ledger = ledger
        self.word = word
        self.seconds = seconds
        self.flushed = 0

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        self.flushed += 1
        if self.flushed > 1:
            deadline = time.monotonic() + self.seconds
            with open(self.ledger) as file:
                while self.word not in file.read() and time.monotonic() < deadline:
                    time.sleep(0.01)
            note(self.ledger, "gone")


def linger(ledger: str, until: str, seconds: float) -> None:
    """Leave a process that takes its time to end."""
    sys.stdout = Lingering(ledger, until, seconds)
    note(ledger, "lingers")


def fail(ledger: str, text: str) -> None:
    note(ledger, "failing")
    raise ValueError(text)


def burn(ledger: str, seconds: float) -> None:
    """Use the CPU for so long, then fail."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    raise ValueError("burnt")


def register_exit(ledger: str) -> None:
    import atexit

    atexit.register(note, ledger, "exit handler")


def fail_until(ledger: str, word: str, times: int) -> None:
    """Raise the first `times` times, counted in the ledger."""
    note(ledger, "try", word)
    with open(ledger) as file:
        if file.read().count(f"try {word}\n") <= times:
            raise ValueError("not yet")
    note(ledger, "done", word)


# -- ways to misbehave -------------------------------------------------------------------------------------------


def kill_self(ledger: str, number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(10)


def stuck_in_regex(ledger: str) -> None:
    re.match(r"(a+)+$", "a" * 40 + "b")


def stuck_in_c(ledger: str) -> None:
    collections.deque(itertools.repeat(0), maxlen=0)


def begin_and_be_stuck(ledger: str) -> None:
    note(ledger, "begin")
    stuck_in_c(ledger)


def kill_everybody(ledger: str) -> None:
    """Kill the guardians, and with them this process."""
    with open(f"/proc/{os.getppid()}/stat") as file:
        monitor = int(file.read().rpartition(")")[2].split()[1])
    for pid in (monitor, os.getppid()):
        os.kill(pid, signal.SIGKILL)
    time.sleep(30)


def put_off_and_kill_everybody(ledger: str, times: int) -> None:
    """Run uncharged so many times, then as :func:`kill_everybody`, and then to the end."""
    from delayed import RetryLater, current

    note(ledger, "begin", current.attempt)
    with open(ledger) as file:
        begun = len(file.readlines())
    if begun <= times:
        raise RetryLater(0)
    if begun == times + 1:
        kill_everybody(ledger)
    note(ledger, "end")


def stuck_stubborn(ledger: str) -> None:
    while True:
        try:
            while True:
                time.sleep(0.01)
        except BaseException:
            note(ledger, "swallowed")


def tidy_up(ledger: str) -> None:
    try:
        time.sleep(60)
    finally:
        note(ledger, "tidied")


def fork_daemon(ledger: str) -> None:
    """Leave a background process in the child's group."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    process.returncode = 0  # so that it is not reported as still running
    note(ledger, "daemon", process.pid)


def fork_session_daemon(ledger: str) -> None:
    """Leave a background process in a session of its own."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], start_new_session=True)
    process.returncode = 0
    note(ledger, "daemon", process.pid)


def fork_daemons_and_wait(ledger: str) -> None:
    """Leave a process in the child's group, one in a session of its own, two whose parent is gone at once, of which one
    ends by itself when there is a file, and end when there is another.
    """
    fork_daemon(ledger)
    fork_session_daemon(ledger)
    for what in ("sleep 60", f"sh -c 'until [ -e {ledger}.end ]; do sleep 0.02; done'"):
        script = ["sh", "-c", f"setsid {what} > /dev/null 2>&1 & echo $!"]
        note(ledger, "daemon", int(subprocess.run(script, check=True, capture_output=True).stdout))
    note(ledger, "begin")
    while not os.path.exists(f"{ledger}.go"):
        time.sleep(0.01)


def fork_and_return(ledger: str) -> None:
    os.fork()


def leak(ledger: str, size: int) -> None:
    kept.append(b"x" * size)
    note(ledger, "pid", os.getpid())


kept: list[bytes] = []


# -- memory and CPU ----------------------------------------------------------------------------------------------


def hoard(ledger: str, megabytes: int) -> None:
    """Fill so much memory, and keep it for long."""
    hoard_for(ledger, megabytes, 60.0)


def hoard_for(ledger: str, megabytes: int, seconds: float) -> None:
    data = b"x" * (megabytes << 20)
    time.sleep(seconds)
    note(ledger, "end hoard")
    del data


def hoard_when_told(ledger: str, megabytes: int, file: str) -> None:
    note(ledger, "begin")
    while not os.path.exists(file):
        time.sleep(0.01)
    hoard(ledger, megabytes)


def hoard_in_subprocess(ledger: str, megabytes: int) -> None:
    code = f"import time; data = b'x' * ({megabytes} << 20); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-S", "-c", code])
    note(ledger, "started", process.pid)
    process.wait()


def allocate(ledger: str, megabytes: int) -> None:
    data = bytearray(megabytes << 20)
    note(ledger, "allocated", len(data) >> 20)


def allocate_or_abort(ledger: str, megabytes: int) -> None:
    """As native code does that knows no other way."""
    malloc = ctypes.CDLL(None).malloc
    malloc.restype = ctypes.c_void_p
    if not malloc(ctypes.c_size_t(megabytes << 20)):
        os.abort()
    note(ledger, "allocated", megabytes)


def burn_and_tidy_up(ledger: str) -> None:
    try:
        burn(ledger, 60.0)
    finally:
        note(ledger, "tidied")


def lower_hard_limit(ledger: str, megabytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (megabytes << 20, megabytes << 20))


def sleep_in_steps(seconds: float) -> None:
    """An exception that is raised in a thread has to wait for Python code."""
    for _ in range(int(seconds * 100)):
        time.sleep(0.01)


async def note_stop_async(ledger: str) -> None:
    import asyncio

    note(ledger, "begin")
    try:
        await asyncio.sleep(60)
    except BaseException as error:
        note(ledger, "stopped by", type(error).__name__)
        raise


def note_stop(ledger: str) -> None:
    """Note what it is stopped with."""
    note(ledger, "begin")
    try:
        sleep_in_steps(60)
    except BaseException as error:
        note(ledger, "stopped by", type(error).__name__)
        raise


def fail_when_stopped(ledger: str) -> None:
    note(ledger, "begin")
    try:
        sleep_in_steps(60)
    finally:
        raise ValueError("in the cleanup")


def begin_and_match(ledger: str) -> None:
    note(ledger, "begin")
    stuck_in_regex(ledger)


# -- handlers ----------------------------------------------------------------------------------------------------


def on_success(task: Any) -> None:
    note(task.args[0], "success", task.id, os.getpid())


def on_success_slowly(task: Any) -> None:
    note(task.args[0], "begin")
    time.sleep(0.3)
    note(task.args[0], "end")


def on_error(task: Any, kill_signal: int | None, exc_info: Any) -> None:
    verdict = task.verdict
    kind = exc_info[0].__name__ if exc_info else None
    note(os.environ["LEDGER"], "error", task.func_path.rpartition(":")[2], "|", kill_signal, "|", kind, "|", verdict)
    if verdict.stack:
        note(os.environ["LEDGER"], "stack", verdict.stack.replace("\n", " / "))


def hoard_in_handler(task: Any) -> None:
    if task.args[1] == "done":
        note(os.environ["LEDGER"], "handler", "done")
        hoard(os.environ["LEDGER"], 150)


def hang(*args: Any) -> None:
    note(os.environ["LEDGER"], "handler hangs")
    time.sleep(3600)


def broken(*args: Any) -> None:
    note(os.environ["LEDGER"], "handler breaks")
    raise SystemExit(3)
