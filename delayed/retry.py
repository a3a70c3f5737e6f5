"""Retry policies, as plain data: what a header carries, and any worker can apply without knowing the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from delayed.errors import ConfigError


class _Policy(NamedTuple):
    max: int = 3
    delay: float = 1.0
    factor: float = 2.0
    max_delay: float = 600.0
    jitter: bool = True


class Retry(_Policy):
    """How often, and how soon, a failed task is tried again.

    ``Retry(3)`` means at most 4 runs: the first, and three more after 1, 2 and 4 seconds.

    Attributes:
        max: how many times to try again; -1 means for ever.
        delay: seconds before the first retry.
        factor: each pause is this many times the one before.
        max_delay: seconds that a pause lasts at most.
        jitter: whether to shorten each pause by a random part of up to a half, so that tasks which failed together
            do not come back together.
    """

    __slots__ = ()

    def __new__(
        cls, max: int = 3, delay: float = 1.0, factor: float = 2.0, max_delay: float = 600.0, jitter: bool = True
    ) -> Self:
        if not isinstance(max, int) or isinstance(max, bool) or max < -1:
            raise ConfigError(f"retry must be a number of retries (-1: for ever) or a Retry, not {max!r}")
        for name, value in (("delay", delay), ("factor", factor), ("max_delay", max_delay)):
            if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ConfigError(f"Retry({name}=...) must be a number of at least 0, not {value!r}")
        return super().__new__(cls, max, delay, factor, max_delay, jitter)

    def data(self) -> dict[str, Any]:
        """The policy as plain data, for a header."""
        return self._asdict()

    @classmethod
    def of(cls, value: Retry | int | Mapping[str, Any] | None) -> Retry | None:
        """The policy that `value` means: a number of retries, a policy or its data, or None for no retry.

        Raises:
            ConfigError: When it means none.
        """
        if value is None or isinstance(value, Retry):
            return value
        if isinstance(value, Mapping):
            try:
                return cls(**value)
            except TypeError as error:
                raise ConfigError(f"{dict(value)!r} is not a retry policy: {error}") from error
        return cls(value) if value != 0 or isinstance(value, bool) else None


def delay_before_next(data: Mapping[str, Any] | None, attempt: int) -> float | None:
    """Seconds until the next run after run number `attempt` failed; None when there is to be none.

    Args:
        data: what :meth:`Retry.data` gave, possibly in another version: what is missing has its default.
    """
    if not data:
        return None
    most = data.get("max", 0)
    if not isinstance(most, int) or (0 <= most < attempt):
        return None
    first: float = data.get("delay", 1.0)
    pause: float = min(first * data.get("factor", 2.0) ** min(attempt - 1, 64), data.get("max_delay", 600.0))
    if not data.get("jitter", True):
        return pause
    import random  # not at the top: a fork server that has it loaded reseeds it at each fork

    return pause * random.uniform(0.5, 1.0)
