"""``delayed stop``: send the workers of a queue home, wherever they are."""

from __future__ import annotations

import contextlib
import time

import click

from delayed.cli.common import check_name, open_broker, plural, url_option
from delayed.cli.tables import console
from delayed.orders import LOOK, Order


@click.command(
    epilog="""\b
Examples:
  delayed stop mails
  delayed stop mails --no-wait
""",
)
@click.argument("queue")
@click.option("--no-wait", is_flag=True, help="Ask them, and leave.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until they have left.",
)
@url_option
def stop(queue: str, no_wait: bool, timeout: float, url: str | None) -> None:
    """Ask all workers of QUEUE to stop, as SIGTERM does: take nothing more, finish what runs, leave.

    A worker may serve other queues too. Those of `delayed worker --workers N` are not started again; a service manager
    may start others.
    """
    broker, _ = open_broker(url)
    asked = {worker.worker: Order(broker, worker.worker, queue, "stop") for worker in broker.workers(queue)}
    if not asked:
        check_name(broker, queue)
        click.echo(f"no worker serves {queue!r}")
        return
    for order in asked.values():
        order.reply()
    click.echo(f"{plural(len(asked), 'worker')} of {queue!r} asked to stop")
    if no_wait:
        return
    deadline = time.monotonic() + timeout
    screen = console(stderr=True)
    watch = screen.status("") if screen.is_terminal else contextlib.nullcontext()
    with watch as status:
        while left := [worker.worker for worker in broker.workers(queue) if worker.worker in asked]:
            if status is not None:
                status.update(f"{len(asked) - len(left)} of {len(asked)} have left")
            if time.monotonic() >= deadline:
                raise click.ClickException(
                    f"after {timeout:g} s {len(left)} of {len(asked)} are still there, and may finish what runs: "
                    + ", ".join(left)
                )
            for worker in left:
                asked[worker].reply()  # asks again, should the order have been lost
            time.sleep(LOOK)
    click.echo(f"{plural(len(asked), 'worker')} left")
