"""``delayed stack``: where in its code a running task is."""

from __future__ import annotations

import time

import click

from delayed.cli.common import open_broker, url_option
from delayed.cli.orders import find, nobody
from delayed.orders import LOOK, Order

PATIENCE = 15.0  # seconds for a worker to answer


@click.command(
    epilog="""\b
Examples:
  delayed stack 3717023195136001
  delayed stack 3717023195136001 --queue mails
""",
)
@click.argument("id", type=int)
@click.option("--queue", metavar="NAME", help="Where to look. [default: in all queues of the store]")
@url_option
def stack(id: int, queue: str | None, url: str | None) -> None:
    """Print the Python stacks of the running task ID, the innermost call first. The task goes on."""
    broker, _ = open_broker(url)
    name, entry = find(broker, id, queue)
    if entry.state != "running":
        raise click.ClickException(f"task {id} {entry.message.func} does not run: it is {entry.state}")
    order = Order(broker, entry.worker, name, "stack", id)
    deadline = time.monotonic() + PATIENCE
    while (reply := order.reply()) is None:
        if time.monotonic() >= deadline:
            raise nobody(entry)
        time.sleep(LOOK)
    if not reply["done"]:
        raise click.ClickException(f"task {id} {entry.message.func}: {reply['text']}")
    click.echo(reply["text"])
