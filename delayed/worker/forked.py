"""A worker that forks a child for each task."""

from __future__ import annotations

from delayed.worker.base import Worker


class ForkedWorker(Worker):
    """Runs each task in a child of its own, forked for it and gone after it.

    Nothing that a task leaks or breaks reaches the next one, and modules that are not preloaded are imported anew
    for each task, so that changed code is seen. The next child is forked before it is needed.
    """

    mode = "forked"
    one_shot = True
