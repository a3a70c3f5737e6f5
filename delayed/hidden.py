"""What must not be shown: parameters and fields that are annotated with :data:`Hidden`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import CodeType
from typing import Annotated, Any, ForwardRef, Literal, NamedTuple, TypeVar, get_args, get_origin

from delayed.functions import function_in
from delayed.notes import hints_in, notes_of

T = TypeVar("T")


class _Hidden:
    """The mark in an annotation."""

    def __repr__(self) -> str:
        return "HIDDEN"


HIDDEN = _Hidden()

Hidden = Annotated[T, HIDDEN]
"""``password: Hidden[str]`` is a ``str`` of which neither the ``repr`` of a task, nor an error, nor a log that has
arguments shows more than ``***``. For parameters, and for the fields of dataclasses, of pydantic's models and of named
tuples. In the store it lies like any other argument: see ``Queue(encrypt=True)``.
"""

# How much of what is annotated so must not be shown.
NOTHING = 0
PARTS = 1  # some fields of the objects in it
ALL = 2


class Parameters(NamedTuple):
    """How much of its arguments a function hides.

    Attributes:
        by_place: of those that may be given by position, in order.
        by_name: of those that are given by name, if it is anything.
        rest: of those of ``*args``.
        others: of those of ``**kwargs``.
    """

    by_place: Sequence[int]
    by_name: Mapping[str, int]
    rest: int
    others: int

    def of_place(self, index: int) -> int:
        """How much of a positional argument."""
        return self.by_place[index] if index < len(self.by_place) else self.rest

    def of_name(self, name: str) -> int:
        """How much of an argument given by name."""
        return self.by_name.get(name, self.others)


def hides(hint: Any) -> int:
    """How much of what is annotated with `hint` must not be shown: NOTHING, PARTS or ALL."""
    return _hides(hint, set())


def parameters_of(func: Callable[..., Any]) -> Parameters:
    """How much of its arguments a function hides."""
    inner: Any = function_in(func)
    bound = hasattr(func, "__self__")
    found: dict[str, int] = {}
    if isinstance(inner, type):
        found.update(fields_of(inner))
        inner, bound = function_in(vars(inner).get("__init__", object.__init__)), True
    code = getattr(inner, "__code__", None)
    if not isinstance(code, CodeType):  # a builtin
        return Parameters((), found, NOTHING, NOTHING)
    hints = {**notes_of(inner), **hints_in(inner)}
    found |= {name: how for name, hint in hints.items() if (how := hides(hint))}
    names, places = code.co_varnames, code.co_argcount
    named = places + code.co_kwonlyargcount
    rest, others = code.co_flags & 4, code.co_flags & 8  # inspect.CO_VARARGS, CO_VARKEYWORDS
    return Parameters(
        [found.get(name, NOTHING) for name in names[int(bound) : places]],
        {name: how for name, how in found.items() if name not in names[: code.co_posonlyargcount]},
        found.get(names[named], NOTHING) if rest else NOTHING,
        found.get(names[named + bool(rest)], NOTHING) if others else NOTHING,
    )


def fields_of(kind: type) -> Mapping[str, int]:
    """How much the objects of a class hide of their attributes; only those of which it is anything."""
    if kind not in _fields:
        _fields[kind] = {name: how for name, hint in _notes(kind).items() if (how := hides(hint))}
    return _fields[kind]


_fields: dict[type, Mapping[str, int]] = {}


def _notes(kind: type) -> dict[str, Any]:
    notes = notes_of(kind)
    return {**notes, **hints_in(kind)} if notes else notes


def _hides(hint: Any, seen: set[Any]) -> int:
    """As :func:`hides`, without the classes in `seen`: one may hold itself."""
    if isinstance(hint, ForwardRef):
        hint = hint.__forward_arg__
    if isinstance(hint, str):  # its names lead nowhere
        return ALL if "Hidden" in hint else NOTHING
    if any(isinstance(each, _Hidden) for each in getattr(hint, "__metadata__", ())):
        return ALL
    further = getattr(hint, "__supertype__", None)  # of a NewType
    if type(hint).__name__ == "TypeAliasType":
        further = hint.__value__
    found = NOTHING if further is None else _hides(further, seen)
    origin = get_origin(hint)
    if origin is not Literal:
        args = [each for arg in get_args(hint) for each in (arg if isinstance(arg, list) else [arg])]
        found = max([found, *(_hides(each, seen) for each in args)])
    kind = hint if isinstance(hint, type) else origin
    if isinstance(kind, type) and kind.__module__ != "builtins" and kind not in seen:
        seen.add(kind)
        if any(_hides(each, seen) for each in _notes(kind).values()):
            found = max(found, PARTS)
    return found
