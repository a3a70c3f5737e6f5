"""The published matrix: what became of all trials, as tables in docs/guarantees.md."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence

from tests.chaos.points import row_of
from tests.chaos.rows import ROWS
from tests.chaos.stores import STORES
from tests.chaos.trials import RAISED, Result, quantiles

MARKS = ("<!-- the matrix: written by make campaign -->\n", "<!-- the end of the matrix -->\n")
COUNTED = ("lost", "ghost", "twin", "overlap", "unfenced", "leak")  # columns beside that of the reruns
CONFIDENCE = 3.0  # no bad event in n: with 95 % confidence fewer than 3 in n


def tables(results: Sequence[Result]) -> str:
    """All of them, in Markdown; of each row only what was tried."""
    rows = {id: [it for it in results if it.row == id] for id in ROWS}
    rows = {id: found for id, found in rows.items() if found}
    parts = [_matrix(rows), _figures(rows), _failures(results), _summary(results), _versions(results)]
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
    heads = ("row", "tasks", "faults", *COUNTED, "reruns not explained", "reruns explained", "recovery p50 / p99 / max")
    lines = [row_of(*heads), row_of(*["---"] * len(heads))]
    for id, results in rows.items():
        done = [it for it in results if not it.skipped]
        counts = [sum(it.findings.get(column, 0) for it in done) for column in (*COUNTED, "rerun")]
        explained: Counter[str] = Counter()
        for it in done:
            explained.update({why: times for why, times in it.explained.items() if why != RAISED})
        why = ", ".join(f"{times}: {words}" for words, times in explained.most_common()) or "0"
        if repeated := sum(it.repeated for it in done):
            why += f" (of these {repeated} just after the end of the first run)"
        times = [took for it in done for took in it.recovery.values()]
        tasks, faults = (f"{sum(numbers):,}" for numbers in ([it.tasks for it in done], [it.harm for it in done]))
        lines.append(row_of(id, tasks, faults, *counts, why, quantiles(times)))
    return "\n".join(lines)


def _failures(results: Sequence[Result]) -> str:
    lines = [
        f"* {it.row} {it.store} {it.kind}: {words}" for it in results if not it.passed for words in it.examples[:3]
    ]
    return "What failed:\n\n" + "\n".join(lines) if lines else ""


def _summary(results: Sequence[Result]) -> str:
    done = [it for it in results if not it.skipped]
    faults, tasks, good = sum(it.harm for it in done), sum(it.tasks for it in done), sum(it.passed for it in done)
    text = f"{len(done)} trials, {good} of them passed: {tasks:,} tasks, {faults:,} faults."
    lost = sum(it.findings.get("lost", 0) for it in done)
    if lost or not faults:
        return text
    return f"{text} None lost a task: with 95 % confidence fewer than {CONFIDENCE / faults:.3%} of such faults do."


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
