"""What an annotation asks for beyond plain data, and objects as plain data.

==============================  ==============================================
annotated                       travels as
==============================  ==============================================
a dataclass                     an object with a key for each field
tuple, set, frozenset           a list
an Enum                         its value
datetime, date, time            text, ISO 8601
timedelta                       seconds
UUID, Decimal                   text
list, dict, unions, Literal     themselves, with the above in them
==============================  ==============================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

# How much an annotation asks for.
PLAIN = 0  # nothing: what it means arrives as it is
MADE = 1  # small objects of Python's own
RECORD = 2  # dataclasses or pydantic models, which pydantic validates if it is there

SEQUENCES = (tuple, set, frozenset)
SCALARS = (str, int, float, bool, bytes, NoneType)

# By name, since who annotates one has loaded its module, and nobody else needs to: how it becomes plain, how its class
# makes it again, and of which types of plain values.
TEXTS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any], tuple[type, ...]]] = {
    "datetime.datetime": (lambda value: value.isoformat(), lambda kind, text: kind.fromisoformat(text), (str,)),
    "datetime.date": (lambda value: value.isoformat(), lambda kind, text: kind.fromisoformat(text), (str,)),
    "datetime.time": (lambda value: value.isoformat(), lambda kind, text: kind.fromisoformat(text), (str,)),
    "datetime.timedelta": (
        lambda value: value.total_seconds(),
        lambda kind, number: kind(seconds=number),
        (int, float),
    ),
    "uuid.UUID": (str, lambda kind, text: kind(text), (str,)),
    "decimal.Decimal": (str, lambda kind, text: kind(text), (str, int)),
}


def asks_for(hint: Any) -> int:
    """How much an annotation asks for: PLAIN, MADE or RECORD."""
    hint = bare(hint)
    origin = get_origin(hint)
    target = origin or hint
    if is_record(target):
        return RECORD
    own = MADE if target in SEQUENCES else PLAIN
    if origin in (Union, UnionType, list, dict, Sequence, Mapping, *SEQUENCES):
        return max(own, *(asks_for(each) for each in get_args(hint) if each is not ...), PLAIN)
    if isinstance(hint, type) and (issubclass(hint, Enum) or name_of(hint) in TEXTS):
        return MADE
    return own


def bare(hint: Any) -> Any:
    """An annotation without Annotated, NewType and the names that `type` gives."""
    while True:
        if get_origin(hint) is Annotated:
            hint = hint.__origin__
        elif hasattr(hint, "__supertype__"):
            hint = hint.__supertype__
        elif type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        else:
            return hint


def is_record(target: Any) -> bool:
    return isinstance(target, type) and (
        hasattr(target, "__dataclass_fields__") or hasattr(target, "__pydantic_validator__")
    )


def name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def plain_of(value: Any) -> Any:
    """A value as plain data. What can't be is left as it is: the serializer refuses it, and says where."""
    kind = type(value)
    if kind in SCALARS:
        return value
    if kind is dict:
        return {plain_of(key): plain_of(item) for key, item in value.items()}
    if kind is list or kind in SEQUENCES:
        return [plain_of(item) for item in value]
    serializer = getattr(kind, "__pydantic_serializer__", None)
    if serializer is not None:
        return serializer.to_python(value, mode="json", by_alias=True, round_trip=True)
    if hasattr(kind, "__dataclass_fields__"):
        return {name: plain_of(getattr(value, name)) for name in fields_of(kind)}
    if isinstance(value, Enum):
        return plain_of(value.value)
    text = TEXTS.get(name_of(kind))
    return text[0](value) if text is not None else value


def arrives(given: Any, built: Any) -> bool:
    """Whether `built`, made of the plain data of `given`, has all the objects of `given`.

    Another class may have taken the place of one: the first that fits of a union, or the one that is annotated where
    a subclass was given. Plain data in `given` may have become whatever is annotated.
    """
    kind = type(given)
    if kind in SCALARS:
        return True
    if kind is list:
        return type(built) is not list or all(map(arrives, given, built))
    if kind is dict:
        return type(built) is not dict or (
            all(map(arrives, given, built)) and all(map(arrives, given.values(), built.values()))
        )
    if type(built) is not kind:
        return False
    if kind is tuple:
        return all(map(arrives, given, built))
    if hasattr(kind, "__pydantic_serializer__") and hasattr(given, "__dict__"):
        return bool(vars(given) == vars(built))  # else a secret would arrive as asterisks
    if hasattr(kind, "__dataclass_fields__"):
        return all(arrives(getattr(given, name), getattr(built, name)) for name in fields_of(kind))
    return kind in SEQUENCES or bool(given == built)


def fields_of(kind: type) -> list[str]:
    """The fields that the constructor of a dataclass takes."""
    from dataclasses import fields

    return [field.name for field in fields(kind) if field.init]
