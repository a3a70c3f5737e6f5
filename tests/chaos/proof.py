"""The published matrix: what became of all trials, as tables in docs/guarantees.md."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence

from tests.chaos.points import row_of
from tests.chaos.rows import ALL, BOTH, MANY, ROWS
from tests.chaos.scenarios.scene import REMOTE
from tests.chaos.stores import STORES
from tests.chaos.trials import RAISED, Result, quantiles

MARKS = ("<!-- the matrix: written by make campaign -->\n", "<!-- the end of the matrix -->\n")
COUNTED = ("lost", "ghost", "twin", "overlap", "unfenced", "effects_lost", "effects_dup", "leak")  # and reruns
KILLED = ("K1", "K2", "K3", "K4", "K5", "K6", "K7", "K8", "X", "T19")
ONE_GUARDIAN = ("K2", "K3")
OVERTAKEN = ("Z1", "C3", "N4", "N5", "N7")  # in which a run may end after the next one of its task has begun
CONFIDENCE = 3.0  # no bad event in n: with 95 % confidence fewer than 3 in n


def tables(results: Sequence[Result], before: Sequence[Result] = ()) -> str:
    """All of them, in Markdown; of each row only what was tried.

    Args:
        results: the last of each trial.
        before: those that failed, and were tried again.
    """
    rows = {id: [it for it in results if it.row == id] for id in ROWS}
    rows = {id: found for id, found in rows.items() if found}
    parts = [
        _matrix(rows),
        _figures(rows),
        statements(rows),
        targets(rows),
        _failures("What failed:", [it for it in results if not it.passed]),
        _failures("What had failed before it was tried again:", before),
        _summary(results, before),
        _versions(results),
    ]
    return "\n\n".join(filter(None, parts))


def _matrix(rows: Mapping[str, Sequence[Result]]) -> str:
    lines = [row_of("row", "what is done", *STORES), row_of(*["---"] * (2 + len(STORES)))]
    for id, results in rows.items():
        cells = [_cell([it for it in results if it.store == store]) for store in STORES]
        lines.append(row_of(id, ROWS[id].words, *cells))
    return "\n".join(lines)


def _cell(results: Sequence[Result]) -> str:
    words = []
    for it in results:
        size = f"{it.harm} in {it.tasks:,}"
        if it.skipped:
            words.append(f"{it.kind}: skipped, {it.skipped}")
        elif it.passed:
            words.append(f"{it.kind}: ok, {size}")
        else:
            failed = ", ".join(name for name, count in it.findings.items() if count)
            words.append(f"**{it.kind}: FAILED** ({failed}), {size}")
    return "; ".join(words)


def _figures(rows: Mapping[str, Sequence[Result]]) -> str:
    names = [name.replace("_dup", " doubled").replace("_", " ") for name in COUNTED]
    heads = ("row", "tasks", "faults", *names, "reruns not explained", "reruns explained", "recovery p50 / p99 / max")
    lines = [row_of(*heads), row_of(*["---"] * len(heads))]
    for id, results in rows.items():
        done = [it for it in results if not it.skipped]
        counts = [sum(it.findings.get(column, 0) for it in done) for column in (*COUNTED, "rerun")]
        explained: Counter[str] = Counter()
        for it in done:
            explained.update({why: times for why, times in it.explained.items() if why != RAISED})
        why = ", ".join(f"{times}: {words}" for words, times in explained.most_common()) or "0"
        if repeated := sum(it.repeated for it in done):
            why += f" (of these {repeated} although the first had returned, which was not stored yet)"
        times = [took for it in done for took in it.recovery.values()]
        tasks, faults = (f"{sum(numbers):,}" for numbers in ([it.tasks for it in done], [it.harm for it in done]))
        measured = sum(map(len, times))
        lines.append(
            row_of(id, tasks, faults, *counts, why, f"{quantiles(times)} of {measured:,}" if measured else "-")
        )
    return "\n".join(lines)


# What is asked, of which rows, and the tests that try it in `make test`.
STATEMENTS = (
    ("G1 durable", ("K6", "N1", "N2", "B1", "B3", "R2"), ("lost", "ghost", "twin"), "tests/test_queue.py"),
    ("G2 at least once", KILLED, ("lost", "stuck"), "tests/workers/test_deaths_of_guardians.py"),
    ("G3 once, as a rule", (*KILLED, "B1", "B3", "Z2", "Z5"), ("rerun", "repeated"), "tests/chaos/test_chaos.py"),
    ("G4 one at a time", (*KILLED, "Z1", "C3", "N5", "N7"), ("overlap", "orphan"), "tests/workers/test_outages.py"),
    (
        "G5 fenced",
        (*OVERTAKEN, "T19"),
        ("unfenced", "effects_lost", "effects_dup"),
        "tests/brokers/test_conformance.py",
    ),
)


def statements(rows: Mapping[str, Sequence[Result]]) -> str:
    """What was found against each of the five statements."""
    heads = ("statement", "in `make test`", "rows", "tasks", "faults", "found against it")
    lines = [row_of(*heads), row_of(*["---"] * len(heads))]
    for name, ids, columns, test in STATEMENTS:
        done = _done(rows, *ids)
        found = ", ".join(f"{column.replace('_', ' ')} {_count(done, column)}" for column in columns)
        size = [f"{sum(numbers):,}" for numbers in ([it.tasks for it in done], [it.harm for it in done])]
        lines.append(row_of(name, f"`{test}`", ", ".join(id for id in ids if id in rows), *size, found))
    return "\n".join(lines)


def targets(rows: Mapping[str, Sequence[Result]]) -> str:
    """What was aimed at, what was measured, and whether that was reached: also where it was not."""
    heads = ("figure", "rows", "aim", "measured", "reached")
    lines = [row_of(*heads), row_of(*["---"] * len(heads))]

    def add(what: str, ids: Sequence[str], aim: str, measured: str, reached: bool) -> None:
        if _done(rows, *ids):
            lines.append(row_of(what, ", ".join(ids), aim, measured, "yes" if reached else "**no**"))

    def none(what: str, ids: Sequence[str], *columns: str) -> None:
        found = sum(_count(_done(rows, *ids), column) for column in columns)
        add(what, ids, "0", str(found), not found)

    def times(
        what: str,
        ids: Sequence[str],
        role: str,
        middle: float,
        most: float,
        stores: Sequence[str] = tuple(STORES),
        kinds: Sequence[str] = ALL,
    ) -> None:
        done = [it for it in _done(rows, *ids) if it.store in stores and it.kind in kinds]
        found = sorted(took for it in done for took in it.recovery.get(role, ()))
        deaths = sum(times for it in done for why, times in it.explained.items() if why != RAISED)
        if found:
            reached = found[len(found) // 2] <= middle and found[-1] <= most
            measured = f"{quantiles([found])} of {len(found):,}, of {deaths:,} reruns"
            aims = [f"p50 {middle:g} s"] * (middle < most) + [f"max {most:g} s"]
            add(what, ids, ", ".join(aims), measured, reached)

    none("tasks lost", KILLED, "lost")
    one = _done(rows, *ONE_GUARDIAN)
    again = sum(it.reruns for it in one)
    add("runs again when one guardian dies", ONE_GUARDIAN, "0", str(again), not again)
    both = _done(rows, "K4")
    rates = {}
    for kind in dict.fromkeys(it.kind for it in both):
        mine = [it for it in both if it.kind == kind]
        rates[kind] = 100 * sum(it.repeated for it in mine) / (sum(it.harm for it in mine) or 1)
    told = ", ".join(f"{kind} {rate:.2g}" for kind, rate in rates.items())
    reached = all(rate <= 1 for rate in rates.values())
    add("runs again that had returned, of 100 kills of both guardians", ("K4",), "1", told, reached)
    none("runs that overlap when processes are killed", KILLED, "overlap")
    none("outcomes accepted of a run whose claim had gone", OVERTAKEN, "unfenced")
    none("twins of enqueues whose reply was lost", ("N2",), "twin")
    none("effects of transactions lost or doubled", ("T19",), "effects_lost", "effects_dup")
    for what, row, role, middle, most in (
        ("a child", "K1", "child", 0.1, 1.0),
        ("a supervised worker", "K4", "worker", 1.0, 3.0),
    ):
        for kinds in (BOTH, MANY):
            title = f"from the death of {what} to the next run, {', '.join(kinds)}"
            times(title, (row,), role, middle, most, kinds=kinds)
    times("from the loss of a host to the next run, where a server is the store", ("K7",), "worker", 14.0, 18.0, REMOTE)
    times("from the death of all of a worker to the next run, on SQLite", ("K7", "K8"), "worker", 1.5, 1.5, ("sqlite",))
    for what, ids, name, most in (
        (
            "a task that hangs ends later than timeout and kill_timeout by",
            ("T2", "T10"),
            "ended later than it had to by",
            0.2,
        ),
        ("a child in C code outlives its guardians by", ("K9",), "a child outlived both guardians by", 0.1),
    ):
        found = [value for it in _done(rows, *ids) for value in it.measured(name)]
        if found:
            add(what, ids, f"{most:g} s", f"{max(found):.2f} s", max(found) <= most)
    alone = [it.outlived for it in both if it.outlived]
    if alone:
        add("a run outlives its guardians by", ("K4",), "0.1 s", f"{max(alone):.2f} s", max(alone) <= 0.1)
    return "\n".join(lines)


def _done(rows: Mapping[str, Sequence[Result]], *ids: str) -> list[Result]:
    return [it for id in ids for it in rows.get(id, ()) if not it.skipped]


def _count(results: Sequence[Result], column: str) -> int:
    return sum(it.findings.get(column, 0) for it in results)


def _failures(title: str, results: Sequence[Result]) -> str:
    lines = [
        f"* {it.row} {it.store} {it.kind} ({it.versions.get('delayed', '?')}): {words}"
        for it in results
        if not it.skipped
        for words in it.examples[:2]
    ]
    return f"{title}\n\n" + "\n".join(lines) if lines else ""


def _summary(results: Sequence[Result], before: Sequence[Result]) -> str:
    done = [it for it in results if not it.skipped]
    faults, tasks, good = sum(it.harm for it in done), sum(it.tasks for it in done), sum(it.passed for it in done)
    text = f"{len(done)} trials, {good} of them passed: {tasks:,} tasks, {faults:,} faults."
    if before:
        text += (
            f" Of these {len({(it.row, it.store, it.kind) for it in before})} had failed before, {len(before)} times."
        )
    lost = sum(it.findings.get("lost", 0) for it in done)
    if lost or not faults:
        return text
    killed = sum(it.harm for it in done if not ROWS[it.row].scenarios)
    if not killed:
        return text
    return (
        f"{text} None lost a task: with 95 % confidence fewer than {CONFIDENCE / killed:.3%} of the {killed:,} faults "
        "of the kill rows do, if all are alike; what one row shows is 3 in its number of faults."
    )


def _versions(results: Sequence[Result]) -> str:
    found: dict[str, dict[str, None]] = {}
    for it in results:
        for name, version in it.versions.items():
            found.setdefault(name, {})[version] = None
    judged = [f"{name} {' and '.join(versions)}" for name, versions in found.items()]
    loads = [it.load for it in results]
    return (
        f"Judged: {', '.join(judged)}, on a machine of "
        f"{os.cpu_count()} cores that other programs used too: its load was {min(loads):.0f} to {max(loads):.0f}."
    )
