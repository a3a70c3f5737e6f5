"""``delayed dead``: look at dead letters, let them run again, or drop them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, TypeVar

import click

from delayed.brokers import Broker
from delayed.cli.common import agreed, check_name, open_broker, plural, url_option
from delayed.cli.entries import print_list, print_one
from delayed.cli.inspect import broker_of
from delayed.letters import PAGE, matcher, walk

F = TypeVar("F", bound=Callable[..., Any])


@click.group(
    epilog="""\b
Examples:
  delayed dead list mails --reason ConnectionError
  delayed dead show mails 3717023195136001
  delayed dead requeue mails 3717023195136001 3717023195136002
  delayed dead requeue mails --function 'app.letters.*' --yes
  delayed dead drop mails --all
""",
)
def dead() -> None:
    """Look at dead letters, let them run again, or drop them.

    Dead letters are what no worker could run, and, where a queue asks for it, tasks that failed for good.
    """


def filters(command: F) -> F:
    """The options that choose among letters."""
    reason = click.option("--reason", metavar="TEXT", help="Only those whose reason has this text in it.")
    function = click.option(
        "--function", metavar="PATTERN", help="Only those of these functions, such as 'app.mails.*'."
    )
    return function(reason(command))


@dead.command("list")
@click.argument("queue")
@filters
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, metavar="N", help="How many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON list, with the whole reasons.")
@url_option
def list_(queue: str, function: str | None, reason: str | None, limit: int, as_json: bool, url: str | None) -> None:
    """List the dead letters of QUEUE, newest first."""
    broker, _ = open_broker(url)
    check_name(broker, queue)
    wanted = filter(matcher(function, reason), walk(broker, queue, "dead"))
    found = [(queue, entry) for entry in islice(wanted, limit)]
    if not found and not as_json:
        click.echo(f"no such dead letter in {queue!r}")
        return
    print_list(found, as_json=as_json)


@dead.command()
@click.argument("queue")
@click.argument("id", type=int)
@click.option(
    "--arguments",
    metavar="MODULE",
    help="Show its arguments as well, decoded as its queue in MODULE says. MODULE is imported here, and to decode a "
    "pickle is to run what its producer put into it.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@url_option
def show(queue: str, id: int, arguments: str | None, as_json: bool, url: str | None) -> None:
    """Show all that is known of the dead letter ID: verdict, traceback or stack, settings."""
    broker = broker_of(queue, arguments, url)
    check_name(broker, queue)
    entry = broker.get(queue, id)
    if entry is None or entry.state != "dead":
        is_now = "there is no such task" if entry is None else f"it is {entry.state}"
        raise click.ClickException(f"{queue!r} has no dead letter {id}: {is_now}")
    print_one(queue, entry, arguments, as_json=as_json)


@dead.command()
@click.argument("queue")
@click.argument("ids", metavar="[ID]...", type=int, nargs=-1)
@filters
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@url_option
def requeue(queue: str, ids: tuple[int, ...], url: str | None, **chosen: Any) -> None:
    """Let dead letters of QUEUE run again, behind what waits, as if they had just been enqueued.

    They keep their ids and arguments, and have all of their retries again.
    """
    broker, _ = open_broker(url)
    _change(broker, broker.revive, queue, ids, "Requeue", "requeued", **chosen)


@dead.command()
@click.argument("queue")
@click.argument("ids", metavar="[ID]...", type=int, nargs=-1)
@filters
@click.option("--all", "every", is_flag=True, help="All of them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@url_option
def drop(queue: str, ids: tuple[int, ...], url: str | None, **chosen: Any) -> None:
    """Remove dead letters of QUEUE."""
    broker, _ = open_broker(url)
    _change(broker, broker.drop, queue, ids, "Drop", "dropped", **chosen)


def _change(
    broker: Broker,
    change: Callable[[str, Sequence[int]], list[int]],
    queue: str,
    ids: tuple[int, ...],
    verb: str,
    done: str,
    *,
    function: str | None,
    reason: str | None,
    every: bool,
    yes: bool,
) -> None:
    """Change the letters that are named, or chosen, and say how many those were."""
    chooses = every or function is not None or reason is not None
    if bool(ids) == chooses:
        raise click.UsageError("name letters by their ids, or choose with --function, --reason or --all")
    check_name(broker, queue)
    wanted = ids
    if chooses:
        matches = matcher(function, reason)
        wanted = tuple(entry.message.id for entry in walk(broker, queue, "dead") if matches(entry))[::-1]
        if not wanted:
            click.echo(f"no such dead letter in {queue!r}")
            return
        question = f"{verb} {plural(len(wanted), 'dead letter')} of {queue!r} in {broker!r}?"
        if not yes and not agreed(question, done):
            click.echo(f"nothing {done}")
            return
    changed = [id for at in range(0, len(wanted), PAGE) for id in change(queue, wanted[at : at + PAGE])]
    click.echo(f"{plural(len(changed), 'dead letter')} {done}")
    missing = set(ids).difference(changed)
    if missing:
        raise click.ClickException(f"{queue!r} has no dead letter {', '.join(map(str, sorted(missing)))}")
