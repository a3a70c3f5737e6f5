"""The codec of a queue: from a task's arguments to the payload that brokers carry, and back.

A payload is four bytes and a body:

    0  version, 1
    1  tag of the serializer
    2  tag of the compressor, 0 for none
    3  flags, 0 (kept for signatures and encryption)
    4… the serialized list [args, kwargs], or [args, kwargs, function] where no path leads to the function
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from delayed.errors import DecodeError, NotEnqueueable
from delayed.serializers import name_of_tag, serializer_for

VERSION = 1
MAX_SIZE = 64 * 2**20  # bytes of a payload
BY_VALUE = "cloudpickle:"  # how the "path" of a function begins that travels in the payload

Call = tuple[tuple[Any, ...], dict[str, Any], "Callable[..., Any] | None"]


class Codec:
    """Encodes with one serializer, and decodes nothing else.

    Args:
        serializer: pickle, cloudpickle, msgpack or json.
        max_size: bytes that a payload may have, when it is made and when it is read.

    Raises:
        ConfigError: When there is no such serializer.
        MissingDependency: When its package is not installed.
    """

    def __init__(self, serializer: str = "pickle", max_size: int = MAX_SIZE) -> None:
        self.serializer = serializer_for(serializer)
        self.plain = self.serializer.plain
        self.max_size = max_size
        self._prefix = bytes((VERSION, self.serializer.tag, 0, 0))

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any], func: Callable[..., Any] | None = None) -> bytes:
        """The payload of a call; `func` only where no path leads to the function.

        Raises:
            NotEnqueueable: When the arguments can't be serialized, or are too large.
        """
        call = [list(args), dict(kwargs)] if func is None else [list(args), dict(kwargs), func]
        try:
            payload = self._prefix + self.serializer.dumps(call)
        except NotEnqueueable:
            raise
        except Exception as error:
            raise NotEnqueueable(
                f"the arguments can't be serialized with {self.serializer.name}: {type(error).__name__}: {error}; "
                + self._culprits(args, kwargs)
            ) from error
        if len(payload) > self.max_size:
            raise NotEnqueueable(
                f"the arguments take {len(payload)} bytes, more than the queue's limit of {self.max_size}; "
                "store large data elsewhere and pass its name"
            )
        return payload

    def decode(self, payload: bytes) -> Call:
        """(args, kwargs, func) of a payload.

        Raises:
            DecodeError: When it can't be decoded, or is not of this codec's form.
        """
        prefix = payload[:4]
        if prefix != self._prefix:
            if len(prefix) < 4 or prefix[0] != VERSION:
                raise DecodeError(f"the payload does not begin as one of version {VERSION}: {prefix!r}")
            if prefix[1] != self.serializer.tag:
                raise DecodeError(
                    f"the payload was made with {name_of_tag(prefix[1])}, "
                    f"but this queue takes only {self.serializer.name}"
                )
            raise DecodeError(f"the payload is compressed or signed ({prefix!r}), which this version does not read")
        if len(payload) > self.max_size:
            raise DecodeError(f"the payload has {len(payload)} bytes, more than the queue's limit of {self.max_size}")
        try:
            call = self.serializer.loads(payload[4:])
            args, kwargs, *rest = call
            return tuple(args), dict(kwargs), rest[0] if rest else None
        except Exception as error:
            raise DecodeError(
                f"the payload can't be decoded with {self.serializer.name}: {type(error).__name__}: {error}"
            ) from error

    def _culprits(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        bad = []
        for name, value in [*((str(index), value) for index, value in enumerate(args)), *kwargs.items()]:
            try:
                self.serializer.dumps(value)
            except Exception:
                bad.append(f"argument {name} is a {type(value).__module__}.{type(value).__qualname__}")
        return "; ".join(bad) or "the function itself is what can't be serialized"

    def spec(self) -> dict[str, Any]:
        """Plain data from which :meth:`from_spec` makes the same codec in another process."""
        return {"serializer": self.serializer.name, "max_size": self.max_size}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Codec:
        return cls(**spec)
