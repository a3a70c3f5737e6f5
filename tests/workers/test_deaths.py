"""Every way to die, in every kind of worker: it gets its verdict, and harms nobody else.

The ways are in :mod:`tests.workers.deaths`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workers import deaths, witnesses
from tests.workers.conftest import Bench, children_of, fork_server_of, wait_for
from tests.workers.deaths import Death, closes_descriptors

MODES = ["forked", "preforked", "threaded", "async"]
LANES = {"threaded": "threads", "async": "concurrency"}
DESCRIPTORS = 256  # that a process may have, so that it does not take long to use them up
OPTIONS: dict[str, Any] = {
    "error_handler": "tests.workers.tasks:on_error",
    "preload": deaths.modules(),  # their limits are no time to import anything in
    "max_memory": 50 << 20,
    "kill_memory": 250 << 20,
}


class Ward:
    """A worker in whose children tasks die, and some live on."""

    def __init__(self, mode: str, folder: Path) -> None:
        self.mode = mode
        self.bench = Bench(f"sqlite:///{folder}/tasks.db", folder)
        self.ledger = self.bench.ledger
        self.gate = folder / "gate"
        lanes = {LANES[mode]: 4} if mode in LANES else {}
        with few_descriptors():
            self.worker = self.bench.start(mode, **OPTIONS, **lanes)

    def children(self) -> list[int]:
        """The pids of its children: they lead sessions, what tasks left to the fork server does not."""
        return [pid for pid in children_of(fork_server_of(self.worker)) if is_leader(pid)]

    def is_gone(self, id: int) -> bool:
        queue = self.bench.queue
        return queue.broker.get(queue.name, id) is None

    @contextlib.contextmanager
    def neighbours(self, name: str, count: int = 2) -> Iterator[list[str]]:
        """Tasks in the same child, from before until after what happens here; none where it runs one at a time."""
        if self.mode not in LANES:
            yield []
            return
        names = [f"{name}/{number}" for number in range(count)]
        wait = witnesses.wait_async if self.mode == "async" else witnesses.wait
        ids = [self.bench.put(wait, each, str(self.gate)) for each in names]
        wait_for(lambda: all(self.ledger.find(f"begin {each} ") for each in names))
        yield names
        self.gate.touch()
        wait_for(lambda: all(map(self.is_gone, ids)))
        self.gate.unlink()


def told(death: Death, mode: str) -> str:
    """What the error handler notes of it first."""
    end = death.ends[mode]
    return f"{death.func.__name__} | {end.signal} | {end.error} | {end.verdict}"


def is_leader(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


@contextlib.contextmanager
def few_descriptors() -> Iterator[None]:
    """What is started meanwhile may have few files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module", params=MODES)
def ward(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOLDER", os.getcwd())
        ward = Ward(request.param, tmp_path_factory.mktemp(f"ward-{request.param}"))
    yield ward
    ward.bench.close()


@pytest.mark.parametrize("death", deaths.deaths(), ids=lambda death: death.name)
def test_a_death_gets_its_verdict_and_harms_nobody_else(ward: Ward, death: Death) -> None:
    end = death.ends[ward.mode]
    bench, ledger = ward.bench, ward.ledger
    before = len(ledger.find("error"))
    # A spare one that ran what was suspected may just leave; a forked one has its successor beside it.
    (child, *_) = wait_for(lambda: len(pids := ward.children()) == (2 if ward.mode == "forked" else 1) and pids)

    with ward.neighbours(death.name) as names:
        id = bench.put(death.func, *death.args, timeout=death.timeout)
        wait_for(lambda: ward.is_gone(id))
        if end.verdict:
            wait_for(lambda: len(ledger.find("error")) > before)
    if end.child != "goes on" and ward.mode != "forked":
        wait_for(lambda: child not in ward.children())
    last = bench.put(witnesses.look_around, death.name, ward.mode not in LANES)
    wait_for(lambda: ward.is_gone(last))

    errors = ledger.find("error")[before:]
    assert len(errors) == bool(end.verdict), errors
    assert not errors or errors[0].startswith(told(death, ward.mode))
    (pid,) = ledger.find(f"after {death.name} ")
    if ward.mode != "forked":
        assert (int(pid) == child) == (end.child == "goes on")
    for name in names:
        assert ledger.find(f"end {name}") == [""]
        assert ledger.find(f"begin {name} ") == ["1"] * (2 if end.child == "dies" else 1), "again, and uncharged"
    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)
    assert ward.worker.poll() is None


@pytest.mark.parametrize("ward", LANES, indirect=True)
def test_whoever_is_left_when_its_child_can_t_speak_any_more_is_innocent(ward: Ward) -> None:
    """Here that is one; of two nobody could tell who it was anyway."""
    before = len(ward.ledger.find("error"))
    with ward.neighbours("left", 1):
        id = ward.bench.put(closes_descriptors.die)
        wait_for(lambda: ward.is_gone(id))

    assert ward.ledger.find("end left/0") == [""]
    assert [line for line in ward.ledger.find("error")[before:] if line.startswith("wait")] == []


def test_workers_under_a_supervisor_live_through_all_of_them(tmp_path: Path) -> None:
    bench = Bench(f"sqlite:///{tmp_path}/tasks.db", tmp_path)
    expected: Counter[str] = Counter()
    for death in deaths.deaths():
        bench.put(death.func, *death.args, timeout=death.timeout)
        if death.ends["preforked"].verdict:
            expected[told(death, "preforked")] += 1
    command = [sys.executable, "-m", "delayed", "worker", "--url", bench.url, "--queue", bench.queue.name, "--burst"]
    command += ["--mode=preforked", "--workers=2", "--processes=2", "--kill-timeout=0.5"]
    command += ["--max-memory=50M", "--kill-memory=250M", f"--error-handler={OPTIONS['error_handler']}"]
    command += [f"--preload={name}" for name in deaths.modules()]

    with few_descriptors():
        done = subprocess.run(
            command,
            env={**os.environ, "LEDGER": str(bench.ledger.path)},
            timeout=50,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert done.returncode == 0, done.stderr
    assert " died" not in done.stderr and "is gone" not in done.stderr
    errors = bench.ledger.find("error")
    assert {words: sum(error.startswith(words) for error in errors) for words in expected} == expected
    assert len(errors) == expected.total()
    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)
    bench.close()
