"""Every error of the library, in one tree::

DelayedError
├── ConfigError (ValueError)             a setting, option or URL is wrong
│   ├── UnknownOption (TypeError)        an option nobody knows, with a suggestion
│   ├── MissingDependency (ImportError)  an optional package is not installed
│   └── Unsupported                      this kind of store can't do that; the message says which can
├── TaskError                            a task can't be made or can't be run
│   ├── NotEnqueueable (TypeError)       .delay() refuses the function or its arguments
│   ├── AlreadyEnqueued                  .delay() of a unique task finds one that is the same
│   ├── NotSerializable (TypeError)      a value can't be turned into bytes
│   ├── DecodeError (ValueError)         a message can't be decoded
│   │   ├── NewerFormat                  ... by this version: a later one made it
│   │   └── NotAuthentic                 ... because it is unsigned, was altered, or was made with another secret
│   ├── NotReadable                      this worker lacks a package or class that it takes to read a message
│   ├── NotAllowed (PermissionError)     the queue does not allow this function
│   ├── FunctionNotFound (ImportError)   the function's path leads nowhere
│   ├── SignatureMismatch (TypeError)    the arguments don't fit the function
│   ├── LimitsRefused                    this kind of worker can't hold the task to its limits
│   ├── TaskFailed                       the result of a task is asked for, and it failed
│   └── ResultError                      ... and can't be had
│       ├── ResultTimeout (TimeoutError) ... within that time
│       ├── NotKept                      ... because no answer is kept of it
│       └── ResultGone (LookupError)     ... because it is not kept any more, or nobody will answer
├── LockError                            a lock is not held
│   ├── LockTimeout (TimeoutError)       ... because others held it for as long as was waited for it
│   └── LockLost                         ... any more: its time was over
└── BrokerError                          the store refused, or answered nonsense
    └── BrokerUnavailable (ConnectionError)   the store can't be reached now
        ├── EnqueueRefused               certainly not stored
        │   └── BrokerFull               ... because the store is full
        └── EnqueueUncertain             may be stored; .retry() settles it

TaskStopped (BaseException)              raised *inside* a task that has to stop
├── TaskTimeout                          ... because its time is up, or its CPU time
├── TaskCancelled                        ... because somebody cancelled it
└── TaskLost                             ... because its claim went to another worker

TaskControl (BaseException)              raised *by* a task, to say how it goes on
├── RetryLater                           ... again after a while
├── GiveBack                             ... not here: let the queue have it back
├── Reject                               ... never: keep it as a dead letter
├── RetireChild                          ... it is done, and so is this process
└── StopWorkers                          ... it is done, and so are this worker and those beside it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from datetime import timedelta

    from delayed.handle import TaskHandle
    from delayed.worker.verdict import Verdict

DELAY_MAX = 100 * 365 * 86400  # seconds; no store can keep every date


def _restored(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """The error that :func:`_reduce` took apart, as far as its builtin base makes it; the rest is its state."""
    error = kind.__new__(kind, *args)
    _builtin(kind).__init__(error, *args)
    return error


def _reduce(self: BaseException) -> tuple[Any, ...]:
    # As it is by default, unpickling would call the class with `args`, which are not what it takes.
    _, args, *state = cast("tuple[Any, ...]", _builtin(type(self)).__reduce__(self))
    return _restored, (type(self), args), *state


def _builtin(kind: type[BaseException]) -> type[BaseException]:
    return next(base for base in kind.__mro__ if base.__module__ == "builtins")


class DelayedError(Exception):
    """The base of every error that this library raises. Each can be pickled, with all that it tells."""

    __reduce__ = _reduce


class ConfigError(DelayedError, ValueError):
    """Raised when a setting, an option or a URL is wrong."""


class UnknownOption(ConfigError, TypeError):
    """Raised when an option's name is not known; the message suggests the nearest."""


class MissingDependency(ConfigError, ImportError):
    """Raised when an optional package is needed and missing; the message has the command that installs it."""


class Unsupported(ConfigError):
    """Raised when a store is asked for what its kind can't do; the message says which kinds can."""


class TaskError(DelayedError):
    """Raised when a task can't be made or can't be run."""


class NotEnqueueable(TaskError, TypeError):
    """Raised by ``.delay()`` when no worker could run this call; the message names the way out."""


class AlreadyEnqueued(TaskError):
    """Raised by ``.delay()`` of a unique task with ``on_conflict="reject"`` when another task holds its key.

    Attributes:
        handle: of that task.
    """

    def __init__(self, message: str, handle: TaskHandle[Any]) -> None:
        super().__init__(message)
        self.handle = handle


class NotSerializable(TaskError, TypeError):
    """Raised when a value can't be turned into bytes.

    Args:
        what: what is wrong with it, as a sentence goes on after its name: "is a socket".
        steps: the way to it from the value that was given: keys and indexes.
    """

    def __init__(self, what: str, steps: Sequence[Any] = ()) -> None:
        self.what = what
        self.steps = tuple(steps)
        place = "".join(f"[{step!r}]" for step in self.steps)
        super().__init__(f"the value {'at ' + place if place else 'itself'} {what}")


class DecodeError(TaskError, ValueError):
    """Raised when the bytes of a message can't be decoded."""


class NewerFormat(DecodeError):
    """Raised when a message was made by a later version of this library, in a format that this one does not know. It
    goes back to its queue, uncharged, for a worker of that version, as often as it takes.
    """


class NotReadable(TaskError):
    """Raised when a worker lacks what it takes to read a message: a package, or a class of the queue's own. Another
    worker may have it.
    """


class NotAuthentic(DecodeError):
    """Raised when a queue with a secret gets what was not made with it: unsigned, altered, moved from another queue or
    task, or made with a secret that the queue does not list.
    """


class NotAllowed(TaskError, PermissionError):
    """Raised when a message asks for a function that its queue does not allow."""


class FunctionNotFound(TaskError, ImportError):
    """Raised when the path of a function (``package.module:qualname``) leads nowhere."""


class SignatureMismatch(TaskError, TypeError):
    """Raised when the arguments of a task don't fit its function's signature or annotations."""


class LimitsRefused(TaskError):
    """Raised when a task has limits of its own that the worker which took it can't hold it to."""


class TaskFailed(TaskError):
    """Raised by ``handle.result()`` when the task failed, and what it raised can't be raised here: it was killed, its
    time was up, it was cancelled, or the exception does not survive the way.

    Attributes:
        verdict: how it ended.
    """

    def __init__(self, message: str, verdict: Verdict | None = None) -> None:
        super().__init__(message)
        self.verdict = verdict


class ResultError(TaskError):
    """The base of what ``handle.result()`` raises when there is no result to be had."""


class ResultTimeout(ResultError, TimeoutError):
    """Raised when a task has not ended within the time that its result was waited for."""


class NotKept(ResultError):
    """Raised when the result of a task is asked for that has no option `keep`."""


class ResultGone(ResultError, LookupError):
    """Raised when there is neither the task nor an answer of it: its time to be kept is over, or it was removed."""


class LockError(DelayedError):
    """The base of what is raised when a lock is not held.

    Attributes:
        name: the lock's.
        holder: who holds it now, as ``host:process id``; None if nobody is known to.
    """

    def __init__(self, message: str, name: str = "", holder: str | None = None) -> None:
        super().__init__(message)
        self.name = name
        self.holder = holder


class LockTimeout(LockError, TimeoutError):
    """Raised by ``with lock:`` when others held the lock for as long as it waits."""


class LockLost(LockError):
    """Raised when a lock is released or extended that is not held any more: its time was over, and others may have had
    it since.
    """


class BrokerError(DelayedError):
    """Raised when the store refuses a request or answers what it should not."""


class BrokerUnavailable(BrokerError, ConnectionError):
    """Raised when the store can't be reached now.

    Attributes:
        sent: False if the request certainly never reached the store; True if it may have taken effect.
    """

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class EnqueueRefused(BrokerUnavailable):
    """Raised by ``.delay()`` when the task is certainly not stored."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)


class BrokerFull(EnqueueRefused):
    """Raised when the store has no room: nothing of the call was stored."""


class EnqueueUncertain(BrokerUnavailable):
    """Raised by ``.delay()`` when the task may or may not be stored.

    Attributes:
        ids: the ids that the tasks have if they are stored. After :meth:`retry` of a unique task: that of the task
            which holds the key, this one or another.
    """

    def __init__(self, message: str, ids: Sequence[int], retry: Callable[[float], int | None]) -> None:
        super().__init__(message, sent=True)
        self.ids = list(ids)
        self._retry: Callable[[float], int | None] | None = retry

    def __reduce__(self) -> tuple[Any, ...]:
        restored, args, *rest = super().__reduce__()
        return restored, args, {**vars(self), "_retry": None}, *rest[1:]  # what sends it again stays in its process

    def retry(self, timeout: float = 5.0) -> None:
        """Send the very same request again, which never stores a task twice.

        Args:
            timeout: how long to try, in seconds.

        Raises:
            EnqueueUncertain: When the store still gives no answer; retry that error again.
            ConfigError: When this error came from another process: only that can send the request again.
        """
        if self._retry is None:
            raise ConfigError(
                f"whether {self.ids} are enqueued can be settled only in the process that tried: call retry() there"
            )
        holder = self._retry(timeout)
        if holder is not None:
            self.ids = [holder]


class TaskStopped(BaseException):
    """Raised inside a running task that has to stop, for example because its worker shuts down.

    It derives from BaseException so that a task's ``except Exception`` can't swallow it.
    """


class TaskTimeout(TaskStopped):
    """Raised inside a running task when its timeout is over, or its CPU time is used up."""


class TaskCancelled(TaskStopped):
    """Raised inside a running task that somebody cancelled (``delayed cancel``). It is not tried again."""


class TaskLost(TaskStopped):
    """Raised inside a running task whose claim does not hold any more: another worker may run it by now."""


class TaskControl(BaseException):
    """The base of what a task raises to say how it goes on.

    It derives from BaseException so that an ``except Exception`` in between can't swallow it. Hooks may raise it too,
    see :class:`delayed.Hooks`.

    Args:
        reason: why, in words, for the log; "" for none.
    """

    __reduce__ = _reduce

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)


class RetryLater(TaskControl):
    """Raised by a task that wants to run again after `delay` seconds, whatever its retry policy says of delays.

    Args:
        delay: how long until it may run again: seconds, a :class:`datetime.timedelta`, or text such as ``30s`` or
            ``1h30m``; 0: at once.
        reason: why, in words, for the log; "" for none.
        count: whether this run counts as a failed one. If it does, the task fails for good when its retries are used
            up, and when it has none. If not (the default) its attempt is not charged, however often that is.

    Raises:
        ConfigError: When the delay is no duration from 0 to a hundred years.
    """

    def __init__(self, delay: float | timedelta | str, reason: str = "", *, count: bool = False) -> None:
        super().__init__(reason)
        from delayed.durations import seconds_of

        self.delay = seconds_of("the delay of RetryLater", delay)
        self.count = count


class GiveBack(TaskControl):
    """Raised by a task that can't run here and now: it goes back to its queue, uncharged, for whoever takes it next.

    It may be claimed again after half a second, then after twice as long each time, a minute at most, so that it is
    not taken in a circle; after `max_deliveries` claims (11, unless the task has another number) it is a dead letter.
    """


class Reject(TaskControl):
    """Raised by a task that nobody shall try again: it is kept as a dead letter, with the reason."""


class RetireChild(TaskControl):
    """Raised by a task that is done, and after which its process should be replaced: that takes nothing more, lets
    the tasks that run beside it finish, and leaves.
    """


class StopWorkers(TaskControl):
    """Raised by a task that is done, and after which nothing more should run here: its worker stops as by SIGTERM, and
    so do the others of its supervisor. Other workers of the queue go on.
    """
