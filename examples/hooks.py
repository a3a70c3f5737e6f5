"""Hooks around tasks, and a task that says how it goes on.

Run it: python examples/hooks.py. It prints:

    connected
    fetch('rates') runs again in 0.2 s: postponed
    fetch('nonsense') is rejected
    fetch('trouble') has failed for good: raised
    fetch('rates') gave 42
    disconnected after 4 runs
"""

from typing import Any

from delayed import Hooks, Queue, Reject, RetryLater, Task, delayed
from delayed.worker import PreforkedWorker

queue = Queue("hooks")
asked = []


@delayed(queue)
def fetch(what: str) -> int:
    if what == "nonsense":
        raise Reject("nobody knows what that is")
    if what == "trouble":
        raise ValueError("no")
    asked.append(what)
    if len(asked) == 1:
        raise RetryLater(0.2, "it is not there yet")
    return 42


class Journal(Hooks):
    """One object in each process of a worker."""

    def start(self) -> None:
        self.runs = 0
        print("connected")

    def stop(self) -> None:
        print(f"disconnected after {self.runs} runs")

    def success(self, task: Task, result: Any) -> None:
        print(f"{call(task)} gave {result}")

    def retry(self, task: Task, verdict: Any, delay: float) -> None:
        print(f"{call(task)} runs again in {delay:g} s: {verdict.kind}")

    def dead(self, task: Task, verdict: Any) -> None:
        print(f"{call(task)} is {verdict.kind}")

    def exhausted(self, task: Task, verdict: Any) -> None:
        print(f"{call(task)} has failed for good: {verdict.kind}")

    def after(self, task: Task, verdict: Any) -> None:
        self.runs += 1


def call(task: Task) -> str:
    return f"{task.func_name}({', '.join(map(repr, task.args))})"


if __name__ == "__main__":
    for what in ("rates", "nonsense", "trouble"):
        fetch.delay(what)
    PreforkedWorker(queue, hooks=Journal, burst=True).run()
