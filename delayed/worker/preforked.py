"""A worker whose children run task after task."""

from __future__ import annotations

from delayed.worker.base import Worker


class PreforkedWorker(Worker):
    """Runs tasks in children that are used again, each for one task at a time; short tasks flow to them ahead of need.

    A child is replaced when it dies, after `max_tasks`, when it has grown by more than `max_memory`, and when a task
    left threads, another SIGTERM handler or another working folder behind.
    """

    mode = "preforked"
    one_shot = False
