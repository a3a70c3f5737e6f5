"""How tasks in a store are shown, by `delayed inspect` and `delayed dead`."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.text import Text

from delayed.attempts import Attempt, attempts_of
from delayed.cli.common import duration
from delayed.cli.discover import DiscoveryError, load
from delayed.cli.tables import console, first_line, table
from delayed.compressors import COMPRESSORS
from delayed.errors import ConfigError, DecodeError, NotAllowed
from delayed.message import Entry
from delayed.queue import Queue
from delayed.serializers import SERIALIZERS
from delayed.shown import call_shown
from delayed.task import Task
from delayed.worker.verdict import printable

_SEALS = {0: "", 1: ", signed", 2: ", encrypted"}
# The settings of a task that are shown if it has them, with their names in a message.
_SETTINGS = (
    "timeout", "priority", "delay", "retry", "max_deliveries", "key", "trace", "limits", "gates", "keep", "expires",
    "exclusive", "extra",
)  # fmt: skip


def about(queue: str, entry: Entry) -> dict[str, Any]:
    """What is known of a task without decoding its payload, as plain data."""
    message = entry.message
    told: dict[str, Any] = {
        "queue": queue,
        "id": message.id,
        "function": message.func,
        "state": entry.state,
        "attempt": entry.attempt,
        "deliveries": entry.delivery,
        "enqueued_at": message.enqueued_at or None,
    }
    if entry.state in ("scheduled", "running"):
        told["due"] = round(entry.due, 3)
    if entry.worker:
        told["worker"] = entry.worker
    if entry.state == "dead":
        told |= {"died": round(entry.died, 3), "reason": entry.reason}
    return told


def settings(entry: Entry) -> dict[str, Any]:
    """The settings of a task that differ from what they are by default."""
    plain = type(entry.message)(id=0, func="", payload=b"")
    return {
        name: _as_written(value)
        for name in _SETTINGS
        if (value := getattr(entry.message, name)) != getattr(plain, name)
    }


def _as_written(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def print_list(found: Sequence[tuple[str, Entry]], *, as_json: bool) -> None:
    """One line for each task, or all as one JSON list."""
    if as_json:
        click.echo(json.dumps([about(queue, entry) for queue, entry in found], indent=2, default=repr))
        return
    queues = len({queue for queue, _ in found}) > 1
    dead = any(entry.state == "dead" for _, entry in found)
    states = len({entry.state for _, entry in found}) > 1
    # Who can do without a column has more room for the others.
    columns = ["id", "queue" * queues, "state" * states, "function", "attempt", "deliveries", "age", "when"]
    shown = table(*filter(None, [*columns, "reason" * dead]))
    for queue, entry in found:
        cells = [str(entry.message.id), queue if queues else None, entry.state if states else None, entry.message.func]
        cells += [str(entry.attempt), str(entry.delivery), _age(entry), _when(entry)]
        cells += [first_line(entry.reason) if dead else None]
        shown.add_row(*(Text(cell) for cell in cells if cell is not None))
    console().print(shown)


def print_one(queue: str, entry: Entry, module: str | None, *, as_json: bool) -> None:
    """All that is known of one task.

    Args:
        module: where its queue is; its arguments are decoded as that says, and shown. None: they are not.
    """
    arguments = arguments_of(queue, entry, module) if module is not None else None
    payload = _payload(entry.message.payload)
    if as_json:
        told = about(queue, entry) | {"settings": settings(entry), "payload": payload}
        told["ended"] = [_plain(attempt) for attempt in attempts_of(entry)]
        told |= {} if arguments is None else {"arguments": arguments}
        click.echo(json.dumps(told, indent=2, default=repr))
        return
    message = entry.message
    lines = {
        "task": str(message.id),
        "function": message.func,
        "queue": queue,
        "state": f"{entry.state} {_when(entry)}".rstrip(),
        "attempts": str(entry.attempt),
        "deliveries": str(entry.delivery),
        "enqueued": _moment(message.enqueued_at),
        "worker": entry.worker,
        **{name: value if isinstance(value, str) else json.dumps(value) for name, value in settings(entry).items()},
        "payload": payload,
        "arguments": arguments or "",
    }
    width = max(map(len, lines))
    for name, value in lines.items():
        if value:
            click.echo(f"{name:<{width}}  {value}")
    if message.func == "?":
        click.echo(f"{'header':<{width}}  {entry.header!r}")
    for attempt in attempts_of(entry):
        click.echo(_ended(attempt))
    if entry.reason:
        click.echo(f"\n{entry.reason}")


def _ended(attempt: Attempt) -> str:
    """How an attempt ended, in one line that moves no cursor: the verdict's sentence is printable by itself."""
    ended = attempt.ended.astimezone().isoformat(" ", "seconds") if attempt.ended is not None else ""
    worker = f" ({printable(attempt.worker)})" if attempt.worker else ""
    return f"attempt {attempt.attempt:<4}{ended}  {attempt.verdict}{worker}"


def _plain(attempt: Attempt) -> dict[str, Any]:
    """An attempt as plain data."""
    ended = attempt.ended.timestamp() if attempt.ended is not None else None
    told = attempt.verdict.fields() | {"code": attempt.verdict.kind}
    return {"attempt": attempt.attempt, "ended": ended, "worker": attempt.worker or None, "verdict": told}


def queues_in(module: str, name: str | None = None) -> list[Queue]:
    """The queues of a module, which is imported here.

    Args:
        name: only the one of this name; None: all.

    Raises:
        ConfigError: When it has no such queue, or can't be imported.
    """
    try:
        queues = load(module)
    except DiscoveryError as error:
        for line in error.traceback:
            click.echo(line, err=True)
        raise ConfigError(str(error)) from error
    found = [queue for queue in queues if name in (None, queue.name)]
    if not found:
        names = ", ".join(repr(queue.name) for queue in queues)
        raise ConfigError(f"module {module!r} has no queue {name!r}; it has: {names}")
    return found


def arguments_of(queue: str, entry: Entry, module: str) -> str:
    """The arguments of a task in brief, as its queue in a module decodes them; what is hidden stays hidden."""
    codec = queues_in(module, queue)[0].codec
    try:
        task = Task.from_message(codec.open(entry.message, entry.header), codec)
    except (DecodeError, NotAllowed) as error:
        return f"can't be told: {error}"
    try:
        func = task.function()
    except Exception:  # then no argument is known not to be hidden
        func = None
    return call_shown(func, task.args, task.kwargs)


def _payload(payload: bytes) -> str:
    if len(payload) < 4:
        return f"{len(payload)} bytes"
    _, serializer, compressor, seal = payload[:4]
    packed = f", {COMPRESSORS.name_of_tag(compressor)}" if compressor else ""
    sealed = _SEALS.get(seal, f", flags {seal}")
    return f"{len(payload):,} bytes, {SERIALIZERS.name_of_tag(serializer)}{packed}{sealed}"


def _age(entry: Entry) -> str:
    """For how long it has been in the store, by the clock of its producer and ours."""
    at = entry.message.enqueued_at
    return duration(time.time() - at) if isinstance(at, (int, float)) and at else "?"


def _when(entry: Entry) -> str:
    if entry.state == "scheduled":
        return f"in {duration(entry.due)}"
    if entry.state == "running":
        return f"lease {duration(entry.due)}"
    return f"{duration(entry.died)} ago" if entry.state == "dead" else ""


def _moment(at: object) -> str:
    if not isinstance(at, (int, float)) or not at:
        return ""
    try:
        moment = datetime.datetime.fromtimestamp(at).astimezone()
    except (ValueError, OverflowError, OSError):
        return str(at)
    return f"{moment.isoformat(' ', 'seconds')}, {duration(time.time() - at)} ago"
