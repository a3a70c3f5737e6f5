"""The annotations of functions and classes as objects, however they are written."""

from __future__ import annotations

import sys
from typing import Any, get_type_hints


def hints_in(annotated: Any) -> dict[str, Any]:
    """The annotations of a function or class as objects, without those whose names lead nowhere."""
    try:
        return get_type_hints(annotated, include_extras=True)
    except Exception:  # a name that exists for type checkers only spoils none but its own annotation
        found = {}
        for name, note in notes_of(annotated).items():
            try:
                found[name] = get_type_hints(_Annotated(annotated, name, note), include_extras=True)["it"]
            except Exception:
                continue
        return found


def notes_of(annotated: Any) -> dict[str, Any]:
    """The annotations of a function or class as they are kept, which may be as text; none if they can't be had."""
    try:
        notes = [getattr(each, "__annotations__", {}) for each in reversed(getattr(annotated, "__mro__", [annotated]))]
    except Exception:  # from Python 3.14 they are evaluated when they are asked for
        return {}
    return {name: note for each in notes for name, note in each.items()}


class _Annotated:
    """Something with one annotation, in the module of another."""

    def __init__(self, original: Any, name: str, note: Any) -> None:
        self.__annotations__ = {"it": note}
        self.__globals__ = getattr(original, "__globals__", None) or vars(sys.modules[original.__module__])
