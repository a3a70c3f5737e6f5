"""Replies, requests and connections are lost between workers and servers: no task is lost, none runs twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.chaos import tasks
from tests.chaos.arena import Arena
from tests.chaos.proxy import Proxy, Rule
from tests.chaos.scenarios import SCENARIOS, Scene, Unplayable, play, replies
from tests.chaos.scenarios.clocks import Clock
from tests.chaos.scenarios.scene import LEASE

HERE = [name for name, scenario in SCENARIOS.items() if scenario.play.__module__ == replies.__name__]
ON_POSTGRES = {name for name in HERE if name.endswith("_replies")} | {"cut_off"}  # all are played on Redis


pytestmark = pytest.mark.timeout(150)


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    name = request.getfixturevalue("name")
    direct = request.getfixturevalue(request.param)
    lease = SCENARIOS[name].lease if name else LEASE
    with Proxy(direct, tmp_path) as proxy, Arena(tmp_path, proxy.url, direct=direct, lease=lease) as arena:
        yield Scene(arena, proxy)


FEW = sorted(ON_POSTGRES)[: None if os.environ.get("DELAYED_ALL") else 2]


@pytest.mark.parametrize(
    ("scene", "name"),
    [("redis_url", name) for name in HERE] + [("postgres_schema", name) for name in FEW],
    indirect=["scene"],
)
def test_a_scenario_is_passed(scene: Scene, name: str) -> None:
    play(scene, SCENARIOS[name])

    verdict = scene.arena.judge(slack=8.0)
    assert verdict.passed, verdict


@pytest.mark.parametrize(("scene", "name"), [("redis_url", "")], indirect=["scene"])
def test_a_stand_in_sends_again_far_within_a_lease(scene: Scene, name: str) -> None:
    worker = scene.arena.start()
    scene.arena.put(tasks.nap, 1.0)
    scene.wait_for(scene.begun)
    scene.arena.kill(worker.pid, "monitor")
    scene.proxy.set(Rule("settle", "drop_request", most=9))
    scene.wait_for(lambda: len(scene.proxy.hits()) == 9)

    gaps = [after["at"] - before["at"] for before, after in pairwise(scene.proxy.hits())]
    assert max(gaps) < 1.5, gaps
    assert scene.arena.drain()


def test_a_wall_clock_jumps_and_no_other_clock_does(tmp_path: Path) -> None:
    try:
        clock = Clock(tmp_path)
    except Unplayable as why:
        pytest.skip(str(why))
    look = "import time; print(time.time(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))"
    script = f"{look}; input(); {look}"
    with subprocess.Popen(
        [sys.executable, "-uc", script],
        env={**os.environ, **clock.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        before = process.stdout.readline()
        clock.set(-3600)
        after, _ = process.communicate("\n")

    wall, *others = (
        there - here for here, there in zip(*[map(float, it.split()) for it in (before, after)], strict=True)
    )
    assert -3600 <= wall < -3500
    assert all(0 <= it < 100 for it in others)
