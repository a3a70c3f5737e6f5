"""Limits of how many tasks run at once, and of how often they begin: plain data, which any worker can keep."""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple

from delayed.durations import seconds_of
from delayed.errors import ConfigError, NotEnqueueable
from delayed.fields import AT_ONCE_MAX

NAME_MAX = 200  # characters; what is longer with the argument's value is shortened by its hash
_RATE = re.compile(r"\s*(\d{1,9})\s*/\s*(.+?)\s*")


class _Fields(NamedTuple):
    at_once: int | None
    rate: str | None
    by: str | None
    name: str | None


class Limit(_Fields):
    """How many tasks may run at once, how often they may begin, or both, over all workers of their queue.

    >>> Limit(at_once=3)
    >>> Limit(rate="100/m", by="host")   # 100 a minute for each value of the argument `host`
    >>> Limit(at_once=3, rate="5/10s", name="the bank")

    What is over it waits in the store, uncharged.

    Args:
        at_once: tasks that run at once at most, from 1 to 1000; None: any number.
        rate: how many begin in a period: text such as ``20/s``, ``100/m``, ``1000/h`` or ``5/10s``. They begin evenly:
            with ``100/m`` one each 0.6 s. None: as often as there are some.
        by: the name of a parameter of the function: each value of it has a limit of its own. None: one limit for all.
        name: of the limit; tasks with one name share it if they are in one queue, and should give the same numbers.
            None: the path of the function.

    Raises:
        ConfigError: When a value makes no sense.
    """

    __slots__ = ()

    def __new__(
        cls, at_once: int | None = None, rate: str | None = None, by: str | None = None, name: str | None = None
    ) -> Limit:
        if at_once is None and rate is None:
            raise ConfigError("a limit has at_once=, rate= or both: Limit(at_once=3)")
        at_once_of(at_once)
        rate_of(rate)
        if by is not None and not (isinstance(by, str) and by.isidentifier()):
            raise ConfigError(f"by is the name of a parameter of the function, or None, not {by!r}")
        if name is not None and not (isinstance(name, str) and 1 <= len(name) <= NAME_MAX and name.isprintable()):
            raise ConfigError(f"the name of a limit is text of 1 to {NAME_MAX} printable characters, not {name!r}")
        return super().__new__(cls, at_once, rate, by, name)

    def data(self, path: str, value: object = None) -> list[Any]:
        """What a header has of it: the name, how many at once, and the seconds between two that begin.

        Args:
            path: of the function.
            value: of the argument `by`.

        Raises:
            NotEnqueueable: When the value of the argument has no text that could name a limit.
        """
        name = path if self.name is None else self.name
        if self.by is not None:
            name = f"{name}:{self._text(value)}"
        if len(name) > NAME_MAX or not name.isprintable():
            name = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        return [name, self.at_once, None if self.rate is None else spacing_of(self.rate)]

    def _text(self, value: object) -> str:
        if type(value).__str__ is object.__str__ and type(value).__repr__ is object.__repr__:
            # Its text would be its address, another one in each process.
            raise NotEnqueueable(
                f"the argument {self.by!r} names its limit, and a {type(value).__qualname__} has no text that could: "
                "give text or a number, or a class with __str__"
            )
        return str(value)


def at_once_of(value: object) -> int | None:
    """How many tasks run at once, as a user writes it.

    Raises:
        ConfigError: When it makes no sense.
    """
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= AT_ONCE_MAX:
        raise ConfigError(f"at_once is a whole number from 1 to {AT_ONCE_MAX}, or None, not {value!r}")
    return value


def rate_of(value: object) -> str | None:
    """How often tasks begin, as a user writes it.

    Raises:
        ConfigError: When it makes no sense.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise ConfigError(f"a rate is so many in a period, such as '20/s', '100/m' or '5/10s', not {value!r}")
    spacing_of(value)
    return value


def spacing_of(rate: str) -> float:
    """The seconds between two that begin.

    Raises:
        ConfigError: When it is no rate.
    """
    match = _RATE.fullmatch(rate)
    if match is None or not int(match[1]):
        raise ConfigError(f"a rate is so many in a period, such as '20/s', '100/m' or '5/10s', not {rate!r}")
    period = match[2] if match[2][0].isdigit() else f"1{match[2]}"
    return seconds_of(f"the period of the rate {rate!r}", period, least=0.001) / int(match[1])
