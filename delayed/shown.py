"""Values as messages and the log show them: shortened, and without what is hidden.

Not :func:`repr` and a cut: a list of ten million numbers takes seconds to be written out. Nothing here ever raises.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from delayed.hidden import ALL, NOTHING, fields_of, parameters_of

MASK = "***"
VALUE_MAX = 60  # characters of a value
CALL_MAX = 300  # ... of all arguments of a call
ARGUMENTS_MAX = 12  # arguments of a call
ITEMS_MAX = 8  # items of a container
DEPTH_MAX = 3  # containers in each other
BITS_MAX = 256  # of a number that is written out

_LISTS = (list.__repr__, tuple.__repr__, set.__repr__, frozenset.__repr__, deque.__repr__)
_DICTS = (dict.__repr__, OrderedDict.__repr__, defaultdict.__repr__)
_BRACKETS = {list: ("[", "]"), tuple: ("(", ")"), set: ("{", "}")}


def shown(value: object, hides: int = NOTHING) -> str:
    """A value in 60 characters or so.

    Args:
        hides: how much of it must not be shown, see :func:`delayed.hidden.hides`.
    """
    try:
        return _cut(_render(value, hides, DEPTH_MAX), VALUE_MAX)
    except Exception:  # of its own code
        return f"<{_name(value)} without repr>"


def masked(value: object) -> str:
    """What is shown of a value that is hidden."""
    return MASK


def type_shown(value: object) -> str:
    """What is told of a value where none must be shown."""
    return f"<{_name(value)}>"


def call_shown(func: Callable[..., Any] | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The arguments of a call, such as ``(1, 'two', password=***)``, in 300 characters or so.

    Args:
        func: what is called; None if that is not known, and then nothing but the types of the arguments is shown, for
            any of them may be hidden.
    """
    try:
        parameters = None if func is None else parameters_of(func)
        texts = []
        for index, value in enumerate(islice(args, ARGUMENTS_MAX)):
            texts.append(type_shown(value) if parameters is None else shown(value, parameters.of_place(index)))
        for name, value in islice(kwargs.items(), ARGUMENTS_MAX - len(texts)):
            text = type_shown(value) if parameters is None else shown(value, parameters.of_name(name))
            texts.append(f"{_cut(str(name), VALUE_MAX)}={text}")
        more = len(args) + len(kwargs) - len(texts)
        return f"({_cut(', '.join(texts), CALL_MAX)}{f', … {more} more' if more else ''})"
    except Exception:  # annotations may be anything
        return "(…)"


def _render(value: Any, hides: int, depth: int) -> str:
    if hides == ALL:
        return MASK
    kind: Any = type(value)
    if value is None or kind is bool:
        return repr(value)
    if kind.__repr__ in _LISTS:  # what shows itself otherwise may have its reason
        inside = _items((_render(each, hides, depth - 1) for each in value), len(value), depth)
        before, after = _BRACKETS.get(kind, (f"{kind.__name__}([", "])"))
        return f"{before}{inside}{',' if kind is tuple and len(value) == 1 else ''}{after}"
    names = _names_in(kind)
    if names is not None:
        return _record(value, names, depth)
    if hides:  # it stands where an object should be whose fields are known
        return MASK
    if kind.__repr__ in _DICTS:
        pairs = (f"{_render(key, 0, depth - 1)}: {_render(item, 0, depth - 1)}" for key, item in value.items())
        inside = _items(pairs, len(value), depth)
        return f"{{{inside}}}" if kind is dict else f"{kind.__name__}({{{inside}}})"
    if kind in (str, bytes, bytearray):
        return repr(value[: VALUE_MAX + 1])
    if kind is int and value.bit_length() > BITS_MAX:
        return f"<int of {value.bit_length()} bits>"
    return repr(value)


def _items(texts: Iterable[str], count: int, depth: int) -> str:
    if not count:
        return ""
    if depth <= 0:
        return "…"
    return ", ".join([*islice(texts, ITEMS_MAX), *(["…"] if count > ITEMS_MAX else [])])


def _names_in(kind: Any) -> Sequence[str] | None:
    """The attributes that show a dataclass, a model or a named tuple; None for what shows itself."""
    hidden = fields_of(kind)
    origin = getattr(kind.__repr__, "__module__", None)
    fields = getattr(kind, "__pydantic_fields__", None)
    if isinstance(fields, dict) and (hidden or (origin or "").startswith("pydantic")):
        return [name for name, field in fields.items() if field.repr]
    fields = getattr(kind, "__dataclass_fields__", None)
    if isinstance(fields, dict) and (hidden or hasattr(kind.__repr__, "__wrapped__")):  # which was not written by hand
        return [name for name, field in fields.items() if field.repr and field._field_type.name == "_FIELD"]
    if issubclass(kind, tuple) and (hidden or origin == "collections"):
        return list(kind._fields)
    return list(hidden) or None


def _record(value: object, names: Sequence[str], depth: int) -> str:
    hidden = fields_of(type(value))
    texts = (f"{name}={_render(getattr(value, name), hidden.get(name, NOTHING), depth - 1)}" for name in names)
    return f"{type(value).__qualname__}({_items(texts, len(names), depth)})"


def _name(value: object) -> str:
    name: str = type.__getattribute__(type(value), "__qualname__")  # past whatever a metaclass makes of it
    return name


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + "…"
