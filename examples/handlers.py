"""What a worker's handlers are told of each way to end.

Run it: python examples/handlers.py. It prints:

    divide(8, 2) succeeded
    divide(1, 0) raised ZeroDivisionError
    backtrack() timed out
    crash() killed by signal 11
"""

import os
import re
import signal
from types import TracebackType

from delayed import Queue, Task, delayed
from delayed.worker import PreforkedWorker

queue = Queue("handlers")


@delayed(queue)
def divide(a: int, b: int) -> float:
    return a / b


@delayed(queue, timeout=1)
def backtrack() -> None:
    re.match(r"(a+)+$", "a" * 40 + "b")  # takes longer than the sun will shine, without letting go of the GIL


@delayed(queue)
def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def on_success(task: Task) -> None:
    print(f"{call(task)} succeeded")


def on_error(
    task: Task,
    kill_signal: int | None,
    exc_info: tuple[type[BaseException], BaseException, TracebackType | None] | None,
) -> None:
    if task.verdict is not None and task.verdict.kind == "timed out":
        print(f"{call(task)} timed out")
    elif kill_signal:
        print(f"{call(task)} killed by signal {kill_signal}")
    elif exc_info:
        print(f"{call(task)} raised {exc_info[0].__name__}")


def call(task: Task) -> str:
    return f"{task.func_name}({', '.join(map(repr, task.args))})"


if __name__ == "__main__":
    divide.delay(8, 2)
    divide.delay(1, 0)
    backtrack.delay()
    crash.delay()
    PreforkedWorker(queue, success_handler=on_success, error_handler=on_error, burst=True).run()
