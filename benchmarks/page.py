"""docs/benchmarks.md: its parts, each of which is written by a command of its own."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent.parent / "docs"
PAGE = FOLDER / "benchmarks.md"
PARTS = {
    command: f"<!-- Written by python -m benchmarks.{command} --write: do not edit. -->"
    for command in ("peers", "growth")
}


def put(command: str, text: str, page: Path = PAGE) -> None:
    """Replace the part that this command writes, and leave the other as it is."""
    old = page.read_text() if page.exists() else ""
    parts = {name: _part(old, name) for name in PARTS} | {command: text}
    page.write_text("\n".join(f"{PARTS[name]}\n\n{part.strip()}\n" for name, part in parts.items() if part))


def _part(old: str, command: str) -> str:
    """Empty if there is none."""
    part = old.partition(PARTS[command])[2]
    for mark in PARTS.values():
        part = part.partition(mark)[0]
    return part
