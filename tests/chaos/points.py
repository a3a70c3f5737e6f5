"""What became of each crash point: lines while they are tried, and a table at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.crash_scenes import POSITIONS

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "guarantees.md"
MARKS = ("<!-- crash points: written by make crashpoints -->\n", "<!-- the end of the crash points -->\n")


@dataclass(frozen=True)
class Point:
    """One crash point.

    Attributes:
        what: an operation at the store, or a system call with its number: ``fsync#3``.
        role: who dies.
        position: one of :data:`POSITIONS`; "" for a system call.
        store: redis, postgres or sqlite.
    """

    what: str
    role: str
    position: str
    store: str

    def __str__(self) -> str:
        return " ".join(filter(None, (self.what, self.role, self.position, self.store)))


@dataclass
class Outcome:
    """What became of a point.

    Attributes:
        reached: whether it came to the kill.
        findings: in sentences; a point without one has passed.
        reruns: how many there were that had to be.
        seconds: how long it took.
    """

    reached: bool = True
    findings: list[str] = field(default_factory=list)
    reruns: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        word = "FAILED" if self.findings else "ok" if self.reached else "not reached"
        return f"{word}, {self.reruns} reruns" if self.reruns else word


Outcomes = Mapping[Point, Outcome]


def summary(outcomes: Outcomes) -> str:
    """How many there were, and how many passed."""
    reached = [outcome for outcome in outcomes.values() if outcome.reached]
    good = sum(not outcome.findings for outcome in reached)
    return f"{len(reached)} crash points, {good} of them passed."


def tables(outcomes: Outcomes, calls: Mapping[tuple[str, str], int]) -> str:
    """All of them, in Markdown.

    Args:
        calls: how many system calls there are of each (role, store).
    """
    return "\n\n".join(filter(None, (_at_stores(outcomes), _of_calls(outcomes, calls), summary(outcomes))))


def _at_stores(outcomes: Outcomes) -> str:
    points = [point for point in outcomes if point.position]
    if not points:
        return ""
    stores = sorted({point.store for point in points}, reverse=True)
    lines = [row_of("operation", "who dies", *[f"{store}: {', '.join(POSITIONS)}" for store in stores])]
    lines.append(row_of(*["---"] * (2 + len(stores))))
    for what, role in dict.fromkeys((point.what, point.role) for point in points):
        cells = []
        for store in stores:
            found = [outcomes.get(Point(what, role, position, store)) for position in POSITIONS]
            cells.append(", ".join("FAILED" if each.findings else "ok" for each in found if each))
        lines.append(row_of(what, role, *cells))
    return "\n".join(lines)


def _of_calls(outcomes: Outcomes, calls: Mapping[tuple[str, str], int]) -> str:
    if not calls:
        return ""
    lines = [row_of("who dies", "store", "system calls", "tried", "passed", "not reached"), row_of(*["---"] * 6)]
    for (role, store), count in calls.items():
        tried = [it for point, it in outcomes.items() if (point.role, point.position, point.store) == (role, "", store)]
        passed = sum(not it.findings and it.reached for it in tried)
        lines.append(row_of(role, store, count, len(tried), passed, sum(not it.reached for it in tried)))
    return "\n".join(lines)


def row_of(*cells: object) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"


def write(report: str, document: Path = DOCUMENT, marks: tuple[str, str] = MARKS) -> None:
    """Put it where the old one is, between the marks."""
    head, _, rest = document.read_text().partition(marks[0])
    _, _, tail = rest.partition(marks[1])
    document.write_text(f"{head}{marks[0]}\n{report}\n\n{marks[1]}{tail}")


def chosen(points: Sequence[Point], stores: Sequence[str], words: Sequence[str]) -> list[Point]:
    """Those at one of these stores in whose name all the words are."""
    return [it for it in points if it.store in stores and all(word in str(it).split() for word in words)]
