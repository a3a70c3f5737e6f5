"""What the keys of a header may hold.

Whoever can write to a store can put any header there, and guardians count with what they read in it. So each value is
of its type and in its range, or the message is refused: no number is nan or infinite, or larger than stores can keep.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from delayed.errors import DELAY_MAX
from delayed.functions import is_path

ENDLESS = 2**31 - 1  # deliveries of a task that is retried for ever; no store counts further
ID_MAX = (1 << 53) - 1  # what every tool can read as a number
QUEUE_MAX = 200  # characters of a queue's name
GATE_MAX = 300  # characters of the name of a limit
AT_ONCE_MAX = 1000  # tasks that one limit lets run at once: all of them are kept in one small value
SHOWN_MAX = 100  # characters of a value that is not right
_FLOAT_MAX = sys.float_info.max
_NUMBERS = (int, float)  # and no bool


def short(value: object) -> str:
    """A value of a header, as a message shows it."""
    try:
        text = repr(value)
    except ValueError:  # a number with thousands of digits
        return "of a number without end"
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "…"


def _is_timeout(value: Any) -> bool:
    return value is None or (type(value) in _NUMBERS and 0 <= value <= _FLOAT_MAX)


def _is_time(value: Any) -> bool:
    return type(value) in _NUMBERS and -_FLOAT_MAX <= value <= _FLOAT_MAX


def _is_delay(value: Any) -> bool:
    return type(value) in _NUMBERS and 0 <= value <= DELAY_MAX


def _is_age(value: Any) -> bool:
    return value is None or (type(value) in _NUMBERS and 0 < value <= DELAY_MAX)


def _is_moment(value: Any) -> bool:
    return value is None or (type(value) in _NUMBERS and 0 < value <= _FLOAT_MAX)


def _is_priority(value: Any) -> bool:
    return type(value) is int and -32768 <= value <= 32767


def _is_deliveries(value: Any) -> bool:
    return type(value) is int and 1 <= value <= ENDLESS


def _is_text(value: Any) -> bool:
    return value is None or type(value) is str


def _is_retries(value: Any) -> bool:
    return type(value) is int and value >= -1


def _is_factor(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= _FLOAT_MAX


def _is_pauses(value: Any) -> bool:
    return type(value) is list and all(_is_delay(pause) for pause in value)


def _is_names(value: Any) -> bool:
    return type(value) is list and all(type(name) is str and name for name in value)


def _is_limit(value: Any) -> bool:
    return type(value) in _NUMBERS and 0 < value < 2**62


def _is_table(value: Any, tests: dict[str, Callable[[Any], bool]]) -> bool:
    if value is None:
        return True
    return type(value) is dict and all(key in tests and tests[key](each) for key, each in value.items())


_RETRY: dict[str, Callable[[Any], bool]] = {
    "max": _is_retries,
    "delay": _is_delay,
    "factor": _is_factor,
    "max_delay": _is_delay,
    "jitter": _is_factor,  # a bool, too
    "step": _is_factor,
    "pauses": _is_pauses,
    "on": lambda value: value is None or _is_names(value),
    "never": _is_names,
    "policy": lambda value: value is None or is_path(value),
}


def _is_gate(value: Any) -> bool:
    return (
        type(value) is list
        and len(value) == 3
        and type(value[0]) is str
        and 1 <= len(value[0]) <= GATE_MAX
        and value[0].isprintable()
        and (value[1] is None or (type(value[1]) is int and 1 <= value[1] <= AT_ONCE_MAX))
        and (value[2] is None or (type(value[2]) in _NUMBERS and 0 < value[2] <= DELAY_MAX))
    )


def is_queue(name: str) -> bool:
    """Whether text may be a queue's name."""
    return 1 <= len(name) <= QUEUE_MAX and name.isprintable() and not set("{}") & set(name)


def _is_after(value: Any) -> bool:
    return (
        type(value) is dict
        and bool(value)
        and all(
            is_queue(queue) and type(ids) is list and ids and all(type(id) is int and 0 < id <= ID_MAX for id in ids)
            for queue, ids in value.items()
        )
    )


_GATES: dict[str, Callable[[Any], bool]] = {
    "limit": _is_gate,
    "after": _is_after,
    "with": lambda value: type(value) is int and value in (1, 2),
    "runs": _is_deliveries,
}
_LIMITS: dict[str, Callable[[Any], bool]] = {"memory": _is_limit, "cpu": _is_limit}

# What each key of a header stands for: the attribute of a message, what it may be, and that in words.
FIELDS: dict[str, tuple[str, Callable[[Any], bool], str]] = {
    "f": ("func", is_path, "the path of a function"),
    "t": ("timeout", _is_timeout, "a number of seconds"),
    "p": ("priority", _is_priority, "a whole number from -32768 to 32767"),
    "e": ("enqueued_at", _is_time, "a time in seconds"),
    "d": ("delay", _is_delay, "a number of seconds up to a hundred years"),
    "r": ("retry", lambda value: _is_table(value, _RETRY), "a retry policy that this version knows"),
    "m": ("max_deliveries", _is_deliveries, f"a whole number from 1 to {ENDLESS}"),
    "k": ("key", _is_text, "text"),
    "x": ("trace", _is_text, "text"),
    "l": ("limits", lambda value: _is_table(value, _LIMITS), "limits that this version knows"),
    "gu": ("gates", lambda value: _is_table(value, _GATES), "gates that this version knows"),
    "u": ("expires", _is_moment, "a time in unix seconds, above 0"),
    "o": ("exclusive", lambda value: type(value) is bool, "true or false"),
    "a": ("keep", _is_age, "a number of seconds above 0, up to a hundred years"),
}
