"""A progress bar for who waits for many tasks at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(total: int) -> Iterator[Callable[[bool], None]]:
    """Show a bar on stderr until the block ends, if that is a terminal.

    Args:
        total: how many ends there will be.

    Yields:
        What is to be called for each end, with whether it was a good one.
    """
    if not sys.stderr.isatty():
        yield lambda good: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        shown = progress.add_task("tasks", total=total, failed="")
        failed = 0

        def advance(good: bool) -> None:
            nonlocal failed
            failed += not good
            progress.update(shown, advance=1, failed=f"{failed} failed" if failed else "")

        yield advance
