"""Five invoices get the numbers 1 to 5, though several processes write them.

Run it: python examples/locks.py. It prints:

    invoice 1
    invoice 2
    invoice 3
    invoice 4
    invoice 5
    last: 5
"""

from delayed import Queue, delayed
from delayed.worker import PreforkedWorker

queue = Queue("invoices")


@delayed(queue)
def bill() -> None:
    with queue.lock("numbers", ttl="10s"):
        number = int(queue.keys.get("last") or 0) + 1
        print("invoice", number, flush=True)
        queue.keys.set("last", str(number))


if __name__ == "__main__":
    for _ in range(5):
        bill.delay()
    PreforkedWorker(queue, processes=3, burst=True).run()
    print("last:", (queue.keys.get("last") or b"").decode())
