"""Runs one worker until SIGTERM: ``python -m benchmarks.serve URL QUEUE MODE PROCESSES LANES``."""

from __future__ import annotations

import sys

from delayed import AsyncWorker, ForkedWorker, PreforkedWorker, Queue, ThreadedWorker
from delayed.logger import setup_logger
from delayed.worker import Worker
from delayed.worker.base import WorkerOptions

if __name__ == "__main__":
    _, url, name, mode, processes, lanes = sys.argv
    setup_logger("WARNING")
    queue = Queue(name, url)
    common: WorkerOptions = {"processes": int(processes), "preload": ["benchmarks.tasks"]}
    worker: Worker
    match mode:
        case "forked":
            worker = ForkedWorker(queue, **common)
        case "preforked":
            worker = PreforkedWorker(queue, **common)
        case "threaded":
            worker = ThreadedWorker(queue, threads=int(lanes), **common)
        case _:
            worker = AsyncWorker(queue, concurrency=int(lanes), **common)
    worker.run()
