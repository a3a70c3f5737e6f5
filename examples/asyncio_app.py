"""Enqueueing from a running event loop, and a coroutine function as the task.

Run it: python examples/asyncio_app.py. It prints:

    enqueued 3
    slept 0.1
    slept 0.2
    slept 0.3
"""

import asyncio

from delayed import Queue, delayed
from delayed.worker import PreforkedWorker

queue = Queue("asyncio")


@delayed(queue)
async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)
    print(f"slept {seconds}")


async def main() -> None:
    handles = [await sleep.adelay(tenths / 10) for tenths in (1, 2, 3)]
    print(f"enqueued {len(handles)}")


if __name__ == "__main__":
    asyncio.run(main())
    PreforkedWorker(queue, burst=True).run()
