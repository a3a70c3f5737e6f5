"""``delayed workers``: who works, where, and at what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from delayed.cli.common import check_name, open_broker, url_option
from delayed.cli.status import look
from delayed.cli.tables import console, lasting, running, short, table, up


@click.command(
    epilog="""\b
Examples:
  delayed workers
  delayed workers mails
  delayed workers --json | jq '.[].running[] | select(.for > 60)'
""",
)
@click.argument("queue", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@url_option
def workers(queue: str | None, as_json: bool, url: str | None) -> None:
    """Show the workers and what they run now. Without QUEUE: of all queues of the store."""
    broker, _ = open_broker(url)
    found = look(broker, [queue] if queue else [])["workers"]
    if as_json:
        click.echo(json.dumps(found, indent=2, default=repr))
        return
    if not found:
        if queue:
            check_name(broker, queue)
        click.echo(f"no worker serves {repr(queue) if queue else 'a queue'} of {broker!r}")
        return
    shown = table("worker", "host", "pid", "mode", "queues", "up", "running now")
    for worker in found:
        cells = [str(worker.get(name, "?")) for name in ("host", "pid", "mode")]
        names = worker.get("queues", [])
        queues = ", ".join(map(str, names)) if isinstance(names, (list, tuple)) else "?"
        tasks = "\n".join(_line(task) for task in running(worker))
        leaving = "stopping" if worker.get("stopping") else ""
        shown.add_row(short(worker["worker"]), *cells, queues, up(worker), tasks or leaving or "nothing")
    console().print(shown)


def _line(task: Mapping[str, Any]) -> str:
    return f"{task.get('id', '?')} {task.get('func', '?')} for {lasting(task.get('for', 0.0))}"
