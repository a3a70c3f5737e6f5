"""The command line, as a person types it: real processes, on files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from delayed.brokers import broker_for
from delayed.cli.common import Size, duration, plural

COMMANDS = [
    "worker", "sweeper", "schedule", "status", "workers", "pause", "resume", "stop", "cancel", "stack", "inspect",
    "dead", "replay", "purge", "migrate", "demo",
]  # fmt: skip

APP = """
import sys
import time
from pathlib import Path
from delayed import Queue, delayed

queue = Queue("letters")
other = Queue("parcels")

@delayed(queue)
def send(name: str) -> None:
    sys.stdout.write(f"sent {name}\\n")

@delayed(other)
def pack(name: str) -> None:
    sys.stdout.write(f"packed {name}\\n")

@delayed(queue)
def hold(file: str) -> None:
    while Path(file).exists():
        time.sleep(0.02)

sys.stdout.write("this module talks while it is imported\\n")
"""


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the tasks printed, without what their module prints whenever it is imported."""
    return [line for line in done.stdout.splitlines() if not line.startswith("this module talks")]


class Terminal:
    """A folder with an app.py, and a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/tasks.db"
        self.environ = {**os.environ, "DELAYED_URL": self.url, "COLUMNS": "160", "PYTHONUNBUFFERED": "1"}
        self.write("app.py", APP)
        self.started: list[subprocess.Popen[str]] = []

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))

    def run(self, *args: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "delayed", *args],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            input=typed or "",
            timeout=40,
        )

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start a command that stays; its output goes to the file ``output``."""
        with (self.folder / "output").open("a") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "delayed", *args],
                cwd=self.folder,
                env=self.environ,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.started.append(process)
        return process

    def python(self, code: str) -> None:
        subprocess.run([sys.executable, "-c", code], cwd=self.folder, env=self.environ, check=True, timeout=30)

    def status(self) -> Any:
        return json.loads(self.run("status", "--json").stdout)

    def output(self) -> str:
        return (self.folder / "output").read_text()

    def close(self) -> None:
        for process in self.started:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path)
    yield opened
    opened.close()


def eventually(check: Callable[[], Any], what: str, patience: float = 20.0) -> Any:
    """The first true answer of `check`."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if answer := check():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"not within {patience} s: {what}")


def only_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error, with no traceback around it."""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


# -- the whole -----------------------------------------------------------------------------------------------------


def test_the_version_is_that_of_the_package(terminal: Terminal) -> None:
    assert re.fullmatch(r"delayed \d+\.\d+\S*\n", terminal.run("--version").stdout)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_has_examples(terminal: Terminal, command: list[str]) -> None:
    done = terminal.run(*command, "--help")

    assert done.returncode == 0
    assert re.search(rf"Examples:\n +delayed {' '.join(command)}", done.stdout)


def test_delayed_alone_shows_the_help(terminal: Terminal) -> None:
    done = terminal.run()

    assert done.returncode == 0
    assert "Commands:" in done.stdout


def test_a_mistyped_command_gets_a_suggestion(terminal: Terminal) -> None:
    done = terminal.run("wroker")

    assert done.returncode == 2
    assert "did you mean 'worker'?" in only_line(done)


@pytest.mark.parametrize("command", [["worker"], ["sweeper"], ["status"], ["purge", "letters"], ["demo"]])
def test_an_unknown_kind_of_store_is_wrong_usage(terminal: Terminal, command: list[str]) -> None:
    done = terminal.run(*command, "--url", "rediss3://localhost")

    assert done.returncode == 2
    assert "did you mean rediss://?" in only_line(done)


@pytest.mark.parametrize("command", [["worker"], ["sweeper"], ["status"], ["purge", "letters"]])
def test_an_unreachable_store_is_an_error_after_a_few_tries(terminal: Terminal, command: list[str]) -> None:
    started = time.monotonic()

    done = terminal.run(*command, "--url", "redis://:secret@localhost:1/0")

    assert done.returncode == 1
    assert "DELAYED_URL" in only_line(done)
    assert "secret" not in done.stderr
    assert time.monotonic() - started < 15
    assert "tries)" in done.stderr


def test_a_reader_that_leaves_is_no_traceback(terminal: Terminal) -> None:
    line = f"{sys.executable} -m delayed status --json --watch | head -n 1"

    done = subprocess.run(
        line, shell=True, cwd=terminal.folder, env=terminal.environ, capture_output=True, text=True, timeout=30
    )

    assert json.loads(done.stdout)["queues"] == []
    assert done.stderr == ""


# -- worker --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["forked", "preforked"])
def test_a_worker_serves_the_queues_of_a_module(terminal: Terminal, mode: str) -> None:
    terminal.python("import app; app.send.delay('a'); app.pack.delay('b')")

    done = terminal.run("worker", "app", "--burst", "--mode", mode, "--processes", "2")

    assert done.returncode == 0, done.stderr
    assert sorted(said(done)) == ["packed b", "sent a"]


def test_a_worker_says_first_what_it_is(terminal: Terminal) -> None:
    done = terminal.run("worker", "app", "--burst", "--processes", "3", "--mode", "preforked")

    lines = [line for line in done.stderr.splitlines() if "INFO" in line]
    assert re.search(r"delayed \d+\.\d+\S* on Python 3\S+, pid \d+$", lines[0])
    queues = r"queues letters \(unsigned\), parcels \(unsigned\)"
    assert re.search(rf"starts: preforked, 3 at once, {queues} on .*tasks\.db", lines[1])


def test_a_worker_chooses_among_the_queues_of_a_module(terminal: Terminal) -> None:
    terminal.python("import app; app.send.delay('a'); app.pack.delay('b')")

    done = terminal.run("worker", "app", "--burst", "--queue", "parcels")

    assert said(done) == ["packed b"]
    assert {queue["queue"]: queue["ready"] for queue in terminal.status()["queues"]}["letters"] == 1


def test_a_worker_without_a_module_serves_queues_by_name(terminal: Terminal) -> None:
    terminal.python("import app; app.send.delay('a')")

    done = terminal.run("worker", "--queue", "letters", "--burst")

    assert said(done) == ["sent a"]


def test_a_queue_served_by_name_may_have_another_serializer(terminal: Terminal) -> None:
    terminal.write(
        "plain.py", "from delayed import Queue; queue = Queue('plain', serializer='json', allow=['builtins.*'])"
    )
    terminal.python("import plain; from delayed.delay import delay; delay(plain.queue)(print)('by', 'json')")

    done = terminal.run("worker", "--queue", "plain", "--serializer", "json", "--allow", "builtins.p*", "--burst")

    assert done.stdout == "by json\n"
    assert terminal.run("worker", "app", "--serializer", "json").returncode == 2
    assert terminal.run("worker", "app", "--allow", "builtins.*").returncode == 2


def test_a_worker_finds_the_queue_of_an_imported_decorated_function(terminal: Terminal) -> None:
    terminal.write("shop/__init__.py", "")
    terminal.write("shop/queues.py", "from delayed import Queue\nhidden = Queue('hidden')")
    terminal.write(
        "shop/tasks.py",
        """
        from delayed import delayed
        import shop.queues

        @delayed(shop.queues.hidden)
        def work() -> None:
            print("worked")
        """,
    )
    terminal.python("import shop.tasks; shop.tasks.work.delay()")

    assert terminal.run("worker", "shop.tasks", "--burst").stdout.splitlines() == ["worked"]


def test_a_worker_calls_its_handlers(terminal: Terminal) -> None:
    terminal.write(
        "handlers.py",
        """
        def good(task):
            print("good", task.func_name)

        def bad(task, kill_signal, exc_info):
            print("bad", task.func_name, exc_info[0].__name__)
        """,
    )
    terminal.python("import app; app.send.delay('a'); app.hold.delay(None)")

    done = terminal.run(
        "worker", "app", "--burst", "--processes", "1",
        "--success-handler", "handlers:good", "--error-handler", "handlers:bad",
    )  # fmt: skip

    assert said(done) == ["sent a", "good send", "bad hold TypeError"]


def test_a_worker_kills_what_uses_too_much_memory(terminal: Terminal) -> None:
    terminal.write(
        "large.py",
        """
        import time
        from delayed import delayed

        @delayed()
        def grow():
            data = b"x" * (150 << 20)
            time.sleep(60)
        """,
    )
    terminal.python("import large; large.grow.delay()")

    done = terminal.run("worker", "large", "--burst", "--kill-memory", "100M", "--worker-memory", "5G")

    assert re.search(r"killed by its worker: it used \d+ MB of memory, limit 100 MB", done.stderr), done.stderr
    assert done.returncode == 0


def test_a_worker_calls_its_hooks(terminal: Terminal) -> None:
    terminal.write(
        "hooks.py",
        """
        from delayed import Hooks

        class Printer(Hooks):
            def success(self, task, result):
                print("good", task.func_name)

            def exhausted(self, task, verdict):
                print("bad", task.func_name, verdict.type)
        """,
    )
    terminal.python("import app; app.send.delay('a'); app.hold.delay(None)")

    done = terminal.run("worker", "app", "--burst", "--processes", "1", "--hooks", "hooks:Printer")

    assert said(done) == ["sent a", "good send", "bad hold TypeError"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_leaves_when_it_is_told_to(terminal: Terminal, number: int) -> None:
    worker = terminal.start("worker", "app")
    eventually(lambda: " starts: " in terminal.output(), "the worker has started")

    worker.send_signal(number)

    assert worker.wait(20) == 0, terminal.output()


def test_a_worker_logs_json_if_asked_to(terminal: Terminal) -> None:
    done = terminal.run("worker", "--queue", "letters", "--burst", "--log-format", "json")

    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines[0]["level"] == "info"
    assert lines[0]["message"].startswith("delayed ")


@pytest.mark.parametrize(
    ("module", "text", "code", "words"),
    [
        ("nowhere", "", 2, "no module 'nowhere' from here"),
        ("app.py", "", 2, "write the module's name, not its file: app"),
        ("broken", "import json\n1 / 0", 1, "module 'broken' can't be imported: ZeroDivisionError"),
        ("broken", "import not_installed", 1, "No module named 'not_installed'"),
        ("broken", "def f(:", 1, "SyntaxError"),
        ("broken", "import sys; sys.exit(3)", 1, "leaves the process when it is imported"),
        ("broken", "import os; os._exit(3)", 1, "ended its process (exit code 3)"),
        ("broken", "x = 1", 2, "neither a Queue nor a function"),
        ("broken", "from delayed import Queue; q = Queue('q', 'memory://')", 2, "memory"),
        (
            "broken",
            "from delayed import Queue; q = Queue('q'); r = Queue('r', 'sqlite:///other.db')",
            2,
            "in different stores",
        ),
    ],
)
def test_a_module_that_can_not_be_served_is_explained(
    terminal: Terminal, module: str, text: str, code: int, words: str
) -> None:
    terminal.write("broken.py", text)

    done = terminal.run("worker", module, "--burst")

    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert done.returncode == code


def test_a_module_that_raises_shows_where(terminal: Terminal) -> None:
    terminal.write("broken.py", "import json\n\n\n1 / 0\n")

    done = terminal.run("worker", "broken")

    assert re.search(r'broken\.py", line 4', done.stderr)
    assert "delayed/cli" not in done.stderr.splitlines()[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["app", "--queue", "leters"], "did you mean 'letters'?"),
        (["app", "--url", "sqlite:///x.db"], "--url goes with --queue"),
        (["--url", "memory://"], "lives in one process only"),
        (["app", "--max-memory", "lots"], "write 512M or 2G"),
        (["app", "--kill-memory", "0"], "write 512M or 2G"),
        (["app", "--worker-memory", "-5M"], "write 512M or 2G"),
        (["app", "--processes", "0"], "--processes"),
        (["app", "--error-handler", "app:nobody"], "handler 'app:nobody'"),
        (["app", "--error-handler", "app:APP_NAME_WITHOUT"], "handler"),
        (["app", "--hooks", "app:nobody"], "hooks 'app:nobody'"),
        (["app", "--hooks", "app:send"], "is not a subclass of delayed.Hooks"),
        (["app", "--preload", "nowhere"], "no module 'nowhere'"),
        (["app", "--order", "turns", "--weights", "letters=1"], "--order or --weights"),
        (["app", "--weights", "letters=3,parcels"], "NAME=NUMBER for each queue, not 'parcels'"),
        (["app", "--weights", "letters=3"], "no weight for queue 'parcels'"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(terminal: Terminal, options: list[str], words: str) -> None:
    done = terminal.run("worker", "--burst", *options)

    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert done.returncode == 2


# -- sweeper, status, purge ----------------------------------------------------------------------------------------


def test_a_sweeper_leaves_when_it_is_told_to(terminal: Terminal) -> None:
    sweeper = terminal.start("sweeper", "--queue", "letters", "--interval", "60")
    eventually(lambda: "sweeping letters" in terminal.output(), "the sweeper sweeps")

    sweeper.terminate()

    assert sweeper.wait(5) == 0, terminal.output()


def test_status_of_an_empty_store_says_so(terminal: Terminal) -> None:
    assert "no queue has had a task yet" in terminal.run("status").stdout


def test_status_counts_by_state_and_hints_at_a_missing_worker(terminal: Terminal) -> None:
    terminal.python("import app; app.send.delay('a'); app.send.options(delay=100).delay('b'); app.pack.delay('c')")

    shown = terminal.run("status").stdout
    seen = terminal.status()

    assert [(queue["queue"], queue["scheduled"], queue["ready"]) for queue in seen["queues"]] == [
        ("letters", 1, 1),
        ("parcels", 0, 1),
    ]
    assert "delayed worker --queue parcels" in shown
    assert "parcels" not in terminal.run("status", "letters").stdout


def test_status_shows_workers_and_what_runs_now(terminal: Terminal) -> None:
    lock = terminal.folder / "lock"
    lock.touch()
    terminal.python(f"import app; app.hold.delay({str(lock)!r})")
    worker = terminal.start("worker", "app", "--processes", "1")

    seen = eventually(
        lambda: next((seen for seen in [terminal.status()] if any(w["running"] for w in seen["workers"])), None),
        "the status shows the running task",
    )
    shown = terminal.run("status").stdout
    lock.unlink()

    assert seen["workers"][0]["pid"] == worker.pid
    assert seen["workers"][0]["running"][0]["func"] == "app:hold"
    assert "app:hold" in shown
    assert "no worker" not in shown


def test_status_shows_dead_letters_with_the_reason(terminal: Terminal) -> None:
    terminal.python(
        "from delayed.brokers import broker_for; from delayed.message import Message; b = broker_for();"
        "b.enqueue('letters', [Message(id=b.reserve_ids('letters', 1), func='app:send', payload=b'junk')], 'a' * 32, 1)"
    )
    terminal.run("worker", "app", "--burst")

    shown = terminal.run("status").stdout

    assert terminal.status()["queues"][0]["dead"] == 1
    assert "app:send" in shown
    assert "undecodable" in shown


def test_purge_asks_and_takes_no_for_an_answer(terminal: Terminal) -> None:
    terminal.python("import app; app.send.delay('a'); app.send.options(delay=100).delay('b')")

    done = terminal.run("purge", "letters", typed="n\n")

    assert "Remove 2 tasks (1 scheduled, 1 ready) of 'letters'" in done.stdout
    assert "nothing removed" in done.stdout
    assert sum(broker_for(terminal.url).counts("letters")) == 2


def test_purge_without_anybody_to_ask_removes_nothing(terminal: Terminal) -> None:
    terminal.python("import app; app.send.delay('a')")

    done = terminal.run("purge", "letters")

    assert done.returncode != 0
    assert sum(broker_for(terminal.url).counts("letters")) == 1


def test_purge_removes_only_the_states_it_is_told(terminal: Terminal) -> None:
    terminal.python("import app; app.send.delay('a'); app.send.options(delay=100).delay('b')")

    done = terminal.run("purge", "letters", "--state", "scheduled", "--yes")

    assert done.stdout == "1 task removed\n"
    assert broker_for(terminal.url).counts("letters") == (0, 1, 0, 0)


def test_purge_of_a_mistyped_queue_gets_a_suggestion(terminal: Terminal) -> None:
    terminal.python("import app; app.send.delay('a')")

    done = terminal.run("purge", "leters", "--yes")

    assert done.returncode == 2
    assert "did you mean 'letters'?" in only_line(done)


# -- formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"), [("100", 100), ("1K", 1024), ("512M", 512 << 20), ("1.5g", 3 << 29), ("2GiB", 2 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "0", "12X", "1 2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Size().convert(text, None, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0 s"), (0.44, "0.4 s"), (59.9, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (273600, "3 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plurals() -> None:
    assert [plural(1, "task"), plural(2, "task"), plural(1, "process"), plural(1200, "process")] == [
        "1 task",
        "2 tasks",
        "1 process",
        "1,200 processes",
    ]


def test_workers_are_kept_alive_under_one_command(terminal: Terminal) -> None:
    terminal.python("import app; [app.send.delay(str(n)) for n in range(5)]")
    done = terminal.run("worker", "app", "--workers", "2", "--burst", "--mode", "preforked")

    assert done.returncode == 0, done.stderr
    assert sorted(said(done)) == [f"sent {n}" for n in range(5)]
    assert "starts 2 workers" in done.stderr
