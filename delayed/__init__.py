"""Run any Python function later, in another process, exactly as it was called."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from delayed.attempts import Attempt
    from delayed.context import current
    from delayed.delay import Delayed, DelayedFunction, delayed
    from delayed.errors import (
        AlreadyEnqueued,
        BrokerError,
        BrokerFull,
        BrokerUnavailable,
        ConfigError,
        DecodeError,
        DelayedError,
        EnqueueRefused,
        EnqueueUncertain,
        FunctionNotFound,
        GiveBack,
        LimitsRefused,
        LockError,
        LockLost,
        LockTimeout,
        MissingDependency,
        NewerFormat,
        NotAllowed,
        NotAuthentic,
        NotEnqueueable,
        NotKept,
        NotSerializable,
        Reject,
        ResultError,
        ResultGone,
        ResultTimeout,
        RetireChild,
        RetryLater,
        SignatureMismatch,
        StopWorkers,
        TaskCancelled,
        TaskControl,
        TaskError,
        TaskFailed,
        TaskLost,
        TaskStopped,
        TaskTimeout,
        UnknownOption,
        Unsupported,
    )
    from delayed.events import Hooks
    from delayed.group import Group
    from delayed.handle import Progress, TaskHandle
    from delayed.hidden import Hidden
    from delayed.keys import Keys
    from delayed.limit import Limit
    from delayed.locks import Lock
    from delayed.queue import Queue
    from delayed.retry import Retry
    from delayed.scheduler import Scheduler
    from delayed.supervisor import Supervisor
    from delayed.sweeper import Sweeper
    from delayed.task import Task
    from delayed.tracing import trace
    from delayed.unique import Unique
    from delayed.version import __version__
    from delayed.worker import AsyncWorker, ForkedWorker, PreforkedWorker, ThreadedWorker

__all__ = [
    "AlreadyEnqueued",
    "AsyncWorker",
    "Attempt",
    "BrokerError",
    "BrokerFull",
    "BrokerUnavailable",
    "ConfigError",
    "DecodeError",
    "Delayed",
    "DelayedError",
    "DelayedFunction",
    "EnqueueRefused",
    "EnqueueUncertain",
    "ForkedWorker",
    "FunctionNotFound",
    "GiveBack",
    "Group",
    "Hidden",
    "Hooks",
    "Keys",
    "Limit",
    "LimitsRefused",
    "Lock",
    "LockError",
    "LockLost",
    "LockTimeout",
    "MissingDependency",
    "NewerFormat",
    "NotAllowed",
    "NotAuthentic",
    "NotEnqueueable",
    "NotKept",
    "NotSerializable",
    "PreforkedWorker",
    "Progress",
    "Queue",
    "Reject",
    "ResultError",
    "ResultGone",
    "ResultTimeout",
    "RetireChild",
    "Retry",
    "RetryLater",
    "Scheduler",
    "SignatureMismatch",
    "StopWorkers",
    "Supervisor",
    "Sweeper",
    "Task",
    "TaskCancelled",
    "TaskControl",
    "TaskError",
    "TaskFailed",
    "TaskHandle",
    "TaskLost",
    "TaskStopped",
    "TaskTimeout",
    "ThreadedWorker",
    "Unique",
    "UnknownOption",
    "Unsupported",
    "__version__",
    "current",
    "delayed",
    "trace",
]

# Loaded when first used: a fork server imports only what its children need, and a child has little to copy.
_PLACES = {
    "attempts": ("Attempt",),
    "context": ("current",),
    "delay": ("Delayed", "DelayedFunction", "delayed"),
    "events": ("Hooks",),
    "group": ("Group",),
    "handle": ("Progress", "TaskHandle"),
    "hidden": ("Hidden",),
    "keys": ("Keys",),
    "limit": ("Limit",),
    "locks": ("Lock",),
    "queue": ("Queue",),
    "retry": ("Retry",),
    "scheduler": ("Scheduler",),
    "supervisor": ("Supervisor",),
    "sweeper": ("Sweeper",),
    "task": ("Task",),
    "tracing": ("trace",),
    "unique": ("Unique",),
    "version": ("__version__",),
    "worker": ("AsyncWorker", "ForkedWorker", "PreforkedWorker", "ThreadedWorker"),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'delayed' has no attribute {name!r}")
    value = getattr(import_module(f"delayed.{_PLACE_OF.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
