"""A task that does what it is told, so that those which do different things have headers that are alike."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import datetime
from typing import Any

from delayed import RetryLater, current
from tests.workers.tasks import note, stuck_in_c

SHOWN = ("id", "queue", "attempt", "key", "trace", "fencing_token", "progress")


class Unreadable:
    """It can be pickled, and not read again."""

    def __reduce__(self) -> Any:
        return read, ()


def read() -> None:
    raise RuntimeError("never again")


def do(ledger: str, what: str = "nothing", *args: Any) -> Any:
    """Note which way this call has come, and do it."""
    way = os.path.basename(sys._getframe(1).f_code.co_filename)
    note(ledger, "way", what, "shorter" if way == "plain.py" else "longer")
    return globals()[f"do_{what}"](ledger, *args)


def do_nothing(ledger: str) -> None:
    pass


def do_tell(ledger: str) -> None:
    current.report(0.5, "half")
    with_limit = current.time_left is not None and 0 < current.time_left <= 30
    note(ledger, "told", with_limit, current.deadline is not None, *[repr(getattr(current, each)) for each in SHOWN])


def do_fail(ledger: str) -> None:
    raise ValueError("no")


def do_call_wrongly(ledger: str) -> None:
    time.sleep("long")  # type: ignore[arg-type]


def do_exit(ledger: str) -> None:
    sys.exit(3)


def do_die(ledger: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def do_interrupt(ledger: str) -> None:
    raise KeyboardInterrupt


def do_retry(ledger: str) -> None:
    note(ledger, "run", current.fencing_token)
    if current.fencing_token == 1:
        raise RetryLater(0)


def do_hang(ledger: str) -> None:
    try:
        time.sleep(3600)
    finally:
        note(ledger, "stopped")


def do_hang_in_c(ledger: str) -> None:
    stuck_in_c(ledger)


def do_return_coroutine(ledger: str) -> Any:
    async def go_on() -> None:
        note(ledger, "awaited")

    return go_on()


def do_fork(ledger: str) -> None:
    os.fork()


def do_wait(ledger: str) -> None:
    os.waitpid(-1, 0)
    note(ledger, "the copy has gone")


def do_print(ledger: str) -> None:
    print("printed by a task")


def do_close(ledger: str) -> None:
    sys.stdout.close()


def do_commit(ledger: str) -> None:
    with current.transaction():
        note(ledger, "in transaction")


def do_commit_and_fail(ledger: str) -> None:
    do_commit(ledger)
    raise ValueError("too late")


def note_time(ledger: str, number: int, time: datetime) -> None:
    note(ledger, "time", number, repr(time))
