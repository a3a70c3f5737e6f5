"""Many calls at once, their results, and what follows them.

Run it: python examples/groups.py. It prints:

    [0, 1, 4, 9, 16]
    Tally(done=5, failed=0, total=5)
    [5, 25]
    number 1 failed: ZeroDivisionError
    the sum of 3 numbers is 14
"""

import threading

from delayed import Queue, delayed
from delayed.worker import PreforkedWorker

queue = Queue("groups")


@delayed(queue, keep="1h")
def square(number: int) -> int:
    return number * number


@delayed(queue, keep="1h")
def divide(a: int, b: int) -> int:
    return a // b


@delayed(queue, keep="1h")
def tell(numbers: list[int], what: str) -> str:
    return f"the {what} of {len(numbers)} numbers is {sum(numbers)}"


def main() -> None:
    group = square.map(range(5))
    print(group.results(timeout=20))
    print(group.progress)
    print(divide.starmap([(10, 2), (100, 4)]).results(timeout=20))
    group = divide.starmap([(1, 1), (1, 0)])
    for number, result in enumerate(group.results(timeout=20, return_exceptions=True)):
        if isinstance(result, Exception):
            print(f"number {number} failed: {type(result).__name__}")
    print(square.map([1, 2, 3]).then(tell, "sum").result(timeout=20))


if __name__ == "__main__":
    worker = PreforkedWorker(queue)
    client = threading.Thread(target=lambda: (main(), worker.stop()))
    client.start()
    worker.run()  # in a program of its own: delayed worker groups
    client.join()
