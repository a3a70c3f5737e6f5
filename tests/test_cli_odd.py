"""What the command line shows of a store that others have written to: text as it is, and "?" for what is none."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from delayed.brokers import Broker, broker_for
from delayed.message import Message
from tests.test_cli import Terminal

FUNC = "app:[/x] [red]send[/red] :smile:"
REASON = "verdict: not [/b] [link=file:///etc]here[/link] [bold]"


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def broker(terminal: Terminal) -> Iterator[Broker]:
    opened = broker_for(terminal.url)
    yield opened
    opened.close()


def put(broker: Broker, queue: str = "letters", func: str = FUNC, **options: Any) -> int:
    id = broker.reserve_ids(queue, 1)
    message = Message(id=id, func=func, payload=b"junk", **options)
    broker.enqueue(queue, [message], os.urandom(16).hex(), 1)  # two queues may give the same id
    return id


def shown(terminal: Terminal, *args: str) -> str:
    done = terminal.run(*args)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def spoil(terminal: Terminal, statement: str, *values: Any) -> None:
    db = sqlite3.connect(terminal.folder / "tasks.db")
    with db:
        db.execute(statement, values)
    db.close()


def announce(broker: Broker, info: Any) -> None:
    broker.announce("host:1:abcdef[/b]", ["letters"], info, 60.0)


def test_markup_in_a_dead_letter_is_text(terminal: Terminal, broker: Broker) -> None:
    id = put(broker)
    spoil(terminal, "UPDATE delayed_task SET state = 3, reason = ?", REASON)

    for command in (["status"], ["dead", "list", "letters"], ["inspect", "letters", "--state", "dead"]):
        assert FUNC in shown(terminal, *command)
        assert REASON in shown(terminal, *command)
    assert REASON in shown(terminal, "dead", "show", "letters", str(id))
    assert FUNC in shown(terminal, "inspect", "letters", str(id))


def test_markup_in_a_header_version_is_text(terminal: Terminal, broker: Broker) -> None:
    """The reason of the dead letter is made of what the header says."""
    put(broker, "letters", "app:send", extra={"v": "[/x]"})
    terminal.run("worker", "--queue", "letters", "--burst")

    assert "has version '[/x]'" in shown(terminal, "status")


def test_markup_in_what_waits_and_runs_is_text(terminal: Terminal, broker: Broker) -> None:
    id = put(broker, "[/b]")
    broker.claim(["[/b]"], "[/w]", 1, 1, 1, 60.0)
    announce(broker, {"host": "[/h]", "queues": ["[/q]"], "mode": "[/m]", "running": [{"id": id, "func": FUNC}]})
    put(broker, "letters")

    for word in ("[/b]", "[/h]", "[/m]", FUNC):
        assert word in shown(terminal, "status")
    for word in ("[/h]", "[/m]", "[/q]", FUNC):
        assert word in shown(terminal, "workers")
    assert FUNC in shown(terminal, "inspect", "letters")


def test_markup_in_the_answer_to_an_order_is_text(terminal: Terminal, broker: Broker) -> None:
    id = put(broker)

    assert FUNC in shown(terminal, "cancel", str(id))

    id = put(broker)
    done = terminal.run("stack", str(id))
    assert done.returncode == 1
    assert FUNC in done.stderr


def test_markup_in_a_schedule_is_text(terminal: Terminal) -> None:
    terminal.write(
        "app.py",
        """
        from delayed import Queue, delayed
        queue = Queue("[/b]")
        @delayed(queue).every("5m")
        def send() -> None:
            pass
        """,
    )

    assert "[/b]" in shown(terminal, "schedule", "app")


@pytest.mark.parametrize(
    "info",
    [
        [],
        "text",
        5,
        {},
        {"started": "x", "queues": 5, "running": 5, "host": [1], "pid": {"a": 1}, "mode": None},
        {"started": 1e400, "queues": {"a": 1}, "running": {"a": 1}, "replies": 5},
        {"started": 10**400, "queues": [5, None], "running": [5, None, "x", {}]},
        {"started": True, "running": [{"for": "x", "id": [1], "func": None, "queue": {}}, {"for": 2.0}, {"for": None}]},
        {"running": [{"for": -(10**400)}, {"for": float("nan")}], "worker": 5, "stopping": 5},
    ],
)
def test_an_announcement_of_odd_types_is_shown_as_far_as_it_can_be(
    terminal: Terminal, broker: Broker, info: Any
) -> None:
    put(broker)
    announce(broker, info)

    for command in ("status", "workers"):
        assert "cdef[/b]" in shown(terminal, command)
        assert "?" in shown(terminal, command)
        assert "host:1:abcdef[/b]" in shown(terminal, command, "--json")


@pytest.mark.parametrize("replies", [5, {"x": 5}, []])
def test_an_announcement_with_odd_replies_is_no_reply(terminal: Terminal, broker: Broker, replies: Any) -> None:
    id = put(broker)
    broker.claim(["letters"], "host:1:abcdef[/b]", 1, 1, 1, 60.0)
    announce(broker, {"replies": replies})

    done = terminal.run("cancel", str(id), "--timeout", "0.3")

    assert done.returncode == 1
    assert "does not answer" in done.stderr


@pytest.mark.parametrize("change", ["id = 'abc'", "header = 5", "delivery = 'x'", "attempt = 'x'", "payload = 'x'"])
def test_what_is_no_task_can_be_looked_at(terminal: Terminal, broker: Broker, change: str) -> None:
    put(broker, func="app:send")
    put(broker, func="app:odd")
    spoil(terminal, f"UPDATE delayed_task SET {change} WHERE seat = 2")

    assert shown(terminal, "inspect", "letters").count("app:") == (1 if "header" in change else 2)
    assert json.loads(shown(terminal, "status", "--json"))["queues"][0]["ready"] == 2
