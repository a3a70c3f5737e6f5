"""Retry policies: what they mean, and what they refuse."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from typing import Any

import pytest

from delayed import ConfigError, DecodeError, Retry, RetryLater, Task, TaskTimeout
from delayed.codec import Codec
from delayed.retry import constant, delay_before_next, exponential, fixed, linear
from tests import functions


def pauses(policy: Retry, number: int = 5) -> list[float | None]:
    data = json.loads(json.dumps(policy._replace(jitter=False).data()))
    return [delay_before_next(data, attempt) for attempt in range(1, number + 1)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Retry(5), [1, 2, 4, 8, 16]),
        (Retry(5, delay="1m", max_delay="3m"), [60, 120, 180, 180, 180]),
        (Retry(5, backoff=exponential()), [1, 2, 4, 8, 16]),
        (Retry(5, backoff=exponential("2s", factor=3, max="1m")), [2, 6, 18, 54, 60]),
        (Retry(5, backoff=linear(10, 5, max=20)), [10, 15, 20, 20, 20]),
        (Retry(5, backoff=linear(2)), [2, 4, 6, 8, 10]),
        (Retry(5, backoff=constant(timedelta(minutes=2))), [120] * 5),
        (Retry(5, backoff=constant("1h")), [3600] * 5),
        (Retry(4, backoff=fixed(1, 5, "1m")), [1, 5, 60, 60, None]),
    ],
)
def test_pauses(policy: Retry, expected: list[float | None]) -> None:
    assert pauses(policy) == expected


@pytest.mark.parametrize("policy", [Retry(-1, factor=1e6), Retry(-1, backoff=linear(1, 1e9))])
def test_pauses_never_grow_over_their_limit(policy: Retry) -> None:
    data = policy._replace(jitter=False).data()

    assert [delay_before_next(data, attempt) for attempt in (60, 1000, 10**6)] == [600, 600, 600]


def test_a_policy_survives_its_way_as_data() -> None:
    policy = Retry(
        4, backoff=fixed(1, 2), jitter=False, on=(OSError, "app.Busy"), never=TaskTimeout, policy=functions.decide
    )

    again = Retry.of(json.loads(json.dumps(policy.data())))

    assert again == policy
    assert (again.on, again.never) == (("OSError", "app.Busy"), ("delayed.errors.TaskTimeout",))
    assert again.policy == "tests.functions:decide"


def test_a_plain_policy_takes_no_more_room_than_before() -> None:
    assert set(Retry(3, delay=5).data()) == {"max", "delay", "factor", "max_delay", "jitter"}


def test_a_function_is_a_policy() -> None:
    policy = Retry.of(functions.decide)

    assert policy == Retry(policy=functions.decide)
    assert policy is not None and policy.max == 3, "where it can't be asked"


def test_a_function_may_decide_for_longer_than_deliveries_are_counted() -> None:
    task = Task.create(functions.add, (1,), retry=functions.decide)

    assert task.to_message(Codec(), 1, None).max_deliveries > 10**9
    assert Task.create(functions.add, (1,), retry=3).to_message(Codec(), 1, None).max_deliveries == 14


def test_one_class_or_several_or_paths() -> None:
    assert Retry(5, on=[OSError]).on == Retry(5, on=OSError).on == Retry(5, on="builtins:OSError").on == ("OSError",)
    assert Retry(5).on is None
    assert Retry(5, on=()).on == (), "after nothing"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"on": 3}, r"Retry\(on=\.\.\.\) must be exception classes, .* not 3"),
        ({"on": [int]}, r"Retry\(on=\.\.\.\) must be exception classes"),
        ({"never": [""]}, r"Retry\(never=\.\.\.\) must be exception classes"),
        ({"never": ValueError()}, r"Retry\(never=\.\.\.\) must be exception classes"),
        ({"policy": lambda error, attempt: True}, "function at the top level of a module"),
        ({"policy": ValueError}, "function at the top level of a module"),
        ({"policy": "nonsense"}, "a function, or its path package.module:name, not 'nonsense'"),
        ({"backoff": 3}, r"Retry\(backoff=\.\.\.\) must be one such as exponential"),
        ({"backoff": constant(1), "delay": 2}, r"either backoff=\.\.\., or delay="),
        ({"delay": "soon"}, "delay of a retry must be a duration"),
        ({"max_delay": -1}, "max_delay of a retry must be a duration"),
    ],
)
def test_what_is_no_policy_is_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Retry(3, **arguments)


def test_what_is_no_backoff_is_refused() -> None:
    with pytest.raises(ConfigError, match="one pause at least"):
        fixed()
    with pytest.raises(ConfigError, match="the pause must be a duration"):
        constant("soon")
    with pytest.raises(ConfigError, match="step must be a duration"):
        linear(1, -1)


def test_classes_of_the_program_itself_are_named_as_a_worker_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy(Exception):
        pass

    Busy.__qualname__ = "Busy"
    Busy.__module__ = "__main__"
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert Retry(1, on=Busy).on == ("__main__.Busy",), "a script"
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", type("Spec", (), {"name": "app.jobs"}))
    assert Retry(1, on=Busy).on == ("app.jobs.Busy",), "python -m app.jobs"


@pytest.mark.parametrize("data", [[3], {"max": 3, "delay": "x"}, {"max": 3, "pauses": 7}, {"max": 3, "delay": -1}])
def test_data_that_is_no_policy_is_told_from_one_that_is_used_up(data: Any) -> None:
    with pytest.raises(DecodeError, match="its retry policy can't be read"):
        delay_before_next(data, 1)


def test_later_makes_what_a_task_raises() -> None:
    wish = Retry.later("1m30s", "busy", count=True)

    assert isinstance(wish, RetryLater)
    assert (wish.delay, wish.count, str(wish)) == (90.0, True, "busy")
