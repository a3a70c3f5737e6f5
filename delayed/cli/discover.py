"""``python -m delayed.cli.discover``: import the user's modules in a short-lived process and say what is in them.

A worker's monitor runs no user code, so it can't import ``app.tasks`` to find its queues. This process does, prints
what it found as one JSON object, and is gone:

    {"queues": [{"name": …, "url": …, …}, …]}                     the specs, see Queue.spec()
    {"error": "…", "usage": true | false, "traceback": ["…", …]}  what is wrong instead

It checks what else the worker will need later in its children (handlers, hooks, modules to preload): better an error at
start than one line in the log for each task.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from delayed.errors import DelayedError

if TYPE_CHECKING:
    from delayed.queue import Queue

TRACEBACK_LINES = 6  # lines of a user's traceback that are shown: the last ones name the place and the error


class DiscoveryError(DelayedError):
    """Raised when the user's modules can't be used.

    Attributes:
        usage: True if the command line is wrong, False if the module itself is.
        traceback: the last lines of the module's traceback; empty if it did not raise.
    """

    def __init__(self, message: str, usage: bool, traceback: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.usage = usage
        self.traceback = list(traceback)


def discover(
    module: str | None, handlers: Sequence[str] = (), preload: Sequence[str] = (), hooks: str | None = None
) -> list[dict[str, Any]]:
    """The specs of the queues in `module`, found by a process of its own.

    Args:
        module: the dotted name of a module; None looks for no queues.
        handlers: paths (``package.module:function``) that have to lead to something that can be called.
        preload: modules that have to be importable.
        hooks: a path (``package.module:Class``) that has to lead to a subclass of :class:`delayed.Hooks`; None: none.

    Raises:
        DiscoveryError: When something can't be imported or found.
    """
    request = json.dumps({"module": module, "handlers": list(handlers), "preload": list(preload), "hooks": hooks})
    command = [sys.executable, "-m", "delayed.cli.discover", request]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        end = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        names = ", ".join(filter(None, [module, *preload, *handlers, hooks]))
        raise DiscoveryError(f"importing {names} ended its process ({end}); try: python -c 'import …'", False) from None
    if "error" in answer:
        raise DiscoveryError(answer["error"], answer["usage"], answer["traceback"])
    queues: list[dict[str, Any]] = answer["queues"]
    return queues


def load(module: str) -> list[Queue]:
    """The queues of `module`, which is imported here: its code runs in this process.

    Raises:
        DiscoveryError: When it can't be imported, or has none.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:  # as with `python -m`
        sys.path.insert(0, os.getcwd())
    return _found_in(_import(module), module)


# -- in the process of its own ---------------------------------------------------------------------------------


def main(request: str) -> None:
    # The answer has the real standard output for itself; what the user's modules print goes to standard error.
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        json.dump(_answer(**json.loads(request)), answer)


def _answer(module: str | None, handlers: list[str], preload: list[str], hooks: str | None) -> dict[str, Any]:
    from delayed.events import Hooks

    try:
        specs = _specs(_import(module), module) if module else []
        for name in preload:
            _import(name)
        for path in handlers:
            if not callable(found := _found("handler", path)):
                raise DiscoveryError(f"handler {path!r} is a {type(found).__name__} and can't be called", usage=True)
        if hooks and not (isinstance(found := _found("hooks", hooks), type) and issubclass(found, Hooks)):
            raise DiscoveryError(f"hooks {hooks!r} is not a subclass of delayed.Hooks", usage=True)
    except DiscoveryError as error:
        return {"error": str(error), "usage": error.usage, "traceback": error.traceback}
    return {"queues": specs}


def _found(what: str, path: str) -> object:
    from delayed.functions import resolve

    try:
        return resolve(path)
    except DelayedError as error:
        raise DiscoveryError(f"{what} {path!r}: {error}", usage=True) from error


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Is it this module that is missing, or one that it imports?
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise DiscoveryError(f"no module {name!r} from here; {_advice(name)}", usage=True) from error
        raise _raised(name, error) from error
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # SystemExit too: a script that was meant to be run, not imported
        raise _raised(name, error) from error


def _advice(name: str) -> str:
    as_path = name.removeprefix("./")
    if as_path.endswith(".py") or "/" in as_path:
        return f"write the module's name, not its file: {as_path.removesuffix('.py').strip('/').replace('/', '.')}"
    return f"start the worker in the folder that has {name.partition('.')[0]!r}, or set PYTHONPATH"


def _raised(name: str, error: BaseException) -> DiscoveryError:
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    reason = "leaves the process when it is imported" if isinstance(error, SystemExit) else "can't be imported"
    text = " ".join(str(error).split())
    return DiscoveryError(
        f"module {name!r} {reason}: {type(error).__name__}{': ' + text if text else ''}",
        usage=False,
        traceback=lines[-TRACEBACK_LINES:],
    )


def _found_in(module: ModuleType, name: str | None) -> list[Queue]:
    found: dict[int, Queue] = {}  # by identity, in the order of the module
    for queue in _queues(vars(module).values()):
        found.setdefault(id(queue), queue)
    if not found:
        raise DiscoveryError(
            f"module {name!r} has neither a Queue nor a function decorated with @delayed(queue); "
            "name a module that has, or serve a queue by name: delayed worker --queue default",
            usage=True,
        )
    return list(found.values())


def _specs(module: ModuleType, name: str | None) -> list[dict[str, Any]]:
    specs: list[dict[str, Any]] = []
    known: list[list[Any]] = []
    for queue in _found_in(module, name):
        try:
            spec = dict(queue.spec())
        except DelayedError as error:
            raise DiscoveryError(f"queue {queue.name!r} of module {name!r}: {error}", usage=True) from error
        # A module may make a queue more than once; what is decorated for either is enqueued by both.
        schedules = spec.pop("schedules")
        if spec not in specs:
            specs.append(spec)
            known.append([])
        for schedule in schedules:
            mine = known[specs.index(spec)]
            if schedule not in mine:
                mine.append(schedule)
    return [{**spec, "schedules": schedules} for spec, schedules in zip(specs, known, strict=True)]


def _queues(values: Iterable[object]) -> Iterator[Queue]:
    from delayed.queue import Queue

    for value in list(values):
        if isinstance(value, Queue):
            yield value
        elif callable(value) and isinstance(queue := getattr(value, "queue", None), Queue):
            yield queue  # a decorated function names its queue, which may come from another module


if __name__ == "__main__":
    main(sys.argv[1])
