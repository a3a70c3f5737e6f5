"""Runs a supervisor: ``python -m tests.workers.supervise URL QUEUE WORKERS '{"mode": "forked", ...}'``."""

from __future__ import annotations

import json
import sys

from delayed import Queue, Supervisor, supervisor
from delayed.logger import setup_logger
from delayed.worker import ForkedWorker, PreforkedWorker

if __name__ == "__main__":
    _, url, name, workers, options = sys.argv
    settings = json.loads(options)
    kind = {"forked": ForkedWorker, "preforked": PreforkedWorker}[settings.pop("mode")]
    supervisor.BACKOFF = (0.05, 0.2)
    setup_logger("INFO")
    sys.exit(Supervisor(kind(Queue(name, url), **settings), int(workers)).run())
