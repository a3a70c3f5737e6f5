"""``delayed replay``: run a task here, to see what is wrong with it."""

from __future__ import annotations

import os
import time
import traceback
from types import TracebackType

import click

from delayed import context
from delayed.cli.app import FAILED, OK
from delayed.cli.entries import queues_in
from delayed.errors import DecodeError, NotAllowed, TaskError
from delayed.message import Ref
from delayed.task import Task


class Replayed(context.Run):
    """A run that nobody has claimed: it has no end to commit."""

    __slots__ = ()

    def go(self, state: int) -> None:
        raise TaskError(
            "current.transaction() is not to be had in a replay: it would end the task in the store, and a replay "
            "leaves that as it is"
        )


@click.command(
    epilog="""\b
Examples:
  delayed replay app 3717023195136001
  delayed replay app 3717023195136001 --pdb     look around where it raises
""",
)
@click.argument("module")
@click.argument("id", type=int)
@click.option("--queue", metavar="NAME", help="Which queue of MODULE. [default: that which has it]")
@click.option("--pdb", is_flag=True, help="Open the debugger where it raises.")
def replay(module: str, id: int, queue: str | None, pdb: bool) -> int:
    """Run the task ID here, once more or before its time, and show what it returns or raises.

    MODULE is imported into this process, and has the task's queue. The task is decoded as a worker would, but not
    claimed: it stays in the store as it is. It has no time limit, and what it does elsewhere it does.
    """
    queues = queues_in(module, queue)
    having = [(each, entry) for each in queues if (entry := each.broker.get(each.name, id)) is not None]
    if not having:
        names = " or ".join(repr(each.name) for each in queues)
        raise click.ClickException(
            f"no task {id} in {names}: it has ended; a queue with dead_letters=True keeps those that failed"
        )
    if len(having) > 1:
        raise click.ClickException(
            f"there is a task {id} in {' and '.join(repr(each.name) for each, _ in having)}: choose one with --queue"
        )
    found, entry = having[0]
    if entry.state == "running":
        click.echo(f"task {id} runs also in {entry.worker}, now", err=True)
    try:
        task = Task.from_message(found.codec.open(entry.message, entry.header), found.codec)
    except (DecodeError, NotAllowed) as error:
        raise click.ClickException(f"no worker would run it: {error}") from error
    ref = Ref(found.name, id, entry.delivery, 0)
    context.run = Replayed(
        entry.message, ref, entry.attempt + 1, time.monotonic(), found.broker.spec(), lambda *_: None
    )
    click.echo(f"{task} runs here, in process {os.getpid()}", err=True)
    begun = time.monotonic()
    try:
        result = task.run()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        error.__traceback__ = _its_own(error.__traceback__)
        traceback.print_exception(error)
        if pdb:
            _debug(error.__traceback__)
        return FAILED
    finally:
        context.run = None
    click.echo(f"returned after {time.monotonic() - begun:.3g} s: {result!r}")
    return OK


def _its_own(place: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames that called the task, if there are others."""
    own = place
    while own is not None and own.tb_frame.f_globals.get("__name__", "").startswith("delayed."):
        own = own.tb_next
    return own or place


def _debug(place: TracebackType | None) -> None:
    """Open the debugger where the task raised, or where it was called if it never began."""
    import pdb

    pdb.post_mortem(place)
