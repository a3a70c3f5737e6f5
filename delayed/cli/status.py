"""``delayed status``: how many tasks are where, who works, and what runs now."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from delayed.brokers import Broker
from delayed.cli.common import open_broker, plural, url_option
from delayed.cli.tables import console, first_line, is_number, lasting, running, short, table, up
from delayed.errors import BrokerUnavailable
from delayed.message import WorkerInfo

DEAD_SHOWN = 5  # dead letters of each queue that are named
WATCH_INTERVAL = 1.0  # seconds


@click.command(
    epilog="""\b
Examples:
  delayed status
  delayed status mails --watch
  delayed status --json | jq '.queues[] | select(.dead > 0)'
""",
)
@click.argument("queues", metavar="[QUEUE]...", nargs=-1)
@click.option("--watch", is_flag=True, help="Look again every second, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; with --watch one a line.")
@url_option
def status(queues: tuple[str, ...], watch: bool, as_json: bool, url: str | None) -> None:
    """Show counts by state, the workers, and what runs now. Without QUEUE: all queues of the store."""
    broker, _ = open_broker(url)
    if as_json:
        _print_json(broker, queues, watch)
        return
    screen = console()
    if not watch:
        screen.print(_render(look(broker, queues), url))
        return
    live = Live(console=screen, screen=screen.is_terminal, auto_refresh=False)
    with contextlib.suppress(KeyboardInterrupt), live:  # Ctrl-C is how this ends
        while True:
            try:
                picture = _render(look(broker, queues), url)
            except BrokerUnavailable as error:  # it may come back; so long, say that it is gone
                picture = Text(f"{broker!r} does not answer: {error}", style="red")
            if screen.is_terminal:
                live.update(picture, refresh=True)
            else:
                screen.print(picture)
            time.sleep(WATCH_INTERVAL)


def look(broker: Broker, queues: Sequence[str] = ()) -> dict[str, Any]:
    """The state of a store as plain data.

    Args:
        queues: the names to look at; empty means all that the store knows.

    Returns:
        ``store``; ``queues``: name, counts by state, whether they are paused, ids of their workers; ``workers``: id,
        and what they said of themselves within the last seconds; ``dead``: the newest dead letters.
    """
    found: list[dict[str, Any]] = []
    workers: dict[str, dict[str, Any]] = {}
    dead: list[dict[str, Any]] = []
    for name in queues or broker.queues():
        serving = broker.workers(name)
        for worker in serving:
            workers.setdefault(worker.worker, about(worker))
        counts = broker.counts(name)
        state = {**counts._asdict(), "paused": broker.paused(name)}
        found.append({"queue": name, **state, "workers": [worker.worker for worker in serving]})
        if counts.dead:
            dead += [
                {"queue": name, "id": entry.message.id, "func": entry.message.func, "reason": entry.reason}
                for entry in broker.peek(name, "dead", DEAD_SHOWN, payloads=False)
            ]
    return {"store": repr(broker), "queues": found, "workers": list(workers.values()), "dead": dead}


def about(worker: WorkerInfo) -> dict[str, Any]:
    """What a worker said of itself, without its replies to who asked it for something."""
    info = worker.info if isinstance(worker.info, Mapping) else {}  # anybody may have written it
    return {**{name: it for name, it in info.items() if name != "replies"}, "worker": worker.worker}


def _print_json(broker: Broker, queues: Sequence[str], watch: bool) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            click.echo(json.dumps(look(broker, queues), indent=None if watch else 2, default=repr))
            if not watch:
                return
            time.sleep(WATCH_INTERVAL)


def _render(seen: dict[str, Any], url: str | None) -> RenderableType:
    if not seen["queues"]:
        return Text(f"{seen['store']}\nno queue has had a task yet")
    tables = [_queues(seen["queues"])]
    if seen["workers"]:
        tables.append(_workers(seen["workers"]))
    busy = [(worker, task) for worker in seen["workers"] for task in running(worker)]
    if busy:
        tables.append(_running(busy))
    if seen["dead"]:
        tables.append(_dead(seen["dead"]))
    hints = [Text(f"\n{hint}", style="yellow") for hint in _hints(seen, url)]
    spaced = [Padding(table, (1, 0, 0, 0), expand=False) for table in tables]
    return Group(Text(seen["store"], style="dim"), *spaced, *hints)


def _queues(queues: Sequence[dict[str, Any]]) -> Table:
    shown = table("queue", "scheduled", "ready", "running", "dead", "workers")
    for queue in queues:
        numbers = [queue["scheduled"], queue["ready"], queue["running"], queue["dead"], len(queue["workers"])]
        name = Text(queue["queue"])
        if queue["paused"]:
            name.append(" paused", style="yellow")
        shown.add_row(name, *(f"{number:,}" for number in numbers))
    return shown


def _workers(workers: Sequence[dict[str, Any]]) -> Table:
    shown = table("worker", "host", "pid", "mode", "processes", "up")
    for worker in workers:
        about = [str(worker.get(name, "?")) for name in ("host", "pid", "mode", "processes")]
        shown.add_row(short(worker["worker"]), *about, up(worker))
    return shown


def _running(busy: Sequence[tuple[dict[str, Any], Mapping[str, Any]]]) -> Table:
    shown = table("running now", "queue", "function", "for", "worker")
    for worker, task in sorted(busy, key=lambda pair: -_age(pair[1])):
        shown.add_row(
            str(task.get("id", "?")),
            str(task.get("queue", "?")),
            str(task.get("func", "?")),
            lasting(task.get("for", 0.0)),
            short(worker["worker"]),
        )
    return shown


def _age(task: Mapping[str, Any]) -> float:
    seconds = task.get("for")
    return seconds if is_number(seconds) else 0.0


def _dead(dead: Sequence[dict[str, Any]]) -> Table:
    shown = table("dead", "queue", "function", "reason")
    for letter in dead:
        shown.add_row(str(letter["id"]), letter["queue"], letter["func"], first_line(letter["reason"]))
    return shown


def _hints(seen: dict[str, Any], url: str | None) -> list[str]:
    """What somebody who looks should do."""
    where = " --url …" if url else ""  # not the URL itself: it may hold a password
    paused = [
        f"{queue['queue']!r} is paused: `delayed resume {queue['queue']}{where}` lets its tasks run again"
        for queue in seen["queues"]
        if queue["paused"]
    ]
    return paused + [
        f"{plural(queue['ready'], 'task')} in {queue['queue']!r} and no worker: "
        f"start one with `delayed worker --queue {queue['queue']}{where}`"
        for queue in seen["queues"]
        if queue["ready"] and not queue["workers"]
    ]
