"""``delayed resume``: end a pause."""

from __future__ import annotations

import click

from delayed.cli.common import check_name, open_broker, url_option


@click.command(
    epilog="""\b
Examples:
  delayed resume mails
  delayed resume mails letters
""",
)
@click.argument("queues", metavar="QUEUE...", nargs=-1, required=True)
@url_option
def resume(queues: tuple[str, ...], url: str | None) -> None:
    """Let workers take tasks from a paused QUEUE again."""
    broker, _ = open_broker(url)
    for queue in queues:
        check_name(broker, queue)
    for queue in queues:
        broker.resume(queue)
        click.echo(f"{queue!r} is not paused any more")
