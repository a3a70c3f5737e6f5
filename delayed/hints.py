"""Whether a function's annotations ask for more than plain data, found out once for each function.

It is all that most tasks need of this matter, and is loaded in every worker; `typed` is loaded for the others only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Union

from delayed.functions import function_in

if TYPE_CHECKING:
    from delayed.typed import Types

_PLAIN = (int, float, str, bool, bytes, list, dict, object, type(None), None, Any)
_CONTAINERS = (None, Union, list, dict)  # None: what `int | str` has for an origin
_WORDS = {"int", "float", "str", "bool", "bytes", "list", "dict", "object", "None"}
_WORDS |= {"Any", "Union", "Optional", "List", "Dict"}
_SIGNS = str.maketrans("[],|", "    ")

_known: dict[Callable[..., Any], Types | None] = {}


def types_of(func: Callable[..., Any]) -> Types | None:
    """What the arguments of a function are made into; None if it takes them as JSON and msgpack give them."""
    try:
        return _known[func]
    except KeyError:
        found = _known[func] = _types_of(func)
        return found
    except TypeError:  # not hashable
        return _types_of(func)


def _types_of(func: Callable[..., Any]) -> Types | None:
    inner = function_in(func)
    try:
        notes = getattr(inner, "__annotations__", None) or {}
        if all(_is_plain(note) for name, note in notes.items() if name != "return"):
            return None
    except Exception:  # one that can't be had, compared or hashed: `typed` looks at them one by one
        pass
    from delayed.typed import Types

    return Types.of(func)


def _is_plain(note: Any) -> bool:
    """Whether an annotation, or its text, certainly means plain data."""
    if isinstance(note, str):
        return _WORDS.issuperset(note.translate(_SIGNS).split())
    if hasattr(note, "__metadata__"):  # of Annotated
        return _is_plain(note.__origin__)
    args = getattr(note, "__args__", None)
    if args:
        return getattr(note, "__origin__", None) in _CONTAINERS and all(map(_is_plain, args))
    return note in _PLAIN
