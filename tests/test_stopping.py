"""Who is told to stop by a signal handler, which may interrupt him anywhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest

from delayed import Queue, Scheduler, Sweeper, scheduler, stopping, sweeper

MOMENTS = 1000  # more than there are between two waits


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [partial(Sweeper, interval=0.0001), Scheduler], ids=["sweeper", "scheduler"])
def test_a_signal_handler_may_stop_it_at_any_moment(
    make: Callable[[Queue], Sweeper | Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "LOOK", 0.0001)
    runs = make(Queue("letters", "memory://"))

    for moment in range(1, MOMENTS):
        run_and_interrupt(runs.run, moment, runs.stop)


def run_and_interrupt(run: Callable[[], None], moment: int, handler: Callable[[], None]) -> None:
    """Call a handler between two instructions, in the same thread, as Python does for a signal."""
    files = {module.__file__ for module in (threading, stopping, sweeper, scheduler)}
    left = moment

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        left -= 1
        if not left:
            handler()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
