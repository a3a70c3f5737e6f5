"""Tasks for :mod:`tests.workers.test_packets`."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from delayed import current
from delayed.seals import Seals
from tests.workers.tasks import note


def behind(ledger: str, number: int) -> None:
    note(ledger, "behind", number, current.attempt)


def begin_and_wait(ledger: str) -> None:
    """Goes on after :func:`go`."""
    note(ledger, "begin")
    while not os.path.exists(ledger + ".go"):
        time.sleep(0.01)
    note(ledger, "end")


async def begin_and_block(ledger: str) -> None:
    """Nothing else goes on in its loop until :func:`go`."""
    begin_and_wait(ledger)


async def kill_self_at_once(ledger: str, number: int) -> None:
    """Kills its process before its loop comes to anything else."""
    os.kill(os.getpid(), number)


def go(ledger: str) -> None:
    open(ledger + ".go", "w").close()


def freeze(ledger: str) -> None:
    """Stops its process, until :func:`thaw`."""
    with open(ledger + ".pid", "w") as file:
        file.write(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)
    note(ledger, "end")


def thaw(ledger: str) -> None:
    with open(ledger + ".pid") as file:
        os.kill(int(file.read()), signal.SIGCONT)


def freeze_in_the_next_seal(ledger: str) -> None:
    """Lets its process stop, until :func:`thaw`, while it looks at the seal of the task behind it."""
    unseal = Seals.open

    def unseal_late(self: Seals, *args: Any) -> Any:
        Seals.open = unseal  # type: ignore[method-assign]
        with open(ledger + ".pid", "w") as file:
            file.write(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
        return unseal(self, *args)

    Seals.open = unseal_late  # type: ignore[method-assign]
