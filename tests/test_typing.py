"""Type checkers see through the decorator: they accept right calls and reject wrong ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "typing"
ROOT = FOLDER.parent.parent


def lines_of_mypy(path: Path, tmp_path: Path) -> set[int]:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", f"--cache-dir={tmp_path}", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode in (0, 1), done.stderr
    return {int(line) for line in re.findall(rf"{path.name}:(\d+): error", done.stdout)}


def lines_of_pyright(path: Path, tmp_path: Path) -> set[int]:
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == 1
    return {each["range"]["start"]["line"] + 1 for each in found["generalDiagnostics"] if each["severity"] == "error"}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("lines_of", [lines_of_mypy, lines_of_pyright])
def test_right_calls_are_accepted_and_wrong_ones_rejected(
    lines_of: Callable[[Path, Path], set[int]], tmp_path: Path
) -> None:
    wrong = FOLDER / "wrong.py"
    marked = {number for number, line in enumerate(wrong.read_text().splitlines(), 1) if line.endswith("# wrong")}

    assert lines_of(FOLDER / "right.py", tmp_path) == set()
    assert lines_of(wrong, tmp_path) == marked
