"""Tasks that hang, each in its own way. Those of one name are asked for by :data:`HANGS` and :data:`COROUTINES`."""

from __future__ import annotations

import asyncio
import collections
import ctypes
import itertools
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable

from delayed import current
from tests.chaos.tasks import recorded


class Overdue(Exception):
    """Raised for the end of a coroutine that was cancelled."""


def spinning() -> None:
    while True:
        pass


def sleeping() -> None:
    time.sleep(3600)


def in_regex() -> None:
    re.match("(a+)+$", "a" * 64 + "b")  # looks for signals now and then, in the main thread


def in_c_with_the_gil() -> None:
    collections.deque(itertools.repeat(0), maxlen=0)  # looks for nothing


def in_c_without_the_gil() -> None:
    while True:
        ctypes.CDLL(None).pause()


def waiting_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def reading_a_fifo() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.mkfifo(path := os.path.join(folder, "fifo"))
        with open(path) as file:
            file.read()


def deaf() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600)


def stubborn() -> None:
    while True:
        try:
            while True:
                time.sleep(0.01)
        except BaseException:  # as some do
            pass


async def awaiting() -> None:
    await asyncio.Event().wait()


async def stubbornly_awaiting() -> None:
    while True:
        try:
            while True:
                await asyncio.sleep(0.01)
        except BaseException:
            pass


HANGS: dict[str, Callable[[], object]] = {
    each.__name__: each
    for each in (
        spinning,
        sleeping,
        in_regex,
        in_c_with_the_gil,
        in_c_without_the_gil,
        waiting_for_a_lock,
        reading_a_fifo,
        deaf,
        stubborn,
    )
}
BLOCKING = (spinning, in_regex, in_c_with_the_gil, sleeping, stubborn)  # the event loop
HOLDING = ("in_regex", "in_c_with_the_gil")  # the GIL, all the time
COROUTINES: dict[str, Callable[[], object] | Callable[[], Awaitable[object]]] = {
    each.__name__: each for each in (*BLOCKING, awaiting, stubbornly_awaiting)
}


def hang(intent: int, how: str) -> None:
    """Hang in one of the ways."""
    with recorded(intent):
        HANGS[how]()


def hang_once(intent: int, how: str) -> None:
    """As :func:`hang`, but not when it is delivered again."""
    with recorded(intent):
        if current.fencing_token == 1:
            HANGS[how]()


async def hang_async(intent: int, how: str) -> None:
    with recorded(intent):
        try:
            result = COROUTINES[how]()
            if result is not None:
                await result
        except asyncio.CancelledError as error:
            raise Overdue from error


async def hang_once_async(intent: int, how: str) -> None:
    with recorded(intent):
        if current.fencing_token == 1:
            COROUTINES[how]()
