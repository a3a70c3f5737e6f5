"""Retry policies, as plain data: what a header carries, and any worker can apply without knowing the task."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from delayed.durations import seconds_of
from delayed.errors import DELAY_MAX, ConfigError, DecodeError, NotEnqueueable, RetryLater
from delayed.functions import MAIN, is_path, path_of

if TYPE_CHECKING:
    from datetime import timedelta

    Duration = float | timedelta | str
    ErrorName = type[BaseException] | str
    Decider = Callable[[Any, int], bool | Duration | None]  # (what was raised, number of the run)

KILLED = "killed"  # the name of what no exception tells of: the process of the run died

_DEFAULTS: tuple[Any, ...] = (0.0, (), None, (), None)  # of the fields that headers have only where they are given
_deciders: dict[str, Callable[..., Any]] = {}


class Backoff(NamedTuple):
    """How the pauses between runs grow: each is the last one times `factor`, and `step` seconds more.

    Made by :func:`exponential`, :func:`linear`, :func:`constant` and :func:`fixed`.

    Attributes:
        delay: seconds of the first pause.
        factor, step: see above.
        max_delay: seconds that a pause lasts at most.
        pauses: seconds of each pause, instead of all that; the last one is that of all that follow.
    """

    delay: float
    factor: float = 1.0
    step: float = 0.0
    max_delay: float = 600.0
    pauses: tuple[float, ...] = ()


def exponential(first: Duration = 1.0, *, factor: float = 2.0, max: Duration = 600.0) -> Backoff:
    """``exponential(1, factor=3)``: after 1, 3, 9, 27 s …, `max` at most."""
    return Backoff(seconds_of("the first pause", first), factor, 0.0, seconds_of("max", max))


def linear(first: Duration = 1.0, step: Duration | None = None, *, max: Duration = 600.0) -> Backoff:
    """``linear(10, 5)``: after 10, 15, 20 s …, `max` at most. Without a `step` each pause is longer by the first."""
    delay = seconds_of("the first pause", first)
    return Backoff(delay, 1.0, delay if step is None else seconds_of("step", step), seconds_of("max", max))


def constant(pause: Duration) -> Backoff:
    """``constant("30s")``: always after 30 s."""
    seconds = seconds_of("the pause", pause)
    return Backoff(seconds, max_delay=seconds)


def fixed(*pauses: Duration) -> Backoff:
    """``fixed(1, 5, "1m")``: after 1, 5, 60 s, and then always after 60 s."""
    if not pauses:
        raise ConfigError("fixed() needs one pause at least, such as fixed(1, 5, '1m')")
    return Backoff(0.0, pauses=tuple(seconds_of("a pause", pause) for pause in pauses))


class _Policy(NamedTuple):
    max: int = 3
    delay: float = 1.0
    factor: float = 2.0
    max_delay: float = 600.0
    jitter: bool = True
    step: float = 0.0
    pauses: tuple[float, ...] = ()
    on: tuple[str, ...] | None = None
    never: tuple[str, ...] = ()
    policy: str | None = None


class Retry(_Policy):
    """How often, and how soon, a failed task is tried again, and after what.

    ``Retry(3)`` means at most 4 runs: the first, and three more after 1, 2 and 4 seconds.

    Args:
        max: how many times to try again; -1 means for ever.
        delay: the pause before the first retry: seconds, a :class:`datetime.timedelta`, or text such as ``30s``.
        factor: each pause is this many times the one before.
        max_delay: how long a pause lasts at most.
        jitter: whether to shorten each pause by a random part of up to a half, so that tasks which failed together
            do not come back together.
        backoff: the pauses, instead of the three arguments above: :func:`exponential`, :func:`linear`,
            :func:`constant` or :func:`fixed`.
        on: the exceptions after which to try again: classes, with all that derive from them, or their dotted paths
            where they are defined, such as ``requests.exceptions.HTTPError``. A run whose time was up counts as
            :class:`TaskTimeout`, one whose process died as ``"killed"``. None: all of that.
        never: the exceptions after which not to, even if `on` has them.
        policy: a function that can be imported, called as ``policy(error, attempt)`` in the process of the task, with
            what it raised and the number of the run. It returns False or None for no retry, a duration for one after
            that time, however many there were, or True for what all else here says. Where it can't be asked (it
            fails, or the process of the run died) all else here holds too. None: there is none.

    An exception group counts as each of the exceptions in it.

    Attributes:
        max, delay, factor, max_delay, jitter: as above; durations in seconds.
        step, pauses: see :class:`Backoff`.
        on, never: the paths of the classes.
        policy: the path of the function.

    Raises:
        ConfigError: When an argument makes no sense.
    """

    __slots__ = ()

    def __new__(
        cls,
        max: int = 3,
        delay: Duration = 1.0,
        factor: float = 2.0,
        max_delay: Duration = 600.0,
        jitter: bool = True,
        *,
        backoff: Backoff | None = None,
        on: ErrorName | Iterable[ErrorName] | None = None,
        never: ErrorName | Iterable[ErrorName] = (),
        policy: Decider | str | None = None,
    ) -> Self:
        if not isinstance(max, int) or isinstance(max, bool) or max < -1:
            raise ConfigError(f"retry must be a number of retries (-1: for ever) or a Retry, not {max!r}")
        step = 0.0
        pauses: tuple[float, ...] = ()
        if backoff is not None:
            if not isinstance(backoff, Backoff):
                raise ConfigError(f"Retry(backoff=...) must be one such as exponential(1, max='5m'), not {backoff!r}")
            if (delay, factor, max_delay) != (1.0, 2.0, 600.0):
                raise ConfigError("give Retry either backoff=..., or delay=..., factor=... and max_delay=...")
            delay, factor, step, max_delay, pauses = backoff
        if not isinstance(factor, (int, float)) or not 0 <= factor < inf:
            raise ConfigError(f"Retry(factor=...) must be a number of at least 0, not {factor!r}")
        return super().__new__(
            cls,
            max,
            seconds_of("delay of a retry", delay),
            factor,
            seconds_of("max_delay of a retry", max_delay),
            jitter,
            step,
            pauses,
            None if on is None else _names("on", on),
            _names("never", never) if never != () else (),
            _path_of_decider(policy) if policy is not None else None,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._make, (tuple(self),)

    @staticmethod
    def later(delay: Duration, reason: str = "", *, count: bool = False) -> RetryLater:
        """What a task raises to run again after `delay`: ``raise Retry.later("30s")``; see :class:`RetryLater`."""
        return RetryLater(delay, reason, count=count)

    def data(self) -> dict[str, Any]:
        """The policy as plain data, for a header."""
        max, delay, factor, max_delay, jitter = self[:5]
        data: dict[str, Any] = {"max": max, "delay": delay, "factor": factor, "max_delay": max_delay, "jitter": jitter}
        if self[5:] != _DEFAULTS:
            more = zip(self._fields[5:], self[5:], _DEFAULTS, strict=True)
            data |= {
                name: list(value) if isinstance(value, tuple) else value
                for name, value, usual in more
                if value != usual
            }
        return data

    @classmethod
    def of(cls, value: Retry | int | Mapping[str, Any] | Decider | None) -> Retry | None:
        """The policy that `value` means: a number of retries, a policy or its data, a function that decides
        (``Retry(policy=function)``), or None for no retry.

        Raises:
            ConfigError: When it means none.
        """
        if value is None or isinstance(value, Retry):
            return value
        if isinstance(value, Mapping):
            return cls._of_data(dict(value))
        if callable(value):
            return cls(policy=value)
        return cls(value) if value != 0 or isinstance(value, bool) else None

    @classmethod
    def _of_data(cls, data: dict[str, Any]) -> Self:
        shape = {name: data.pop(name) for name in ("step", "pauses") if name in data}
        try:
            policy = cls(**data)
        except TypeError as error:
            raise ConfigError(f"{data!r} is not a retry policy: {error}") from error
        if not shape:
            return policy
        return policy._replace(step=shape.get("step", 0.0), pauses=tuple(shape.get("pauses", ())))


def delay_before_next(data: Mapping[str, Any] | None, attempt: int) -> float | None:
    """Seconds until the next run after run number `attempt` failed, a hundred years at most; None when there is to be
    none.

    Args:
        data: what :meth:`Retry.data` gave, possibly in another version: what is missing has its default.

    Raises:
        DecodeError: When it is no such data.
    """
    if not data:
        return None
    try:
        most = data.get("max", 0)
        if not isinstance(most, int) or (0 <= most < attempt):
            return None
        pause = min(_pause(data, attempt), DELAY_MAX)
        if not 0.0 <= pause < inf:
            raise ValueError(f"a pause of {pause} s")
    except (AttributeError, TypeError, ValueError) as error:
        raise DecodeError(f"its retry policy can't be read: {error}") from error
    if not data.get("jitter", True):
        return pause
    import random  # not at the top: a fork server that has it loaded reseeds it at each fork

    return pause * random.uniform(0.5, 1.0)


def _pause(data: Mapping[str, Any], attempt: int) -> float:
    pauses = data.get("pauses")
    if pauses:
        return float(pauses[min(attempt, len(pauses)) - 1])
    try:
        grown = float(data.get("delay", 1.0)) * float(data.get("factor", 2.0)) ** min(attempt - 1, 64)
    except OverflowError:
        grown = inf
    return min(grown + float(data.get("step", 0.0)) * (attempt - 1), float(data.get("max_delay", 600.0)))


# -- by what was raised ----------------------------------------------------------------------------------------------


def is_retried(data: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a policy tries again after an error that has these names, as far as its name decides.

    Args:
        data: what :meth:`Retry.data` gave.
        names: what :func:`names_of` gave, or :data:`KILLED`.
    """
    on = data.get("on")
    return (on is None or any(name in on for name in names)) and not any(
        name in data.get("never", ()) for name in names
    )


def names_of(error: BaseException) -> set[str]:
    """What an error may be called in a policy: its classes, and for a group also those of the errors in it."""
    names = {_name_of(kind) for kind in type(error).__mro__}
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            names |= names_of(inner)
    return names


def known_decider(path: str) -> Callable[..., Any] | None:
    """The function at `path` if this process's own code has made it a policy."""
    return _deciders.get(path)


def _name_of(kind: type) -> str:
    module = "__main__" if kind.__module__ == MAIN else kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _names(what: str, given: Any) -> tuple[str, ...]:
    kinds = [given] if isinstance(given, (str, type)) else given
    try:
        return tuple(_given_name(kind) for kind in kinds)
    except TypeError:
        raise ConfigError(
            f"Retry({what}=...) must be exception classes, their dotted paths, or {KILLED!r}, not {given!r}"
        ) from None


def _given_name(kind: Any) -> str:
    if isinstance(kind, str) and kind:
        return kind.replace(":", ".").removeprefix("builtins.")
    if not isinstance(kind, type) or not issubclass(kind, BaseException):
        raise TypeError
    name = _name_of(kind)
    if kind.__module__ == "__main__":  # a worker imports it by the name of its module
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        return f"{spec.name}.{kind.__qualname__}" if spec is not None and spec.name else name
    return name


def _path_of_decider(policy: Any) -> str:
    if isinstance(policy, str):
        if not is_path(policy) or ":" not in policy:
            raise ConfigError(f"Retry(policy=...) must be a function, or its path package.module:name, not {policy!r}")
        return policy
    try:
        if isinstance(policy, type):
            raise NotEnqueueable("it is a class")
        path = path_of(policy)
    except NotEnqueueable as error:
        raise ConfigError(
            f"a retry policy has to be a function at the top level of a module, where workers can import it: {error}"
        ) from error
    _deciders[path] = policy
    return path
