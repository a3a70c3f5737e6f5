"""Ways for a task to die, to hang, or to leave a mess: a small module each.

To add one, add a file. Its docstring says what it does; its ``DEATHS`` say which functions do that, and how each ends
in every kind of worker. `tests.workers.test_deaths` finds it, and runs it among neighbours, under a supervisor, and
over and over.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

LIMIT = 0.2  # seconds that those get which hang


class End(NamedTuple):
    """How a task ends in one kind of worker.

    Attributes:
        verdict: the words that the verdict on it begins with; "" if it counts as returned.
        signal: the `kill_signal` that the error handler is given.
        error: the name of the exception's type that the error handler is given.
        child: what becomes of its child. When it dies, the neighbours run again, uncharged; when it retires they
            finish, and nothing else begins there. A forked child is gone in any case.
    """

    verdict: str = ""
    signal: int | None = None
    error: str | None = None
    child: Literal["goes on", "retires", "dies"] = "goes on"


class Death(NamedTuple):
    """One way to end.

    Attributes:
        func: what does it; its first argument is the ledger.
        ends: how it ends, by the kind of worker: forked, preforked, threaded, async.
        args: further arguments.
        timeout: its limit in seconds; None: none.
        slow: whether it is left out of the short soak, because it takes long by itself.
    """

    func: Callable[..., Any]
    ends: dict[str, End]
    args: tuple[Any, ...] = ()
    timeout: float | None = None
    slow: bool = False

    @property
    def name(self) -> str:
        """The names of its module and its function, and its arguments."""
        return "-".join(map(str, (self.func.__module__.rpartition(".")[2], self.func.__name__, *self.args)))


RETURNED = End()
RETIRED = End(child="retires")
TIMED_OUT = End(f"timed out (limit {LIMIT} s) after", error="TaskTimeout")
KILLED = End(
    f"timed out (limit {LIMIT} s), and was killed by signal 9 (SIGKILL)", signal=9, error="TaskTimeout", child="dies"
)


def raised(type: str, text: str = "", child: Literal["goes on", "retires"] = "goes on") -> End:
    """It raises an exception of this type, whose text begins like this."""
    return End(f"raised {type}" + (f": {text}" if text else ""), error=type.rpartition(".")[2], child=child)


def died(words: str, signal: int | None = None) -> End:
    """Its child dies in it, and the verdict begins with these words."""
    return End(words, signal=signal, child="dies")


def ends(
    every: End, *, preforked: End | None = None, threaded: End | None = None, loop: End | None = None
) -> dict[str, End]:
    """How it ends everywhere, but for some kinds of workers; `loop` is the asynchronous one."""
    return {
        "forked": every,
        "preforked": preforked or every,
        "threaded": threaded or every,
        "async": loop or every,
    }


def modules() -> list[str]:
    """The names of the modules of this package."""
    return [f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)]


def deaths() -> list[Death]:
    """All of them."""
    return [death for name in modules() for death in importlib.import_module(name).DEATHS]
