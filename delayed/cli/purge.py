"""``delayed purge``: remove tasks that nobody shall run."""

from __future__ import annotations

from typing import cast

import click

from delayed.cli.common import check_name, open_broker, plural, url_option
from delayed.message import State

PURGEABLE: tuple[State, ...] = ("scheduled", "ready", "dead")


@click.command(
    epilog="""\b
Examples:
  delayed purge mails
  delayed purge mails --state dead --yes
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
@click.option("--yes", is_flag=True, help="Do not ask.")
@url_option
def purge(queue: str, chosen: tuple[str, ...], yes: bool, url: str | None) -> None:
    """Remove the waiting tasks of QUEUE. What runs is left alone."""
    states = cast(tuple[State, ...], chosen) or PURGEABLE
    broker, _ = open_broker(url)
    counts = broker.counts(queue)
    by_state = {state: getattr(counts, state) for state in states}
    found = ", ".join(f"{number:,} {state}" for state, number in by_state.items() if number)
    if not found:
        check_name(broker, queue)
        click.echo(f"nothing to remove in {queue!r}")
        return
    total = sum(by_state.values())
    if not yes and not _agreed(f"Remove {plural(total, 'task')} ({found}) of {queue!r} in {broker!r}?"):
        click.echo("nothing removed")
        return
    click.echo(f"{plural(broker.purge(queue, states), 'task')} removed")


def _agreed(question: str) -> bool:
    try:
        return click.confirm(question)
    except click.Abort:  # there is nobody to answer, or he typed Ctrl-C
        raise click.ClickException("nothing removed; to remove without a question, add --yes") from None
