"""How a child knows that it is no copy of itself, and what threads there are."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from delayed.worker import child

# In a process with one thread, for a copy may get others' locks. Its exit codes say what each copy found.
FORKS = """
import ctypes, mmap, os, sys
from delayed.worker import process

class Deaf(mmap.mmap):
    def madvise(self, *args): pass

if sys.argv[1] == "no advice":
    mmap.mmap = Deaf
mark = process.Original() if sys.argv[1] == "pid" else process.mark_original()
assert isinstance(mark, process.Original) == (sys.argv[1] != "page"), mark
for fork in (os.fork, ctypes.PyDLL(None).fork, os.fork):
    assert mark[0]
    copy = fork()
    if not copy:
        again = os.fork()
        if not again:
            os._exit(bool(mark[0]))
        os._exit(bool(mark[0]) or os.waitstatus_to_exitcode(os.waitpid(again, 0)[1]))
    assert os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) == 0, fork
assert mark[0]
"""


@pytest.mark.parametrize("way", ["page", "pid", "no advice"])
def test_a_copy_knows_that_it_is_one(way: str) -> None:
    subprocess.run([sys.executable, "-c", FORKS, way], check=True, timeout=30)


def test_threads_are_counted_that_are_just_starting() -> None:
    assert child._threads(threading) == threading.active_count()
    assert child._threads(SimpleNamespace(_limbo={1: 1}, _active={0: 0})) == 2
    assert child._threads(SimpleNamespace(active_count=lambda: 3)) == 3
