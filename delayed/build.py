"""From plain data to the objects that an annotation means, with nothing but Python: the way back of `plain`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin

from delayed.notes import hints_in
from delayed.plain import SCALARS, SEQUENCES, TEXTS, asks_for, bare, is_record, name_of
from delayed.shown import shown

Builder = Callable[[Any], Any]


class Misfit(Exception):
    """Raised when a value is not what an annotation says.

    Args:
        what: what is wrong with it, in words that do not have the value.
        value: what was got; left out if `what` says it.

    Attributes:
        place: from the argument to the value, ``.items[3].price``.
        others: what else is wrong in the same argument.
        more: how many more things are.
    """

    def __init__(self, what: str, *value: object) -> None:
        super().__init__(what)
        self.what = what
        self.value = value
        self.place = ""
        self.others: Sequence[Misfit] = ()
        self.more = 0

    def under(self, step: str) -> Self:
        """The same, seen from the value around it."""
        self.place = step + self.place
        return self

    def text(self, tell: Callable[[object], str]) -> str:
        """What is wrong, in one line; `tell` has the words for a value that was got."""
        got = "".join(f", got {tell(each)}" for each in self.value)
        others = "".join(f"; {each.place or 'it'}: {each.text(tell)}" for each in self.others)
        return f"{self.what}{got}{others}" + (f"; and {self.more} more" if self.more else "")


def builder(hint: Any) -> Builder:
    """What makes plain data into what `hint` means, or raises Misfit."""
    hint = bare(hint)
    target, args = get_origin(hint) or hint, get_args(hint)
    if target in (Union, UnionType):
        return _union(args)
    if target is Literal:
        return lambda value: value if value in args else _refuse(f"must be one of {shown(args)}", value)
    if target in (dict, Mapping):
        return _mapping(*args) if args else _exactly(dict)
    if target in (list, Sequence):
        return _sequence(list, args[0] if args else Any)
    if target is tuple and args and args[-1] is not ...:
        return _fixed(args)
    if target in SEQUENCES:
        return _sequence(target, args[0] if args else Any)
    if target is None or target in SCALARS:
        return _exactly(target or NoneType)
    if is_record(target):
        return _record(target)
    if isinstance(target, type) and issubclass(target, Enum):
        return _from(target, target)
    if isinstance(target, type) and name_of(target) in TEXTS:
        _, load, kinds = TEXTS[name_of(target)]
        return _from(target, lambda value: load(target, value) if type(value) in kinds else _refuse("", value))
    if isinstance(target, type) and not issubclass(target, dict) and target is not object:
        return _instance(target)
    return lambda value: value  # Any, and what only type checkers understand


def _refuse(what: str, value: object) -> Any:
    raise Misfit(what, value)


def _exactly(kind: type) -> Builder:
    kinds = (int, float) if kind is float else (kind,)
    what = "must be None" if kind is NoneType else f"must be of type {kind.__name__}"
    return lambda value: value if type(value) in kinds else _refuse(what, value)


def _instance(kind: type) -> Builder:
    def build(value: Any) -> Any:
        try:
            fits = isinstance(value, kind)
        except TypeError:  # a Protocol that only type checkers understand
            fits = True
        return value if fits else _refuse(f"must be of type {kind.__qualname__}", value)

    return build


def _from(kind: type, make: Builder) -> Builder:
    def build(value: Any) -> Any:
        try:
            return make(value)
        except (Misfit, ValueError, TypeError, ArithmeticError):
            raise Misfit(f"must be of type {kind.__qualname__}", value) from None

    return build


def _item(build: Builder, step: object, value: Any) -> Any:
    try:
        return build(value)
    except Misfit as error:
        error.under(f"[{step!r}]")
        raise


def _sequence(kind: Callable[[Any], Any], hint: Any) -> Builder:
    each = builder(hint)

    def build(value: Any) -> Any:
        if type(value) is not list:
            raise Misfit("must be a list", value)
        made = [_item(each, index, item) for index, item in enumerate(value)]
        try:
            return kind(made)
        except TypeError as error:  # not hashable, in a set
            raise Misfit(str(error), value) from None

    return build


def _fixed(args: Sequence[Any]) -> Builder:
    builders = [builder(each) for each in args]

    def build(value: Any) -> Any:
        if type(value) is not list or len(value) != len(builders):
            raise Misfit(f"must be a list of {len(builders)}", value)
        return tuple(_item(each, index, item) for index, (each, item) in enumerate(zip(builders, value, strict=True)))

    return build


def _mapping(key_hint: Any, item_hint: Any) -> Builder:
    key_of, item_of = builder(key_hint), builder(item_hint)

    def build(value: Any) -> Any:
        if type(value) is not dict:
            raise Misfit("must be a dict", value)
        return {_item(key_of, key, key): _item(item_of, key, item) for key, item in value.items()}

    return build


def _union(args: Sequence[Any]) -> Builder:
    # Plain ones first: text is to stay text where text or a date is allowed. Of `X | None`, X is to tell what is wrong.
    arms = [builder(each) for each in sorted(args, key=lambda each: (each is not NoneType, asks_for(each)))]
    real = [each for each in args if each is not NoneType]

    def build(value: Any) -> Any:
        for arm in arms:
            try:
                return arm(value)
            except Misfit as error:
                last = error
        if len(real) == 1:
            raise last
        raise Misfit("fits none of " + ", ".join(getattr(each, "__qualname__", str(each)) for each in args), value)

    return build


def _record(kind: type) -> Builder:
    if hasattr(kind, "__pydantic_validator__"):
        return _from(kind, kind.__pydantic_validator__.validate_python)
    return _records.get(kind) or _records.setdefault(kind, _Record(kind))


class _Record:
    """Builds the objects of one dataclass. It looks at the fields in its first use: one may be of this class again."""

    __slots__ = ("_builders", "_kind", "_needed")

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self._builders: dict[str, Builder] | None = None
        self._needed: set[str] = set()

    def _prepare(self) -> dict[str, Builder]:
        from dataclasses import MISSING, fields

        hints = hints_in(self._kind)
        taken = [field for field in fields(self._kind) if field.init]
        self._needed = {each.name for each in taken if each.default is MISSING and each.default_factory is MISSING}
        # Last, and whole: another thread may be here too.
        self._builders = {field.name: builder(hints.get(field.name, Any)) for field in taken}
        return self._builders

    def __call__(self, value: Any) -> Any:
        builders = self._builders if self._builders is not None else self._prepare()
        name = self._kind.__qualname__
        if type(value) is not dict:
            raise Misfit(f"must be a dict with the fields of {name}", value)
        made = {}
        for key, item in value.items():
            build = builders.get(key)
            if build is None:
                raise Misfit(f"{name} has no field {key!r}", value)
            try:
                made[key] = build(item)
            except Misfit as error:
                error.under(f".{key}")
                raise
        for key in self._needed - made.keys():
            raise Misfit(f"the field {key!r} of {name} is missing", value)
        try:
            return self._kind(**made)
        except (TypeError, ValueError, AssertionError) as error:  # said by its __post_init__
            raise Misfit(f"{name}: {error}", value) from error


_records: dict[type, _Record] = {}
