"""Whether arguments fit a function, told in ``.delay()`` rather than by the worker."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from delayed.errors import ConfigError, NotEnqueueable, SignatureMismatch
from delayed.functions import owner_of

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Signature:
    """The signature of one function, arranged so that the common call costs two comparisons.

    Args:
        func: what a worker will call.
        owner: the class that `func` is a method of and needs an object of as its first argument; else None.
    """

    __slots__ = ("_least", "_most", "_name", "_owner", "_signature")

    def __init__(self, func: Callable[..., Any], owner: type | None) -> None:
        self._name = getattr(func, "__qualname__", repr(func))
        self._owner = owner
        self._signature = inspect.signature(func)
        parameters = self._signature.parameters.values()
        needed = [each for each in parameters if each.default is each.empty and "VAR" not in each.kind.name]
        # With this many positional arguments and no others a call certainly fits.
        only_positional = all(each.kind in _POSITIONAL for each in needed)
        self._least = len(needed) if only_positional else 2**31
        self._most = sum(each.kind in _POSITIONAL for each in parameters)

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise if a call with these arguments would fail at once.

        Raises:
            SignatureMismatch: When they don't fit.
            NotEnqueueable: When an object's method would get another first argument than such an object.
        """
        if self._owner is not None and (not args or not isinstance(args[0], self._owner)):
            raise NotEnqueueable(
                f"{self._name} is a method of an object: pass the object too, "
                f"{self._owner.__qualname__}.{self._name.rpartition('.')[2]}.delay(object, ...), or make it static"
            )
        if not kwargs and self._least <= len(args) <= self._most:
            return
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise SignatureMismatch(f"{self._name}{self._signature}: {error}") from None

    def bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arguments of a call by the names of their parameters: those that are given, and the defaults of the
        others.

        Raises:
            SignatureMismatch: When they don't fit.
        """
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise SignatureMismatch(f"{self._name}{self._signature}: {error}") from None
        given = dict(bound.arguments)
        bound.apply_defaults()
        return given, {name: value for name, value in bound.arguments.items() if name not in given}

    def arguments(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        flat: bool = False,
        sent: Callable[[str, Any], Any] | None = None,
    ) -> dict[str, Any]:
        """The arguments of a call by the names of their parameters, those included that have their defaults.

        Args:
            flat: whether those that are gathered in ``**kwargs`` have their own names, rather than that one.
            sent: what makes of a parameter's name and default what it would be sent as; None: it stays what it is.

        Raises:
            SignatureMismatch: When they don't fit.
        """
        given, defaults = self.bound(args, kwargs)
        if sent is not None:
            defaults = {name: sent(name, value) for name, value in defaults.items()}
        both = {**given, **defaults}
        found = {name: both[name] for name in self._signature.parameters}
        if flat:
            for name, parameter in self._signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    return {**found.pop(name), **found}
        return found

    def argument(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The argument that a parameter gets in a call, or its default.

        Raises:
            ConfigError: When there is no such parameter.
            SignatureMismatch: When the arguments don't fit.
        """
        if name not in self._signature.parameters:
            raise ConfigError(f"{self._name}{self._signature} has no parameter {name!r} that could name a limit")
        return self.arguments(args, kwargs)[name]


def signature_of(func: Callable[..., Any]) -> Signature | None:
    """The signature of what a worker calls when `func` is enqueued; None if Python knows none (some builtins)."""
    found, owner = owner_of(func)
    try:
        return Signature(found, owner)
    except (ValueError, TypeError):
        return None
