"""Functions that have no name a worker could import: they travel whole, by cloudpickle.

Run it: python examples/closures.py, after pip install cloudpickle. It prints:

    21 doubled is 42
    1 + 2 + 3 is 6
"""

from collections.abc import Callable

from delayed import Queue
from delayed.delay import delay
from delayed.worker import PreforkedWorker

queue = Queue("closures", serializer="cloudpickle")


def multiplier(factor: int, word: str) -> Callable[[int], None]:
    return lambda number: print(f"{number} {word} is {number * factor}")


if __name__ == "__main__":
    delay(queue)(multiplier(2, "doubled"))(21)
    delay(queue)(lambda *numbers: print(" + ".join(map(str, numbers)), "is", sum(numbers)))(1, 2, 3)
    PreforkedWorker(queue, burst=True).run()
