"""What became of each crash point: lines while they are tried, and a table at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from tests.chaos.crash_scenes import POSITIONS

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "guarantees.md"
MARKS = ("<!-- crash points: written by make crashpoints -->\n", "<!-- the end of the crash points -->\n")
NUMBERS = ("system calls", "tried", "passed", "not reached")


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


@dataclass
class Table:
    """The rows of what is published: one for each operation and who dies in it, and one for whose calls were counted.

    Attributes:
        operations: (operation, who dies) -> store -> a word for each of :data:`POSITIONS`.
        calls: (who dies, store) -> the numbers of :data:`NUMBERS`.
    """

    operations: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    calls: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, outcomes: Outcomes, calls: Mapping[tuple[str, str], int]) -> Self:
        """What became of the points that were tried.

        Args:
            calls: how many system calls there are of each (role, store).
        """
        table = cls()
        for point in outcomes:
            if point.position:
                found = [outcomes.get(replace(point, position=position)) for position in POSITIONS]
                words = ", ".join("FAILED" if each.findings else "ok" for each in found if each)
                table.operations.setdefault((point.what, point.role), {})[point.store] = words
        for (role, store), count in calls.items():
            tried = [it for at, it in outcomes.items() if (at.role, at.position, at.store) == (role, "", store)]
            if tried:
                passed = sum(not it.findings and it.reached for it in tried)
                table.calls[role, store] = [count, len(tried), passed, sum(not it.reached for it in tried)]
        return table

    @classmethod
    def read(cls, text: str) -> Self:
        """The one that was written."""
        table = cls()
        stores: list[str] = []
        for line in text.splitlines():
            if not line.startswith("| ") or line.startswith("| ---"):
                continue
            first, second, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            if (first, second) == ("operation", "who dies"):
                stores = [cell.partition(":")[0] for cell in cells]
            elif (first, second) == ("who dies", "store"):
                stores = []
            elif stores:
                found = zip(stores, cells, strict=True)
                table.operations[first, second] = {store: words for store, words in found if words}
            else:
                table.calls[first, second] = [int(cell) for cell in cells]
        return table

    def update(self, other: Table) -> None:
        """Take over what the other one has; the rest stays as it is."""
        for row, cells in other.operations.items():
            self.operations.setdefault(row, {}).update(cells)
        self.calls.update(other.calls)

    def __str__(self) -> str:
        return "\n\n".join(filter(None, (self._operations(), self._calls(), self._summary())))

    def _operations(self) -> str:
        if not self.operations:
            return ""
        stores = sorted({store for cells in self.operations.values() for store in cells}, reverse=True)
        lines = [row_of("operation", "who dies", *[f"{store}: {', '.join(POSITIONS)}" for store in stores])]
        lines.append(row_of(*["---"] * (2 + len(stores))))
        lines += [row_of(*row, *[cells.get(store, "") for store in stores]) for row, cells in self.operations.items()]
        return "\n".join(lines)

    def _calls(self) -> str:
        if not self.calls:
            return ""
        lines = [row_of("who dies", "store", *NUMBERS), row_of(*["---"] * (2 + len(NUMBERS)))]
        return "\n".join(lines + [row_of(*row, *numbers) for row, numbers in self.calls.items()])

    def _summary(self) -> str:
        words = [word for cells in self.operations.values() for text in cells.values() for word in text.split(", ")]
        reached = len(words) + sum(tried - missed for _, tried, _, missed in self.calls.values())
        good = words.count("ok") + sum(passed for _, _, passed, _ in self.calls.values())
        return f"{reached} crash points, {good} of them passed."


def row_of(*cells: object) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"


def write(report: str, document: Path = DOCUMENT, marks: tuple[str, str] = MARKS) -> None:
    """Put it where the old one is, between the marks."""
    head, _, rest = document.read_text().partition(marks[0])
    _, _, tail = rest.partition(marks[1])
    document.write_text(f"{head}{marks[0]}\n{report}\n\n{marks[1]}{tail}")


def merge(table: Table, document: Path = DOCUMENT) -> None:
    """Put its rows in the place of theirs in the document; what it has not stays there."""
    whole = Table.read(document.read_text().partition(MARKS[0])[2].partition(MARKS[1])[0])
    whole.update(table)
    write(str(whole), document)


def chosen(points: Sequence[Point], stores: Sequence[str], words: Sequence[str]) -> list[Point]:
    """Those at one of these stores in whose name all the words are."""
    return [it for it in points if it.store in stores and all(word in str(it).split() for word in words)]
