"""How often a monitor looks for garbage that refers to itself."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from delayed.worker.garbage import YOUNG, seldom_sought

WORK = """
import gc, sys, threading
from delayed import PreforkedWorker, Queue
from delayed.task import Task

queue = Queue("q", sys.argv[1])
queue.enqueue_many([Task.create(abs, (number,)) for number in range(10)])
gc.set_threshold(600, 7, 8)
seen, over = set(), threading.Event()

def watch():
    while not over.wait(0.001):
        seen.add(gc.get_threshold())

def work():
    PreforkedWorker(queue, burst=True).run()

watcher = threading.Thread(target=watch)
watcher.start()
if sys.argv[2] == "main":
    work()
else:
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
over.set()
watcher.join()
print((10_000, 7, 8) in seen, gc.get_threshold())
"""


@pytest.fixture
def threshold() -> Iterator[tuple[int, int, int]]:
    """Python's settings, as they are again after the test."""
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


@pytest.mark.parametrize(("thread", "changed"), [("main", True), ("another", False)])
def test_a_worker_in_the_main_thread_looks_less_often(tmp_path: Path, thread: str, changed: bool) -> None:
    command = [sys.executable, "-c", WORK, f"sqlite:///{tmp_path / 'tasks.db'}", thread]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == f"{changed} (600, 7, 8)"


@pytest.mark.parametrize(("often", "within"), [(700, YOUNG), (0, 0), (YOUNG + 1, YOUNG + 1)])
def test_it_never_looks_more_often_than_before(threshold: tuple[int, int, int], often: int, within: int) -> None:
    gc.set_threshold(often, 5, 6)
    with seldom_sought():
        assert gc.get_threshold() == (within, 5, 6)
    assert gc.get_threshold() == (often, 5, 6)


def test_it_looks_as_often_as_before_after_an_error_too(threshold: tuple[int, int, int]) -> None:
    with pytest.raises(RuntimeError), seldom_sought():
        raise RuntimeError
    assert gc.get_threshold() == threshold
