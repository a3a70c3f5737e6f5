"""``delayed inspect``: which tasks there are, and all that is known of one."""

from __future__ import annotations

from itertools import islice
from typing import cast

import click

from delayed.brokers import Broker
from delayed.cli.common import check_name, open_broker, url_option
from delayed.cli.entries import print_list, print_one, queues_in
from delayed.cli.orders import find
from delayed.letters import matcher, walk
from delayed.message import STATES, Entry, State

ORDER: tuple[State, ...] = ("running", "ready", "scheduled", "dead")


@click.command(
    epilog="""\b
Examples:
  delayed inspect                           the tasks of all queues, a few of each state
  delayed inspect mails --state running --state ready
  delayed inspect mails --function 'app.letters.*' --limit 100 --json
  delayed inspect 3717023195136001
  delayed inspect mails 3717023195136001 --arguments app
""",
)
@click.argument("queue", required=False)
@click.argument("id", type=int, required=False)
@click.option(
    "--state", "chosen", type=click.Choice(STATES), multiple=True, help="Only these; repeatable. [default: all of them]"
)
@click.option("--function", metavar="PATTERN", help="Only tasks of these functions, such as 'app.mails.*'.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    metavar="N",
    help="How many of each state and queue.",
)
@click.option(
    "--arguments",
    metavar="MODULE",
    help="Show the arguments of task ID as well, decoded as its queue in MODULE says. MODULE is imported here, and to "
    "decode a pickle is to run what its producer put into it.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON list, or of one task an object.")
@url_option
def inspect(
    queue: str | None,
    id: int | None,
    chosen: tuple[str, ...],
    function: str | None,
    limit: int,
    arguments: str | None,
    as_json: bool,
    url: str | None,
) -> None:
    """List the tasks of QUEUE in the order in which they will be served, or show all that is known of task ID.

    Without QUEUE: of all queues of the store.
    """
    if arguments is not None and id is None:  # of a module there may be several queues
        raise click.UsageError("--arguments goes with the ID of one task")
    broker = broker_of(queue, arguments, url)
    if queue is not None and id is None and queue.isdecimal() and queue not in broker.queues():
        id, queue = int(queue), None
    if id is not None:
        print_one(*find(broker, id, queue), arguments, as_json=as_json)
        return
    if queue is not None:
        check_name(broker, queue)
    matches = matcher(function)
    found: list[tuple[str, Entry]] = []
    for name in [queue] if queue is not None else broker.queues():
        for state in cast(tuple[State, ...], chosen) or ORDER:
            wanted = filter(matches, walk(broker, name, state))
            found += [(name, entry) for entry in islice(wanted, limit)]
    if not found and not as_json:
        click.echo("no such task" if queue is None else f"no such task in {queue!r}")
        return
    print_list(found, as_json=as_json)


def broker_of(queue: str | None, module: str | None, url: str | None) -> Broker:
    """The store: that of a queue in a module, if one is given."""
    if module is None:
        return open_broker(url)[0]
    if url is not None:
        raise click.UsageError("--url and --arguments: the queue of a module has its store already")
    return queues_in(module, queue)[0].broker
