"""What the commands that act on running tasks share: finding one, and saying that nobody answers for it."""

from __future__ import annotations

import click

from delayed.brokers import Broker
from delayed.cli.common import check_name
from delayed.message import Entry


def find(broker: Broker, id: int, queue: str | None) -> tuple[str, Entry]:
    """The queue and the entry of the task that an id means.

    Args:
        queue: where to look; None looks everywhere.

    Raises:
        ClickException: When there is none, or, in a store with several queues, more than one.
    """
    if queue is not None:
        check_name(broker, queue)
    names = broker.queues()
    found = [(name, entry) for name in names if (entry := broker.get(name, id)) is not None]
    for name, entry in found:
        if queue in (None, name) and (queue or len(found) == 1):
            return name, entry
    where = " and ".join(repr(name) for name, _ in found)
    if queue is not None and found:
        raise click.ClickException(f"{queue!r} has no task {id}, but {where} has: choose it with --queue")
    if found:
        raise click.ClickException(f"there is a task {id} in {where}: choose one with --queue")
    looked = repr(queue) if queue is not None else f"any of the {len(names)} queues of {broker!r}"
    raise click.ClickException(
        f"no task {id} in {looked}: it has ended, was removed, or is in another store (--url, DELAYED_URL)"
    )


def nobody(entry: Entry) -> click.ClickException:
    """The error for a task whose worker does not answer."""
    return click.ClickException(
        f"{entry.worker}, which has task {entry.message.id}, does not answer: it has died, can't reach the store, or "
        f"took the task with Queue.dequeue(). Its lease ends in {max(entry.due, 0.0):.0f} s, unless it is renewed"
    )
