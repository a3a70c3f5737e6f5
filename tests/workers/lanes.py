"""Tasks for children that run several at once."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import os
import re
import resource
import signal
import sys
import threading
import time
from collections import deque
from typing import Any

from delayed import Hooks, TaskTimeout, current
from tests.workers.tasks import note, sleep_in_steps

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def meet(ledger: str, name: str, parties: int) -> None:
    """Wait until all parties are here: shows that they run at once."""
    note(ledger, "here", name)
    _wait_for_lines(ledger, "here", parties)
    note(ledger, "met", name)


async def meet_async(ledger: str, name: str, parties: int) -> None:
    note(ledger, "here", name)
    while _count(ledger, "here") < parties:
        await asyncio.sleep(0.01)
    note(ledger, "met", name, os.getpid())


def nap_in_steps(ledger: str, name: str, seconds: float) -> None:
    """Sleep so that other threads' exceptions get in."""
    note(ledger, "begin", name)
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            time.sleep(0.01)
        note(ledger, "end", name)
    except TaskTimeout:
        note(ledger, "timeout", name)
        raise
    finally:
        note(ledger, "tidied", name)


async def sleep(ledger: str, name: str, seconds: float) -> None:
    note(ledger, "begin", name)
    try:
        await asyncio.sleep(seconds)
        note(ledger, "end", name)
    except asyncio.CancelledError:
        note(ledger, "cancelled", name)
        raise
    finally:
        note(ledger, "tidied", name)


async def note_begin(ledger: str, data: bytes) -> None:
    """Note when it begins, and stay."""
    note(ledger, "at", time.monotonic())
    await asyncio.sleep(60)


async def deep(ledger: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(note, ledger, "left")
        await deeper()


async def deeper() -> None:
    await asyncio.Event().wait()


async def swallow(ledger: str) -> None:
    """Does not let itself be cancelled."""
    note(ledger, "begin", "swallow")
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


async def block(ledger: str, name: str, seconds: float) -> None:
    """Holds up the event loop, in Python code."""
    note(ledger, "begin", name)
    time.sleep(seconds)
    note(ledger, "end", name)


async def doze_async(ledger: str) -> None:
    await asyncio.sleep(0.1)
    note(ledger, "dozed")


async def block_in_subtask(ledger: str) -> None:
    async def inner() -> None:
        note(ledger, "begin", "inner")
        time.sleep(3600)

    await asyncio.gather(inner(), asyncio.sleep(0))


async def block_in_c(ledger: str) -> None:
    note(ledger, "begin", "stuck")
    deque(itertools.repeat(0), maxlen=0)


def stuck_in_c(ledger: str) -> None:
    note(ledger, "begin", "stuck")
    deque(itertools.repeat(0), maxlen=0)


def stuck_in_regex(ledger: str) -> None:
    note(ledger, "begin", "stuck")
    re.match(r"(a+)+$", "a" * 40 + "b")


def stuck_in_lock(ledger: str) -> None:
    note(ledger, "begin", "stuck")
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def who(ledger: str, name: str) -> None:
    """Note what `current` and a context variable say, before and after others ran."""
    before = variable.get()
    variable.set(name)
    time.sleep(0.05)
    note(ledger, "who", name, current.key, before, variable.get())


async def who_async(ledger: str, name: str) -> None:
    before = variable.get()
    variable.set(name)
    await asyncio.sleep(0.05)
    inner = await asyncio.create_task(_key())
    note(ledger, "who", name, inner, before, variable.get())


async def _key() -> str:
    return current.key


def die(ledger: str, code: int) -> None:
    note(ledger, "dies", os.getpid())
    os._exit(code)


def crash(ledger: str) -> None:
    import ctypes

    note(ledger, "crashes")
    ctypes.string_at(1)


async def die_async(ledger: str, code: int) -> None:
    os._exit(code)


async def exit_softly(ledger: str, code: int) -> None:
    raise SystemExit(code)


async def fork(ledger: str) -> None:
    os.fork()


_word: list[asyncio.Event] = []


async def wait_for_word(ledger: str) -> None:
    """Until :func:`give_word_and_fork` gives it."""
    _word.append(asyncio.Event())
    note(ledger, "begin", "waiting")
    await _word[-1].wait()
    note(ledger, "end", "waiting")


async def give_word_and_fork(ledger: str) -> None:
    """Leaves a copy of the loop that has to go on with the end of the other, and is quicker than this process."""

    async def give() -> None:
        _word.pop().set()
        await asyncio.sleep(0)  # in which the other returns; nobody has been told yet
        copy = os.fork()
        if copy:
            os.waitpid(copy, 0)

    while not _word:
        await asyncio.sleep(0.01)
    await asyncio.create_task(give())
    note(ledger, "end", "giving")


async def fork_and_yield(ledger: str) -> None:
    """The copy goes on, too, with whatever comes next on the loop."""
    os.fork()
    await asyncio.sleep(0)


async def meet_signal_twice(ledger: str) -> None:
    """When its time is up, be sent the signal of what else its guardians asked for, which was found with the first."""
    try:
        await asyncio.sleep(60)
    finally:
        time.sleep(0.1)  # in which that signal comes by itself, unless the system made one of the two
        handler: Any = signal.getsignal(signal.SIGTERM)
        owed = handler.__self__.child.late
        note(ledger, "owed", owed)
        if owed:
            os.kill(os.getpid(), signal.SIGTERM)


async def leave_task(ledger: str) -> None:
    async def left() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            note(ledger, "left task ended")

    kept.append(asyncio.create_task(left()))
    await asyncio.sleep(0)


async def loop_name(ledger: str) -> None:
    note(ledger, "loop", type(asyncio.get_running_loop()).__module__.split(".")[0])


async def nothing(ledger: str) -> None:
    pass


def pid(ledger: str) -> None:
    note(ledger, "pid", os.getpid())


async def on_success_async(task: object) -> None:
    await asyncio.sleep(0)
    note(os.environ["LEDGER"], "success", task.id)  # type: ignore[attr-defined]


async def on_error_async(task: object, kill_signal: int | None, exc_info: object) -> None:
    await asyncio.sleep(0)
    note(os.environ["LEDGER"], "error", task.func_name, kill_signal)  # type: ignore[attr-defined]


# -- what made neighbours, or the worker, suffer -----------------------------------------------------------------


def brief(ledger: str) -> None:
    """Long enough that all lanes get some of many."""
    time.sleep(0.002)


def doze(ledger: str) -> None:
    """For ever, in steps so long that many threads may do it."""
    while True:
        time.sleep(0.05)


def fail_at_length(ledger: str, length: int) -> None:
    raise ValueError("é" * length)


def use_up_descriptors(ledger: str, seconds: float) -> None:
    """Leave no descriptor to anybody for so long, the first time that it runs."""
    if _count(ledger, "used up"):
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    opened = [os.open(ledger, os.O_WRONLY | os.O_APPEND)]
    with contextlib.suppress(OSError):
        while True:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    os.write(opened[0], b"used up\n")
    sleep_in_steps(seconds)
    for fd in opened:
        os.close(fd)


class Incomparable:
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ValueError("as an array says it")

    def __str__(self) -> str:
        return "odd"


def exit_oddly(ledger: str) -> None:
    sys.exit(Incomparable())  # type: ignore[arg-type]


async def install_factory(ledger: str) -> None:
    """A task factory as they were before Python 3.11."""
    asyncio.get_running_loop().set_task_factory(lambda loop, coro: asyncio.Task(coro, loop=loop))  # type: ignore[arg-type]


async def cancel_all(ledger: str) -> None:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    note(ledger, "cancelled all")


def on_success_waits(task: Any) -> None:
    """Is called until somebody cancels all that runs on the loop."""
    note(os.environ["LEDGER"], "called")
    _wait_for_lines(os.environ["LEDGER"], "cancelled all", 1)


async def tidy_up(ledger: str) -> None:
    """Blocks the loop, and has to wait when it tidies up."""
    try:
        time.sleep(3600)
    finally:
        await asyncio.sleep(0.05)
        note(ledger, "tidied up")


async def block_in_group(ledger: str) -> None:
    async def inner() -> None:
        time.sleep(3600)

    async with asyncio.TaskGroup() as group:
        group.create_task(inner())
        group.create_task(asyncio.sleep(3600))


async def wait_for_line(ledger: str, name: str, start: str) -> None:
    """Wait until the ledger has a line that begins so."""
    note(ledger, "begin", name)
    while not _count(ledger, start):
        await asyncio.sleep(0.01)
    note(ledger, "end", name)


async def leave_blocker(ledger: str) -> None:
    """Leave something on the loop that then holds it up, before the loop has come to rest."""

    async def left() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        note(ledger, "blocks")
        while True:
            time.sleep(0.1)

    kept.append(asyncio.create_task(left()))


def on_error_together(task: Any, kill_signal: int | None, exc_info: Any) -> None:
    """Takes until the handlers of both tasks are called, and some more."""
    name = task.args[1]
    note(os.environ["LEDGER"], "called", name)
    _wait_for_lines(os.environ["LEDGER"], "called", 2)
    sleep_in_steps(0.3)
    note(os.environ["LEDGER"], "handled", name)


def on_error_the_last(task: Any, kill_signal: int | None, exc_info: Any) -> None:
    """Its process dies when it comes to tell that this has ended."""
    note(os.environ["LEDGER"], "called")
    os.fstat = lambda *args, **kwargs: os.kill(os.getpid(), 9)  # type: ignore[assignment, return-value]


async def on_error_together_async(task: Any, kill_signal: int | None, exc_info: Any) -> None:
    name = task.args[1]
    note(os.environ["LEDGER"], "called", name)
    while _count(os.environ["LEDGER"], "called") < 2:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    note(os.environ["LEDGER"], "handled", name)


def meet_again(ledger: str, name: str, parties: int) -> None:
    """Long, and when it runs again, until all others do, too."""
    if not _count(ledger, f"begin {name}"):
        nap_in_steps(ledger, name, 3600.0)
    note(ledger, "again", name, os.getpid())
    _wait_for_lines(ledger, "again", parties)
    note(ledger, "end", name)


async def meet_again_async(ledger: str, name: str, parties: int) -> None:
    if not _count(ledger, f"begin {name}"):
        await sleep(ledger, name, 3600.0)
    note(ledger, "again", name, os.getpid())
    while _count(ledger, "again") < parties:
        await asyncio.sleep(0.01)
    note(ledger, "end", name)


class SlowToCome(Hooks):
    """Hooks that take a while to be made."""

    def __init__(self) -> None:
        time.sleep(0.5)
        note(os.environ["LEDGER"], "came")


kept: list[object] = []


def _count(ledger: str, start: str) -> int:
    with open(ledger) as file:
        return sum(line.startswith(start) for line in file)


def _wait_for_lines(ledger: str, start: str, count: int) -> None:
    while _count(ledger, start) < count:
        time.sleep(0.01)


_gate, _thread_gate = asyncio.Event(), threading.Event()


async def return_at_the_gate(ledger: str) -> None:
    note(ledger, "begin")
    await _gate.wait()
    note(ledger, "returned")


def return_at_the_gate_in_thread(ledger: str) -> None:
    note(ledger, "begin")
    _thread_gate.wait()
    note(ledger, "returned")


async def die_before_the_loop_turns(ledger: str) -> None:
    """Let the other one return, and end its child while the loop can't do anything about it."""
    if _count(ledger, "returned"):
        return
    while not _count(ledger, "begin"):
        await asyncio.sleep(0.01)
    _gate.set()
    _thread_gate.set()
    await asyncio.sleep(0)  # in which the other coroutine has its turn, and nothing that follows from it
    _wait_for_lines(ledger, "returned", 1)
    time.sleep(0.3)  # in which a thread notes its end: it holds no lock that this one could wait for
    os.kill(os.getpid(), 9)
