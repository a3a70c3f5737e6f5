"""When periodic tasks are due: rules as plain data, from which every scheduler works out the same moments."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, Protocol

from delayed.durations import seconds_of
from delayed.errors import ConfigError
from delayed.plugs import missing

PERIOD_MIN = 0.1  # seconds


class Ticks(Protocol):
    """A rule."""

    def after(self, moment: float) -> float:
        """The first tick later than `moment`, both in unix time."""

    def last(self, begin: float, end: float) -> float | None:
        """The last tick later than `begin`, and up to `end`; None if there is none."""

    def data(self) -> dict[str, Any]:
        """The rule as plain data."""


class Every:
    """Ticks at all multiples of a period, counted from the beginning of 1970 in UTC: so each hour is the full hour.

    Args:
        period: seconds, a timedelta, or text such as ``"5m"``.

    Raises:
        ConfigError: When it is no duration of at least 0.1 s.
    """

    def __init__(self, period: Any) -> None:
        self._ms = round(seconds_of("every", period, PERIOD_MIN) * 1000)

    def after(self, moment: float) -> float:
        return (round(moment * 1000) // self._ms + 1) * self._ms / 1000

    def last(self, begin: float, end: float) -> float | None:
        found = round(end * 1000) // self._ms * self._ms / 1000
        return found if found > begin else None

    def data(self) -> dict[str, Any]:
        return {"every": self._ms / 1000}

    def __str__(self) -> str:
        return f"every {datetime.timedelta(milliseconds=self._ms)}"


class Cron:
    """Ticks by an expression of cron, in a time zone.

    When clocks are put forward, what would have been in the missing hour is at its end; when they are put back, what
    is at fixed times is once, and what is each so many minutes goes on. (As Debian's cron does, see `cronsim`.)

    Args:
        expression: five fields: minute, hour, day of the month, month, day of the week.
        tz: the name of a time zone, such as ``"Europe/Rome"``.

    Raises:
        ConfigError: When the expression or the zone is none.
        MissingDependency: When `cronsim` is not installed.
    """

    def __init__(self, expression: str, tz: str = "UTC") -> None:
        try:
            from cronsim import CronSim, CronSimError
        except ModuleNotFoundError as error:
            raise missing("cronsim", "cron", "every(cron=...)") from error
        self._sim = CronSim
        self._expression = expression
        self._tz = tz
        try:
            self._zone = _zone(tz)
        except Exception as error:
            raise ConfigError(f"there is no time zone {tz!r}; one is for example 'Europe/Rome'") from error
        try:
            self.after(0.0)
        except (CronSimError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"{expression!r} is no expression of cron: {error}; one is for example '*/5 9-17 * * mon-fri'"
            ) from error
        except StopIteration:
            raise ConfigError(f"{expression!r} never comes") from None

    def after(self, moment: float) -> float:
        begin = datetime.datetime.fromtimestamp(moment, self._zone)
        moments = self._sim(self._expression, begin)
        found: float = next(moments).timestamp()
        while found <= moment:  # in the hour that there is twice, a fixed time is that of the first one
            found = next(moments).timestamp()
        return found

    def last(self, begin: float, end: float) -> float | None:
        found, tick = None, self.after(begin)
        while tick <= end:
            found, tick = tick, self.after(tick)
        return found

    def data(self) -> dict[str, Any]:
        return {"cron": self._expression, "tz": self._tz}

    def __str__(self) -> str:
        return f"{self._expression} {self._tz}"


def _zone(name: str) -> datetime.tzinfo:
    if name == "UTC":
        return datetime.UTC
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)


def ticks_of(data: Mapping[str, Any]) -> Ticks:
    """The rule of plain data.

    Raises:
        ConfigError: When it is none.
    """
    if data.get("every") is not None and data.get("cron") is None:
        return Every(data["every"])
    if data.get("cron") is not None and data.get("every") is None:
        return Cron(data["cron"], "UTC" if data.get("tz") is None else data["tz"])
    raise ConfigError('give a period or an expression of cron: every("5m"), every(cron="0 3 * * *", tz="Europe/Rome")')
