"""The smallest whole: a task, a queue, and a worker that leaves when there is nothing left to do.

Run it: python examples/hello.py. It prints:

    hello, Ada
    hello, Grace
    done
"""

from delayed import Queue, delayed
from delayed.worker import ForkedWorker

queue = Queue("hello")


@delayed(queue, timeout=10)
def greet(name: str) -> None:
    print(f"hello, {name}")


if __name__ == "__main__":
    greet.delay("Ada")
    greet.delay("Grace")
    ForkedWorker(queue, burst=True).run()
    print("done")
