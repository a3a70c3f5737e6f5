"""``delayed schedule``: which periodic tasks a module has, and when they come next."""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from typing import Any

import click

from delayed.cli.common import duration
from delayed.cli.discover import DiscoveryError, discover
from delayed.cli.tables import console, table
from delayed.errors import ConfigError
from delayed.schedule import Schedule


@click.command(
    epilog="""\b
Examples:
  delayed schedule app
  delayed schedule app --json | jq -r '.[].next'
""",
)
@click.argument("module")
@click.option("--json", "as_json", is_flag=True, help="One JSON list, with times in UTC.")
def schedule(module: str, as_json: bool) -> None:
    """Show the periodic tasks of MODULE, the next one first. A worker of MODULE enqueues them, if one runs."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        queues = discover(module)
    except DiscoveryError as error:
        raise ConfigError(str(error)) from error
    now = time.time()
    found: list[dict[str, Any]] = []
    for queue in queues:
        for data in queue["schedules"]:
            one = Schedule.from_data(data)
            rule = one.ticks()
            found.append({"next": rule.after(now), "rule": str(rule), "function": one.name, "queue": queue["name"]})
    found.sort(key=lambda each: float(each["next"]))
    if as_json:
        for each in found:
            each["next"] = datetime.datetime.fromtimestamp(each["next"], datetime.UTC).isoformat()
        click.echo(json.dumps(found, indent=2))
        return
    if not found:
        click.echo(f"{module} has no periodic tasks; @delayed(queue).every('5m') makes one")
        return
    shown = table("next", "in", "rule", "function", "queue")
    for each in found:
        moment = datetime.datetime.fromtimestamp(each["next"]).astimezone()
        shown.add_row(
            moment.strftime("%a %d %b %H:%M:%S %Z"), duration(each["next"] - now), each["rule"], each["function"],
            each["queue"],
        )  # fmt: skip
    console().print(shown)
