"""The queue by hand, without a worker: enqueue, take, run, release. For tests, and for those who are curious.

Run it: python examples/by_hand.py. It prints:

    1 task waits
    3 ** 2 = 9
    0 tasks wait
"""

from delayed import Queue, Task

queue = Queue("by-hand")


def square(number: int) -> int:
    return number**2


if __name__ == "__main__":
    queue.enqueue(Task.create(square, args=(3,), timeout=10))
    print(len(queue), "task waits")
    task = queue.dequeue()
    if task is not None:
        print("3 ** 2 =", task.run())
        queue.release(task)
    print(len(queue), "tasks wait")
