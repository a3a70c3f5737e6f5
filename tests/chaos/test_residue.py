"""What has grown is found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.flat import more
from tests.chaos.residue import Residue, residue

PROGRAM = """
import os, subprocess, sys, tempfile, threading
kept = []
for line in sys.stdin:
    exec(line)
    print(flush=True)
"""


class Program:
    """A process that does what it is told."""

    def __init__(self, temporary: Path) -> None:
        self.temporary = temporary
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"TMPDIR": str(temporary), "MARK": str(temporary)},
        )
        self.run("pass")

    def run(self, line: str) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "\n"

    def look(self) -> Residue:
        return residue({"it": self.process.pid}, str(self.temporary), self.temporary)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path)
    yield program
    program.process.kill()
    program.process.communicate()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("kept.append(b'x' * (6 << 20))", "it has 6.0 MB more"),
        ("kept += [os.memfd_create('m')]; os.write(kept[0], b'x' * (6 << 20))", "it has 6.0 MB more in memory that it"),
        ("kept += os.pipe() + os.pipe()", "it has 4 descriptors more"),
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", "it has 1 threads more"),
        ("kept.append(subprocess.Popen(['sleep', '9'])); kept[0].kill(); os.waitid(0, 0, 4 | 0x1000000)", "1 zombies"),
        ("tempfile.mkstemp(prefix='left')", "there are 1 files more, such as left"),
    ],
)
def test_what_a_process_has_more_than_before_is_told(program: Program, line: str, words: str) -> None:
    first = program.look()

    program.run(line)

    (found,) = program.look().grown(first)
    assert words in found


def test_a_process_that_stays_as_it_is_has_not_grown(program: Program) -> None:
    first = program.look()
    program.run("kept = [b'x' * (6 << 20)]; kept.clear()")

    assert list(program.look().grown(first)) == []


def test_another_process_in_its_place_is_told(program: Program) -> None:
    first = program.look()

    assert list(first._replace(guardians={}).grown(first)) == ["it is gone"]
    assert list(first.grown(first._replace(guardians={}))) == ["it is new"]


def test_what_there_is_more_in_a_store_is_told() -> None:
    assert more({"rows": 2, "keys": 3}, {"rows": 3, "keys": 3, "files": 1}) == [
        "the store has 1 files, and had 0",
        "the store has 3 rows, and had 2",
    ]
