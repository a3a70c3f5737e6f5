"""To be preloaded: once, the fork server is killed when it has forked a child, and before it can say so."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from delayed.worker import channel
from delayed.worker.board import Board

_boards: list[Board] = []
_init, _send = Board.__init__, channel.send_control


def _keep(self: Board, *args: Any) -> None:
    _init(self, *args)
    _boards.append(self)


def _send_or_die(sock: Any, control: channel.Control) -> None:
    sign = Path(os.environ["LEDGER"] + ".untold")
    if control.kind == channel.FORKED and not sign.exists():
        sign.touch()
        while not any(board.pid(seat) == control.pid for board in _boards for seat in range(board.seats)):
            time.sleep(0.001)  # until the child has come
        os.kill(os.getpid(), signal.SIGKILL)
    _send(sock, control)


Board.__init__ = _keep  # type: ignore[method-assign]
channel.send_control = _send_or_die
