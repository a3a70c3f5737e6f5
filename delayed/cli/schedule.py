"""``delayed schedule``: which periodic tasks a module has, and when they come next."""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from typing import Any

import click

from delayed import schedules
from delayed.cli.common import duration, start_log, url_option
from delayed.cli.discover import DiscoveryError, discover
from delayed.cli.tables import console, table
from delayed.errors import BrokerError, ConfigError
from delayed.queue import Queue
from delayed.schedule import Schedule


@click.command(
    epilog="""\b
Examples:
  delayed schedule app
  delayed schedule --queue mails --url redis://localhost
  delayed schedule app --json | jq -r '.[].next'
""",
)
@click.argument("module", required=False)
@click.option("--queue", "names", multiple=True, metavar="NAME", help="What is scheduled in this queue; repeatable.")
@url_option
@click.option("--json", "as_json", is_flag=True, help="One JSON list, with times in UTC.")
def schedule(module: str | None, names: tuple[str, ...], url: str | None, as_json: bool) -> None:
    """Show the periodic tasks of MODULE, and what programs have scheduled in its queues, the next one first. A worker
    of MODULE enqueues them, if one runs.
    """
    if module is None and not names:
        raise click.UsageError("name a module, or queues with --queue")
    queues = [Queue(name, url) for name in names]
    if module is not None:
        queues += _queues_of(module)
    start_log("error", "text")  # of what can't be read
    now = time.time()
    found: list[dict[str, Any]] = []
    for queue in queues:
        for one in (*queue.declared_schedules(), *_stored(queue)):
            rule = one.ticks()
            function = one.fields["func"]
            found.append(
                {
                    "next": rule.after(now),
                    "rule": str(rule),
                    "name": one.name,
                    "function": function,
                    "queue": queue.name,
                }
            )
    found.sort(key=lambda each: float(each["next"]))
    if as_json:
        for each in found:
            each["next"] = datetime.datetime.fromtimestamp(each["next"], datetime.UTC).isoformat()
        click.echo(json.dumps(found, indent=2))
        return
    if not found:
        whose = module or ", ".join(names)
        click.echo(
            f"{whose} has no periodic tasks; @delayed(queue).every('5m') makes one, and so does queue.schedule()"
        )
        return
    named = any(each["name"] != each["function"] for each in found)
    shown = table("next", "in", "rule", *(["name"] if named else []), "function", "queue")
    for each in found:
        moment = datetime.datetime.fromtimestamp(each["next"]).astimezone()
        name = each["name"] if each["name"] != each["function"] else ""
        shown.add_row(
            moment.strftime("%a %d %b %H:%M:%S %Z"), duration(each["next"] - now), each["rule"],
            *([name] if named else []), each["function"], each["queue"],
        )  # fmt: skip
    console().print(shown)


def _queues_of(module: str) -> list[Queue]:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return [Queue.from_spec(spec) for spec in discover(module)]
    except DiscoveryError as error:
        raise ConfigError(str(error)) from error


def _stored(queue: Queue) -> list[Schedule]:
    """What is scheduled in the store; without it the rest is shown."""
    try:
        return schedules.load(queue)
    except BrokerError as error:
        click.echo(f"what is scheduled in {queue.name!r} can't be read: {error}", err=True)
        return []
