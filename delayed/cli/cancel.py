"""``delayed cancel``: keep a task from running, or stop it."""

from __future__ import annotations

import time

import click

from delayed.brokers import Broker
from delayed.cli.common import open_broker, url_option
from delayed.cli.orders import LOOK, Order, find, nobody
from delayed.message import Entry

LAST_WORDS = 1.0  # seconds that the reply of a worker may come after the end of its task


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
    click.echo(f"task {id} {entry.message.func}: " + _cancel(broker, name, entry, time.monotonic() + timeout))


def _cancel(broker: Broker, queue: str, entry: Entry, deadline: float) -> str:
    """Cancel a task; what became of it, in words."""
    id = entry.message.id
    order: Order | None = None
    while True:
        if entry.state != "running" and broker.remove(queue, id):
            return f"removed from {queue!r}, where it was {entry.state}"
        if entry.state == "running" and (order is None or order.worker != entry.worker):
            order = Order(broker, entry.worker, queue, "cancel", id)
        reply = order.reply() if order is not None else None
        if reply is not None and reply["done"]:
            return str(reply["text"])
        if reply is not None:  # it did not have it, or not any more: look who has
            order = None
        if time.monotonic() >= deadline:
            raise nobody(entry)
        time.sleep(LOOK)
        found = broker.get(queue, id)
        if found is None:
            return _last_words(order)
        entry = found


def _last_words(order: Order | None) -> str:
    """What the worker says of a task that is gone."""
    end = time.monotonic() + LAST_WORDS
    while order is not None and time.monotonic() < end:
        reply = order.reply()
        if reply is not None and reply["done"]:
            return str(reply["text"])
        time.sleep(LOOK)
    raise click.ClickException("it has ended by itself before it could be stopped")
