"""Hundreds of deaths, and tasks that end as their time does: nothing is left, and nobody innocent is hit.

The ordinary run takes some hundred tasks for each kind of worker; ``make soak`` takes 200 rounds of each way to die,
and tens of thousands of short tasks.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.workers import deaths, tasks, witnesses
from tests.workers.conftest import Bench, alive, children_of, fork_server_of, wait_for
from tests.workers.deaths import Death

LONG = bool(os.environ.get("DELAYED_SOAK"))
ROUNDS = 200  # of each way in the long form
SHORT_ROUNDS = 100  # of all ways together in the short one
SLOW_ROUNDS = 20  # of each of those that take long, in the long form
AT_ONCE = 3  # processes
LANES = {"threaded": {"threads": 3}, "async": {"concurrency": 3}}
MANY = {
    "forked": {"processes": 8},
    "preforked": {"processes": 8},
    "threaded": {"processes": 2, "threads": 8},
    "async": {"processes": 2, "concurrency": 50},
}
GROWTH = 8 << 20  # bytes that monitor and fork server may grow
PATIENCE = 3600.0 if LONG else 55.0  # seconds

pytestmark = pytest.mark.timeout(PATIENCE + 60.0)


class Residue(NamedTuple):
    """What there is of a worker."""

    processes: int  # with all that its tasks started
    of_monitor: int  # open descriptors
    of_fork_server: int
    files: tuple[str, ...]  # temporary ones, and those in shared memory that bear the library's name


class Soak:
    """A worker that is to look the same after all that happens in it."""

    def __init__(self, kind: str, folder: Path) -> None:
        # Among neighbours who close what is open, or fork while a pipe waits for its end, anything may hang.
        self.limit = 2.0 if kind in LANES else None
        self.at_rest = 2 + AT_ONCE + (kind == "forked")  # processes; the next forked child is kept warm
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.bench = Bench(f"sqlite:///{folder}/tasks.db", folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", str(self.temporary))
            self.worker: subprocess.Popen[str] = self.bench.start(
                kind,
                processes=AT_ONCE,
                kill_timeout=0.2,
                preload=deaths.modules(),
                max_memory=50 << 20,
                kill_memory=250 << 20,
                **LANES.get(kind, {}),
            )
        self.guardians = [self.worker.pid, fork_server_of(self.worker)]

    def run(self, some: list[Death]) -> None:
        for death in some:
            self.bench.put(death.func, *death.args, timeout=death.timeout or self.limit)
        wait_for(self.bench.settled, PATIENCE)
        os.truncate(self.bench.folder / "worker-0.log", 0)

    def residue(self) -> Residue:
        files = [*os.listdir(self.temporary), *(name for name in os.listdir("/dev/shm") if "delayed" in name)]
        descriptors = [len(os.listdir(f"/proc/{pid}/fd")) for pid in self.guardians]
        return Residue(len(self.processes()), *descriptors, tuple(files))

    def processes(self) -> list[int]:
        """All that were started by the worker, wherever they went: they have its environment."""
        mark = f"LEDGER={self.bench.ledger.path}\0".encode()
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and mark in environment(name)]

    def renew_children(self) -> None:
        """What a task left to its child goes with it."""
        before = [pid for pid in self.processes() if pid not in self.guardians]
        for pid in children_of(self.guardians[1]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(map(alive, before)) and len(self.processes()) == self.at_rest)

    def memory(self) -> list[int]:
        return [resident(pid) for pid in self.guardians]


def environment(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def resident(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


@pytest.fixture(params=["forked", "preforked", "threaded", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def soak(kind: str, tmp_path: Path) -> Iterator[Soak]:
    soak = Soak(kind, tmp_path)
    yield soak
    soak.bench.close()


def test_nothing_is_left_of_many_deaths(soak: Soak) -> None:
    quick = [death for death in deaths.deaths() if not death.slow]
    soak.run(quick)
    soak.renew_children()
    first, memory = soak.residue(), soak.memory()
    assert first.processes == soak.at_rest

    if LONG:
        for death in deaths.deaths():
            soak.run([death] * (SLOW_ROUNDS if death.slow else ROUNDS))
    else:
        soak.run(list(itertools.islice(itertools.cycle(quick), SHORT_ROUNDS)))

    soak.bench.put(tasks.mark, "served")
    wait_for(lambda: soak.bench.ledger.find("served"))
    soak.renew_children()
    with contextlib.suppress(AssertionError):
        wait_for(lambda: soak.residue() == first)
    assert soak.residue() == first
    grown = [after - before for before, after in zip(memory, soak.memory(), strict=True)]
    assert max(grown) < GROWTH
    assert soak.guardians[1] == fork_server_of(soak.worker)
    assert soak.bench.queue.broker.counts(soak.bench.queue.name) == (0, 0, 0, 0)
    soak.worker.terminate()
    assert soak.worker.wait(10) == 0
    assert soak.processes() == []


def test_a_deadline_at_the_very_end_hits_nobody_else(kind: str, tmp_path: Path) -> None:
    bench = Bench(f"sqlite:///{tmp_path}/tasks.db", tmp_path)
    last = witnesses.last_async if kind == "async" and LONG else witnesses.last
    limited, free = [], []
    for number in range(200 * (100 if LONG else 1)):
        # The monitor looks every 50 ms, and gives the child up to 200 ms to say where it stands: half of them end then.
        seconds = 0.001 if number % 2 else 0.04 + 0.0005 * (number * 7 % 800)
        limited.append(bench.put(last, seconds, timeout=0.001))
        if number % 5 == 0:
            free.append(bench.put(last, 0.01))
    home = "tests.workers.witnesses"

    bench.burst(
        kind,
        PATIENCE,
        kill_timeout=20.0,
        success_handler=f"{home}:on_success",
        error_handler=f"{home}:on_error",
        preload=[home],
        **MANY[kind],
    )

    returned = list(map(int, bench.ledger.find("returned")))
    failed = dict(line.split(" ", 1) for line in bench.ledger.find("failed"))
    assert sorted([*returned, *map(int, failed)]) == sorted([*limited, *free]), "each ends once"
    assert set(free) <= set(returned), "who has no limit is left alone"
    assert set(failed.values()) == {"None timed out"}, "nobody was killed"
    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)
    bench.close()
