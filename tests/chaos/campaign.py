"""The published matrix: rows of harm x stores x kinds of workers, each a trial; ends with 1 if any fails.

``make campaign`` runs this. A trial is called by its row, store and kind, ``K2 redis preforked``, which also make its
seed. With a record a long campaign goes on where it was left.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from math import inf
from pathlib import Path
from types import FrameType

from tests.chaos.points import write
from tests.chaos.proof import MARKS, tables
from tests.chaos.rows import ROWS, Size
from tests.chaos.trials import Result, Trial, run

TIDYING = 10.0  # seconds
ended = threading.Event()  # in the process of a trial: no further one is begun
TRIALS = [Trial(row.id, store, kind) for row in ROWS.values() for kind in row.kinds for store in row.stores]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.campaign", description=__doc__)
    size = Size()
    parser.add_argument(
        "--only", default="", help='trials with all these words, also if recorded: "K2 redis preforked"'
    )
    parser.add_argument("--rows", default="", help="these rows only, in this order: K1,K2,N2")
    parser.add_argument("--kinds", default="", help="these kinds of workers only: forked,preforked")
    parser.add_argument("--jobs", type=int, default=2, help="trials at the same time")
    parser.add_argument("--record", type=Path, help="a file for what became of each; those in it are not tried again")
    parser.add_argument("--minutes", type=float, default=inf, help="begin no further trial after so long")
    parser.add_argument("--tasks", type=int, default=size.tasks, help="of a kill row, at least")
    parser.add_argument("--kills", type=int, default=size.kills, help="faults of a kill row")
    parser.add_argument(
        "--pace", type=float, default=size.pace, help="2: in twice the time, for a machine that is busy"
    )
    parser.add_argument("--lease", type=float, default=size.lease, help="of the workers in kill rows, seconds")
    parser.add_argument("--slack", type=float, default=size.slack, help="seconds by which the machine may be slow")
    parser.add_argument("--salt", default="", help="makes other seeds")
    parser.add_argument("--list", action="store_true", help="name the trials, and do nothing")
    parser.add_argument("--write", action="store_true", help="write what is recorded into docs/guarantees.md")
    return parser.parse_args()


def chosen(only: str, rows: str, kinds: str, salt: str = "") -> list[Trial]:
    """The trials that are meant, see the arguments."""
    ids = [id for id in rows.split(",") if id] or list(ROWS)
    found = [
        trial
        for trial in TRIALS
        if trial.row in ids
        and all(word in str(trial).split() for word in only.split())
        and trial.kind in (kinds.split(",") if kinds else ROWS[trial.row].kinds)
    ]
    found.sort(key=lambda trial: ids.index(trial.row))
    return [Trial(trial.row, trial.store, trial.kind, salt) for trial in found]


def recorded(record: Path | None) -> dict[str, Result]:
    """What became of each trial the last time, by its name, in the order of the matrix."""
    results: dict[str, Result] = {}
    for line in record.read_text().splitlines() if record and record.exists() else ():
        result = Result(**json.loads(line))
        results[str(Trial(result.row, result.store, result.kind))] = result
    return {str(trial): results[str(trial)] for trial in TRIALS if str(trial) in results}


def failed_before(record: Path | None) -> list[Result]:
    """Those that failed, and were tried again."""
    last = recorded(record)
    lines = record.read_text().splitlines() if record and record.exists() else ()
    results = [Result(**json.loads(line)) for line in lines]
    return [it for it in results if it != last.get(f"{it.row} {it.store} {it.kind}") and any(it.findings.values())]


def main() -> int:
    options = arguments()
    trials = chosen(options.only, options.rows, options.kinds, options.salt)
    results = recorded(options.record)
    if not options.only:
        trials = [trial for trial in trials if str(trial) not in results]
    if options.list:
        print("\n".join(f"{trial} seed={trial.seed}" for trial in trials))
        return 0
    size = Size(options.tasks, options.kills, options.pace, options.lease, options.slack)
    failed = _try(trials, size, options)
    if options.write:
        report = tables(list(recorded(options.record).values()), failed_before(options.record))
        write(report, marks=MARKS)
        print(report)
    return 1 if failed else 0


def _try(trials: Sequence[Trial], size: Size, options: argparse.Namespace) -> int:
    """Try them, several at a time, and say and note what becomes of each; returns how many failed."""
    until = time.monotonic() + options.minutes * 60
    failed = 0
    # A process for each trial: none shall be late because another one's logs are being read.
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"), _end_with, (os.getpid(),)) as pool:
        for done in as_completed([pool.submit(_run, trial, size, until) for trial in trials]):
            result = done.result()
            if result is None:
                continue
            print("\n".join([str(result), *[f"    {words}" for words in result.examples]]), flush=True)
            if result.logs:
                print(f"    the logs are in {result.logs}", flush=True)
            failed += not result.passed and not result.skipped
            if options.record:
                with open(options.record, "a") as file:
                    file.write(json.dumps(asdict(result)) + "\n")
    return failed


def _end_with(parent: int) -> None:
    """Let this process put away what it has started, and end, when the one that started it is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        ended.set()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(TIDYING)
        os._exit(1)  # it waits for another trial

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit("the campaign was ended")

    signal.signal(signal.SIGTERM, leave)
    threading.Thread(target=watch, daemon=True).start()


def _run(trial: Trial, size: Size, until: float) -> Result | None:
    return run(trial, size) if time.monotonic() < until and not ended.is_set() else None


if __name__ == "__main__":
    sys.exit(main())
