"""Runs one worker: ``python -m tests.workers.serve URL QUEUE '{"mode": "forked", ...}'``."""

from __future__ import annotations

import json
import sys

from delayed import Queue
from delayed.logger import setup_logger
from delayed.worker import ForkedWorker, PreforkedWorker, ladder

if __name__ == "__main__":
    _, url, name, options = sys.argv
    settings = json.loads(options)
    kind = {"forked": ForkedWorker, "preforked": PreforkedWorker}[settings.pop("mode")]
    ladder.HANDLER_TIMEOUT = settings.pop("handler_timeout", ladder.HANDLER_TIMEOUT)
    setup_logger(settings.pop("log_level", "INFO"))
    kind(Queue(name, url), **settings).run()
