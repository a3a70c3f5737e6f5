"""Runs one worker until SIGTERM: ``python -m benchmarks.serve URL QUEUE forked|preforked PROCESSES``."""

from __future__ import annotations

import sys

from delayed import ForkedWorker, PreforkedWorker, Queue
from delayed.logger import setup_logger

if __name__ == "__main__":
    _, url, name, mode, processes = sys.argv
    setup_logger("WARNING")
    worker = {"forked": ForkedWorker, "preforked": PreforkedWorker}[mode]
    worker(Queue(name, url), processes=int(processes), preload=["benchmarks.tasks"]).run()
