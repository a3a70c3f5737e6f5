"""``delayed sweeper``: returns lost tasks to their queues, beside workers started with ``--no-sweep``."""

from __future__ import annotations

import click

from delayed.brokers.base import SWEEP_INTERVAL
from delayed.cli.common import log_options, reach, start_log, stopped_by_signals, url_option
from delayed.logger import logger
from delayed.queue import Queue
from delayed.sweeper import Sweeper


@click.command(
    epilog="""\b
Examples:
  delayed sweeper
  delayed sweeper --queue mails --queue default --url redis://localhost:6379
""",
)
@click.option(
    "--queue", "names", multiple=True, default=("default",), show_default=True, metavar="NAME", help="Repeatable."
)
@url_option
@click.option(
    "--interval",
    type=click.FloatRange(min=0, min_open=True),
    default=SWEEP_INTERVAL,
    show_default=True,
    metavar="SECONDS",
    help="The time from one sweep to the next.",
)
@log_options
def sweeper(names: tuple[str, ...], url: str | None, interval: float, log_level: str, log_format: str) -> None:
    """Return lost tasks to their queues.

    Every worker does that too, unless it was told not to; any number of sweepers may run at once.
    """
    start_log(log_level, log_format)
    queues = [Queue(name, url) for name in dict.fromkeys(names)]
    for warning in reach(queues[0].broker):
        logger.warning("%s", warning)
    sweeping = Sweeper(queues=queues, interval=interval)
    logger.info("sweeping %s on %r", ", ".join(queue.name for queue in queues), queues[0].broker)
    with stopped_by_signals(sweeping.stop):
        sweeping.run()
    logger.info("sweeper stopped")
