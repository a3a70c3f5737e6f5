"""Single faults, one kind at a time, on the way to a store: its replies and requests are lost, or late."""

from __future__ import annotations

import time

from tests.chaos import tasks
from tests.chaos.proxy import Rule
from tests.chaos.scenarios.scene import Scene, scenario

CHANCE = 0.3
RESETS = 20


@scenario("N2", toxic=True)
def lost_enqueue_replies(scene: Scene) -> None:
    """Three of ten enqueues take effect and nobody hears of it: no twin, no rerun."""
    scene.arena.start()
    scene.proxy.set(Rule("enqueue", "drop_reply", CHANCE))
    scene.put()


@scenario("N3", toxic=True)
def lost_claim_replies(scene: Scene) -> None:
    """... of claims: no rerun, and what nobody knows of is given back."""
    _while_working(scene, "claim")


@scenario("N3", toxic=True)
def lost_settle_replies(scene: Scene) -> None:
    """... of settlements: no rerun."""
    _while_working(scene, "settle")


def _while_working(scene: Scene, op: str) -> None:
    scene.arena.start()
    scene.arena.start()
    scene.proxy.set(Rule(op, "drop_reply", CHANCE))
    for _ in range(scene.tasks // 5):
        scene.put(0.01, count=5)
        time.sleep(0.05)  # so that there are many claims, and not a few large ones


@scenario("N3", toxic=True)
def lost_renew_replies(scene: Scene) -> None:
    """... of renewals, while tasks run for several leases: no rerun."""
    scene.arena.start()
    scene.arena.start()
    scene.proxy.set(Rule("renew", "drop_reply", CHANCE))
    scene.put(scene.arena.lease * 2.5, count=4)
    scene.wait_for(lambda: scene.begun() == 4)


@scenario("N3", toxic=True)
def lost_sweep_replies(scene: Scene) -> None:
    """... of sweeps, which return the tasks of a killed worker: each once."""
    worker = scene.arena.start()
    scene.put(1.0, count=2)
    scene.wait_for(lambda: scene.begun() == 2)
    scene.proxy.set(Rule("sweep", "drop_reply", CHANCE))
    scene.arena.start()
    ((_, server),) = [pair for pair in scene.arena.guardians() if pair[0] == worker.pid]
    scene.arena.kill(worker.pid, "monitor")
    scene.arena.kill(server, "forkserver")


@scenario("N3", toxic=True)
def lost_requests(scene: Scene) -> None:
    """Three of twenty requests of any kind never arrive."""
    scene.arena.start()
    scene.arena.start()
    scene.wait_for(lambda: len(scene.arena.guardians()) == 2)
    scene.proxy.set(*[Rule(op, "drop_request", CHANCE / 2) for op in ("enqueue", "claim", "settle", "renew", "sweep")])
    scene.put(0.01)


@scenario("N3", toxic=True)
def stubborn_settlement(scene: Scene) -> None:
    """For two leases no settlement arrives, all else does: no rerun."""
    scene.arena.start()
    scene.arena.start("sweeper", url=scene.arena.direct)
    scene.wait_for(scene.arena.guardians)
    scene.put(1.0, count=1)
    scene.wait_for(scene.begun)
    scene.proxy.set(Rule("settle", "drop_request"))
    scene.wait_for(scene.proxy.hits)
    time.sleep(2 * scene.arena.lease)


@scenario("N4", toxic=True, lease=1.5)
def late_claim_replies(scene: Scene) -> None:
    """Claims are answered two leases later: what is not held any more is not begun."""
    scene.arena.start()
    scene.wait_for(scene.arena.guardians)
    scene.proxy.set(Rule("claim", "hold_reply", seconds=2 * scene.arena.lease))
    scene.put(count=3)
    scene.wait_for(lambda: scene.arena.counts().running)
    scene.proxy.set()
    scene.arena.start(url=scene.arena.direct)  # which sweeps, and takes what the other has not begun for so long


@scenario("N1")
def resets(scene: Scene) -> int:
    """All connections are reset, five times a second."""
    scene.arena.start()
    scene.arena.start()
    for _ in range(RESETS):
        scene.put(0.05, count=scene.tasks // RESETS)
        scene.proxy.reset()
        time.sleep(0.2)
    return RESETS


@scenario("N5", lease=1.5)
def cut_off(scene: Scene) -> None:
    """A worker is cut off for longer than its lease: fenced, and it serves again."""
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
