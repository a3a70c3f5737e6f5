"""What is delivered: the public names, what an import costs, the files of the package, and the words of the docs."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import delayed

ROOT = Path(__file__).parent.parent
HEAVY = ("asyncio", "click", "cloudpickle", "msgpack", "pymongo", "redis", "rich", "sqlite3")


# -- the package ---------------------------------------------------------------------------------------------------


def test_the_public_names_are_sorted_complete_and_there() -> None:
    assert delayed.__all__ == sorted(set(delayed.__all__))
    assert {name for name in dir(delayed) if name in delayed.__all__} == set(delayed.__all__)
    for name in delayed.__all__:
        assert getattr(delayed, name) is not None, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        delayed.nonsense  # noqa: B018  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", ["delayed", "delayed.delay", "delayed.worker.forkserver"])
def test_importing_costs_no_driver_and_no_terminal(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"

    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed.strip() == "[]"


def test_all_show_the_same_version() -> None:
    command = [sys.executable, "-m", "delayed", "--version"]

    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert shown == f"delayed {delayed.__version__}\n"
    assert metadata.version("delayed") == delayed.__version__


def test_a_worker_looks_up_no_package(tmp_path: Path) -> None:
    """That takes a fourth of the time of all imports of a worker on SQLite."""
    code = "import sys, delayed.worker.base, delayed.brokers.sqlite; print('importlib.metadata' in sys.modules)"
    path = str(ROOT)  # and not as it is installed, which may need it to be found

    command = [sys.executable, "-S", "-c", f"import sys; sys.path.append({path!r}); {code}"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    assert printed == "False\n"


def test_every_file_that_is_not_python_is_declared_as_package_data() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["delayed"]
    package = ROOT / "delayed"
    others = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]

    assert [path for path in others if not any(fnmatch.fnmatch(path, pattern) for pattern in declared)] == []


# -- the documents -------------------------------------------------------------------------------------------------


class Reader:
    """Somebody who types in what a document shows, in a folder of his own."""

    def __init__(self, document: str, folder: Path) -> None:
        self.blocks: list[tuple[str, str]] = re.findall(
            r"^```(\w+)\n(.*?)^```$", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE
        )
        self.folder = folder
        # Unbuffered, print() writes its text and its newline apart, and two processes may write between.
        unset = ("DELAYED_URL", "PYTHONUNBUFFERED")
        environ = {name: value for name, value in os.environ.items() if name not in unset}
        # `delayed` and `python` are those of this environment.
        self.environ = {**environ, "PATH": f"{Path(sys.executable).parent}:{environ['PATH']}"}

    def python(self, block: str) -> subprocess.CompletedProcess[str]:
        """Write a block that begins with a file's name to that file; run any other."""
        name = re.match(r"# (\w+\.py)\n", block)
        if name:
            (self.folder / name[1]).write_text(block)
            return subprocess.CompletedProcess([], 0, "", "")
        (self.folder / "typed.py").write_text(block)
        return self.command("python typed.py")

    def command(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a command; a worker leaves when there is nothing left to do."""
        words = shlex.split(line, comments=True)
        if words[:2] == ["delayed", "worker"] and "--burst" not in words:
            words.append("--burst")
        done = subprocess.run(
            words, cwd=self.folder, env=self.environ, capture_output=True, text=True, input="", timeout=50
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done


def test_the_first_page_of_the_readme_works_when_typed_in(tmp_path: Path) -> None:
    reader = Reader("README.md", tmp_path)
    app = next(text for kind, text in reader.blocks if text.startswith("# app.py"))
    console = next(text for kind, text in reader.blocks if text.startswith("$ python app.py"))
    reader.python(app)

    output = [reader.command(line.removeprefix("$ ")).stdout for line in console.splitlines()]

    assert output[1].split() == ["app.py", hashlib.sha256(app.encode()).hexdigest()]


@pytest.mark.parametrize(
    ("page", "number"), [("README.md", 5), ("docs/payloads.md", 2), ("docs/locks.md", 4), ("docs/schedules.md", 2)]
)
def test_every_block_of_python_runs(page: str, number: int, tmp_path: Path) -> None:
    reader = Reader(page, tmp_path)
    blocks = [text for kind, text in reader.blocks if kind == "python"]

    for block in blocks:
        reader.python(block)

    assert len(blocks) == number


def test_the_tutorial_works_when_typed_in(tmp_path: Path) -> None:
    reader = Reader("docs/tutorial.md", tmp_path)
    output: list[str] = []

    for kind, text in reader.blocks:
        if kind == "python":
            output.append(reader.python(text).stdout)
            continue
        for line in text.splitlines():
            if line.startswith("$ export"):  # another store from here on
                break
            done = reader.command(line.removeprefix("$ "))
            output += [done.stdout, done.stderr]

    all_of_it = "\n".join(output)
    orders = re.findall(r"^invoice for order (.*)$", all_of_it, re.MULTILINE)
    assert sorted(orders) == ["1", "2, express"]  # two at once: which prints first is open
    assert "the printer is out of paper" in all_of_it
    assert "1 task removed" in all_of_it


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_no_link_leads_nowhere(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\(([^)#]+)", path.read_text())

    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_the_documented_options_of_the_worker_are_those_it_has() -> None:
    from delayed.cli.worker import worker

    documented = set(re.findall(r"^\| .*`(--[a-z-]+)", (ROOT / "docs/cli.md").read_text(), re.MULTILINE))
    documented |= {"--log-level", "--log-format"}

    assert {option for parameter in worker.params for option in parameter.opts if option[0] == "-"} == documented
