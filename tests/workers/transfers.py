"""Tasks that move money in a transaction of their own, see :mod:`tests.bank`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from delayed import Queue, current
from delayed.delay import delay
from tests.bank import bank_at
from tests.workers.tasks import mark, note, stuck_in_c


def tell(ledger: str) -> None:
    note(ledger, "about", current.id, current.queue, current.attempt, current.key, current.fencing_token)
    note(ledger, "left", current.time_left, current.deadline)


def transfer(ledger: str, url: str, bank: str, number: int) -> None:
    with current.transaction() as tx:
        bank_at(url, bank).move(tx, number)


def transfer_and(ledger: str, url: str, bank: str, number: int, inside: str, after: str) -> None:
    note(ledger, "begin", current.attempt)
    with current.transaction() as tx:
        bank_at(url, bank).move(tx, number)
        if current.attempt == 1:
            do(inside, ledger, url)
    do(after, ledger, url)
    note(ledger, "end")


def list_inherited(ledger: str) -> None:
    """Note which descriptors another program is started with."""
    program = (
        "import os; all = os.listdir('/proc/self/fd'); print(*[fd for fd in all if os.path.exists(f'/dev/fd/{fd}')])"
    )
    with current.transaction():
        done = subprocess.run([sys.executable, "-c", program], close_fds=False, stdout=subprocess.PIPE, text=True)
    note(ledger, done.stdout.strip())


def transfer_late(ledger: str, url: str, bank: str, number: int) -> None:
    """Begins its transaction when the file named like the ledger with ".go" is there."""
    note(ledger, "begin", current.attempt)
    while not os.path.exists(ledger + ".go"):
        time.sleep(0.01)
    transfer(ledger, url, bank, number)


def transfer_twice(ledger: str, url: str, bank: str) -> None:
    transfer(ledger, url, bank, 1)
    transfer(ledger, url, bank, 2)


def do(what: str, ledger: str, url: str) -> None:
    if what == "raise":
        raise ValueError("on purpose")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "nap":
        time.sleep(2.5)
    if what == "hang":
        stuck_in_c(ledger)
    if what == "enqueue":
        delay(Queue(current.queue, url))(mark)(ledger, "follow-up")
    if what == "enqueue and raise":
        do("enqueue", ledger, url)
        do("raise", ledger, url)
