"""What msgpack carries beyond its own types: the kinds of values that are more than plain data and no code.

Each is an extension type of msgpack:

====  ============================  ============================================================
code  type                          its data
====  ============================  ============================================================
1     tuple                         a msgpack array
2     set                           a msgpack array
3     frozenset                     a msgpack array
4     datetime.datetime             ISO 8601, and after a space the key of its ZoneInfo, if it has one
5     datetime.date                 ISO 8601
6     datetime.time                 ISO 8601
7     datetime.timedelta            a msgpack array: days, seconds, microseconds
8     decimal.Decimal               text
9     uuid.UUID                     its 16 bytes
10    int beyond 64 bits            two's complement, the highest byte first
====  ============================  ============================================================

A timestamp, msgpack's own extension type -1, is read as a datetime in UTC.
"""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped, unused-ignore]

from delayed.errors import NotSerializable

EXTENDED_MAX = 1_000_000  # extended values in one payload: each takes a call of Python to be made again
DEPTH_MAX = 100  # of them in each other
TUPLE, SET, FROZENSET, DATETIME, DATE, TIME, TIMEDELTA, DECIMAL, UUID, LARGE = range(1, 11)

NAMES = frozenset(
    ("datetime.datetime", "datetime.date", "datetime.time", "datetime.timedelta", "decimal.Decimal", "uuid.UUID")
)
_SEQUENCES: dict[type[Any], int] = {tuple: TUPLE, set: SET, frozenset: FROZENSET}


def pack(value: Any) -> msgpack.ExtType:
    """What msgpack is to write for a value that it does not know.

    Raises:
        NotSerializable: When it is of no kind that is listed above.
    """
    kind = type(value)
    code = _SEQUENCES.get(kind)
    if code is not None:
        return msgpack.ExtType(code, _packed(list(value)))
    if kind is int:
        return msgpack.ExtType(LARGE, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    match f"{kind.__module__}.{kind.__qualname__}":
        case "datetime.datetime":
            return msgpack.ExtType(DATETIME, _zoned(value).encode())
        case "datetime.date":
            return msgpack.ExtType(DATE, value.isoformat().encode())
        case "datetime.time":
            if value.tzinfo is not None and value.utcoffset() is None:
                raise NotSerializable("is a time of a zone, which has no offset without its date; send a datetime")
            return msgpack.ExtType(TIME, value.isoformat().encode())
        case "datetime.timedelta":
            return msgpack.ExtType(TIMEDELTA, _packed([value.days, value.seconds, value.microseconds]))
        case "decimal.Decimal":
            return msgpack.ExtType(DECIMAL, str(value).encode())
        case "uuid.UUID":
            return msgpack.ExtType(UUID, value.bytes)
    raise NotSerializable(f"is a {kind.__module__}.{kind.__qualname__}, which msgpack can't carry")


def _packed(value: Any) -> bytes:
    data: bytes = msgpack.packb(value, use_bin_type=True, strict_types=True, default=pack)
    return data


def _zoned(value: Any) -> str:
    zone = value.tzinfo
    text: str = value.isoformat()
    if zone is None or type(zone).__qualname__ == "timezone":
        return text
    key = getattr(zone, "key", None)
    if type(zone).__module__ not in ("zoneinfo", "zoneinfo._zoneinfo") or not key:
        raise NotSerializable(
            f"is a datetime in {zone!r}, a zone that would not arrive as that: use zoneinfo.ZoneInfo or UTC"
        )
    return f"{text} {key}"


class Reader:
    """Reads one payload."""

    __slots__ = ("_depth", "_left")

    def __init__(self) -> None:
        self._left = EXTENDED_MAX
        self._depth = 0

    def read(self, data: bytes) -> Any:
        """The value of a payload.

        Raises:
            ValueError: When it is damaged, or has too many extended values, or they are nested too deeply.
        """
        try:
            return msgpack.unpackb(data, raw=False, strict_map_key=False, timestamp=3, ext_hook=self._make)
        except ValueError:
            raise
        except Exception as error:  # of the types themselves, for which it is no value of theirs
            raise ValueError(f"{type(error).__name__}: {error}") from error

    def _make(self, code: int, data: bytes) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"it has more than {EXTENDED_MAX:,} values of extended types")
        if code in (TUPLE, SET, FROZENSET):
            items = self._array(data)
            return tuple(items) if code == TUPLE else set(items) if code == SET else frozenset(items)
        if code == LARGE:
            return int.from_bytes(data, "big", signed=True)
        if code in (DATETIME, DATE, TIME, TIMEDELTA):
            try:
                return self._dated(code, data)
            except (ValueError, LookupError):  # whose words have the text, which is not for a worker's log
                raise ValueError("a date, time or zone in it is none") from None
        if code == DECIMAL:
            from decimal import Decimal

            return Decimal(data.decode())
        if code == UUID:
            import uuid

            return uuid.UUID(bytes=bytes(data))
        raise ValueError(f"it has a value of the extended type {code}, which this version does not know")

    def _array(self, data: bytes) -> list[Any]:
        if self._depth >= DEPTH_MAX:
            raise ValueError(f"it is nested more than {DEPTH_MAX} deep")
        self._depth += 1
        items = self.read(data)
        self._depth -= 1
        if type(items) is not list:
            raise ValueError("what should be an array is none")
        return items

    def _dated(self, code: int, data: bytes) -> Any:
        import datetime

        if code == TIMEDELTA:
            return datetime.timedelta(*self._array(data))
        text, _, key = data.decode().partition(" ")
        if code == DATE:
            return datetime.date.fromisoformat(text)
        if code == TIME:
            return datetime.time.fromisoformat(text)
        value = datetime.datetime.fromisoformat(text)
        if not key:
            return value
        import zoneinfo

        local = value.replace(tzinfo=zoneinfo.ZoneInfo(key))
        return local if local.utcoffset() == value.utcoffset() else local.replace(fold=1)
