"""Unique tasks: what makes two calls the same, and for how long, as plain data."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, cast

from delayed.durations import seconds_of
from delayed.errors import ConfigError, NotEnqueueable
from delayed.message import Once

if TYPE_CHECKING:
    from datetime import timedelta

    from delayed.codec import Codec
    from delayed.signature import Signature

    Until = Literal["done", "begun"]
    OnConflict = Literal["existing", "replace", "reject"]

BY_VALUE = "cloudpickle:"  # how the "path" of a function begins that travels in the payload
DEPTH_MAX = 100  # containers in each other; what is nested deeper is told apart by how it is serialized
_ON_CONFLICT = ("existing", "replace", "reject")
# What these show of themselves tells two of them apart, and is the same for equal ones.
_SHOWN = frozenset(
    (
        *("datetime.datetime", "datetime.date", "datetime.time", "datetime.timedelta", "decimal.Decimal", "uuid.UUID"),
        *("pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath", "pathlib.PureWindowsPath"),
    )
)


class _Rule(NamedTuple):
    key: str | None = None
    until: Until | float = "done"
    on_conflict: OnConflict = "existing"


class Unique(_Rule):
    """That no second task is enqueued while there is one of the same key.

    Args:
        key: text, in which ``{name}`` stands for an argument of the call: ``"import-{customer_id}"``. It is one of the
            queue: calls of other functions with the same key are the same, too. Where several arguments are named, they
            are told apart whatever is in them. None (the default): the function and all its arguments.
        until: how long a task holds its key: "done" (the default): as long as it waits, runs, or waits to be tried
            again; "begun": until its first run begins; or so many seconds from its enqueue, whatever becomes of it: a
            number, a :class:`datetime.timedelta`, or text such as ``5m``.
        on_conflict: what ``.delay()`` does when the key is held. "existing" (the default): it returns the handle of the
            task that holds it. "replace": a task that waits, for its time, a worker or a retry, is removed; one that
            runs is left alone; the new one is enqueued and holds the key. "reject": it raises :class:`AlreadyEnqueued`.

    Attributes:
        key, until, on_conflict: as above; a period in seconds.

    Raises:
        ConfigError: When an argument makes no sense.
    """

    __slots__ = ()

    def __new__(
        cls,
        key: str | None = None,
        *,
        until: Until | float | timedelta | str = "done",
        on_conflict: OnConflict = "existing",
    ) -> Self:
        if key is not None:
            _check_key(key)
        if on_conflict not in _ON_CONFLICT:
            raise ConfigError(f"Unique(on_conflict=...) is one of {', '.join(_ON_CONFLICT)}, not {on_conflict!r}")
        if until not in ("done", "begun"):
            try:
                until = seconds_of("Unique(until=...)", until, least=0.001)
            except ConfigError as error:
                raise ConfigError(f"{error}; or 'done', or 'begun'") from None
        return super().__new__(cls, key, cast("Until | float", until), on_conflict)

    @classmethod
    def of(cls, value: Unique | bool | str | None) -> Unique | None:
        """What `value` means: True or a key: a :class:`Unique` with all else by default; None or False: not unique.

        Raises:
            ConfigError: When it means none.
        """
        if value is None or value is False:
            return None
        if isinstance(value, Unique):
            return value
        if value is True:
            return cls()
        if isinstance(value, str):
            return cls(value)
        raise ConfigError(
            f"unique is True, a key such as 'import-{{customer_id}}', a Unique(...), or None, not {value!r}"
        )

    def once(
        self,
        path: str,
        func: Callable[..., Any] | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        codec: Codec,
        sent: Callable[[str, Any], Any] | None = None,
    ) -> Once:
        """What a broker is told of it for one call.

        Args:
            path, func: of the function; None where it is not known here: then its arguments have no names.
            args, kwargs: as `codec` gets them.
            sent: what makes of a parameter's name and default what `codec` would get; None: it stays what it is.

        Raises:
            ConfigError: When the key names an argument that the call does not have.
            NotEnqueueable: When the arguments can't be told apart.
            SignatureMismatch: When they don't fit the function.
        """
        if self.key is not None:
            names = _names(self.key, func, args, kwargs, sent)
            name = _apart(_filled(f"unique={self.key!r}", _pieces(self.key), path, names))
        elif path.startswith(BY_VALUE):
            raise NotEnqueueable(f"{path} travels with its code, so no two calls are known to be the same: give a key")
        else:
            signature = _signature_of(func) if func is not None else None
            name = b"call\0" + path.encode() + b"\0" + _call(signature, args, kwargs, codec, sent)
        timed = not isinstance(self.until, str)
        return Once(
            codec.digest(name),
            begun=self.until == "begun",
            period=float(self.until) if timed else None,
            replace=self.on_conflict == "replace",
        )


def named(
    option: str, text: str, path: str, func: Callable[..., Any] | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """A text with the arguments of a call in the place of their names.

    Args:
        option: whose text it is, for the error.
        path, func, args, kwargs: as of :meth:`Unique.once`.

    Raises:
        ConfigError: When it names an argument that the call does not have.
        SignatureMismatch: When they don't fit the function.
    """
    (whole,) = _filled(option, (text,), path, _names(text, func, args, kwargs, None))
    return whole


def _names(
    text: str,
    func: Callable[..., Any] | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    sent: Callable[[str, Any], Any] | None,
) -> dict[str, Any]:
    """The arguments of a call that a text may name."""
    if "{" not in text:
        return {}
    signature = _signature_of(func) if func is not None else None
    return signature.arguments(args, kwargs, flat=True, sent=sent) if signature is not None else dict(kwargs)


def _filled(option: str, pieces: Sequence[str], path: str, names: Mapping[str, Any]) -> list[str]:
    """Pieces of a text, each with arguments in the place of their names."""
    try:
        return [piece.format_map(names) for piece in pieces]
    except Exception as error:
        known = ", ".join(names) or "none"
        why = f"there is no argument {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{option} does not go with {path}: {why}; its arguments: {known}") from error


@lru_cache(maxsize=1024)
def _pieces(key: str) -> tuple[str, ...]:
    """A key in pieces: text, a field in braces, text, and so on, beginning and ending with text."""
    if "{" not in key and "}" not in key:
        return (key,)
    import string  # few programs need it

    pieces = [""]
    for text, field, spec, conversion in string.Formatter().parse(key):
        pieces[-1] += text.replace("{", "{{").replace("}", "}}")
        if field is not None:
            how = (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            pieces += ["{" + field + how + "}", ""]
    return tuple(pieces)


def _apart(pieces: Sequence[str]) -> bytes:
    """What a key becomes with these pieces: its text; and where that does not tell which part of it is which argument,
    as ``1-2-3`` for ``{a}-{b}``, how long they are too.
    """
    between = pieces[2:-2:2]
    marks = set("".join(between))
    told = all(between) and not any(marks & set(value) for value in pieces[1::2])
    text = "".join(pieces).encode("utf-8", "surrogatepass")
    if told:
        return b"key\0" + text
    return b"keys\0%s\0" % ",".join(str(len(value)) for value in pieces[1::2]).encode() + text


def _check_key(key: object) -> None:
    if not isinstance(key, str) or not key:
        raise ConfigError(f"the key of a unique task is text such as 'import-{{customer_id}}', not {key!r}")
    if "{" not in key and "}" not in key:
        return
    import string  # few programs need it

    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(key) if field is not None]
    except ValueError as error:
        raise ConfigError(f"unique={key!r}: {error}; for a brace itself write {{{{ or }}}}") from None
    for field in fields:
        if not field or not (field[0].isalpha() or field[0] == "_"):
            raise ConfigError(f"unique={key!r}: in braces stands the name of an argument, not {field!r}")


@lru_cache(maxsize=1024)
def _signature_of(func: Callable[..., Any]) -> Signature | None:
    from delayed.signature import signature_of  # loads inspect

    return signature_of(func)


# -- arguments as bytes ----------------------------------------------------------------------------------------------


def _call(
    signature: Signature | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    codec: Codec,
    sent: Callable[[str, Any], Any] | None,
) -> bytes:
    """Bytes that are the same for the same arguments, however they are given: of whatever serializer, where they are
    plain data, dataclasses and the like; each other one as it is serialized.
    """
    given, defaults = signature.bound(args, kwargs) if signature is not None else ({"": tuple(args), **kwargs}, {})
    told = {name: _argument(name, value, codec) for name, value in given.items()}
    for name, value in defaults.items():
        try:
            told[name] = _argument(name, value if sent is None else sent(name, value), codec)
        except NotEnqueueable:  # it can't be given either
            told[name] = b"default"
    return b"".join(_parts(told, DEPTH_MAX))


def _argument(name: str, value: Any, codec: Codec) -> bytes:
    try:
        return b"".join(_parts(value, DEPTH_MAX))
    except _NotPlain:
        return b"\0" + (codec.body((), {name: value}) if name else codec.body(value, {}))


class _NotPlain(Exception):
    pass


def _parts(value: Any, depth: int) -> list[bytes]:
    """A value in pieces: its kind, how long it is, and itself. 1, 1.0 and True are three, and so are list and tuple."""
    kind = type(value)
    if value is None or kind is bool:
        return [repr(value).encode()]
    if kind is int:
        return _sized(b"i", value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    if kind is float:
        return _sized(b"f", struct.pack(">d", value + 0.0))  # of the two zeros one
    if kind is str:
        return _sized(b"s", value.encode("utf-8", "surrogatepass"))
    if kind is bytes:
        return _sized(b"b", value)
    if not depth:
        raise _NotPlain
    if kind in (list, tuple):
        parts = [b"".join(_parts(each, depth - 1)) for each in value]
        return [b"l" if kind is list else b"t", b"%d:" % len(parts), *parts]
    if kind in (dict, set, frozenset):
        items = value.items() if kind is dict else ((each, None) for each in value)
        parts = [b"".join(_parts(key, depth - 1) + _parts(item, depth - 1)) for key, item in items]
        return [b"d" if kind is dict else b"e", b"%d:" % len(parts), *sorted(parts)]
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, Enum):
        return [*_sized(b"m", name.encode()), *_parts(value.value if value.name is None else value.name, depth - 1)]
    if name.replace("pathlib._local.", "pathlib.") in _SHOWN:  # where Python 3.13 has them
        return _sized(name.encode(), repr(value).encode())
    if "__dataclass_fields__" in vars(kind):
        fields = {field: getattr(value, field) for field in kind.__dataclass_fields__ if hasattr(value, field)}
        return [*_sized(b"c", name.encode()), *_parts(fields, depth - 1)]
    raise _NotPlain


def _sized(kind: bytes, data: bytes) -> list[bytes]:
    return [kind, b"%d:" % len(data), data]
