"""Serializers: two-method plugs. A user's own is a class with the same, whose bytes every worker of the queue can read
that can import it::

    class Cbor:
        name, tag, plain = "cbor", 128, True

        def dumps(self, value): return cbor2.dumps(value)
        def loads(self, data): return cbor2.loads(data)

    queue = Queue("readings", serializer=Cbor)
"""

from __future__ import annotations

import pickle
from typing import Any, Protocol

from delayed.errors import NotSerializable
from delayed.plugs import Plugs, missing

DEPTH_MAX = 100  # containers in each other, in plain data


class Serializer(Protocol):
    """What a serializer is.

    Attributes:
        name: unique.
        tag: 1 to 255, unique: what says on the wire that data is of this serializer. Your own are from 128.
        plain: whether it carries plain data only, so that decoding it runs no code. Then arguments are made into what
            the function's parameters are annotated with, and only decorated functions are run; see `Queue(allow=)`.
    """

    name: str
    tag: int
    plain: bool

    def dumps(self, value: Any) -> bytes:
        """The bytes of a value.

        Raises:
            NotSerializable: Or any other exception, when it can't be.
        """

    def loads(self, data: bytes) -> Any:
        """The value of bytes.

        Raises:
            Exception: Any, when they are damaged.
        """


class Pickle:
    """Nearly every Python object. Whoever can write to the broker can run code, unless the queue is signed.

    Args:
        protocol: the pickle protocol; the highest of this Python by default. Lower it for workers with an older one.
    """

    name = "pickle"
    tag = 1
    plain = False

    def __init__(self, protocol: int = pickle.HIGHEST_PROTOCOL) -> None:
        self.protocol = protocol

    def dumps(self, value: Any) -> bytes:
        return pickle.dumps(value, self.protocol)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)


class CloudPickle:
    """As pickle, and lambdas, closures and functions typed into a notebook, which travel with their code."""

    name = "cloudpickle"
    tag = 2
    plain = False

    def __init__(self) -> None:
        try:
            import cloudpickle  # type: ignore[import-untyped, unused-ignore]
        except ModuleNotFoundError as error:
            raise missing("cloudpickle", "cloudpickle", "serializer='cloudpickle'") from error
        self._dumps = cloudpickle.dumps

    def dumps(self, value: Any) -> bytes:
        data: bytes = self._dumps(value)
        return data

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)


class Msgpack:
    """Data that runs no code, compact, readable in any language: what JSON has, and bytes, keys of any of these,
    tuples, sets, whole numbers of any size, datetime, date, time, timedelta, Decimal and UUID.
    """

    name = "msgpack"
    tag = 3
    plain = True

    def __init__(self) -> None:
        try:
            import msgpack  # type: ignore[import-untyped, unused-ignore]
        except ModuleNotFoundError as error:
            raise missing("msgpack", "msgpack", "serializer='msgpack'") from error
        from delayed import extended

        self._packb = msgpack.packb
        self._extended = extended

    def dumps(self, value: Any) -> bytes:
        if not is_simple(value, _SCALARS | {bytes}, _SCALARS | {bytes}):
            refuse(value, self.name, (bytes,), self._extended.NAMES)
        data: bytes = self._packb(value, use_bin_type=True, strict_types=True, default=self._extended.pack)
        return data

    def loads(self, data: bytes) -> Any:
        return checked_depth(self._extended.Reader().read(data), data)


class Json:
    """Plain data as text: None, bool, int, float, str, list, dict with str keys."""

    name = "json"
    tag = 4
    plain = True

    def __init__(self) -> None:
        import json

        self._dumps = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
        self._loads = json.JSONDecoder(parse_constant=_no_constant).decode

    def dumps(self, value: Any) -> bytes:
        if not is_simple(value, _SCALARS, _TEXT):
            refuse(value, self.name)
        return self._dumps(value).encode()

    def loads(self, data: bytes) -> Any:
        return checked_depth(self._loads(data.decode()), data)


def _no_constant(name: str) -> Any:
    raise ValueError(f"JSON has no number {name}")


_SCALARS = frozenset((type(None), bool, int, float, str))
_TEXT = frozenset((str,))
_NESTING = frozenset((list, dict))
_CONTAINERS = frozenset((list, dict, tuple, set, frozenset))


def is_simple(value: Any, scalars: frozenset[type[Any]], keys: frozenset[type[Any]]) -> bool:
    """Whether a value has nothing in it that :func:`refuse` would have to look at. It is several times faster: it asks
    for the types at each depth, rather than of each value.
    """
    level = [value]
    for _ in range(DEPTH_MAX + 1):
        kinds = set(map(type, level))
        if kinds <= scalars:
            return True
        if not kinds <= scalars | _NESTING:
            return False
        below: list[Any] = []
        for each in level:
            if type(each) is dict:
                if not set(map(type, each)) <= keys:
                    return False
                below += each.values()
            elif type(each) is list:
                below += each
        level = below
    return False


def refuse(
    value: Any,
    name: str,
    also: tuple[type, ...] = (),
    extended: frozenset[str] = frozenset(),
    steps: tuple[Any, ...] = (),
) -> None:
    """Refuse what would not come back equal: a tuple as a list, a number as a key of text; and what is nested deeply.

    Args:
        name: of the serializer.
        also: what it can, beside JSON's types.
        extended: ... the names of what else it can.
        steps: the way to the value.

    Raises:
        NotSerializable: With the way to the culprit.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str) or kind in also:
        return
    if len(steps) >= DEPTH_MAX:
        raise NotSerializable(f"is nested more than {DEPTH_MAX} deep, or holds itself", steps[:3])
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                if not also:
                    raise NotSerializable(f"has a key of {type(key).__name__}, and {name} has no such keys", steps)
                refuse(key, name, also, extended, (*steps, key))
            refuse(item, name, also, extended, (*steps, key))
    elif kind is list or (extended and kind in (tuple, set, frozenset)):
        for index, item in enumerate(value):
            refuse(item, name, also, extended, (*steps, index))
    elif f"{kind.__module__}.{kind.__qualname__}" not in extended:
        raise NotSerializable(
            f"is a {kind.__module__}.{kind.__qualname__}, which would not arrive as that with {name}: "
            "make it plain data (a tuple a list, a date text), if it is an argument annotate the parameter with its "
            "type, or use a queue with serializer='pickle'",
            steps,
        )


def checked_depth(value: Any, data: bytes) -> Any:
    """The value, if it is not nested too deeply; `data` is what it was made of.

    Raises:
        ValueError: When it is.
    """
    if len(data) <= DEPTH_MAX or type(value) not in _CONTAINERS:  # each container takes a byte
        return value
    level = [value]
    for _ in range(DEPTH_MAX):
        below: list[Any] = []
        for each in level:
            if type(each) is dict:
                below += each.keys()
                below += each.values()
            else:
                below += each
        if _CONTAINERS.isdisjoint(map(type, below)):
            return value
        level = [each for each in below if type(each) in _CONTAINERS]
    raise ValueError(f"it is nested more than {DEPTH_MAX} deep")


SERIALIZERS: Plugs[Serializer] = Plugs("serializer", ("plain", "dumps", "loads"), (Pickle, CloudPickle, Msgpack, Json))
