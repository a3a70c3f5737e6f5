"""Random chaos, or one scenario, and the verdict; ends with 1 if any column fails. ``make chaos`` runs this."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from tests.chaos.chaos import Chaos, Plan
from tests.chaos.checker import Verdict
from tests.chaos.house import KINDS
from tests.chaos.scenarios import SCENARIOS, play, staged
from tests.chaos.stores import STORES, open_store
from tests.chaos.table import table


def arguments() -> tuple[Plan, str]:
    """The plan, and the name of the scenario that is wanted instead of chaos, or ""."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    default = Plan()
    parser.add_argument("--store", choices=STORES, default=default.store)
    parser.add_argument("--worker", choices=KINDS, default=default.worker)
    parser.add_argument("--seconds", type=float, default=default.seconds, help="how long tasks come and harm is done")
    parser.add_argument("--tasks", type=int, default=default.tasks)
    parser.add_argument("--kills", type=int, default=default.kills, help="how much harm is done, about")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--lease", type=float, default=default.lease)
    parser.add_argument("--other", default="", help="the folder of another version, which every second process runs")
    parser.add_argument("--scenario", choices=SCENARIOS, default="", help="play this instead")
    chosen = vars(parser.parse_args())
    scenario = chosen.pop("scenario")
    if scenario and chosen["store"] not in SCENARIOS[scenario].stores:
        parser.error(f"{scenario} can be played on {', '.join(SCENARIOS[scenario].stores)}, not on {chosen['store']}")
    if scenario and chosen["other"]:
        parser.error("a scenario is played with one version: --other does not go with --scenario")
    return Plan(**chosen), scenario


def main() -> int:
    plan, scenario = arguments()
    print(f"python -m tests.chaos {plan}{f' --scenario {scenario}' if scenario else ''}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="delayed-chaos-"))
    verdict, harm = _scenario(plan, scenario, folder) if scenario else _chaos(plan, folder)
    print(table(verdict, harm))
    if verdict.passed:
        shutil.rmtree(folder)
        return 0
    (folder / "verdict.json").write_text(json.dumps({"plan": asdict(plan), **vars(verdict)}, indent=1))
    print(f"FAILED: {', '.join(verdict.failed)}; the logs are in {folder}")
    return 1


def _chaos(plan: Plan, folder: Path) -> tuple[Verdict, Mapping[str, int]]:
    with open_store(plan.store) as store:
        chaos = Chaos(plan, folder, store)
        return chaos.run(), chaos.nemesis.done


def _scenario(plan: Plan, name: str, folder: Path) -> tuple[Verdict, Mapping[str, int]]:
    with staged(SCENARIOS[name], plan.store, folder, plan.worker, plan.lease, plan.seed) as scene:
        scene.tasks = plan.tasks
        faults = play(scene, SCENARIOS[name])
        return scene.arena.judge(), {name: faults}


if __name__ == "__main__":
    sys.exit(main())
