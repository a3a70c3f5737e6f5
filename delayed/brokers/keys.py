"""What every store checks of small values and of their names; see :meth:`Broker.put_key`."""

from __future__ import annotations

import re

from delayed.errors import BrokerError, ConfigError

NAME_MAX = 500  # characters
VALUE_MAX = 64 << 10  # bytes
NUMBER_MAX = (1 << 53) - 1  # what every store can count with
FORGET_MAX = 1000  # values whose time is over that one sweep removes at most

_OWNERS = re.compile("key:|lock:")  # what stands before the names that users give, see `Broker.put_key`
_SHOWN_MAX = 60  # characters of a name that an error shows
_NUMBER = re.compile(rb"0|-?[1-9][0-9]{0,15}")


def checked(name: str, value: bytes | None = None) -> str:
    """The name, if every store can keep the value under it.

    Raises:
        ConfigError: When the name or the value is too long, or the name has what no text can have everywhere.
    """
    if not 1 <= len(name) <= NAME_MAX or "\0" in name or any("\ud800" <= char <= "\udfff" for char in name):
        given = _given(name)
        most = NAME_MAX - len(name) + len(given)
        raise ConfigError(
            f"{shown(name)} can't name a value: a name has 1 to {most} characters, and this one has {len(given)}; "
            "nor can one have NUL or half of a surrogate pair"
        )
    if value is not None and len(value) > VALUE_MAX:
        raise ConfigError(
            f"the value of {shown(name)} has {len(value)} bytes, and may have {VALUE_MAX}: keep it elsewhere, and its "
            "place here"
        )
    return name


def shown(name: str) -> str:
    """A name as its user gave it, for an error; a long one shortened."""
    given = _given(name)
    return repr(given if len(given) <= _SHOWN_MAX else given[:_SHOWN_MAX] + "…")


def _given(name: str) -> str:
    owner = _OWNERS.match(name)
    return name[owner.end() :] if owner is not None else name


def number_of(value: bytes) -> int | None:
    """The number that a value is counted with; None if it is none."""
    return int(value) if _NUMBER.fullmatch(value) and abs(int(value)) <= NUMBER_MAX else None


def total(name: str, value: bytes, by: int) -> int:
    """A value that is there and what is added to it.

    Raises:
        BrokerError: When it can't be counted with, or the sum is too large.
    """
    number = number_of(value)
    if number is None:
        raise no_number(name, value)
    return bounded(name, number + by)


def bounded(name: str, number: int) -> int:
    """The number, if every store can count with it."""
    if abs(number) > NUMBER_MAX:
        raise too_large(name, str(number))
    return number


def too_large(name: str, number: str) -> BrokerError:
    """What is raised where a sum is more than every store can count with."""
    return BrokerError(f"{shown(name)} would be {number}, and a counter stays between -(2**53) and 2**53: begin anew")


def no_number(name: str, value: bytes) -> BrokerError:
    """What is raised where a value can't be counted with."""
    return BrokerError(
        f"the value of {shown(name)} is no whole number below 2**53: {value[:40]!r}; count under another name, or "
        "remove it"
    )


def following(prefix: str) -> str | None:
    """The first text that is behind all that begin with `prefix`, sorted by characters; None if nothing can be."""
    while prefix:
        last = ord(prefix[-1])
        if last < 0x10FFFF:
            return prefix[:-1] + chr(0xE000 if last == 0xD7FF else last + 1)
        prefix = prefix[:-1]
    return None
