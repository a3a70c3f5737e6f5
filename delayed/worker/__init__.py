"""Workers: a monitor, its fork server and their children."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from delayed.worker.asynchronous import AsyncWorker
    from delayed.worker.base import Worker
    from delayed.worker.forked import ForkedWorker
    from delayed.worker.preforked import PreforkedWorker
    from delayed.worker.threaded import ThreadedWorker

__all__ = ["AsyncWorker", "ForkedWorker", "PreforkedWorker", "ThreadedWorker", "Worker"]

_HOMES = {
    "AsyncWorker": "asynchronous",
    "ForkedWorker": "forked",
    "PreforkedWorker": "preforked",
    "ThreadedWorker": "threaded",
    "Worker": "base",
}


def __getattr__(name: str) -> Any:
    # Loaded when asked for: the fork server and the children live in this package too and need none of the monitor.
    if name in _HOMES:
        return getattr(importlib.import_module(f"delayed.worker.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
