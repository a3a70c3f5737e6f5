"""The short form of ``make chaos``: half a minute of harm to each of two kinds of workers, on two kinds of stores."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.arena import Arena
from tests.chaos.chaos import Chaos, Plan
from tests.chaos.nemesis import KILLS, RESTARTS, STOPS
from tests.chaos.stores import open_store
from tests.chaos.table import table


@pytest.mark.timeout(150)
@pytest.mark.parametrize(("store", "worker"), [("sqlite", "preforked"), ("redis", "forked")])
def test_whatever_dies_each_task_runs_to_its_end_and_only_once(store: str, worker: str, tmp_path: Path) -> None:
    # Beside other tests a process may have to wait for seconds until it is its turn: hence the long lease, nobody who
    # is frozen for longer than that, and bounds that only what hangs exceeds.
    faults = (*KILLS, *STOPS, *RESTARTS)
    plan = Plan(store, worker, 20.0, 150, 20, random.randrange(1 << 32), lease=8.0, faults=faults, slack=8.0)
    with open_store(store) as opened:
        chaos = Chaos(plan, tmp_path, opened)
        verdict = chaos.run(say=False)

    assert verdict.passed, f"{plan}; the logs are in {tmp_path}\n{table(verdict, chaos.nemesis.done)}"


def test_every_second_process_runs_another_version_if_there_is_one(tmp_path: Path) -> None:
    other = tmp_path / "checkout"
    (other / "delayed").mkdir(parents=True)
    for name in ("__init__.py", "only_there.py"):
        (other / "delayed" / name).touch()
    folder = tmp_path / "logs"
    folder.mkdir()

    with Arena(folder, "memory://", other=str(other)) as arena:
        codes = [arena.run("delayed.only_there").wait(30.0) for _ in range(3)]

    assert codes == [1, 0, 1]
