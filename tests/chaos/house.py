"""One worker, supervisor or sweeper as a process: ``python -m tests.chaos.house '{"role": "worker", ...}'``."""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

from delayed import AsyncWorker, ForkedWorker, PreforkedWorker, Queue, Supervisor, Sweeper, ThreadedWorker, supervisor
from delayed.functions import resolve
from delayed.logger import setup_logger
from delayed.worker import process
from tests.chaos.halt import halt, halt_in_thread

KINDS = {"forked": ForkedWorker, "preforked": PreforkedWorker, "threaded": ThreadedWorker, "async": AsyncWorker}


def main(role: str, url: str, queue: str, mode: str, broker: str, options: dict[str, Any]) -> int:
    """Run until a signal.

    Args:
        broker: the path of a function that makes a broker of the URL; "" for the store's own.
    """
    opened = resolve(broker)(url) if broker else url
    setup_logger("INFO")
    if role == "sweeper":
        sweeper = Sweeper(Queue(queue, opened), interval=options["lease"] / 4)
        signal.signal(signal.SIGTERM, lambda number, frame: sweeper.stop())
        halt(role)
        sweeper.run()
        return 0
    worker = KINDS[mode](Queue(queue, opened), **options)
    if role == "worker":
        halt_in_thread("courier", "delayed-courier")
        halt("monitor")
        process.alone = True  # as `delayed worker` does
        return worker.run()
    supervisor.BACKOFF = (0.05, 0.2)  # it is killed more often than anything is in earnest
    supervisor.STABLE = 0.0
    halt(role)
    return Supervisor(worker, 2).run()


if __name__ == "__main__":
    sys.exit(main(**json.loads(sys.argv[1])))
