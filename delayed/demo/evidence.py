"""A file of facts, one JSON object a line, that many processes append to and the driver reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "DELAYED_DEMO_FOLDER"  # where the worker's children find the folder
_FILE = "evidence.jsonl"


def note(**fact: Any) -> None:
    """Append one fact. Children die at any moment here, so a line is written whole by a single system call."""
    line = json.dumps(fact).encode() + b"\n"
    file = os.open(Path(os.environ[FOLDER_VARIABLE]) / _FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line)
    finally:
        os.close(file)


class Evidence:
    """Reads what was noted in `folder`, each time from where it stopped."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._offset = 0
        self.facts: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """Everything noted so far."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new, end, _unfinished = file.read().rpartition(b"\n")
            self._offset += len(new) + len(end)
            self.facts += map(json.loads, new.splitlines())
        return self.facts
