"""How a task ended, in words and as data, as its own child sees it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from delayed.errors import (
    DecodeError,
    FunctionNotFound,
    GiveBack,
    LimitsRefused,
    NewerFormat,
    NotAllowed,
    NotReadable,
    Reject,
    RetryLater,
    SignatureMismatch,
    TaskCancelled,
    TaskControl,
    TaskLost,
    TaskStopped,
    TaskTimeout,
)
from delayed.message import NEWER_PAUSE
from delayed.worker import verdict
from delayed.worker.verdict import Verdict

if TYPE_CHECKING:
    from delayed.worker.config import Config

TEXT_MAX = 4096  # characters of an exception's text that are kept
CHAIN_MAX = 100  # exceptions that led to each other; they may do so in a circle
TRACEBACK_MAX = 24000  # characters of a traceback that are kept: its end, which is nearest to the fault


def outcome_of(error: BaseException) -> int:
    """Which outcome an exception means."""
    if isinstance(error, BaseExceptionGroup):  # of a TaskGroup, for example, in which one was stopped
        stopped = next(_leaves(error, TaskStopped), None)
        return verdict.RAISED if stopped is None else outcome_of(stopped)
    if isinstance(error, TaskTimeout):
        return verdict.TIMED_OUT
    if isinstance(error, TaskCancelled):
        return verdict.CANCELLED
    if isinstance(error, TaskLost):
        return verdict.LOST
    if isinstance(error, TaskStopped):
        return verdict.STOPPED
    if isinstance(error, NewerFormat):
        return verdict.POSTPONED
    if isinstance(error, DecodeError):
        return verdict.UNDECODABLE
    if isinstance(error, NotAllowed):
        return verdict.NOT_ALLOWED
    if isinstance(error, (LimitsRefused, NotReadable)):
        return verdict.REFUSED
    if isinstance(error, FunctionNotFound):
        return verdict.UNKNOWN_FUNCTION
    if isinstance(error, SignatureMismatch):
        return verdict.BAD_ARGUMENTS
    if isinstance(error, TaskControl):
        return _wish(error)
    if isinstance(error, SystemExit):
        harmless = error.code is None or (isinstance(error.code, int) and error.code == 0)
        return verdict.RETURNED if harmless else verdict.EXITED
    return verdict.RAISED


def _wish(control: TaskControl) -> int:
    if isinstance(control, RetryLater):
        return verdict.RETRIED if control.count else verdict.POSTPONED
    if isinstance(control, GiveBack):
        return verdict.GIVEN_BACK
    return verdict.REJECTED if isinstance(control, Reject) else verdict.RETURNED


def no_more_files(error: BaseException | None) -> bool:
    """Whether an exception, or one that led to it, says that this process may open nothing more."""
    for _ in range(CHAIN_MAX):
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            return True
        if error is None:
            break
        error = error.__cause__ or error.__context__
    return False


def _leaves(group: BaseExceptionGroup[BaseException], kind: type[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error, kind)
        elif isinstance(error, kind):
            yield error


def describe(code: int, error: BaseException, stack: str) -> Verdict:
    """The verdict of an exception, in words: the object itself never leaves the child.

    Args:
        stack: where the task stood when it was asked to stop, "" if it was not.
    """
    import resource
    import traceback

    kind = type(error)
    try:
        text = str(error)
    except BaseException:
        text = "(its text can't be had: __str__ failed)"
    shown: BaseException | None = error
    if isinstance(error, TaskControl):  # a wish is no fault; what led to it may be one
        shown = error.__cause__
    elif isinstance(error, (DecodeError, NotAllowed)):  # told by its text, unless code of the user's has failed
        shown = error.__cause__ if _in_user_code(error.__cause__) else None
    try:
        trace = "".join(traceback.format_exception(shown)) if shown is not None else ""
    except BaseException:
        trace = "(its traceback can't be formatted)"
    exit_code = 0
    if isinstance(error, SystemExit):
        exit_code = error.code if isinstance(error.code, int) else 1
    return Verdict(
        code,
        type=f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."),
        text=text[:TEXT_MAX],
        traceback=trace[-TRACEBACK_MAX:],
        exit_code=exit_code,
        stack=stack,
        rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        delay=error.delay if isinstance(error, RetryLater) else NEWER_PAUSE if isinstance(error, NewerFormat) else None,
    )


def _in_user_code(error: BaseException | None) -> bool:
    """Whether what can't be decoded has failed in a file of the user's, such as what unpickles an object."""
    import sysconfig

    paths = sysconfig.get_paths()
    others = (os.path.dirname(os.path.dirname(__file__)), *(paths[name] for name in ("stdlib", "purelib", "platlib")))
    trace = error.__traceback__ if error is not None else None
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if os.path.isabs(file) and not file.startswith(others):
            return True
        trace = trace.tb_next
    return False


def log_error(config: Config, text: str, error: BaseException, trace: str | None = None) -> None:
    """Log an error of a child, with its traceback, and with the trace of its task."""
    try:
        log(config, text, error, trace)
    except BaseException:  # its own __str__ may raise
        log(config, f"{text}: {type(error).__qualname__}", trace=trace)


def log(config: Config, text: str, error: BaseException | None = None, trace: str | None = None) -> None:
    """Log what goes wrong in a child. Logging is loaded only then: it makes each fork slower."""
    from delayed.logger import logger, setup_logger
    from delayed.tracing import valid

    if not any(handler.__class__.__name__ != "NullHandler" for handler in logger.handlers):
        setup_logger(config.log_level, as_json=config.log_json)
    trace = valid(trace)
    logger.error("%s", text, exc_info=error, extra=None if trace is None else {"trace": trace})
