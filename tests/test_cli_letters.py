"""Looking at tasks from the command line: `delayed inspect`, `dead`, `replay`, and what `purge` chooses."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from delayed.attempts import noted
from delayed.brokers import broker_for
from delayed.brokers.base import Broker
from delayed.message import Message, Settlement
from delayed.worker import verdict
from delayed.worker.verdict import Verdict
from tests.test_cli import Terminal, only_line

APP = """
from pathlib import Path
from delayed import Hidden, Queue, current, delayed

queue = Queue("letters", dead_letters=True)
other = Queue("parcels")

class Loud:
    def __reduce__(self):
        return Path.touch, (Path("decoded"),)

@delayed(queue)
def send(name: str, password: Hidden[str] = "") -> str:
    if not Path("mended").exists():
        raise KeyError(f"no {name}")
    return f"sent {name}"

@delayed(queue)
def wait(what: object = None) -> None:
    Path("waited").touch()

@delayed(queue)
def commit() -> None:
    with current.transaction():
        pass

@delayed(queue)
def tell() -> str:
    current.report(0.5, "half")
    return f"{current.queue} {current.attempt} {current.time_left}"

@delayed(other)
def pack(name: str) -> str:
    return f"packed {name}"
"""


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path)
    opened.write("app.py", APP)
    yield opened
    opened.close()


@pytest.fixture
def broker(terminal: Terminal) -> Iterator[Broker]:
    broker = broker_for(terminal.url)
    yield broker
    broker.close()


def enqueue(terminal: Terminal, *calls: str) -> list[int]:
    """Enqueue from another process; the ids."""
    lines = "; ".join(f"ids.append(app.{call}.id)" for call in calls)
    terminal.python(f"import app; ids = []; {lines}; open('ids', 'w').write(repr(ids))")
    found: list[int] = json.loads((terminal.folder / "ids").read_text())
    return found


def fail(terminal: Terminal, *names: str) -> list[int]:
    """Dead letters of tasks that have failed for good."""
    ids = enqueue(terminal, *(f"send.delay({name!r}, password='geheim')" for name in names))
    done = terminal.run("worker", "app", "--queue", "letters", "--burst", "--processes", "1")
    assert done.returncode == 0, done.stderr
    return ids


def put(broker: Broker, queue: str, *functions: str, **options: Any) -> list[int]:
    first = broker.reserve_ids(queue, len(functions))
    messages = [Message(first + at, f"app:{name}", b"junk", **options) for at, name in enumerate(functions)]
    broker.enqueue(queue, messages, secrets.token_hex(16), 1)
    return [message.id for message in messages]


def bury(broker: Broker, *reasons: str, function: str = "send") -> list[int]:
    """Dead letters that were never run."""
    ids = put(broker, "letters", *[function] * len(reasons), priority=100)
    worker = secrets.token_hex(4)
    claims = broker.claim(["letters"], worker, 1, 1, len(reasons), 60.0)
    ends = [Settlement(claim.ref, "dead", reason=reason) for claim, reason in zip(claims, reasons, strict=True)]
    assert all(broker.settle(worker, ends))
    return ids


def told(terminal: Terminal, *args: str) -> Any:
    done = terminal.run(*args, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ids_of(listed: list[dict[str, Any]]) -> list[int]:
    return [each["id"] for each in listed]


# -- inspect -------------------------------------------------------------------------------------------------------


@pytest.fixture
def some(broker: Broker) -> dict[str, int]:
    """A task in each state."""
    (dead,) = bury(broker, "raised KeyError\nTraceback")
    (ready,) = put(broker, "letters", "wait")
    (urgent,) = put(broker, "letters", "send", priority=1)
    (later,) = put(broker, "letters", "wait", delay=300)
    (parcel,) = put(broker, "parcels", "pack")
    broker.claim(["parcels"], "somebody", 1, 1, 1, 60.0)
    return {"dead": dead, "ready": ready, "urgent": urgent, "later": later, "parcel": parcel}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "urgent ready later dead parcel"),
        (["letters"], "urgent ready later dead"),
        (["letters", "--state", "dead", "--state", "ready"], "dead urgent ready"),
        (["--function", "app.wait"], "ready later"),
        (["letters", "--limit", "1"], "urgent later dead"),
        (["letters", "--function", "none.*"], ""),
    ],
)
def test_tasks_are_chosen(terminal: Terminal, some: dict[str, int], args: list[str], expected: str) -> None:
    assert ids_of(told(terminal, "inspect", *args)) == [some[name] for name in expected.split()]


def test_tasks_are_listed_by_queue_and_state(terminal: Terminal, some: dict[str, int]) -> None:
    shown = terminal.run("inspect").stdout
    nothing = terminal.run("inspect", "letters", "--function", "nothing")
    mistyped = terminal.run("inspect", "leters")

    lines = shown.splitlines()[1:]
    expected = [some[name] for name in ("urgent", "ready", "later", "dead", "parcel")]
    assert [int(line.split()[0]) for line in lines] == expected
    assert re.search(r"letters +scheduled +app:wait .* in 4 min", lines[2])
    assert re.search(r"letters +dead +app:send +1 +1 .* ago +raised KeyError …", lines[3])
    assert re.search(r"parcels +running +app:pack .* lease ", lines[4])
    assert nothing.stdout == "no such task in 'letters'\n"
    assert "did you mean 'letters'?" in only_line(mistyped)


def test_one_task_is_shown_with_all_that_is_known_but_its_arguments(terminal: Terminal, broker: Broker) -> None:
    (id,) = enqueue(terminal, "wait.options(delay=300, retry=2, key='mine', timeout=7).delay(app.Loud())")

    shown = terminal.run("inspect", str(id)).stdout
    one = told(terminal, "inspect", "letters", str(id))

    lines = dict(re.split(r"  +", line, maxsplit=1) for line in shown.splitlines())
    assert (lines["task"], lines["function"], lines["queue"]) == (str(id), "app:wait", "letters")
    assert lines["state"].startswith("scheduled in ")
    assert (lines["key"], lines["timeout"]) == ("mine", "7")
    assert "pickle" in lines["payload"]
    assert (one["state"], one["settings"]["timeout"], one["settings"]["retry"]["max"]) == ("scheduled", 7, 2)
    assert one["due"] < 300
    assert not (terminal.folder / "decoded").exists(), "nothing was decoded"

    assert "arguments" in told(terminal, "inspect", "letters", str(id), "--arguments", "app")
    assert (terminal.folder / "decoded").exists()
    assert broker.counts("letters") == (1, 0, 0, 0)


def test_lines_are_whole_where_a_program_reads_them(terminal: Terminal, broker: Broker) -> None:
    ids = enqueue(terminal, *["send.options(key='a rather long name of the caller', expires='1h').delay('ada')"] * 2)
    del terminal.environ["COLUMNS"]

    found = terminal.run("inspect", "letters").stdout

    assert all(any(str(id) in line for line in found.splitlines()) for id in ids), found
    assert "expires" in terminal.run("inspect", "letters", str(ids[0])).stdout


def test_arguments_are_shown_if_asked_and_hidden_ones_are_not(terminal: Terminal) -> None:
    (id,) = enqueue(terminal, "send.delay('ada', password='geheim')")

    asked = terminal.run("inspect", "letters", str(id), "--arguments", "app").stdout
    not_asked = terminal.run("inspect", str(id)).stdout

    assert re.search(r"^arguments +\('ada', password=\*\*\*\)$", asked, re.MULTILINE)
    assert "geheim" not in asked + not_asked and "ada" not in not_asked


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["inspect", "letters", "5", "--arguments", "app", "--url", "sqlite:///x.db"], "--url"),
        (["inspect", "letters", "--arguments", "app"], "ID"),
        (["dead", "show", "mails", "5", "--arguments", "app"], "'parcels'"),
        (["inspect", "letters", "5", "--arguments", "nothing"], "no module 'nothing'"),
    ],
)
def test_arguments_need_the_module_of_the_queue(terminal: Terminal, args: list[str], words: str) -> None:
    done = terminal.run(*args)

    assert done.returncode == 2
    assert words in only_line(done)


def test_the_attempts_of_a_task_are_shown(terminal: Terminal, broker: Broker) -> None:
    (id,) = put(broker, "letters", "send")
    (claim,) = broker.claim(["letters"], "w", 1, 1, 1, 60.0)
    found = Verdict(verdict.RAISED, type="ValueError", text="[red]no\x1b[2J", wall=0.5)
    broker.settle("w", [noted(claim, Settlement(claim.ref, "retry", 300.0), found, "host:1:\x1bdef")])

    shown = terminal.run("inspect", "letters", str(id)).stdout
    (attempt,) = told(terminal, "inspect", "letters", str(id))["ended"]

    assert re.search(r"^attempt 1 +20\d\d-.*raised ValueError: \[red\]no\\x1b\[2J after 0\.5 s", shown, re.MULTILINE)
    assert "(host:1:\\x1bdef)" in shown and "\x1b" not in shown
    assert (attempt["attempt"], attempt["verdict"]["code"], attempt["verdict"]["text"]) == (1, "raised", found.text)


def test_what_can_not_be_read_is_shown_as_far_as_it_goes(terminal: Terminal, broker: Broker) -> None:
    class Odd(Message):
        def header(self) -> bytes:
            return b"\xff no header"

    (id,) = ids = [broker.reserve_ids("letters", 1)]
    broker.enqueue("letters", [Odd(id, "app:send", b"junk")], "a" * 32, 1)
    terminal.run("worker", "app", "--queue", "letters", "--burst")

    shown = terminal.run("dead", "show", "letters", str(id), "--arguments", "app")

    assert shown.returncode == 0, shown.stderr
    assert "\\xff no header" in shown.stdout
    assert "can't be told" in shown.stdout
    assert ids_of(told(terminal, "dead", "list", "letters")) == ids


# -- dead letters --------------------------------------------------------------------------------------------------


def test_a_letter_is_shown_with_its_verdict(terminal: Terminal) -> None:
    (id,) = fail(terminal, "ada")

    listed = terminal.run("dead", "list", "letters").stdout
    status = terminal.run("status").stdout
    shown = terminal.run("dead", "show", "letters", str(id)).stdout
    one = told(terminal, "dead", "show", "letters", str(id))

    for text in (listed, status):
        assert "raised KeyError: 'no ada'" in text and "Traceback" not in text
    assert re.search(r"^attempt 1 +20\d\d-.* raised KeyError: 'no ada' after .*CPU", shown, re.MULTILINE)
    assert re.search(r"^raised KeyError: 'no ada' after .*CPU.*, in attempt 1$", shown, re.MULTILINE)
    assert 'raise KeyError(f"no {name}")' in shown
    assert one["reason"].endswith("KeyError: 'no ada'") and one["died"] > 0


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], [2, 1, 0]),
        (["--reason", "KEYERROR"], [1, 0]),
        (["--function", "app.pack"], []),
        (["--limit", "1"], [2]),
    ],
)
def test_letters_are_chosen(terminal: Terminal, broker: Broker, args: list[str], expected: list[int]) -> None:
    ids = bury(broker, "raised KeyError", "raised keyerror", "timed out")

    assert ids_of(told(terminal, "dead", "list", "letters", *args)) == [ids[at] for at in expected]


def test_what_is_no_letter_is_not_shown(terminal: Terminal, broker: Broker) -> None:
    (id,) = put(broker, "letters", "send")

    assert "it is ready" in only_line(terminal.run("dead", "show", "letters", str(id)))
    assert "no dead letter 7" in only_line(terminal.run("dead", "show", "letters", "7"))


def test_a_letter_is_requeued_and_runs(terminal: Terminal, broker: Broker) -> None:
    first, second = fail(terminal, "ada", "bob")
    (terminal.folder / "mended").touch()

    done = terminal.run("dead", "requeue", "letters", str(first))
    assert (done.returncode, done.stdout) == (0, "1 dead letter requeued\n")
    terminal.run("worker", "app", "--queue", "letters", "--burst")

    assert [entry.message.id for entry in broker.peek("letters", "dead")] == [second]
    assert broker.counts("letters") == (0, 0, 0, 1)


def test_ids_that_are_no_letters_are_an_error(terminal: Terminal, broker: Broker) -> None:
    first, second = bury(broker, "why", "why")
    broker.drop("letters", [first])

    done = terminal.run("dead", "requeue", "letters", str(first), str(second))

    assert (done.returncode, done.stdout) == (1, "1 dead letter requeued\n")
    assert f"no dead letter {first}" in only_line(done)
    assert broker.counts("letters") == (0, 1, 0, 0)


def test_who_chooses_letters_is_asked(terminal: Terminal, broker: Broker) -> None:
    ids = bury(broker, "no ada", "no bob", "no eve")

    nobody = terminal.run("dead", "drop", "letters", "--all")
    refused = terminal.run("dead", "requeue", "letters", "--reason", "ADA", typed="n\n")
    assert nobody.returncode == 1 and "--yes" in only_line(nobody)
    assert "Requeue 1 dead letter of 'letters'" in refused.stdout and "nothing requeued" in refused.stdout
    assert broker.counts("letters").dead == 3

    agreed = terminal.run("dead", "requeue", "letters", "--reason", "ada", typed="y\n")
    assert "1 dead letter requeued" in agreed.stdout
    assert [entry.message.id for entry in broker.peek("letters", "ready")] == ids[:1]


def test_letters_that_are_chosen_are_dropped_without_a_question_if_told_so(terminal: Terminal, broker: Broker) -> None:
    bury(broker, "why", "why")
    bury(broker, "why", function="wait")

    done = terminal.run("dead", "drop", "letters", "--function", "app.s*", "--yes")

    assert done.stdout == "2 dead letters dropped\n"
    assert [entry.message.func for entry in broker.peek("letters", "dead")] == ["app:wait"]
    assert "no such dead letter" in terminal.run("dead", "drop", "letters", "--reason", "else").stdout


@pytest.mark.parametrize("choice", [[], ["5", "--all"], ["5", "--reason", "x"]])
def test_letters_are_either_named_or_chosen(terminal: Terminal, choice: list[str]) -> None:
    done = terminal.run("dead", "requeue", "letters", *choice)

    assert done.returncode == 2
    assert "--all" in only_line(done)


def test_requeued_letters_keep_their_order(terminal: Terminal, broker: Broker) -> None:
    ids = bury(broker, "why", "why", "why")

    terminal.run("dead", "requeue", "letters", "--all", "--yes")

    assert [entry.message.id for entry in broker.peek("letters", "ready")] == ids


def test_a_queue_served_by_name_may_keep_what_failed(terminal: Terminal) -> None:
    (id,) = enqueue(terminal, "send.delay('ada')")

    done = terminal.run("worker", "--queue", "letters", "--dead-letters", "--burst")

    assert done.returncode == 0, done.stderr
    assert ids_of(told(terminal, "dead", "list", "letters")) == [id]


# -- replay --------------------------------------------------------------------------------------------------------


def test_a_letter_is_replayed_and_stays_what_it_is(terminal: Terminal, broker: Broker) -> None:
    (id,) = fail(terminal, "ada")
    before = broker.get("letters", id)

    failed = terminal.run("replay", "app", str(id))
    (terminal.folder / "mended").touch()
    worked = terminal.run("replay", "app", str(id), "--queue", "letters")

    assert failed.returncode == 1
    assert failed.stderr.rstrip().endswith("KeyError: 'no ada'")
    assert "delayed/cli" not in failed.stderr and "geheim" not in failed.stderr
    assert worked.returncode == 0
    assert re.search(r"^returned after .* s: 'sent ada'$", worked.stdout, re.MULTILINE)
    after = broker.get("letters", id)
    assert before is not None and after is not None
    assert before._replace(died=0.0) == after._replace(died=0.0)


def test_the_debugger_opens_where_it_raises(terminal: Terminal) -> None:
    (id,) = enqueue(terminal, "send.delay('ada')")

    done = terminal.run("replay", "app", str(id), "--pdb", typed="p name + '!'\nq\n")

    assert "'ada!'" in done.stdout
    assert "app.py" in done.stdout and done.returncode == 1


def test_a_task_that_waits_can_be_replayed_too_and_knows_itself(terminal: Terminal, broker: Broker) -> None:
    tells, packs = enqueue(terminal, "tell.delay()", "pack.delay('tea')")

    assert "'letters 1 5" in terminal.run("replay", "app", str(tells)).stdout
    assert "'packed tea'" in terminal.run("replay", "app", str(packs)).stdout

    assert (broker.counts("letters").ready, broker.counts("parcels").ready) == (1, 1)
    assert (entry := broker.get("letters", tells)) is not None and entry.delivery == 0


def test_a_replay_has_no_transaction_in_the_store(terminal: Terminal, broker: Broker) -> None:
    (id,) = enqueue(terminal, "commit.delay()")

    done = terminal.run("replay", "app", str(id))

    assert done.returncode == 1
    assert "TaskError: current.transaction() is not to be had in a replay" in done.stderr
    assert broker.counts("letters").ready == 1


def test_what_no_worker_would_run_is_not_replayed(terminal: Terminal) -> None:
    terminal.write(
        "sealed.py",
        """
        from delayed import Queue
        queue = Queue("letters", secret="s" * 16, allow=["app.*"])
        """,
    )
    (id,) = enqueue(terminal, "send.delay('ada')")

    done = terminal.run("replay", "sealed", str(id))

    assert done.returncode == 1
    assert "no worker would run it" in only_line(done)


def test_what_is_not_there_is_not_replayed(terminal: Terminal) -> None:
    assert "no task 7" in only_line(terminal.run("replay", "app", "7"))
    assert "no module 'nothing'" in only_line(terminal.run("replay", "nothing", "7"))
    assert "'parcels'" in only_line(terminal.run("replay", "app", "7", "--queue", "mails"))


# -- purge ---------------------------------------------------------------------------------------------------------


def test_purge_removes_only_the_functions_it_is_told(terminal: Terminal, broker: Broker) -> None:
    bury(broker, "why")
    kept, _ = put(broker, "letters", "wait", "send")
    put(broker, "letters", "send", delay=300)

    asked = terminal.run("purge", "letters", "--function", "app.send", typed="n\n")
    done = terminal.run("purge", "letters", "--function", "app.send", "--state", "ready", "--state", "dead", "--yes")

    assert "Remove 3 tasks (1 scheduled, 1 ready, 1 dead)" in asked.stdout
    assert done.stdout == "2 tasks removed\n"
    assert broker.counts("letters") == (1, 1, 0, 0)
    assert broker.peek("letters", "ready")[0].message.id == kept
    assert "nothing to remove" in terminal.run("purge", "letters", "--function", "none.*").stdout
