"""``delayed migrate``: make a store's tables before its first use, or see how they are made."""

from __future__ import annotations

import click

from delayed.brokers import broker_for
from delayed.cli.common import reach, url_option
from delayed.errors import ConfigError


@click.command(
    epilog="""\b
Examples:
  delayed migrate --url postgresql://owner@localhost/app
  delayed migrate --url postgresql://localhost/app?schema=tasks --print | psql app
""",
)
@click.option("--print", "shown", is_flag=True, help="Only show the SQL, for whoever may run it; nothing is reached.")
@url_option
def migrate(shown: bool, url: str | None) -> None:
    """Make the store's tables, or bring them up to date.

    The first use does so too, where its user may create tables. Workers and producers need no more than USAGE on the
    schema and its sequence, and SELECT, INSERT, UPDATE and DELETE on its tables.
    """
    broker = broker_for(url)
    if not shown:
        reach(broker)
        click.echo(f"{broker!r} is up to date")
        return
    script = broker.schema()
    if script is None:
        raise ConfigError(f"{broker!r} makes what it needs by itself; there is no SQL to run")
    click.echo(script, nl=False)
