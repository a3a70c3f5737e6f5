"""``delayed demo``: everything at work, in a few seconds, with a sum that has to come out."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from delayed.brokers import broker_for
from delayed.cli.common import plural, reach, url_option
from delayed.demo.driver import VERDICTS, Demo, Progress

LINE_INTERVAL = 1.0  # seconds between lines where there is no terminal
STACK_LINES = 12  # lines of each stack that are shown

EXPLAINED = {
    "digest": "hash a file",
    "compress": "compress a file",
    "parse": "raise an error",
    "stick": "be stuck in a regex that holds the GIL",
    "die": "be killed by SIGKILL",
}


@click.command(
    epilog="""\b
Examples:
  delayed demo
  DELAYED_URL=redis://localhost:6379 delayed demo
""",
)
@url_option
@click.option("--processes", type=click.IntRange(min=1), default=2, show_default=True, metavar="N")
def demo(url: str | None, processes: int) -> int:
    """Run a few hundred real tasks, three of them hopeless, and check that the numbers add up.

    Starts a worker and a sweeper, on a queue of its own in the store, or on a file in a temporary folder.
    """
    console = Console(highlight=False, markup=False)
    url = url or os.environ.get("DELAYED_URL")
    if url:
        reach(broker_for(url))  # complain about the store here, not in the worker's log
    run = Demo(url, processes)
    started = time.monotonic()
    with run:
        console.print(f"store    {run.queue.broker!r}")
        console.print(f"worker   {plural(processes, 'process')}, preforked; log in {run.folder}/worker.log")
        _show(console, run)
        took = time.monotonic() - started
        complaints = run.complaints()
    console.print()
    _print_ends(console, run.ends())
    table = run.summary()
    console.print(_table(table))
    _print_sum(console, table, took)
    if complaints:
        for complaint in complaints[:20]:
            console.print(f"does not add up: {complaint}", style="red")
        console.print(f"the log and the evidence are kept in {run.folder}", soft_wrap=True)
        return 1
    run.forget()
    return 0


def _show(console: Console, run: Demo) -> None:
    if not console.is_terminal:
        _show_lines(console, run)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"), TimeElapsedColumn())
    with Bar(*columns, console=console) as bar:
        plan = run.plan()
        line = bar.add_task("tasks", total=len(plan), words="")
        for progress in _work(run):
            bar.update(line, completed=progress.finished, words=_words(progress))


def _show_lines(console: Console, run: Demo) -> None:
    started = time.monotonic()
    said = 0.0
    last = None
    for last in _work(run):
        if time.monotonic() - said >= LINE_INTERVAL:
            said = time.monotonic()
            console.print(f"{said - started:5.1f} s  {_words(last)}", soft_wrap=True)
    if last:
        console.print(f"{time.monotonic() - started:5.1f} s  {_words(last)}", soft_wrap=True)


def _work(run: Demo) -> Iterator[Progress]:
    """Enqueue everything, looking on all the while; then look on until it is done."""
    for number, (function, args) in enumerate(run.plan()):
        run.enqueue(function, args)
        if number % 20 == 0:
            yield run.progress()
    yield from run.watch()


def _words(progress: Progress) -> str:
    ends = ", ".join(f"{progress.verdicts[verdict]} {verdict}" for verdict in VERDICTS)
    return f"{progress.enqueued} enqueued: {progress.counts.ready} ready, {progress.counts.running} claimed, {ends}"


def _print_ends(console: Console, ends: dict[str, tuple[str, str]]) -> None:
    for kind, (verdict, stack) in ends.items():
        console.print(f"{kind}: {verdict}", style="bold", soft_wrap=True)
        for line in stack.rstrip().splitlines()[-STACK_LINES:]:
            console.print(f"    {line}", soft_wrap=True)
    console.print()


def _table(summary: dict[str, Counter[str]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), show_footer=True)
    total = sum(summary.values(), Counter[str]())
    table.add_column("task", footer="total")
    table.add_column("")
    for column in ("enqueued", *VERDICTS):
        table.add_column(column, justify="right", footer=str(total[column]))
    for kind, numbers in summary.items():
        table.add_row(kind, EXPLAINED[kind], *(str(numbers[column]) for column in ("enqueued", *VERDICTS)))
    return table


def _print_sum(console: Console, summary: dict[str, Counter[str]], took: float) -> None:
    total = sum(summary.values(), Counter[str]())
    sides = " + ".join(f"{total[verdict]} {verdict}" for verdict in VERDICTS)
    equal = "=" if total["enqueued"] == sum(total[verdict] for verdict in VERDICTS) else "≠"
    console.print(f"\n{total['enqueued']} enqueued {equal} {sides}, in {took:.1f} s", style="bold", soft_wrap=True)
