"""Positive controls: the judge fails brokers that are broken on purpose, and passes the real one in the same scenes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from delayed.functions import path_of
from tests.chaos import broken, tasks
from tests.chaos.arena import Arena
from tests.chaos.checker import Verdict
from tests.chaos.processes import fork_servers_of

LEASE = 1.0  # seconds
BOUND = 30.0  # seconds within which anything that is waited for has to happen


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + BOUND
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {BOUND} s"
        time.sleep(0.01)
    return found


def kill_a_worker(arena: Arena) -> None:
    """Both guardians of a worker are killed while it runs a task; another worker is there."""
    worker = arena.start()
    arena.put(tasks.nap, 2.0)
    wait_for(lambda: arena.history().runs)
    arena.start()
    (server,) = fork_servers_of(worker.pid)
    arena.kill(worker.pid, "monitor")  # first: else it may have started another fork server, which stands in
    arena.kill(server, "forkserver")


def freeze_a_worker(arena: Arena) -> None:
    """A worker stands still for longer than its lease; when it goes on, its task has begun elsewhere."""
    worker = arena.start()
    number = arena.put(tasks.watch, 4.0)
    wait_for(lambda: arena.history().runs)
    arena.start()
    pids = arena.freeze(worker.pid)
    wait_for(lambda: len(arena.history().intents[number].runs) == 2)
    arena.thaw(worker.pid, pids)


def lose_replies(arena: Arena) -> None:
    """Half the enqueues are stored without the producer being told so."""
    arena.start()
    for _ in range(5):
        arena.put(tasks.noop)


def run_for_long(arena: Arena) -> None:
    """A task takes longer than a lease, and all is well; another worker would have time for it."""
    arena.start()
    arena.start()
    arena.start("sweeper")
    arena.put(tasks.nap, 3 * LEASE)


def play(folder: Path, scene: Callable[[Arena], None], kind: type | None, bound: float | None = None) -> Verdict:
    url = f"sqlite:///{folder}/tasks.db"
    with Arena(folder, url, lease=LEASE, processes=1, broker=path_of(kind) if kind else "") as arena:
        if kind:
            arena.queue = type(arena.queue)(arena.name, kind(url))
        scene(arena)
        wait_for(lambda: arena.history().runs)
        arena.drain(bound)
        arena.close()
        return arena.judge()


@pytest.mark.parametrize(
    ("kind", "scene", "columns"),
    [
        (broken.AckFirst, kill_a_worker, {"lost"}),
        (broken.NoToken, freeze_a_worker, {"unfenced"}),
        (broken.NotIdempotent, lose_replies, {"twin"}),
        (broken.BlindSweep, run_for_long, {"rerun", "overlap"}),
    ],
)
def test_a_broken_broker_fails_in_the_column_of_its_fault(
    kind: type, scene: Callable[[Arena], None], columns: set[str], tmp_path: Path
) -> None:
    verdict = play(tmp_path, scene, kind, 5.0)

    assert columns <= set(verdict.failed), verdict


@pytest.mark.parametrize(
    ("kind", "scene"),
    [(None, kill_a_worker), (None, freeze_a_worker), (broken.LostReplies, lose_replies), (None, run_for_long)],
)
def test_the_real_broker_passes_the_same(kind: type | None, scene: Callable[[Arena], None], tmp_path: Path) -> None:
    verdict = play(tmp_path, scene, kind)

    assert verdict.passed, verdict
