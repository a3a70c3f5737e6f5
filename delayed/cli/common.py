"""What several commands share: options, opening the store with patience, and formats for people."""

from __future__ import annotations

import contextlib
import difflib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

import click

from delayed.brokers import Broker, broker_for
from delayed.errors import BrokerUnavailable, ConfigError
from delayed.logger import setup_logger
from delayed.sizes import size_of

PATIENCE = 3.0  # seconds a command tries to reach the store before it gives up

F = TypeVar("F", bound=Callable[..., Any])

url_option = click.option(
    "--url",
    metavar="URL",
    help="The store, such as redis://localhost:6379 or sqlite:///tasks.db. [default: DELAYED_URL or ./delayed.db]",
)


def log_options(command: F) -> F:
    """The options ``--log-level`` and ``--log-format``, for :func:`start_log`."""
    levels = click.Choice(["debug", "info", "warning", "error"], case_sensitive=False)
    command = click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)(
        command
    )
    return click.option("--log-level", type=levels, default="info", show_default=True)(command)


def start_log(level: str, format: str) -> None:
    setup_logger(level.upper(), as_json=format == "json")


def open_broker(url: str | None) -> tuple[Broker, list[str]]:
    """The broker of `url`, once it has answered, and its warnings; see :func:`reach`."""
    broker = broker_for(url)
    return broker, reach(broker)


def reach(broker: Broker, patience: float = PATIENCE) -> list[str]:
    """Wait until the store answers.

    Returns:
        Its warnings about the store's settings.

    Raises:
        BrokerUnavailable: When it has not answered after `patience` seconds and at least two tries.
    """
    deadline = time.monotonic() + patience
    pause = 0.1  # seconds, doubled each time
    tries = 0
    while True:
        tries += 1
        try:
            return broker.check()
        except BrokerUnavailable as error:
            if tries > 1 and time.monotonic() + pause > deadline:
                raise BrokerUnavailable(f"can't reach {broker!r}: {error} ({tries} tries)", sent=False) from error
        time.sleep(pause)
        pause *= 2


def check_name(broker: Broker, queue: str) -> None:
    """Refuse the name of a queue that never had a task, which is mistyped.

    Raises:
        ConfigError: With the names that there are.
    """
    names = broker.queues()
    if queue not in names:
        near = difflib.get_close_matches(queue, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(map(repr, names)) or 'none'}"
        raise ConfigError(f"{broker!r} has no queue {queue!r}; {hint}")


@contextlib.contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on SIGTERM and SIGINT while the block runs."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop()

    old = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def agreed(question: str, done: str) -> bool:
    """Ask.

    Args:
        done: what is done to the tasks, such as ``removed``: nothing is, if there is nobody to answer.
    """
    try:
        return click.confirm(question)
    except click.Abort:  # there is nobody to answer, or he typed Ctrl-C
        raise click.ClickException(f"nothing {done}; to do it without a question, add --yes") from None


class Size(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # newer clicks have it generic
    """A number of bytes, see :func:`delayed.sizes.size_of`: ``800000``, ``512M``, ``2G``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return size_of("it", value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def plural(number: int, noun: str) -> str:
    """``1 task``, ``2 tasks``, ``2 processes``."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    whole = int(seconds)
    for unit, size, below, small in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small} {below}"
    return f"{whole} s"
