"""One trial of the matrix: a row, on one store, with one kind of worker; and what became of it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.chaos import Chaos
from tests.chaos.checker import Verdict
from tests.chaos.rows import ROWS, Size
from tests.chaos.scenarios import SCENARIOS, Unplayable, play, staged
from tests.chaos.stores import open_store
from tests.servers.mongo import mongod_binary
from tests.servers.postgres import postgres_folder
from tests.servers.redis import redis_binary

ROOT = Path(__file__).parent.parent.parent
RAISED = "raised"  # a retry that its task asked for is no rerun
EXAMPLES = 3  # findings of a column that are kept
DRIVERS = {"redis": "redis", "postgres": "psycopg", "mongodb": "pymongo"}


@dataclass(frozen=True)
class Trial:
    """What is to be tried.

    Attributes:
        row: its id.
        salt: makes it another one of the same name; "" in the published matrix.
    """

    row: str
    store: str
    kind: str
    salt: str = ""

    def __str__(self) -> str:
        return f"{self.row} {self.store} {self.kind}"

    @property
    def seed(self) -> int:
        """Made of its name, so that a trial can be repeated by its name."""
        return zlib.crc32(f"{self} {self.salt}".rstrip().encode())


@dataclass
class Result:
    """What became of a trial.

    Attributes:
        findings: how many there are in each column.
        examples: the first of them, in words.
        explained: reruns that had to be, by what explains them.
        repeated: see :class:`Verdict`.
        recovery: seconds from each death to the next run, by who died.
        outlived: see :class:`Verdict`.
        load: how many processes wanted to run at its end (of a minute, see :func:`os.getloadavg`).
        figures: what scenarios measured, in words.
        versions: of what was judged.
        logs: where they are kept, if it failed.
        skipped: why it could not be played here; "" if it could.
        size: see :class:`Size`, if it is of a kill row.
    """

    row: str
    store: str
    kind: str
    seed: int
    tasks: int = 0
    runs: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    findings: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    explained: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    recovery: dict[str, list[float]] = field(default_factory=dict)
    dead_air: float = 0.0
    figures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    load: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    logs: str = ""
    skipped: str = ""
    size: dict[str, float] = field(default_factory=dict)
    outlived: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.skipped and not any(self.findings.values())

    @property
    def harm(self) -> int:
        """How many faults there were."""
        return sum(self.faults.values())

    @property
    def reruns(self) -> int:
        """Runs that followed another one of the same task, although that had not raised."""
        return sum(times for why, times in self.explained.items() if why != RAISED) + self.findings.get("rerun", 0)

    def measured(self, name: str) -> list[float]:
        """The figures of this name."""
        found = (re.search(rf"(?:^|: ){re.escape(name)}: (\S+)", words) for words in self.figures)
        return [float(match[1]) for match in found if match]

    def __str__(self) -> str:
        name = f"{self.row} {self.store} {self.kind}"
        if self.skipped:
            return f"{name} SKIPPED: {self.skipped}"
        wrong = self.findings.get("rerun", 0)
        columns = " ".join(f"{name}={self.findings.get(name, 0)}" for name in ("overlap", "unfenced", "leak"))
        effects = self.findings.get("effects_lost", 0) + self.findings.get("effects_dup", 0)
        failed = ", ".join(column for column, count in self.findings.items() if count)
        return (
            f"{name} seed={self.seed} tasks={self.tasks} faults={self.harm} lost={self.findings.get('lost', 0)} "
            f"reruns={self.reruns} ({f'{wrong} NOT explained' if wrong else 'all explained'}) {columns} "
            f"effects={effects} recovery p50/p99/max={quantiles(self.recovery.values())} {self.seconds:.0f} s "
            f"{f'FAILED: {failed}' if failed else 'PASS'}"
        )

    def take(self, verdict: Verdict) -> None:
        """Note what the judge says."""
        self.tasks, self.runs, self.repeated = verdict.tasks, verdict.runs, verdict.repeated
        self.findings = {column: len(found) for column, found in verdict.findings.items()}
        self.examples = [
            f"{column}: {words}" for column, found in verdict.findings.items() for words in found[:EXAMPLES]
        ]
        self.explained = dict(verdict.explained)
        self.recovery = {role: [round(took, 3) for took in times] for role, times in verdict.recovery.items()}
        self.dead_air = round(verdict.dead_air, 3)
        self.outlived = round(verdict.outlived, 3)
        self.figures = verdict.figures


def quantiles(times: Iterable[Sequence[float]]) -> str:
    """Median, 99th of a hundred, and the longest, in seconds."""
    found = sorted(took for each in times for took in each)
    if not found:
        return "-"
    middle, most = found[len(found) // 2], found[min(len(found) - 1, len(found) * 99 // 100)]
    return f"{middle:.2f}/{most:.2f}/{found[-1]:.2f} s"


def run(trial: Trial, size: Size) -> Result:
    """Try it; the logs are kept if it fails."""
    result = Result(trial.row, trial.store, trial.kind, trial.seed, versions=versions(trial.store))
    folder = Path(tempfile.mkdtemp(prefix=f"delayed-{trial.row}-{trial.store}-{trial.kind}-"))
    begun = time.monotonic()
    try:
        if ROWS[trial.row].scenarios:
            _play(trial, folder, result)
        else:
            _kill(trial, size, folder, result)
    except Unplayable as error:
        result.skipped = str(error)
    except (Exception, SystemExit) as error:  # the judge's own; the other trials are tried all the same
        result.findings["error"] = 1
        result.examples.append(f"{type(error).__name__}: {error}")
    result.seconds = round(time.monotonic() - begun, 1)
    result.load = round(os.getloadavg()[0], 1)
    if result.passed or result.skipped:
        shutil.rmtree(folder)
    else:
        result.logs = str(folder)
    return result


def _kill(trial: Trial, size: Size, folder: Path, result: Result) -> None:
    result.size = dict(vars(size))
    earlier = ROWS[trial.row].earlier
    other = str(_checked_out(earlier, folder)) if earlier else ""
    if other:
        result.versions["delayed"] += f" beside {earlier}"
    plan = ROWS[trial.row].plan(trial.store, trial.kind, trial.seed, size, other)
    with open_store(trial.store) as store:
        chaos = Chaos(plan, folder, store)
        verdict = chaos.run(say=False)
    result.faults = chaos.nemesis.done
    result.take(verdict)
    if ROWS[trial.row].calm and result.reruns > result.findings["rerun"]:
        result.examples.append(f"rerun: nothing may run again in this row, and {result.reruns} did")
        result.findings["rerun"] = result.reruns


def _checked_out(commit: str, folder: Path) -> Path:
    """A folder with that version of the library."""
    place = folder / "earlier"
    place.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit, "delayed"], capture_output=True)
    if archive.returncode:
        raise Unplayable(f"there is no commit {commit} here")
    subprocess.run(["tar", "-x", "-C", str(place)], input=archive.stdout, check=True)
    return place


def _play(trial: Trial, folder: Path, result: Result) -> None:
    """All the scenarios of the row, each in a folder of its own, as one trial."""
    findings: Counter[str] = Counter()
    explained: Counter[str] = Counter()
    for name in ROWS[trial.row].scenarios:
        scenario = SCENARIOS[name]
        if trial.store not in scenario.stores:
            continue
        logs = folder / name
        logs.mkdir()
        one = Result(trial.row, trial.store, trial.kind, trial.seed)
        with staged(scenario, trial.store, logs, trial.kind, scenario.lease, trial.seed) as scene:
            scene.tasks = ROWS[trial.row].tasks or scene.tasks
            result.faults[name] = play(scene, scenario)
            one.take(scene.arena.judge(slack=8.0))
        result.tasks += one.tasks
        result.runs += one.runs
        result.repeated += one.repeated
        result.examples += [f"{name}: {words}" for words in one.examples]
        result.figures += [f"{name}: {words}" for words in one.figures]
        result.dead_air = max(result.dead_air, one.dead_air)
        result.outlived = max(result.outlived, one.outlived)
        for role, times in one.recovery.items():
            result.recovery.setdefault(role, []).extend(times)
        findings.update(one.findings)
        explained.update(one.explained)
    result.findings, result.explained = dict(findings), dict(explained)


def versions(store: str) -> dict[str, str]:
    """Of the library, Python, the store's server and its driver."""
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    found = {"delayed": f"{importlib.metadata.version('delayed')} ({commit})"}
    found["Python"] = platform.python_version()
    if store == "sqlite":
        import sqlite3

        return {**found, "SQLite": sqlite3.sqlite_version}
    if store == "redis":
        found["Redis"] = _output(redis_binary(), "--version").split("v=")[-1].split()[0]
    elif store == "postgres":
        found["PostgreSQL"] = _output(str(postgres_folder() / "postgres"), "--version").split()[2]
    else:
        found["MongoDB"] = _output(mongod_binary(), "--version").split("db version v")[-1].split()[0]
    driver = DRIVERS[store]
    return {**found, driver: importlib.metadata.version(driver)}


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "?"
