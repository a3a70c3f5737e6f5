"""Traces: what the log lines of all processes that had a part in one thing are joined by.

The name of a trace travels from who enqueues a task to the task, and on to what that enqueues, as a ``traceparent`` of
the W3C (https://www.w3.org/TR/trace-context/): ``00``, 32 hex digits for the trace, 16 for one operation in it, and two
of flags, with hyphens between. Nothing is measured here, and nothing is sent to anybody.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from delayed.errors import DecodeError
from delayed.message import Claim

if TYPE_CHECKING:
    import logging

TRACED = b'"x"'  # in the header of whatever has a trace
_TELEMETRY = "opentelemetry.trace"
_SIZE = 55  # characters; later versions may have more behind them
_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?![^-])")

_given: ContextVar[str | None] = ContextVar("delayed_trace", default=None)


# What knows the trace of the task that runs here: set by `delayed.context`, without which no task runs.
of_task: Callable[[], str | None] | None = None


def valid(traceparent: object) -> str | None:
    """A traceparent as version 00 has it; None if it is none. Whoever wrote it may be anybody."""
    if not isinstance(traceparent, str) or _FORM.match(traceparent) is None:
        return None
    if len(traceparent) > _SIZE and traceparent.startswith("00"):
        return None
    return "00" + traceparent[2:_SIZE]


@contextmanager
def trace(traceparent: str | None = None) -> Iterator[str]:
    """Let what is enqueued in the block, in this thread or asyncio task, belong to a trace.

    >>> with delayed.trace(request.headers.get("traceparent")):
    ...     receipt.delay(order)

    Args:
        traceparent: of the trace, such as an HTTP header has it. None, or anything that is none: a new trace.

    Returns:
        The traceparent.
    """
    token = _given.set(found := valid(traceparent) or f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01")
    try:
        yield found
    finally:
        _given.reset(token)


def present() -> str | None:
    """The traceparent that holds here and now: of OpenTelemetry's current span, where that is loaded; else of the block
    of :func:`trace`; else of the task that runs. None: nobody traces.
    """
    return _span() or _given.get() or (of_task() if of_task is not None else None)


def outgoing() -> str | None:
    """The traceparent for a task that is enqueued here and now; None: nobody traces.

    Each gets an operation of its own in the trace. That of a span is left as it is, for its parent is to be known.
    """
    # Written out, for nearly every enqueue asks, and nearly none has one.
    if _TELEMETRY in sys.modules and (span := _span()) is not None:
        return span
    found = _given.get()
    if found is None:
        if of_task is None:
            return None
        found = of_task()
        if found is None:
            return None
    return f"{found[:36]}{os.urandom(8).hex()}{found[52:]}"


def _span() -> str | None:
    """The traceparent of the current span, if the program uses OpenTelemetry; it is not loaded for that."""
    telemetry = sys.modules.get(_TELEMETRY)
    if telemetry is None:
        return None
    try:
        span = telemetry.get_current_span().get_span_context()
        return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}" if span.is_valid else None
    except Exception:  # half loaded, or something else of that name: no reason for an enqueue to fail
        return None


def extra_of(claim: Claim) -> dict[str, str]:
    """What the log records about a claimed task have more if it has a trace."""
    if TRACED not in claim.header:
        return {}
    try:
        found = valid(claim.message().trace)
    except DecodeError:
        return {}
    return {} if found is None else {"trace": found}


def add_trace(record: logging.LogRecord) -> bool:
    """A filter for a handler of the :mod:`logging` module: gives each record a `trace`, "" where there is none.

    >>> handler.addFilter(add_trace)
    >>> handler.setFormatter(logging.Formatter("%(levelname)s %(trace)s %(message)s"))
    """
    if not hasattr(record, "trace"):  # the library's own records about a task have it
        record.trace = present() or ""
    return True
