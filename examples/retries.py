"""A task that fails twice and succeeds in its third run.

Run it: python examples/retries.py. It prints:

    run 1 fails
    run 2 fails
    run 3 succeeds
"""

import tempfile
from pathlib import Path

from delayed import Queue, Retry, delayed
from delayed.retry import fixed
from delayed.worker import PreforkedWorker

queue = Queue("retries")


@delayed(queue, retry=Retry(3, backoff=fixed("100ms", "200ms"), on=ConnectionError))
def flaky(folder: str) -> None:
    run = len(list(Path(folder).iterdir())) + 1
    Path(folder, str(run)).touch()
    if run < 3:
        print(f"run {run} fails")
        raise ConnectionError("the network is away")
    print(f"run {run} succeeds")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        flaky.delay(folder)
        PreforkedWorker(queue, burst=True).run()
