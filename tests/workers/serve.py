"""Runs one worker: ``python -m tests.workers.serve URL QUEUE '{"mode": "forked", ...}'``."""

from __future__ import annotations

import json
import os
import sys

from delayed import Queue
from delayed.logger import setup_logger
from delayed.worker import AsyncWorker, ForkedWorker, PreforkedWorker, ThreadedWorker, courier, gates, ladder, memory
from delayed.worker.minding import Minder

# Their lanes are one unless a test asks for more, so that all kinds run as many tasks at once.
KINDS = {
    "forked": (ForkedWorker, ""),
    "preforked": (PreforkedWorker, ""),
    "threaded": (ThreadedWorker, "threads"),
    "async": (AsyncWorker, "concurrency"),
}


def fail_at(sign: str) -> None:
    """Let the monitor fail as soon as there is this file."""
    work = Minder.mind_lost

    def fail(self: Minder, at: float) -> None:
        if os.path.exists(sign):
            raise RuntimeError("told to fail")
        work(self, at)

    Minder.mind_lost = fail  # type: ignore[method-assign]


if __name__ == "__main__":
    _, url, name, options = sys.argv
    settings = json.loads(options)
    if "fails_at" in settings:
        fail_at(settings.pop("fails_at"))
    kind, lanes = KINDS[settings.pop("mode")]
    if lanes:
        settings.setdefault(lanes, 1)
    ladder.HANDLER_TIMEOUT = settings.pop("handler_timeout", ladder.HANDLER_TIMEOUT)
    courier.ANNOUNCE_INTERVAL = settings.pop("announce_interval", courier.ANNOUNCE_INTERVAL)
    # Far apart, a look that was not asked for shows as a test that takes too long.
    gates.WAIT = gates.LONG_WAIT = (60.0, 60.0)
    if settings.pop("impatient", False):
        memory.WORKER_PATIENCE, memory.WORKER_LOOK = 0.5, 0.1
    setup_logger(settings.pop("log_level", "INFO"), as_json=settings.pop("log_json", False))
    queue = Queue(name, url, dead_letters=settings.pop("dead_letters", None))
    queues = [Queue(each, url, **codec) for each, codec in settings.pop("queues", {}).items()]
    sys.exit(kind(queue, queues=queues, **settings).run())
