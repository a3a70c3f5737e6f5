"""Hooks, and the tasks that they are called around; all write to the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any

from delayed import GiveBack, Hooks, Reject, RetireChild, RetryLater, StopWorkers, Task, current
from tests.workers.tasks import note


def say(*words: object) -> None:
    note(os.environ["LEDGER"], *words)


def count(words: str) -> int:
    """How often a line was written so far."""
    return Path(os.environ["LEDGER"]).read_text().splitlines().count(words)


class Everything(Hooks):
    """Notes each call: the hook, the task's function and attempt, and what else it was told."""

    idle_after = 0.2

    def start(self) -> None:
        self.pid = os.getpid()
        say("start", self.pid)

    def stop(self) -> None:
        say("stop", os.getpid(), self.pid)

    def before(self, task: Task) -> None:
        self.tell("before", task, current.id == task.id and current.attempt == task.attempt)

    def success(self, task: Task, result: Any) -> None:
        self.tell("success", task, repr(result))

    def failure(self, task: Task, verdict: Any, error: BaseException | None) -> None:
        self.tell("failure", task, verdict.kind, type(error).__name__)

    def timeout(self, task: Task, verdict: Any, error: BaseException | None) -> None:
        self.tell("timeout", task, verdict.kind, type(error).__name__, "line" in verdict.stack)

    def retry(self, task: Task, verdict: Any, delay: float) -> None:
        self.tell("retry", task, verdict.kind, f"{delay:.2f}")

    def exhausted(self, task: Task, verdict: Any) -> None:
        self.tell("exhausted", task, verdict.kind)

    def dead(self, task: Task, verdict: Any) -> None:
        self.tell("dead", task, verdict.kind)

    def given_back(self, task: Task, verdict: Any) -> None:
        self.tell("given_back", task, verdict.kind)

    def expired(self, task: Task, verdict: Any) -> None:
        self.tell("expired", task, verdict.kind)

    def after(self, task: Task, verdict: Any) -> None:
        self.tell("after", task, verdict.kind)

    def tell(self, hook: str, task: Task, *words: object) -> None:
        say(hook, task.func_name, task.attempt, *words)
        say("in", hook, task.func_name, os.getpid(), threading.get_ident())


class Coroutines(Hooks):
    """The same with coroutines, and less of them."""

    async def start(self) -> None:
        say("start")

    async def stop(self) -> None:
        say("stop")

    async def before(self, task: Task) -> None:
        say("before", task.func_name)

    async def success(self, task: Task, result: Any) -> None:
        say("success", task.func_name, result)

    async def failure(self, task: Task, verdict: Any, error: BaseException | None) -> None:
        say("failure", task.func_name)

    async def after(self, task: Task, verdict: Any) -> None:
        say("after", task.func_name, verdict.kind)


class Broken(Hooks):
    """All of them raise, except that start and stop do so only in spirit."""

    def before(self, task: Task) -> None:
        say("broken before")
        raise SystemExit(3)

    def success(self, task: Task, result: Any) -> None:
        raise KeyboardInterrupt

    def failure(self, task: Task, verdict: Any, error: BaseException | None) -> None:
        say("broken failure")
        raise ValueError("no")

    def retry(self, task: Task, verdict: Any, delay: float) -> None:
        raise ValueError("no")

    def exhausted(self, task: Task, verdict: Any) -> None:
        raise ValueError("no")

    def after(self, task: Task, verdict: Any) -> None:
        say("broken after")
        raise RetryLater(1)  # too late

    def stop(self) -> None:
        say("broken stop")
        raise ValueError("no")


class NeedsDatabase(Hooks):
    """Can't start before the fourth time."""

    def start(self) -> None:
        say("at", time.monotonic())
        say("try")
        if count("try") < 4:
            raise ConnectionError("the database is not there")


class Dies(Hooks):
    """Can't start before the third time, and has no words for it."""

    def start(self) -> None:
        say("at", time.monotonic())
        say("try")
        if count("try") < 3:
            os._exit(7)


class Hangs(Hooks):
    """Hangs in one hook, named in the environment."""

    def start(self) -> None:
        self.hang("start")

    def failure(self, task: Task, verdict: Any, error: BaseException | None) -> None:
        self.hang("failure")

    def after(self, task: Task, verdict: Any) -> None:
        self.hang("after")

    def hang(self, name: str) -> None:
        if os.environ["HANGS"] != name:
            return
        with contextlib.suppress(FileExistsError):  # of several processes, one
            os.close(os.open(f"{os.environ['LEDGER']}-hangs", os.O_CREAT | os.O_EXCL))
            say(name, "hangs")
            time.sleep(3600)


class Lingers(Hooks):
    """Takes long before a task, but lets exceptions in."""

    def before(self, task: Task) -> None:
        if task.func_name.startswith("give"):
            say("lingers")
            linger("")

    def timeout(self, task: Task, verdict: Any, error: BaseException | None) -> None:
        say("timeout", task.func_name, verdict.kind, os.getpid())


class LingersOnTheLoop(Lingers):
    async def before(self, task: Task) -> None:  # type: ignore[override]
        if task.func_name.startswith("give"):
            say("lingers")
            await asyncio.sleep(30)


class Decides(Hooks):
    """Says in its hooks how tasks go on."""

    def before(self, task: Task) -> None:
        if task.func_name == "closed":
            say("before", task.func_name)
            if count("before closed") < 2:
                raise GiveBack("closed for now")

    def failure(self, task: Task, verdict: Any, error: BaseException | None) -> None:
        if isinstance(error, KeyError):
            raise Reject("no such thing")
        raise RetryLater(0.05, "once more")

    def timeout(self, task: Task, verdict: Any, error: BaseException | None) -> None:
        raise Reject("takes too long")


class RetiresAfter(Hooks):
    def after(self, task: Task, verdict: Any) -> None:
        raise RetireChild


class StopsWhenIdle(Hooks):
    idle_after = 0.3

    def idle(self, seconds: float) -> None:
        say("idle", f"{seconds:.1f}")
        if seconds > 0.5:
            raise StopWorkers


class NoHooks:
    """Looks like a class of hooks."""


# -- tasks -------------------------------------------------------------------------------------------------------


def give(ledger: str, what: Any) -> Any:
    note(ledger, "task", os.getpid(), threading.get_ident())
    return what


async def give_async(ledger: str, what: Any) -> Any:
    note(ledger, "task", os.getpid(), threading.get_ident())
    return what


def closed(ledger: str) -> None:
    note(ledger, "task closed")


def linger(ledger: str) -> None:
    """Take long, but let exceptions in."""
    for _ in range(3000):
        time.sleep(0.01)


def fail_with_key(ledger: str) -> None:
    raise KeyError("x")


def fail_twice(ledger: str) -> None:
    note(ledger, "failing")
    if count("failing") <= 2:
        raise ValueError("not yet")
    note(ledger, "done")


def ask(ledger: str, wish: str, *args: Any, **options: Any) -> None:
    """Raise a control exception, which an ``except Exception`` does not stop, unless it was raised often enough."""
    note(ledger, "ask", wish, current.attempt)
    kinds = {kind.__name__: kind for kind in (RetryLater, GiveBack, Reject, RetireChild, StopWorkers)}
    times = options.pop("times", 1)
    if len([line for line in Path(ledger).read_text().splitlines() if line.startswith(f"ask {wish}")]) > times:
        note(ledger, "granted", wish)
        return
    try:
        raise kinds[wish](*args, **options)
    except Exception:
        note(ledger, "swallowed")


async def ask_async(ledger: str, wish: str, *args: Any, **options: Any) -> None:
    ask(ledger, wish, *args, **options)


def ask_without_descriptors(ledger: str, wish: str, *args: Any) -> None:
    """Close all files, so that nobody can be told of the wish."""
    os.closerange(3, 65536)
    ask(ledger, wish, *args)


def stop_in_turn(ledger: str) -> None:
    """Raise StopWorkers, the first one when the second has begun, the second when the worker of the first is gone."""
    note(ledger, "stops", monitor())

    def monitors() -> list[int]:
        lines = Path(ledger).read_text().splitlines()
        return [int(line.removeprefix("stops ")) for line in lines if line.startswith("stops ")]

    while len(monitors()) < 2:
        time.sleep(0.01)
    while monitors()[0] != monitor() and os.path.exists(f"/proc/{monitors()[0]}"):
        time.sleep(0.01)
    raise StopWorkers


def ask_when_monitor_is_gone(ledger: str, wish: str, *args: Any) -> None:
    """Wait until the fork server has another parent, then ask."""
    first = monitor()
    note(ledger, "waits")
    while monitor() == first:
        time.sleep(0.01)
    ask(ledger, wish, *args)


def monitor() -> int:
    """The parent of the fork server."""
    return int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1])
