"""Runs a supervisor: ``python -m tests.workers.supervise URL QUEUE WORKERS '{"mode": "forked", ...}'``."""

from __future__ import annotations

import json
import sys

from delayed import Queue, Supervisor, supervisor
from delayed.logger import setup_logger
from delayed.worker import memory
from tests.workers.serve import KINDS

if __name__ == "__main__":
    _, url, name, workers, options = sys.argv
    settings = json.loads(options)
    kind, _ = KINDS[settings.pop("mode")]
    supervisor.BACKOFF = (0.05, 0.2)
    memory.WORKER_PATIENCE, memory.WORKER_LOOK = 0.5, 0.1
    setup_logger("INFO")
    sys.exit(Supervisor(kind(Queue(name, url), **settings), int(workers)).run())
