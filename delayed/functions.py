"""From a function to its path, which travels in a message, and back.

A path is ``package.module:qualname``. Functions of a script that is run as a file have ``/abs/script.py:qualname``.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from _thread import RLock  # from where `threading` has it, which the fork server shall not load
from collections.abc import Callable
from types import FunctionType
from typing import Any

from delayed.errors import FunctionNotFound, NotEnqueueable

MAIN = "__delayed_main__"  # the name under which a worker loads a script, so that its __main__ guard stays shut

PATH_MAX = 8192  # characters of a path; a file's may have 4096 bytes
# The attributes that a decorator adds.
DECORATIONS = ("delay", "adelay", "map", "amap", "starmap", "astarmap", "options", "after", "at", "timeout", "queue")

_paths: dict[Any, str] = {}
_found: dict[str, Callable[..., Any]] = {}
_places: dict[str, str] = {}  # of the module or script that has it, by the path of a function
_scripts: dict[str, Any] = {}  # those that were loaded as modules, by their files
_script = RLock()  # held while a script is loaded
_given: dict[str, Callable[..., Any]] = {}
_NEVER = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]").search  # what logs and stores can't have
_CLOUDPICKLE = "use a queue with serializer='cloudpickle', or move it to the top level of a module"


def is_path(value: object) -> bool:
    """Whether a value may be a function's path: text, not too long, in one line."""
    if type(value) is not str or not 0 < len(value) <= PATH_MAX:
        return False
    return value.isprintable() or _NEVER(value) is None


def path_of(func: Callable[..., Any]) -> str:
    """The path by which a worker finds `func`.

    Raises:
        NotEnqueueable: When no path leads there; the message says why, and what to do.
    """
    try:
        return _paths[func]
    except KeyError:
        path = _paths[func] = _path_of(func)
        return path
    except TypeError:  # not hashable
        return _path_of(func)


def _path_of(func: Callable[..., Any]) -> str:
    if not callable(func):
        raise NotEnqueueable(f"{func!r} is not callable: give a function")
    inner = getattr(func, "__func__", func) if isinstance(func, (staticmethod, classmethod)) else func
    module = getattr(inner, "__module__", None)
    name = getattr(inner, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        raise NotEnqueueable(f"{func!r} has no name by which a worker could import it: wrap it in a function")
    if name.endswith("<lambda>"):
        raise NotEnqueueable(f"a lambda (in {module}) has no name by which a worker could import it: {_CLOUDPICKLE}")
    if "<locals>" in name:
        raise NotEnqueueable(f"{module}:{name} is made inside a function, where no worker can find it: {_CLOUDPICKLE}")
    owner = getattr(inner, "__self__", None)
    if owner is not None and not isinstance(owner, type) and not _is_module(owner):
        raise NotEnqueueable(
            f"{module}:{name} is a method of an object, which would have to travel with it: "
            "enqueue a function or static method that takes the object, or what is needed to make it, as argument"
        )
    if module == "__main__":
        place = _main_place()
    elif module == MAIN:  # a task of a script enqueues another
        place = str(sys.modules[MAIN].__file__)
    else:
        place = module
    try:
        found = _walk(sys.modules[module], name)
    except (KeyError, AttributeError):
        raise NotEnqueueable(
            f"{module}:{name} does not exist under that name: enqueue a function that can be imported, "
            f"or {_CLOUDPICKLE}"
        ) from None
    if not _same(found, func):
        raise NotEnqueueable(
            f"{module}:{name} is another object than the one given, so a worker would run the wrong one; "
            "perhaps a decorator replaced it: enqueue what the name stands for"
        )
    path = f"{place}:{name}"
    if not is_path(path):
        raise NotEnqueueable(
            f"{path[:100]!r} is no path that can be stored: it has more than {PATH_MAX} characters, or such as have no "
            "place in a line of text; rename the file or the function"
        )
    _given[path] = found
    return path


def seen(path: str) -> Callable[..., Any] | None:
    """The function at `path` if this process has enqueued or run it; nothing is imported to find it."""
    return _given.get(path) or _found.get(path)


def loaded(path: str) -> Callable[..., Any] | None:
    """The function at `path` if its module is loaded here; nothing is imported to find it."""
    func = seen(path)
    place, colon, name = path.rpartition(":")
    if func is None and colon and is_loaded(place):
        found: Any = sys.modules[place]
        try:
            for part in name.split("."):
                found = vars(found)[part]
        except (KeyError, TypeError):
            return None
        return found if callable(found) or isinstance(found, (staticmethod, classmethod)) else None
    return func


def bare(func: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of a decorated function without what the decorator added: of no use in a worker, and not to be pickled."""
    if not isinstance(func, FunctionType) or not hasattr(func, "adelay"):
        return func
    copy = FunctionType(func.__code__, func.__globals__, func.__name__, func.__defaults__, func.__closure__)
    for name in ("__kwdefaults__", "__annotations__", "__qualname__", "__module__", "__doc__"):
        setattr(copy, name, getattr(func, name))
    vars(copy).update({name: value for name, value in vars(func).items() if name not in DECORATIONS})
    return copy


def function_in(func: Callable[..., Any]) -> Any:
    """The function inside bound methods and decorators, whose signature is theirs."""
    found: Any = getattr(func, "__func__", func)
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    return found


def is_decorated(func: Callable[..., Any]) -> bool:
    """Whether a function was decorated with ``@delayed``: what its module offers to those who enqueue."""
    return "adelay" in getattr(getattr(func, "__func__", func), "__dict__", ())


def home_of(func: Callable[..., Any], path: str) -> str | None:
    """Where a function was defined, as ``package.module.qualname``; None if it does not say so.

    Args:
        path: by which it was found, which says what script it is in if it is in one.
    """
    inner = getattr(func, "__func__", func)
    module, name = getattr(inner, "__module__", None), getattr(inner, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return None
    place = path.rpartition(":")[0]
    if module == MAIN and place.endswith(".py"):
        module = place
    return f"{module}.{name}"


def owner_of(func: Callable[..., Any]) -> tuple[Callable[..., Any], type | None]:
    """What a worker calls when `func` is enqueued, and the class that it needs an object of as first argument."""
    try:
        _, _, name = path_of(func).rpartition(":")
    except NotEnqueueable:
        return func, None  # travels by value
    above, _, last = name.rpartition(".")
    owner = _walk(sys.modules[func.__module__], above) if above else None
    if not isinstance(owner, type):
        return func, None
    found = getattr(owner, last)
    return found, owner if isinstance(vars(owner).get(last), FunctionType) else None


def _is_module(owner: object) -> bool:
    return type(owner) is type(sys)


def _same(found: Any, func: Any) -> bool:
    if found is func or found == func:
        return True
    while True:
        inner = getattr(found, "__func__", None) or getattr(found, "__wrapped__", None)
        if inner is None:
            return False
        target = getattr(func, "__func__", func)
        if inner is func or inner is target:
            return True
        found = inner


def _main_place() -> str:
    """How a worker gets at what is ``__main__`` here."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        name: str = spec.name
        return name
    file: str | None = getattr(main, "__file__", None)
    if file is None or not os.path.exists(file):
        raise NotEnqueueable(
            "functions that were typed into a notebook or an interpreter can't be imported by a worker: "
            "use a queue with serializer='cloudpickle', or put them into a module"
        )
    return os.path.abspath(file)


def resolve(path: str) -> Callable[..., Any]:
    """The function at `path`; ``package.module.name`` is understood too.

    Raises:
        FunctionNotFound: When there is none; an error that its module raised is the cause.
    """
    func = _found.get(path)
    if func is None:
        func = _found[path] = _resolve(path)
    return func


def stand_for_main(path: str) -> None:
    """Let the module of the function at `path` stand for ``__main__``: where pickles of a program look for the classes
    that it defined while it was ``__main__`` itself. (As multiprocessing does with ``__mp_main__``.)

    Raises:
        FunctionNotFound: As :func:`resolve`.
    """
    place = _places.get(path)
    if place is None:
        resolve(path)
        place = _places[path] = path.rpartition(":")[0] or path.rpartition(".")[0]
    script = _scripts.get(place)
    if script is not None:
        sys.modules[MAIN] = script  # of several, the one that is asked for
    sys.modules["__main__"] = sys.modules[place] if script is None else script


def _resolve(path: str) -> Callable[..., Any]:
    place, colon, name = path.rpartition(":")
    if not colon:
        place, _, name = path.rpartition(".")
    if not place or not name:
        raise FunctionNotFound(f"{path!r} is not the path of a function: package.module:name")
    if "__" in name and any(part.startswith("__") for part in name.split(".")):
        raise FunctionNotFound(f"{path!r}: names with two leading underscores are not looked up")
    try:
        module = _load_script(place) if place.endswith(".py") and os.path.isabs(place) else _import(place)
    except FunctionNotFound:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise FunctionNotFound(
            f"{path}: importing {place} failed with {type(error).__name__}: {error}; "
            "start the worker where the module can be imported"
        ) from error
    try:
        func = _walk(module, name)
    except AttributeError:
        raise FunctionNotFound(f"{path}: {place} has no {name}; is the worker's code older, or newer?") from None
    if not callable(func):
        raise FunctionNotFound(f"{path} is a {type(func).__name__}, not a function")
    return func  # type: ignore[no-any-return]


def _import(place: str) -> Any:
    # Loaded already, for most: the machinery of an import costs a fresh fork a tenth of a millisecond to find that out.
    return sys.modules[place] if is_loaded(place) else importlib.import_module(place)


def resolved(path: str) -> Callable[..., Any] | None:
    """What :func:`resolve` has found at `path` before; None if nobody has asked."""
    return _found.get(path)


def is_at_hand(path: str) -> bool:
    """Whether the function at `path` can be had without an import, or the wait for another thread's."""
    return path in _found or is_loaded(path.rpartition(":")[0])


def is_loaded(place: str) -> bool:
    """Whether a module is imported, and not only begun to be by another thread."""
    module = sys.modules.get(place)
    return module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False)


def _walk(module: Any, name: str) -> Any:
    found = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _load_script(file: str) -> Any:
    """Run a script once, under another name than ``__main__``."""
    with _script:
        return _load_script_alone(file)


def _load_script_alone(file: str) -> Any:
    if file in _scripts:
        return _scripts[file]
    import importlib.util

    spec = importlib.util.spec_from_file_location(MAIN, file)
    if spec is None or spec.loader is None or not os.path.exists(file):
        raise FunctionNotFound(f"the script {file} is not here; a worker needs the same path, or put it into a module")
    module = importlib.util.module_from_spec(spec)
    former = sys.modules.get(MAIN)
    _scripts[file] = sys.modules[MAIN] = module
    folder = os.path.dirname(file)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del _scripts[file]
        if former is not None:
            sys.modules[MAIN] = former
        else:
            del sys.modules[MAIN]
        raise
    return module
