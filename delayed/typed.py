"""The arguments of a function whose annotations ask for more than plain data: sent as that, and made into it again.

With pydantic installed it validates whatever has a dataclass or a model in it; else `build` does what it can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from delayed.build import Builder, Misfit, builder
from delayed.errors import NotEnqueueable, SignatureMismatch
from delayed.functions import function_in
from delayed.hidden import hides
from delayed.notes import hints_in
from delayed.plain import RECORD, arrives, asks_for, plain_of
from delayed.shown import MASK, masked, shown, type_shown

_PROBLEMS_MAX = 3  # problems that a message tells of

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class Types:
    """The parameters of one function.

    Args:
        by_place: those that may be given by position, in order; None for one that takes plain data.
        by_name: those that may be given by name; the same.
        rest: that of ``*args``; None if it takes plain data, or there is none.
        others: that of ``**kwargs``.
    """

    __slots__ = ("_by_name", "_by_place", "_others", "_rest")

    def __init__(
        self,
        by_place: Sequence[Parameter | None],
        by_name: Mapping[str, Parameter | None],
        rest: Parameter | None,
        others: Parameter | None,
    ) -> None:
        self._by_place = by_place
        self._by_name = by_name
        self._rest = rest
        self._others = others

    @classmethod
    def of(cls, func: Callable[..., Any]) -> Types | None:
        """Those of a function; None if all take plain data, or Python can't tell."""
        inner = function_in(func)
        code = getattr(inner, "__code__", None)
        if code is None:  # a builtin, or a class
            return None
        hints = hints_in(inner)
        found = {name: Parameter(name, hint) for name, hint in hints.items() if name != "return" and asks_for(hint)}
        if not found:
            return None
        names = code.co_varnames
        places, named = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
        rest, others = code.co_flags & 4, code.co_flags & 8  # inspect.CO_VARARGS, CO_VARKEYWORDS
        return cls(
            [found.get(name) for name in names[int(hasattr(func, "__self__")) : places]],
            {name: found.get(name) for name in names[code.co_posonlyargcount : named]},
            found.get(names[named]) if rest else None,
            found.get(names[named + bool(rest)]) if others else None,
        )

    def load(self, path: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Args, Kwargs]:
        """The arguments as the function at `path` wants them, made of plain data.

        Raises:
            SignatureMismatch: When they can't be.
        """
        return self._each(path, args, kwargs, Parameter.load)

    def dump(self, path: str, args: Sequence[Any], kwargs: Mapping[str, Any], passed: int = 0) -> tuple[Args, Kwargs]:
        """The arguments as plain data, of which :meth:`load` certainly makes the same again.

        Args:
            passed: arguments that will come before these.

        Raises:
            SignatureMismatch: When they are not what is annotated.
            NotEnqueueable: When they can't travel as plain data.
        """
        return self._each(path, args, kwargs, Parameter.dump, passed)

    def _each(
        self,
        path: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        change: Callable[[Parameter, str, Any], Any],
        passed: int = 0,
    ) -> tuple[Args, Kwargs]:
        changed = list(args)
        for index, value in enumerate(args):
            place = index + passed
            parameter = self._by_place[place] if place < len(self._by_place) else self._rest
            if parameter is not None:
                changed[index] = change(parameter, path, value)
        named = dict(kwargs)
        for name, value in kwargs.items():
            parameter = self._by_name.get(name, self._others)
            if parameter is not None:
                named[name] = change(parameter, path, value)
        return tuple(changed), named


class Parameter:
    """One that asks for more than plain data.

    Args:
        name: its name.
        hint: its annotation.
    """

    __slots__ = ("_build", "_hint", "_name")

    def __init__(self, name: str, hint: Any) -> None:
        self._name = name
        self._hint = hint
        self._build: Builder | None = None

    def load(self, path: str, value: Any, tell: Callable[[object], str] = type_shown) -> Any:
        """What the function gets for plain data. What goes wrong here is told to a log, so no values are."""
        try:
            return self._builder()(value)
        except Misfit as error:
            if hides(self._hint):  # what a class says of a value that it does not take may have that value
                words = f"it is not what is annotated, got {MASK}"
                raise SignatureMismatch(f"{path}: {self._name}{error.place}: {words}") from None
            raise SignatureMismatch(f"{path}: {self._name}{error.place}: {error.text(tell)}") from error
        except RecursionError as error:
            raise SignatureMismatch(f"{path}: {self._name}: it is nested too deeply, got {tell(value)}") from error

    def dump(self, path: str, value: Any) -> Any:
        """The plain data that is sent. What goes wrong here is told to who sends it."""
        tell = masked if hides(self._hint) else shown
        try:
            plain = plain_of(value)
            built = self.load(path, plain, tell)
            same = arrives(value, built)
        except SignatureMismatch:
            raise
        except Exception as error:
            words = "" if tell is masked else f": {error}"
            raise NotEnqueueable(
                f"{path}: {self._name} can't travel as plain data: {type(error).__name__}{words}; got {tell(value)}"
            ) from (error if words else None)
        if not same:
            raise NotEnqueueable(
                f"{path}: {self._name} would arrive as {tell(built)}, not as {tell(value)}: annotate the very "
                "classes that are given, or use serializer='pickle'"
            )
        return plain

    def _builder(self) -> Builder:
        if self._build is None:
            validator = _validator(self._hint) if asks_for(self._hint) == RECORD else None
            self._build = validator or builder(self._hint)
        return self._build


def _validator(hint: Any) -> Builder | None:
    """pydantic's builder of a type; None if it is not installed, or does not know what to make of the type."""
    try:
        from pydantic import TypeAdapter, ValidationError  # type: ignore[import-not-found, unused-ignore]
    except ImportError:  # or its version 1
        return None
    try:
        adapter: Any = TypeAdapter(hint)
    except Exception:  # pydantic's, and whatever the classes in it make of being looked at
        return None
    import json

    def build(value: Any) -> Any:
        try:
            try:
                text = json.dumps(value)  # by the rules for JSON, even a strict model takes a date as text
            except TypeError:  # bytes
                return adapter.validate_python(value)
            return adapter.validate_json(text)
        except ValidationError as error:
            raise _misfit(error.errors(include_url=False)) from None  # it has all values

    return build


def _misfit(problems: Sequence[Any]) -> Misfit:
    """pydantic's findings, seen from the argument."""
    first, *others = [
        Misfit(problem["msg"], problem["input"]).under(
            "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in problem["loc"])
        )
        for problem in problems[:_PROBLEMS_MAX]
    ]
    first.others, first.more = others, max(len(problems) - _PROBLEMS_MAX, 0)
    return first
