"""Queues with secrets, compressors and serializers of one's own, in real workers, as a user writes them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from delayed.brokers import broker_for

SECRET = "of-this-test-and-nobody-else"

APP = """
import os
from pathlib import Path

from delayed import Queue, delayed
from delayed.delay import delay

queue = Queue("sealed", serializer="cloudpickle", compressor="zlib", compress_above=0, encrypt=True)
named = Queue("named", serializer="msgpack", secret="a secret of its own, in the code", allow=["app.*"])
own = Queue("own", serializer="kinds:Own")

def note(text):
    with open("ledger", "a") as file:
        file.write(text + "\\n")

@delayed(queue)
def first(words):
    note(f"first {len(words)}")
    second.delay("from a child")
    place = queue
    delay(queue)(lambda: place.enqueue(place.task(last, "by a function that travelled")))()

@delayed(queue)
def second(text):
    note(f"second {text}")

def last(text):
    note(f"last {text}")

@delayed(named)
def keep(pair):
    note(f"keep {pair!r}")
    if pair[0]:
        keep.delay((0, pair[1]))

@delayed(own)
def odd(x):
    note(f"odd {x}")
"""

STRANGER = """
import os
import app
from delayed import Queue

unsigned = Queue("sealed", serializer="cloudpickle", secret=[])
unsigned.enqueue(unsigned.task(app.last, "unsigned"))
careless = Queue("named", serializer="msgpack", secret="a secret of its own, in the code", allow=["*"])
careless.enqueue(careless.task(os.mkdir, "mark"))
"""

KINDS = """
import json, os

with open("imported", "a") as file:
    file.write(f"{os.getpid()}\\n")

class Own:
    name, tag, plain = "own", 199, True

    def dumps(self, value):
        return json.dumps(value).encode()[::-1]

    def loads(self, data):
        return json.loads(data[::-1])
"""


class Place:
    """A folder with a program."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {**os.environ, "DELAYED_URL": f"sqlite:///{folder}/tasks.db", "DELAYED_SECRET": SECRET}
        self.broker = broker_for(self.environ["DELAYED_URL"])
        (folder / "app.py").write_text(textwrap.dedent(APP))
        (folder / "kinds.py").write_text(textwrap.dedent(KINDS))

    def python(self, *args: str, **environ: str) -> str:
        done = subprocess.run(
            [sys.executable, *args],
            cwd=self.folder,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=40,
            check=True,
        )
        return done.stderr

    def work(self, mode: str, *args: str, **environ: str) -> str:
        """Run a worker until the queues are empty; return its log."""
        return self.python("-m", "delayed", "worker", "app", "--burst", "--mode", mode, *args, **environ)

    @property
    def ledger(self) -> list[str]:
        return (self.folder / "ledger").read_text().splitlines()

    def dead(self, queue: str) -> list[str]:
        return [entry.reason for entry in self.broker.peek(queue, "dead")]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_children_enqueue_is_sealed_as_what_the_program_does(place: Place, mode: str) -> None:
    place.python("-c", "import app; app.first.delay(['x'] * 1000); app.keep.delay((1, {2}))")

    log = place.work(mode)

    assert sorted(place.ledger) == [
        "first 1000",
        "keep (0, {2})",
        "keep (1, {2})",
        "last by a function that travelled",
        "second from a child",
    ]
    assert SECRET not in log and SECRET.encode() not in (place.folder / "tasks.db").read_bytes()
    assert b"a secret of its own" not in (place.folder / "tasks.db").read_bytes()


def test_what_strangers_put_in_is_kept_with_the_reason(place: Place, mode: str) -> None:
    place.python("-c", "import app; app.first.delay([])", DELAYED_SECRET="a stranger's guess at it")
    (place.folder / "strange.py").write_text(STRANGER)
    place.python("strange.py")
    place.python("-c", "import app; app.second.delay('well')")

    log = place.work(mode)

    assert place.ledger == ["second well"]
    guessed, unsigned = sorted(place.dead("sealed"))
    assert "is encrypted, but not with a secret of this queue" in guessed
    assert "is unsigned, and this queue has a secret" in unsigned
    (refused,) = place.dead("named")
    assert "not allowed: posix:mkdir is not on this queue's list of what may be run: app.*" in refused
    assert not (place.folder / "mark").exists()
    errors = [line for line in log.splitlines() if " ERROR " in line or " WARNING " in line]
    assert len(errors) == 3, log


def test_a_worker_without_the_secret_runs_nothing_and_loses_nothing(place: Place) -> None:
    place.python("-c", "import app; app.keep.delay((1, 2))")
    (place.folder / "app.py").write_text(APP.replace('secret="a secret of its own, in the code", ', "secret=[], "))

    place.work("preforked")

    (reason,) = place.dead("named")
    assert "is signed, and this queue has no secret: set DELAYED_SECRET" in reason


def test_a_serializer_of_ones_own_is_loaded_by_children_and_no_guardian(place: Place, mode: str) -> None:
    place.python("-c", "import app; app.odd.delay(5)")
    (place.folder / "imported").unlink()

    log = place.work(mode)

    assert place.ledger == ["odd 5"]
    imported = (place.folder / "imported").read_text().split()
    assert imported and f"pid {imported[0]}" not in log
    assert len(imported) == len(set(imported))
    monitor = log.split("pid ", 1)[1].split()[0].rstrip(",")
    assert monitor.isdigit() and monitor not in imported


# -- nothing counts before the seal is right -----------------------------------------------------------------------

EVIL = """
from pathlib import Path
Path("mark").touch()
def run(*args): Path("mark").touch()
run.adelay = 1
"""

FORGER = """
import os, sys
from delayed import Queue
from delayed.message import Message

name, here = sys.argv[1], os.getcwd()
forged = Queue(name, serializer="pickle" if name == "sealed" else "json", secret=[], allow=["*"])
plain = Queue("plain", serializer="json", secret=[], allow=["*"])
broker = forged.broker
payload = forged.codec.encode(("__main__", "x" * 10_000), {})
retry = {"max": -1, "delay": 0.01, "policy": f"{here}/evil/evil.py:run"}
bad = [
    {"func": f"{here}/evil/evil.py:run"},
    {"func": f"{here}/evil/evil.py:run", "payload": payload[:2] + b"\\1\\0" + payload[4:]},
    {"func": f"{here}/evil/evil.py:run", "payload": payload[:3] + b"\\2" + payload[4:]},
    {"func": "app:note", "retry": retry},
    {"func": "app:note", "retry": retry, "limits": {"memory": 1}},
    {"func": "app:note", "retry": retry, "timeout": 1e-9},
    {"func": "app:note", "limits": {"cpu": 1}},
]
first = broker.reserve_ids(name, len(bad))
messages = [Message(**{"id": first + number, "payload": payload, **each}) for number, each in enumerate(bad)]
broker.enqueue(name, messages, os.urandom(16).hex(), 1)
"""


@pytest.mark.parametrize("queue", ["sealed", "named"])
def test_nothing_that_a_forged_header_says_is_done(place: Place, mode: str, queue: str) -> None:
    (place.folder / "evil").mkdir()
    (place.folder / "evil" / "evil.py").write_text(EVIL)
    (place.folder / "forger.py").write_text(FORGER)
    place.python("forger.py", queue)
    place.python("-c", "import app; app.second.delay('well'); app.keep.delay((0, 1))")

    place.work(mode)

    assert sorted(place.ledger) == ["keep (0, 1)", "second well"]
    assert not (place.folder / "mark").exists(), "evil.py was imported, or its function called"
    reasons = place.dead(queue)
    assert len(reasons) == 7 and place.broker.counts(queue) == (0, 0, 0, 7), reasons


def test_uploaded_scripts_are_not_imported_for_plain_data(place: Place, mode: str) -> None:
    (place.folder / "evil").mkdir()
    (place.folder / "evil" / "evil.py").write_text(EVIL)
    (place.folder / "app.py").write_text(
        APP.replace('secret="a secret of its own, in the code", allow=["app.*"]', "secret=[]")
    )
    (place.folder / "forger.py").write_text(FORGER.replace('else "json"', 'else "msgpack"'))
    place.python("forger.py", "named")

    place.work(mode)

    assert not (place.folder / "mark").exists()


def test_messages_of_strangers_that_fill_the_memory_are_not_sent_again(place: Place) -> None:
    forger = FORGER.replace("10_000", "20_000_000")
    forger = forger.replace("enqueue(name, messages,", "enqueue(name, messages[3:5],")
    (place.folder / "forger.py").write_text(forger)
    place.python("forger.py", "named")

    log = place.work("preforked", "--processes", "1", "--kill-memory", "45M")

    assert place.broker.counts("named") == (0, 0, 0, 2), log
