"""``delayed cancel``: keep a task from running, or stop it."""

from __future__ import annotations

import time

import click

from delayed import orders
from delayed.cli.common import open_broker, url_option
from delayed.cli.orders import find, nobody


@click.command(
    epilog="""\b
Examples:
  delayed cancel 3717023195136001
  delayed cancel 3717023195136001 --queue mails
""",
)
@click.argument("id", type=int)
@click.option("--queue", metavar="NAME", help="Where to look. [default: in all queues of the store]")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the end of a task that runs.",
)
@url_option
def cancel(id: int, queue: str | None, timeout: float, url: str | None) -> None:
    """Remove the task ID if it waits. If it runs, stop it: softly, after the worker's kill timeout by SIGKILL.

    It is not tried again.
    """
    broker, _ = open_broker(url)
    name, entry = find(broker, id, queue)
    done, words = orders.cancel(broker, name, entry, time.monotonic() + timeout)
    if done is None:
        raise nobody(broker.get(name, id) or entry)
    if not done:
        raise click.ClickException(words)
    click.echo(f"task {id} {entry.message.func}: {words}")
