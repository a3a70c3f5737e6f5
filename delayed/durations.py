"""Durations, as people write them."""

from __future__ import annotations

import re
import time

from delayed.errors import DELAY_MAX, ConfigError

_UNITS = {"w": 604800.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}  # seconds; also their order
_TEXT = re.compile(r"\s*".join(rf"(?:(\d+(?:\.\d+)?)\s*{unit})?" for unit in _UNITS), re.IGNORECASE | re.ASCII)


def seconds_of(name: str, value: object, least: float = 0.0, most: float = DELAY_MAX) -> float:
    """The seconds that `value` means: a number of them, a :class:`datetime.timedelta`, or text.

    Text is a number for each unit, the larger ones first: ``30s``, ``1h30m``, ``1.5h``, ``250 ms``, ``2d12h``, ``1w``.
    A number alone is seconds, as in ``"30"``.

    Args:
        name: what the duration is of, for the error.
        least, most: seconds that it may last; from 0 to a hundred years by default.

    Raises:
        ConfigError: When it means none, or one that is shorter or longer than that.
    """
    seconds: float | None = None
    if isinstance(value, str):
        seconds = _read(value.strip())
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = value
    elif hasattr(value, "total_seconds"):  # a timedelta; to import its module takes time that children do not have
        seconds = value.total_seconds()
    if seconds is None or seconds != seconds:
        raise ConfigError(
            f"{name} must be a duration: write 30s, 5m or 1h30m, or a number of seconds, or a timedelta; not {value!r}"
        )
    if not least <= seconds <= most:
        if seconds > most == DELAY_MAX:
            raise ConfigError(
                f"{name}={value!r} is more than a hundred years: give seconds from now, not milliseconds or a date"
            )
        raise ConfigError(f"{name} must be a duration from {_text(least)} to {_text(most)}, not {value!r}")
    return float(seconds)


def unix_time(name: str, when: object) -> float:
    """The unix time of a moment.

    Args:
        name: what the moment is of, for the error.
        when: a :class:`datetime.datetime` with a time zone.

    Raises:
        ConfigError: When it is none, has no time zone, or is more than a hundred years away.
    """
    from datetime import datetime  # few programs that enqueue need it for this

    if not isinstance(when, datetime):
        raise ConfigError(f"{name} takes a datetime with a time zone, not {when!r}; for a duration there is after(...)")
    if when.utcoffset() is None:
        raise ConfigError(
            f"{name} takes a datetime with a time zone, and {when!r} has none, so it could mean another moment on each "
            "host: write datetime(..., tzinfo=ZoneInfo('Europe/Rome')), or datetime.now(UTC) + ..."
        )
    moment = when.timestamp()
    if moment - time.time() > DELAY_MAX:
        raise ConfigError(f"{name} takes a moment within the next hundred years, not {when!r}")
    return moment


def _read(text: str) -> float | None:
    match = _TEXT.fullmatch(text)
    if text and match:
        return sum(float(number) * unit for number, unit in zip(match.groups(), _UNITS.values(), strict=True) if number)
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) else None


def _text(seconds: float) -> str:
    return "a hundred years" if seconds == DELAY_MAX else f"{seconds:g} s"
