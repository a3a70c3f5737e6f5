"""``delayed worker``: a whole system in one command."""

from __future__ import annotations

import difflib
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

import click

from delayed.brokers import DEFAULT_URL
from delayed.cli.common import Size, log_options, reach, start_log, url_option
from delayed.cli.discover import DiscoveryError, discover
from delayed.codec import MAX_SIZE
from delayed.errors import ConfigError
from delayed.logger import logger
from delayed.queue import Queue
from delayed.supervisor import Supervisor
from delayed.version import __version__
from delayed.worker import AsyncWorker, ForkedWorker, PreforkedWorker, ThreadedWorker, Worker, process

WORKERS: dict[str, type[Worker]] = {
    "forked": ForkedWorker,
    "preforked": PreforkedWorker,
    "threaded": ThreadedWorker,
    "async": AsyncWorker,
}
# Options that only one kind of worker has, and which.
ONLY = {"threads": "threaded", "concurrency": "async", "uvloop": "async"}


@click.command(
    epilog="""\b
Examples:
  delayed worker app                         the queues of app.py, in the folder it lies in
  delayed worker shop.tasks --queue mails    only one of its queues
  delayed worker --queue mails --queue rest  by name: mails first, rest when there are none
  delayed worker shop --weights mails=3,rest=1   three of mails for each of rest, when there are both
  delayed worker app --mode preforked --processes 8 --preload app
  delayed worker app --mode async --concurrency 500
  delayed worker app --workers 4             four of them, started again when they die
  delayed worker app --burst                 leave when nothing is left to do
\b
Signals:
  TERM, INT  take nothing more, let what runs finish within --shutdown-timeout; a second one: at once
  HUP        finish what runs, then stop; with --workers: renew them one after another, without a gap
""",
)
@click.argument("module", required=False)
@click.option("--queue", "names", multiple=True, metavar="NAME", help="Serve this queue; repeatable, see --order.")
@url_option
@click.option(
    "--mode",
    type=click.Choice(list(WORKERS)),
    default="forked",
    show_default=True,
    help="forked: a new process for each task. preforked: a process runs task after task, which is faster. "
    "threaded: a process runs tasks in threads. async: a process runs coroutines on an event loop.",
)
@click.option(
    "--serializer",
    metavar="NAME",
    help="What the tasks of queues served by name were enqueued with: pickle, cloudpickle, msgpack, json, or the path "
    "of a class of your own. [default: pickle]",
)
@click.option(
    "--accept",
    metavar="NAME",
    multiple=True,
    help="Another serializer that the tasks of queues served by name may come with, while it is being changed.",
)
@click.option(
    "--accept-unsigned",
    is_flag=True,
    help="Run unsigned tasks of queues served by name in spite of DELAYED_SECRET, while signing is being introduced.",
)
@click.option(
    "--max-size", type=Size(), metavar="SIZE", help="How large the arguments of a task may be. [default: 64M]"
)
@click.option(
    "--allow",
    metavar="PATTERN",
    multiple=True,
    help="Which functions the tasks of queues served by name may call, such as 'app.tasks.*'. May be given several "
    "times. [default: any; with msgpack and json: those that are decorated]",
)
@click.option(
    "--dead-letters", is_flag=True, help="Keep tasks of queues served by name that failed for good as dead letters."
)
@click.option(
    "--order",
    type=click.Choice(["strict", "turns"]),
    help="How several queues share the worker. strict: a later one gets what the earlier ones leave. turns: all that "
    "have tasks get the same. [default: strict]",
)
@click.option(
    "--weights", metavar="NAME=N,…", help="Or in this proportion, such as mails=3,reports=1, as long as all have tasks."
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many processes run tasks. [default: one for each core]",
)
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="M", help="Threads of each process. (threaded) [default: 8]"
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    metavar="M",
    help="Tasks that each process runs at once. (async) [default: 100]",
)
@click.option("--uvloop", is_flag=True, default=None, help="Use uvloop's event loop. (async)")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep N such workers alive: what dies is started again. [default: one, and nobody who looks after it]",
)
@click.option("--burst", is_flag=True, help="Leave when the queues are empty.")
@click.option("--no-schedule", is_flag=True, help="Leave the periodic tasks of MODULE to other workers.")
@click.option("--no-sweep", is_flag=True, help="Leave the return of lost tasks to `delayed sweeper`.")
@click.option(
    "--max-tasks", type=click.IntRange(min=1), metavar="N", help="Replace a process after N tasks. (not forked)"
)
@click.option(
    "--max-memory",
    type=Size(),
    metavar="SIZE",
    help="Replace a process that has grown by more than this, such as 512M, after its task. (preforked)",
)
@click.option(
    "--kill-memory",
    type=Size(),
    metavar="SIZE",
    help="Kill a process that uses more than this, in the middle of its task, which has failed then.",
)
@click.option(
    "--worker-memory",
    type=Size(),
    metavar="SIZE",
    help="When all its processes together use more than this, the worker leaves; with --workers, it is renewed.",
)
@click.option(
    "--kill-timeout",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a task whose time is up may tidy up before it is killed.",
)
@click.option(
    "--shutdown-timeout",
    type=click.FloatRange(min=0),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="How long running tasks may go on after TERM or INT; then they are stopped and given back.",
)
@click.option(
    "--preload", multiple=True, metavar="MODULE", help="Import it once, before processes are forked; repeatable."
)
@click.option("--success-handler", metavar="MODULE:FUNCTION", help="Called with (task) after each success.")
@click.option(
    "--error-handler", metavar="MODULE:FUNCTION", help="Called with (task, kill_signal, exc_info) after each failure."
)
@click.option("--hooks", metavar="MODULE:CLASS", help="A subclass of delayed.Hooks: called around tasks and processes.")
@click.option(
    "--log-arguments", is_flag=True, help="Log the arguments of failed tasks too, but those annotated with Hidden."
)
@log_options
def worker(
    module: str | None,
    names: tuple[str, ...],
    url: str | None,
    mode: str,
    serializer: str | None,
    accept: tuple[str, ...],
    accept_unsigned: bool,
    max_size: int | None,
    allow: tuple[str, ...],
    dead_letters: bool,
    order: str | None,
    weights: str | None,
    processes: int | None,
    threads: int | None,
    concurrency: int | None,
    uvloop: bool | None,
    workers: int | None,
    burst: bool,
    no_schedule: bool,
    no_sweep: bool,
    max_tasks: int | None,
    max_memory: int | None,
    kill_memory: int | None,
    worker_memory: int | None,
    kill_timeout: float,
    shutdown_timeout: float,
    preload: tuple[str, ...],
    success_handler: str | None,
    error_handler: str | None,
    hooks: str | None,
    log_arguments: bool,
    log_level: str,
    log_format: str,
) -> int:
    """Run tasks.

    MODULE is imported, in a process of its own, to find its queues: what is a Queue in it, and the queues of its
    functions decorated with @delayed. Without MODULE, queues are served by name.
    """
    start_log(log_level, log_format)
    # Tasks are imported from here, as with `python -m`.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    own: dict[str, Any] = {"threads": threads, "concurrency": concurrency, "uvloop": uvloop}
    own = {name: value for name, value in own.items() if value is not None}
    for name in own:
        if ONLY[name] != mode:
            raise click.UsageError(f"--{name} goes with --mode {ONLY[name]}, and this is --mode {mode}")
    if order and weights is not None:
        raise click.UsageError("--order or --weights: weights are an order")
    handlers = [path for path in (success_handler, error_handler) if path]
    if module and url:
        raise click.UsageError("--url goes with --queue; the queues of a module have their store already")
    given: dict[str, Any] = {"--serializer": serializer, "--accept": accept, "--accept-unsigned": accept_unsigned}
    given |= {"--max-size": max_size, "--allow": allow, "--dead-letters": dead_letters}
    for option, value in given.items():
        if module and value:
            raise click.UsageError(f"{option} goes with --queue; the queues of a module have theirs already")
    try:
        specs = discover(module, handlers, preload, hooks) if module or handlers or preload or hooks else []
    except DiscoveryError as error:
        return _explain(error)
    if module:
        queues = _chosen(specs, module, names)
    else:
        settings: dict[str, Any] = {
            "serializer": serializer or "pickle", "accept": accept, "accept_unsigned": accept_unsigned,
            "max_size": max_size or MAX_SIZE, "allow": allow or None, "dead_letters": dead_letters,
        }  # fmt: skip
        queues = [Queue(name, url, **settings) for name in dict.fromkeys(names or ("default",))]
    broker = queues[0].broker
    if broker.spec() is None:
        raise ConfigError(f"{broker!r} lives in one process only; a worker needs a store such as {DEFAULT_URL}")
    reach(broker)
    # The worker itself says next what it serves, and where.
    logger.info("delayed %s on Python %s, pid %d", __version__, platform.python_version(), os.getpid())
    worker = WORKERS[mode](
        queues=queues,
        processes=processes or _cores(),
        kill_timeout=kill_timeout,
        success_handler=success_handler,
        error_handler=error_handler,
        hooks=hooks,
        log_arguments=log_arguments,
        max_tasks=max_tasks,
        max_memory=max_memory,
        kill_memory=kill_memory,
        worker_memory=worker_memory,
        shutdown_timeout=shutdown_timeout,
        burst=burst,
        preload=preload,
        sweep=not no_sweep,
        schedule=not no_schedule,
        order=_weights(weights) if weights is not None else "turns" if order == "turns" else "strict",
        **own,
    )
    if workers:
        return Supervisor(worker, workers).run()
    process.alone = True
    return worker.run()


def _chosen(specs: Sequence[dict[str, Any]], module: str, names: Sequence[str]) -> list[Queue]:
    """The queues of a module, or those of them that were named, in that order.

    Raises:
        ConfigError: When a name is not among them, or when they are not all in one store.
    """
    by_name = {spec["name"]: spec for spec in specs}
    for name in names:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(map(repr, by_name))}"
            raise ConfigError(f"module {module!r} has no queue {name!r}; {hint}")
    chosen = [by_name[name] for name in dict.fromkeys(names)] or list(specs)
    if len({spec["url"] for spec in chosen}) > 1:
        example = f"--queue {chosen[0]['name']}"
        raise ConfigError(
            f"the queues of module {module!r} are in different stores, and a worker serves one: "
            f"start a worker for each, choosing with --queue, such as {example}"
        )
    if len({spec["name"] for spec in chosen}) < len(chosen):
        raise ConfigError(f"module {module!r} makes a queue of one name twice, with different settings; make it once")
    return [Queue.from_spec(spec) for spec in chosen]


def _weights(text: str) -> dict[str, float]:
    """What ``mails=3,reports=1`` means."""
    found = {}
    for part in text.split(","):
        name, _, weight = part.rpartition("=")
        try:
            found[name.strip()] = float(weight)
        except ValueError:
            raise click.UsageError(f"--weights takes NAME=NUMBER for each queue, not {part.strip()!r}") from None
    return found


def _explain(error: DiscoveryError) -> int:
    for line in error.traceback:
        click.echo(line, err=True)
    click.echo(f"error: {error}", err=True)
    return 2 if error.usage else 1


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
