"""Every example runs, and prints what its first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def promised(example: Path) -> list[str]:
    """The indented lines after "It prints:" in the docstring."""
    docstring = example.read_text().split('"""')[1]
    return textwrap.dedent(docstring.split("It prints:\n")[1]).strip().splitlines()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_it_says(example: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "DELAYED_URL": f"sqlite:///{tmp_path}/tasks.db", "PYTHONUNBUFFERED": "1"}

    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=50
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == promised(example), done.stderr
