"""The errors of the library, wherever they go."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from delayed import (
    AlreadyEnqueued,
    ConfigError,
    EnqueueUncertain,
    FunctionNotFound,
    LockLost,
    NotSerializable,
    Queue,
    RetryLater,
    TaskFailed,
    errors,
)
from delayed.errors import BrokerUnavailable, DelayedError, TaskControl, TaskStopped
from delayed.worker import verdict
from delayed.worker.verdict import Verdict

MADE: dict[type[BaseException], BaseException] = {
    AlreadyEnqueued: AlreadyEnqueued("why", Queue("q", "sqlite:////tmp/never-opened.db").handle(3)),
    BrokerUnavailable: BrokerUnavailable("why", sent=False),
    EnqueueUncertain: EnqueueUncertain("why", [1, 2], lambda timeout: None),
    FunctionNotFound: FunctionNotFound("why", name="package"),
    LockLost: LockLost("why", "name", "host:1"),
    NotSerializable: NotSerializable("is a socket", ("key", 3)),
    RetryLater: RetryLater("30s", "why", count=True),
    TaskFailed: TaskFailed("why", Verdict(verdict.KILLED, signal=9)),
}
KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, (DelayedError, TaskStopped, TaskControl))
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_being_pickled(kind: type[BaseException]) -> None:
    error = MADE.get(kind) or kind("why")
    error.add_note("a note")

    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(again), str(again), again.args, told(again)) == (kind, str(error), error.args, told(error))


def told(error: BaseException) -> dict[str, Any]:
    """All its attributes."""
    found = {name: getattr(error, name, None) for name in dir(error) if not name.startswith("_")} | vars(error)
    return {name: value for name, value in found.items() if name != "_retry" and not callable(value)}


def test_an_error_of_a_users_own_survives_too() -> None:
    again = pickle.loads(pickle.dumps(Busy(3)))

    assert (str(again), again.seats, again.delay) == ("3 seats", 3, 60.0)


class Busy(RetryLater):
    def __init__(self, seats: int) -> None:
        super().__init__("1m", f"{seats} seats")
        self.seats = seats


def test_a_doubtful_enqueue_is_settled_in_its_own_process() -> None:
    again = pickle.loads(pickle.dumps(MADE[EnqueueUncertain]))

    with pytest.raises(ConfigError, match=r"\[1, 2\].* in the process that tried"):
        again.retry()
