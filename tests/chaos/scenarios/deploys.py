"""Workers are replaced, one after the other."""

from __future__ import annotations

import signal

from tests.chaos.scenarios.scene import ALL, Scene, scenario

TIMES = 20
NAP = 1.0  # seconds that a task takes, of which a worker that is told to leave waits for a part


@scenario("G1", stores=ALL, proxied=False)
def rolling(scene: Scene) -> int:
    """Twenty times a worker is told to leave, and does not wait for all that runs: that runs again, uncharged."""
    workers = [scene.worker(shutdown_timeout=NAP / 3), scene.worker(shutdown_timeout=NAP / 3)]
    scene.put(NAP, count=scene.tasks // 2)
    scene.put(NAP, count=scene.tasks // 2, retry=None)
    for _ in range(TIMES):
        workers.append(scene.worker(shutdown_timeout=NAP / 3))
        oldest = workers.pop(0)
        scene.arena.note("leave", pid=oldest.monitor)
        oldest.house.send_signal(signal.SIGTERM)
        scene.wait_for(lambda house=oldest.house: house.poll() is not None)
        scene.measure("it left with", oldest.house.returncode, least=0, most=0)
    charged = [run for run in scene.arena.history().runs.values() if run.attempt > 1]
    scene.measure("runs that were charged for another one", len(charged), most=0)
    return TIMES
