"""``delayed demo`` does the sum over real tasks, and notices when it does not come out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from delayed.demo import tasks
from delayed.demo.driver import Demo
from delayed.demo.evidence import FOLDER_VARIABLE, note


def run_demo(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "DELAYED_URL"}
    return subprocess.run(
        [sys.executable, "-m", "delayed", "demo"],
        cwd=folder,
        env={**inherited, "TMPDIR": str(folder), **environ},
        capture_output=True,
        text=True,
        timeout=55,
    )


def last_sum(output: str) -> Mapping[str, int]:
    """The numbers of the last line: enqueued = succeeded + failed + timed out + killed."""
    line = output.strip().splitlines()[-1]
    found = re.findall(r"(\d+) (enqueued|succeeded|failed|timed out|killed)", line)
    return {word: int(number) for number, word in found}


def test_the_demo_adds_up_on_a_file(tmp_path: Path) -> None:
    done = run_demo(tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    numbers = last_sum(done.stdout)
    assert numbers["enqueued"] > 200
    assert (numbers["failed"], numbers["timed out"], numbers["killed"]) == (1, 1, 1)
    assert numbers["enqueued"] == numbers["succeeded"] + 3
    assert "in stick" in done.stdout, "the stack of the stuck task is shown"
    assert list(tmp_path.iterdir()) == [], "the temporary folder is removed"


def test_the_demo_adds_up_on_redis_and_leaves_nothing_behind(redis_url: str, tmp_path: Path) -> None:
    import redis

    done = run_demo(tmp_path, DELAYED_URL=redis_url)

    assert done.returncode == 0, done.stdout + done.stderr
    with redis.Redis.from_url(redis_url) as client:
        names = [name.decode() for name in client.keys("demo-*")]
    assert [name for name in names if not name.rpartition("_")[1]] == [], "no ready list of the demo is left"


def test_an_unreachable_store_is_one_line_and_no_worker(tmp_path: Path) -> None:
    done = run_demo(tmp_path, DELAYED_URL="redis://localhost:1")

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: can't reach")


def test_a_task_that_ends_twice_or_never_does_not_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = Demo(f"sqlite:///{tmp_path}/demo.db")  # not entered: there is no worker
    monkeypatch.setenv(FOLDER_VARIABLE, str(demo.folder))
    path = str(Path(__file__))
    for method in tasks.HASHES:
        demo.enqueue(tasks.digest, (path, method))
    first, second = demo.kinds
    tasks.digest(path, "sha256")
    note(id=first, verdict="succeeded")
    note(id=first, verdict="killed")

    complaints = "\n".join(demo.complaints())

    demo.forget()
    assert f"task {first} (digest) is succeeded and killed" in complaints
    assert f"task {second} (digest) is not ended" in complaints
    assert "the store still holds tasks" in complaints
