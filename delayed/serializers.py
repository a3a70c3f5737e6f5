"""Serializers: a registry of two-method plugs, each with a name and a one-byte tag for the wire."""

from __future__ import annotations

import pickle
from typing import Any, Protocol

from delayed.errors import ConfigError, MissingDependency, NotEnqueueable


class Serializer(Protocol):
    """What a serializer is."""

    name: str
    tag: int  # 1 to 255, unique
    plain: bool  # whether it carries plain data only, and no objects

    def dumps(self, value: Any) -> bytes:
        """The bytes of a value."""

    def loads(self, data: bytes) -> Any:
        """The value of bytes."""


class Pickle:
    """Nearly every Python object. Whoever can write to the broker can run code: see docs/guarantees.md.

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
            raise _missing("cloudpickle") from error
        self._dumps = cloudpickle.dumps

    def dumps(self, value: Any) -> bytes:
        data: bytes = self._dumps(value)
        return data

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)


class Msgpack:
    """Plain data, compact, readable in any language: None, bool, int, float, str, bytes, list, dict."""

    name = "msgpack"
    tag = 3
    plain = True

    def __init__(self) -> None:
        try:
            import msgpack  # type: ignore[import-untyped, unused-ignore]
        except ModuleNotFoundError as error:
            raise _missing("msgpack") from error
        self._msgpack = msgpack

    def dumps(self, value: Any) -> bytes:
        _refuse(value, (bytes,), self.name)
        data: bytes = self._msgpack.packb(value, use_bin_type=True)
        return data

    def loads(self, data: bytes) -> Any:
        return self._msgpack.unpackb(data, raw=False, strict_map_key=False)


class Json:
    """Plain data as text: None, bool, int, float, str, list, dict with str keys."""

    name = "json"
    tag = 4
    plain = True

    def __init__(self) -> None:
        import json

        self._dumps = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
        self._loads = json.loads

    def dumps(self, value: Any) -> bytes:
        _refuse(value, (), self.name)
        return self._dumps(value).encode()

    def loads(self, data: bytes) -> Any:
        return self._loads(data)


def _missing(package: str) -> MissingDependency:
    return MissingDependency(
        f"the package {package!r} is needed for serializer={package!r} and not installed; "
        f"run: pip install 'delayed[{package}]'"
    )


def _refuse(value: Any, also: tuple[type, ...], name: str, where: str = "") -> None:
    """Refuse what would not come back equal: a date as text, a tuple as a list, a number as a key of text."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str) or kind in also:
        return
    if kind is list:
        for index, item in enumerate(value):
            _refuse(item, also, name, f"{where}[{index}]")
    elif kind is dict:
        for key, item in value.items():
            if type(key) is not str and (name == "json" or type(key) not in (int, bytes)):
                raise NotEnqueueable(f"argument{where}: {name} has no {type(key).__name__} keys, and {key!r} is one")
            _refuse(item, also, name, f"{where}[{key!r}]")
    else:
        raise NotEnqueueable(
            f"argument{where} is a {kind.__module__}.{kind.__qualname__}, which would not arrive as that with {name}: "
            "annotate the function's parameter with its type, convert it (a tuple to a list, a date to text), "
            "or use serializer='pickle'"
        )


_KINDS: dict[str, type[Any]] = {kind.name: kind for kind in (Pickle, CloudPickle, Msgpack, Json)}


SERIALIZERS = tuple(_KINDS)


def serializer_for(name: str) -> Serializer:
    """The serializer of that name.

    Raises:
        ConfigError: When there is none.
        MissingDependency: When its package is not installed.
    """
    if name not in _KINDS:
        raise ConfigError(f"no serializer {name!r}; there are {', '.join(_KINDS)}")
    serializer: Serializer = _KINDS[name]()
    return serializer


def name_of_tag(tag: int) -> str:
    """The name of a tag, for messages to people."""
    return next((kind.name for kind in _KINDS.values() if kind.tag == tag), f"unknown serializer {tag}")
