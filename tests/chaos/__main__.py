"""``python -m tests.chaos``, which is what ``make chaos`` runs. Ends with 1 if any column fails."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.chaos.chaos import Chaos, Plan
from tests.chaos.house import KINDS
from tests.chaos.stores import STORES, open_store
from tests.chaos.table import table


def arguments() -> Plan:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    default = Plan()
    parser.add_argument("--store", choices=STORES, default=default.store)
    parser.add_argument("--worker", choices=KINDS, default=default.worker)
    parser.add_argument("--seconds", type=float, default=default.seconds, help="how long tasks come and harm is done")
    parser.add_argument("--tasks", type=int, default=default.tasks)
    parser.add_argument("--kills", type=int, default=default.kills, help="how much harm is done, about")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    return Plan(**vars(parser.parse_args()))


def main() -> int:
    plan = arguments()
    print(f"python -m tests.chaos {plan}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="delayed-chaos-"))
    with open_store(plan.store) as store:
        chaos = Chaos(plan, folder, store)
        verdict = chaos.run()
    print(table(verdict, chaos.nemesis.done))
    if verdict.passed:
        shutil.rmtree(folder)
        return 0
    (folder / "verdict.json").write_text(json.dumps({"plan": asdict(plan), **asdict(verdict)}, indent=1))
    print(f"FAILED: {', '.join(verdict.failed)}; the logs are in {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
