"""``delayed pause``: keep workers from taking tasks, for a while."""

from __future__ import annotations

import click

from delayed.cli.common import check_name, open_broker, url_option


@click.command(
    epilog="""\b
Examples:
  delayed pause mails
  delayed pause mails letters
""",
)
@click.argument("queues", metavar="QUEUE...", nargs=-1, required=True)
@url_option
def pause(queues: tuple[str, ...], url: str | None) -> None:
    """Let no worker take tasks from QUEUE. What runs goes on, and what is enqueued waits."""
    broker, _ = open_broker(url)
    for queue in queues:
        check_name(broker, queue)
    for queue in queues:
        broker.pause(queue)
        click.echo(f"{queue!r} is paused; still running: {broker.counts(queue).running:,}")
