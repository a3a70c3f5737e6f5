"""Single faults, one kind at a time, on a store behind a proxy. A scenario is a function of a :class:`Scene`.

========================  ============================================================================================
lost_enqueue_replies      three of ten enqueues take effect and nobody hears of it: no twin, no rerun
lost_claim_replies        ... of claims: no rerun, and what nobody knows of is given back
lost_settle_replies       ... of settlements: no rerun
lost_renew_replies        ... of renewals, while tasks run for several leases: no rerun
lost_sweep_replies        ... of sweeps, which return the tasks of a killed worker: each once
lost_requests             three of twenty requests of any kind never arrive
stubborn_settlement       for two leases no settlement arrives, all else does: no rerun
late_claim_replies        claims are answered two leases later: what is not held any more is not begun
resets                    all connections are reset, five times a second
cut_off                   a worker is cut off for longer than its lease: fenced, and it serves again
========================  ============================================================================================
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.chaos import tasks
from tests.chaos.arena import Arena
from tests.chaos.proxy import Proxy, Rule

CHANCE = 0.3
BOUND = 30.0  # seconds within which anything that is waited for has to happen


@dataclass
class Scene:
    """Where a scenario plays.

    Attributes:
        arena: whose producers and workers reach the store through `proxy`.
        tasks: how many, about.
    """

    arena: Arena
    proxy: Proxy
    tasks: int = 60

    def put(self, seconds: float = 0.0, count: int = 0) -> None:
        for _ in range(count or self.tasks):
            self.arena.put(tasks.nap, seconds)

    def wait_for(self, what: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + BOUND
        while not (found := what()):
            assert time.monotonic() < deadline, f"not within {BOUND} s"
            time.sleep(0.02)
        return found

    def begun(self) -> int:
        """How many tasks have begun."""
        return sum(bool(intent.runs) for intent in self.arena.history().intents.values())


def lost_enqueue_replies(scene: Scene) -> None:
    scene.arena.start()
    scene.proxy.set(Rule("enqueue", "drop_reply", CHANCE))
    scene.put()


def lost_claim_replies(scene: Scene) -> None:
    _while_working(scene, "claim")


def lost_settle_replies(scene: Scene) -> None:
    _while_working(scene, "settle")


def _while_working(scene: Scene, op: str) -> None:
    scene.arena.start()
    scene.arena.start()
    scene.proxy.set(Rule(op, "drop_reply", CHANCE))
    for _ in range(scene.tasks // 5):
        scene.put(0.01, count=5)
        time.sleep(0.05)  # so that there are many claims, and not a few large ones


def lost_renew_replies(scene: Scene) -> None:
    scene.arena.start()
    scene.arena.start()
    scene.proxy.set(Rule("renew", "drop_reply", CHANCE))
    scene.put(scene.arena.lease * 2.5, count=4)
    scene.wait_for(lambda: scene.begun() == 4)


def lost_sweep_replies(scene: Scene) -> None:
    worker = scene.arena.start()
    scene.put(1.0, count=2)
    scene.wait_for(lambda: scene.begun() == 2)
    scene.proxy.set(Rule("sweep", "drop_reply", CHANCE))
    scene.arena.start()
    ((_, server),) = [pair for pair in scene.arena.guardians() if pair[0] == worker.pid]
    scene.arena.kill(worker.pid, "monitor")
    scene.arena.kill(server, "forkserver")


def lost_requests(scene: Scene) -> None:
    scene.arena.start()
    scene.arena.start()
    scene.wait_for(lambda: len(scene.arena.guardians()) == 2)
    scene.proxy.set(*[Rule(op, "drop_request", CHANCE / 2) for op in ("enqueue", "claim", "settle", "renew", "sweep")])
    scene.put(0.01)


def stubborn_settlement(scene: Scene) -> None:
    scene.arena.start()
    scene.arena.start("sweeper", url=scene.arena.direct)
    scene.wait_for(scene.arena.guardians)
    scene.put(1.0, count=1)
    scene.wait_for(scene.begun)
    scene.proxy.set(Rule("settle", "drop_request"))
    scene.wait_for(scene.proxy.hits)
    time.sleep(2 * scene.arena.lease)


def late_claim_replies(scene: Scene) -> None:
    scene.arena.start()
    scene.wait_for(scene.arena.guardians)
    scene.proxy.set(Rule("claim", "hold_reply", seconds=2 * scene.arena.lease))
    scene.put(count=3)
    scene.wait_for(lambda: scene.arena.counts().running)
    scene.proxy.set()
    scene.arena.start(url=scene.arena.direct)  # which sweeps, and takes what the other has not begun for so long


def resets(scene: Scene) -> None:
    scene.arena.start()
    scene.arena.start()
    for _ in range(20):
        scene.put(0.05, count=scene.tasks // 20)
        scene.proxy.reset()
        time.sleep(0.2)


def cut_off(scene: Scene) -> None:
    worker = scene.arena.start()
    scene.arena.put(tasks.watch, 4 * scene.arena.lease)
    scene.wait_for(lambda: scene.begun() == 1)
    scene.arena.start(url=scene.arena.direct)
    scene.arena.note("cut", worker=worker.pid)
    scene.proxy.state("swallow")
    history = scene.arena.history
    scene.wait_for(lambda: [intent for intent in history().intents.values() if len(intent.runs) == 2])
    scene.proxy.state("open")
    scene.arena.note("healed", worker=worker.pid)


Scenario = Callable[[Scene], None]
SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        lost_enqueue_replies,
        lost_claim_replies,
        lost_settle_replies,
        lost_renew_replies,
        lost_sweep_replies,
        lost_requests,
        stubborn_settlement,
        late_claim_replies,
        resets,
        cut_off,
    )
}
TOXIC = frozenset(SCENARIOS) - {"resets", "cut_off"}  # those in which the proxy has to have done something


def play(scene: Scene, scenario: Scenario) -> None:
    """Play it, and let all end in peace."""
    scenario(scene)
    scene.wait_for(lambda: scene.proxy.hits() or scenario.__name__ not in TOXIC)
    scene.wait_for(lambda: scene.begun() == len(scene.arena.history().intents))
    scene.proxy.set()
    scene.arena.drain()
    scene.arena.close()
