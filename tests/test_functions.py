"""From functions to paths and back."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from delayed import FunctionNotFound, NotEnqueueable
from delayed.functions import path_of, resolve
from tests import functions


@pytest.mark.parametrize(
    ("func", "path"),
    [
        (functions.add, "tests.functions:add"),
        (functions.add_later, "tests.functions:add_later"),
        (functions.wrapped, "tests.functions:wrapped"),
        (functions.Shop.total, "tests.functions:Shop.total"),
        (functions.Shop.named, "tests.functions:Shop.named"),
        (functions.Shop.sell, "tests.functions:Shop.sell"),
        (functions.Shop, "tests.functions:Shop"),
        (os.path.join, "posixpath:join"),
        (len, "builtins:len"),
    ],
)
def test_a_path_leads_back_to_its_function(func: Callable[..., Any], path: str) -> None:
    assert path_of(func) == path
    assert resolve(path) == func


def test_the_older_form_of_paths_is_understood() -> None:
    assert resolve("tests.functions.add") is functions.add


@pytest.mark.parametrize(
    ("func", "words"),
    [
        (functions.anonymous, "a lambda"),
        (functions.make_nested(), "inside a function"),
        (functions.original_of_replaced, "another object"),
        (functions.Shop().sell, "a method of an object"),
        (7, "not callable"),
    ],
)
def test_what_has_no_path_is_refused_with_the_reason(func: Any, words: str) -> None:
    with pytest.raises(NotEnqueueable, match=words):
        path_of(func)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("tests.functions:nothing", "has no nothing"),
        ("tests.no_such_module:add", "ModuleNotFoundError"),
        ("tests.functions:Shop.discount", "is a int, not a function"),
        ("tests.functions:add.__globals__", "two leading underscores"),
        ("add", "package.module:name"),
        (":add", "package.module:name"),
        ("", "package.module:name"),
        ("/no/such/script.py:add", "is not here"),
    ],
)
def test_a_path_that_leads_nowhere(path: str, words: str) -> None:
    with pytest.raises(FunctionNotFound, match=words):
        resolve(path)


@pytest.mark.parametrize(("code", "words"), [("1 / 0", "ZeroDivisionError"), ("raise SystemExit(3)", "SystemExit")])
def test_a_module_that_fails_to_import_is_named_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    (tmp_path / "broken_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(FunctionNotFound, match=f"importing broken_module failed with {words}"):
        resolve("broken_module:f")


SCRIPT = """
    import sys
    from delayed import Queue, Task, delayed
    from delayed.delay import delay

    class Point:
        def __init__(self, x):
            self.x = x

    def show(point):
        print(type(point).__name__, point.x)

    def nest(point):
        from delayed.functions import path_of
        print(path_of(show))

    if __name__ == "__main__":
        queue = Queue("q", sys.argv[1])
        delay(queue)(show)(Point(3))
        delay(queue)(nest)(Point(4))
"""


PROGRAM = """
    from delayed import Queue, delayed

    queue = Queue("q", "sqlite:///tasks.db")

    class Thing:
        def __repr__(self):
            return "a thing of NAME"

    @delayed(queue)
    def show(*things):
        print(*things)

    @delayed(queue)
    def tell():
        show.delay(Thing())

    if __name__ == "__main__":
        show.delay(Thing(), 1)
        show.delay(Thing(), 2)
        tell.delay()
    else:
        print("NAME is loaded")
"""


@pytest.mark.parametrize("how", ["script", "module"])
def test_several_programs_have_their_own_main(tmp_path: Path, how: str) -> None:
    names = ["one", "other"]
    for name in names:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(PROGRAM.replace("NAME", name)))

    def run(*command: str) -> str:
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=30
        ).stdout

    for _ in range(2):
        for name in names:
            run(*[f"{name}.py"] if how == "script" else ["-m", name])
    worker = "worker --queue q --url sqlite:///tasks.db --burst --mode preforked --processes 1"
    printed = run("-m", "delayed", *worker.split()).splitlines()

    expected = [f"{name} is loaded" for name in names]
    expected += [f"a thing of {name}{number}" for name in names for number in [" 1", " 2", ""] * 2]
    assert sorted(printed) == sorted(expected)


@pytest.mark.parametrize("how", ["script", "module"])
def test_functions_and_classes_of_main_arrive(tmp_path: Path, how: str) -> None:
    (tmp_path / "points.py").write_text(textwrap.dedent(SCRIPT))
    url = f"sqlite:///{tmp_path}/tasks.db"
    start = ["points.py"] if how == "script" else ["-m", "points"]

    def run(*command: str) -> str:
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=30
        ).stdout

    run(*start, url)
    printed = run("-m", "delayed", "worker", "--queue", "q", "--url", url, "--burst", "--processes", "1")

    place = str(tmp_path / "points.py") if how == "script" else "points"
    assert printed.splitlines() == ["Point 3", f"{place}:show"]


TYPED_IN = """
from delayed import Queue, delayed

queue = Queue("q", {url!r}, serializer="cloudpickle")

class Point:
    def __init__(self, x):
        self.x = x

@delayed(queue, timeout=5)
def count_down(point):
    print("count", point.x, flush=True)
    if point.x:
        count_down.delay(Point(point.x - 1))

count_down.delay(Point(2))
"""


def test_what_is_typed_into_an_interpreter_travels_with_its_classes_and_queue(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tasks.db"
    typed = TYPED_IN.replace("{url!r}", repr(url))
    subprocess.run([sys.executable, "-"], input=typed, cwd=tmp_path, check=True, text=True, timeout=30)
    (tmp_path / "served.py").write_text(f"from delayed import Queue\nq = Queue('q', {url!r}, serializer='cloudpickle')")

    done = subprocess.run(
        [sys.executable, "-m", "delayed", "worker", "served", "--burst"],
        cwd=tmp_path, check=True, capture_output=True, text=True, timeout=30,
    )  # fmt: skip

    assert done.stdout.split("\n")[:3] == ["count 2", "count 1", "count 0"], done.stderr


def test_a_module_that_another_thread_imports_just_now_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate = threading.Event(), threading.Event()
    monkeypatch.setattr(builtins, "slow_begun", begun, raising=False)
    monkeypatch.setattr(builtins, "slow_gate", gate, raising=False)
    (tmp_path / "slow_module.py").write_text("slow_begun.set()\nslow_gate.wait(10)\ndef func(): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(resolve, "slow_module:func")
        assert begun.wait(10)
        second = pool.submit(resolve, "slow_module:func")
        assert not wait([second], 0.1).done
        gate.set()
        assert first.result(10) is second.result(10)
