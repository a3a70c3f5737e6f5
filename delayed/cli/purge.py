"""``delayed purge``: remove tasks that nobody shall run."""

from __future__ import annotations

from typing import cast

import click

from delayed.brokers import Broker
from delayed.cli.common import agreed, check_name, open_broker, plural, url_option
from delayed.letters import matcher, walk
from delayed.message import State

PURGEABLE: tuple[State, ...] = ("scheduled", "ready", "dead")


@click.command(
    epilog="""\b
Examples:
  delayed purge mails
  delayed purge mails --state dead --yes
  delayed purge mails --function 'app.newsletters.*'
""",
)
@click.argument("queue")
@click.option(
    "--state",
    "chosen",
    type=click.Choice(PURGEABLE),
    multiple=True,
    help="Only tasks in this state; repeatable. [default: all of them]",
)
@click.option(
    "--function",
    metavar="PATTERN",
    help="Only tasks of these functions, such as 'app.mails.*'. All are looked through, which takes its time.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@url_option
def purge(queue: str, chosen: tuple[str, ...], function: str | None, yes: bool, url: str | None) -> None:
    """Remove the waiting tasks of QUEUE. What runs is left alone."""
    states = cast(tuple[State, ...], chosen) or PURGEABLE
    broker, _ = open_broker(url)
    ids = {state: _ids(broker, queue, state, function) for state in states} if function is not None else {}
    counts = broker.counts(queue)
    by_state = {state: len(ids[state]) if ids else getattr(counts, state) for state in states}
    found = ", ".join(f"{number:,} {state}" for state, number in by_state.items() if number)
    if not found:
        check_name(broker, queue)
        click.echo(f"nothing to remove in {queue!r}")
        return
    total = sum(by_state.values())
    if not yes and not agreed(f"Remove {plural(total, 'task')} ({found}) of {queue!r} in {broker!r}?", "removed"):
        click.echo("nothing removed")
        return
    if ids:
        removed = sum(broker.remove(queue, id) for each in ids.values() for id in each)
    else:
        removed = broker.purge(queue, states)
    click.echo(f"{plural(removed, 'task')} removed")


def _ids(broker: Broker, queue: str, state: State, function: str) -> list[int]:
    """The tasks of the functions that are meant."""
    matches = matcher(function)
    return [entry.message.id for entry in walk(broker, queue, state) if matches(entry)]
