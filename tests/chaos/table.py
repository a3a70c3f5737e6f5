"""A verdict as a table."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from tests.chaos.checker import Verdict

SHOWN = 5  # findings of a column


def table(verdict: Verdict, harm: Mapping[str, int]) -> str:
    """The columns, what was done, and what was found."""
    lines = [f"{verdict.tasks} tasks, {verdict.runs} runs; " + ", ".join(f"{n} x {name}" for name, n in harm.items())]
    lines += [f"{times} reruns: {why}" for why, times in verdict.explained.items()]
    for role, times in verdict.recovery.items():
        middle, longest = median(times), max(times)
        lines.append(f"recovery after the death of a {role}: median {middle:.2f} s, longest {longest:.2f} s")
    lines.append(f"dead air: {verdict.dead_air:.2f} s")
    lines += verdict.figures
    lines.append("")
    for column, findings in verdict.findings.items():
        lines.append(f"{column:<13} {len(findings):>5}  {'FAILED' if findings else 'ok'}")
        lines += [f"    {finding}" for finding in findings[:SHOWN]]
    return "\n".join(lines)
