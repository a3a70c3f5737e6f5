"""The options of a task: how it is to be run, apart from what it is called with."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from sys import float_info
from typing import Any, NamedTuple, Self

from delayed.durations import seconds_of
from delayed.errors import ConfigError, NotKept, UnknownOption
from delayed.limit import Limit, at_once_of, rate_of
from delayed.message import KEEP_MIN
from delayed.retry import Retry
from delayed.sizes import size_of
from delayed.unique import Unique

PRIORITY_MAX = 32767
FLOAT_MAX = float_info.max
LIMIT_END = 2**62  # what is larger a worker would take for a damaged header
_OLD_NAMES = {"seconds": "timeout", "prior": "priority"}
_ELSEWHERE = {
    "error_handler": "give it to the worker: ForkedWorker(queue, error_handler=...)",
    "success_handler": "give it to the worker: ForkedWorker(queue, success_handler=...)",
    "queue": "give it first: delayed(queue, ...)",
    "max_memory": "it is the worker's; a task has memory=...",
    "kill_memory": "it is the worker's; a task has memory=...",
    "serializer": "give it to the queue: Queue(name, serializer=...)",
}


class Options(NamedTuple):
    """How a task is to be run.

    Attributes:
        timeout: seconds that one run may take; None: the queue's default; ``math.inf``: no limit.
        retry: what to do when a run fails; None: nothing.
        priority: higher goes first; between -32768 and 32767.
        delay: seconds from the enqueue until it may run first.
        key: a name of the caller's for it.
        max_deliveries: how often it may be handed out when its workers always vanish; None: 11, and one more for
            each retry.
        memory: bytes that one run may allocate, or text such as ``512M``; None: no limit.
        cpu: seconds of CPU that one run may use, rounded up to whole ones; None: no limit.
        keep: seconds that its answer is kept for after its end; None: none is kept.
        expires: seconds from the enqueue after which it is not begun any more; None: any time will do.
        exclusive: whether its run is killed in time where its lease can't be renewed.
        unique: whether a second task of the same key is kept out; None: it is not.
        fair_by: the argument by whose values the queue takes turns; None: first come, first served.
        limit: how many run at once, and how often they begin; None: no limit.
        after: the handles of those tasks that have to have returned before it runs; none by default.
    """

    timeout: float | None = None
    retry: Retry | None = None
    priority: int = 0
    delay: float = 0.0
    key: str | None = None
    max_deliveries: int | None = None
    memory: int | None = None
    cpu: float | None = None
    keep: float | None = None
    expires: float | None = None
    exclusive: bool = False
    unique: Unique | None = None
    fair_by: str | None = None
    limit: Limit | None = None
    after: tuple[Any, ...] = ()

    def updated(self, given: Mapping[str, Any]) -> Self:
        """These options, with those of `given` instead, which are as a user writes them.

        Raises:
            UnknownOption: When there is none of that name.
            ConfigError: When a value makes no sense.
        """
        known: dict[str, Any] = {}
        for name, value in given.items():
            real = _OLD_NAMES.get(name, name)
            check = _CHECKS.get(real)
            if check is None:
                raise UnknownOption(f"no option {name!r}; {_advice(name)}")
            if real in known:
                raise ConfigError(f"{name!r} is the old name of the option {real!r}: give one of them")
            known[real] = check(value)
        at_once, rate = known.pop("at_once", None), known.pop("rate", None)
        if at_once is not None or rate is not None:
            if known.get("limit") is not None:
                raise ConfigError("at_once and rate are parts of the limit: give them to Limit(...)")
            known["limit"] = Limit(at_once, rate)
        return self._replace(**known) if known else self


def _advice(name: str) -> str:
    if name in _ELSEWHERE:
        return _ELSEWHERE[name]
    import difflib

    near = difflib.get_close_matches(name, _CHECKS, 1, 0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_CHECKS)}"


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _timeout(value: Any) -> float:
    if value is None:
        return inf
    if not _number(value) or not (0 < value <= FLOAT_MAX or value == inf):
        raise ConfigError(f"timeout must be a number of seconds above 0, or None for no limit, not {value!r}")
    return value  # type: ignore[no-any-return]


def _priority(value: Any) -> int:
    if isinstance(value, bool):  # prior=True of delayed 0.7: before the others
        return int(value)
    if not isinstance(value, int) or not -PRIORITY_MAX - 1 <= value <= PRIORITY_MAX:
        raise ConfigError(f"priority must be a whole number from {-PRIORITY_MAX - 1} to {PRIORITY_MAX}, not {value!r}")
    return value


def _delay(value: Any) -> float:
    return seconds_of("delay", value)


def _key(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"key must be text or None, not {value!r}")
    return value


def _max_deliveries(value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ConfigError(f"max_deliveries must be a whole number from 1, or None, not {value!r}")
    return value


def _memory(value: Any) -> int | None:
    size = None if value is None else size_of("memory", value)
    if size is not None and size >= LIMIT_END:
        raise ConfigError(f"memory={value!r} is more than any machine has: give bytes, or text such as 512M, or None")
    return size


def _cpu(value: Any) -> float | None:
    if value is not None and not (_number(value) and 0 < value < LIMIT_END):
        raise ConfigError(f"cpu must be a number of seconds above 0, or None for no limit, not {value!r}")
    return value  # type: ignore[no-any-return]


def _keep(value: Any) -> float | None:
    return None if value is None else seconds_of("keep", value, least=KEEP_MIN)


def _expires(value: Any) -> float | None:
    return None if value is None else seconds_of("expires", value, least=0.001)


def _fair_by(value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and value.isidentifier()):
        raise ConfigError(f"fair_by is the name of an argument, such as 'customer_id', or None, not {value!r}")
    return value


def _exclusive(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"exclusive must be True or False, not {value!r}")
    return value


def _limit(value: Any) -> Limit | None:
    if value is not None and not isinstance(value, Limit):
        raise ConfigError(f"limit is a delayed.Limit(...), or None, not {value!r}")
    return value


def _after(value: Any) -> tuple[Any, ...]:
    # Handles, which this layer does not know; one is a tuple, and a group is a sequence of them.
    given = (value,) if hasattr(value, "kept") else value or ()
    if not hasattr(given, "__iter__"):
        given = (given,)
    handles: list[Any] = []
    for each in given:
        handles += each if hasattr(each, "ids") else [each]
    for handle in handles:
        if not hasattr(handle, "kept"):
            raise ConfigError(f"after takes what .delay() and .map() return, or several of these, not {handle!r}")
        if handle.kept is False:
            raise NotKept(
                f"task {handle.id} keeps no answer, so nothing can tell when it has ended well; enqueue it with "
                ".options(keep='1h')"
            )
    return tuple(handles)


_CHECKS = {
    "timeout": _timeout,
    "retry": Retry.of,
    "priority": _priority,
    "delay": _delay,
    "key": _key,
    "max_deliveries": _max_deliveries,
    "memory": _memory,
    "cpu": _cpu,
    "keep": _keep,
    "expires": _expires,
    "exclusive": _exclusive,
    "unique": Unique.of,
    "fair_by": _fair_by,
    "at_once": at_once_of,
    "rate": rate_of,
    "limit": _limit,
    "after": _after,
}
