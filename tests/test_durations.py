"""Durations, as people write them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from math import inf, nan
from zoneinfo import ZoneInfo

import pytest

from delayed import ConfigError
from delayed.durations import seconds_of, unix_time
from delayed.errors import DELAY_MAX


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0),
        (1.5, 1.5),
        (timedelta(minutes=2, milliseconds=5), 120.005),
        ("30", 30),
        ("0.25", 0.25),
        ("30s", 30),
        ("250ms", 0.25),
        ("5m", 300),
        ("1.5h", 5400),
        ("1h30m", 5400),
        (" 1H 30 m ", 5400),
        ("1s500ms", 1.5),
        ("2d12h", 216000),
        ("1w", 604800),
        (DELAY_MAX, DELAY_MAX),
    ],
)
def test_what_is_a_duration(value: object, seconds: float) -> None:
    found = seconds_of("delay", value)

    assert found == pytest.approx(seconds, abs=1e-9)
    assert type(found) is float


@pytest.mark.parametrize(
    "value", [None, True, nan, b"5m", [], "", " ", "m", "5x", "5 5", "-5s", "30m1h", "1h1h", "1e3", "inf", "٣s"]
)
def test_what_is_none_is_refused_by_its_name(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^keep must be a duration: write 30s, .* not "):
        seconds_of("keep", value)


@pytest.mark.parametrize("value", [DELAY_MAX + 1, inf, "5300w", timedelta(days=40000)])
def test_more_than_a_hundred_years_is_no_duration(value: object) -> None:
    with pytest.raises(ConfigError, match="more than a hundred years: give seconds from now"):
        seconds_of("delay", value)


@pytest.mark.parametrize("value", [-1, -0.001, -inf, timedelta(seconds=-1)])
def test_none_is_negative(value: object) -> None:
    with pytest.raises(ConfigError, match="delay must be a duration from 0 s to a hundred years"):
        seconds_of("delay", value)


def test_whoever_asks_sets_the_bounds() -> None:
    assert seconds_of("every", "1s", least=1) == 1
    with pytest.raises(ConfigError, match="every must be a duration from 1 s to 60 s, not '999ms'"):
        seconds_of("every", "999ms", 1, 60)
    with pytest.raises(ConfigError, match="every must be a duration from 1 s to 60 s, not '2m'"):
        seconds_of("every", "2m", 1, 60)


@pytest.mark.parametrize(
    "when",
    [
        datetime(2026, 3, 29, 1, 0, tzinfo=UTC),
        datetime(2026, 3, 29, 3, 0, tzinfo=ZoneInfo("Europe/Rome")),  # the first moment of summer
        datetime(2026, 3, 28, 18, 30, tzinfo=timezone(timedelta(hours=-6, minutes=-30))),
    ],
)
def test_a_moment_is_the_same_in_each_time_zone(when: datetime) -> None:
    assert unix_time("at", when) == 1774746000


def test_a_moment_without_a_time_zone_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="has none, so it could mean another moment on each host"):
        unix_time("at(...)", datetime(2026, 3, 29, 3, 0))


@pytest.mark.parametrize("when", [date(2026, 1, 1), 1774746000, "2026-01-01", None])
def test_what_is_no_moment_is_refused(when: object) -> None:
    with pytest.raises(ConfigError, match=r"^at\(\.\.\.\) takes a datetime with a time zone, not "):
        unix_time("at(...)", when)


def test_a_moment_in_the_next_century_is_refused() -> None:
    with pytest.raises(ConfigError, match="within the next hundred years"):
        unix_time("at", datetime(2200, 1, 1, tzinfo=UTC))
