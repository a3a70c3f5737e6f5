"""The allow-list of a queue: whoever can write to a store names the functions that workers call."""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from delayed.errors import ConfigError, NotAllowed
from delayed.functions import home_of, is_loaded


def check_place(path: str) -> None:
    """Refuse a path whose import could run what is no part of the program: a file that somebody has uploaded.

    That is the rule where nobody has said what may be run and anybody may have written the message: scripts are where
    modules are imported from, or in the working folder, and modules in packages proper. What is imported already is
    imported already.

    Raises:
        NotAllowed: When the path leads elsewhere.
    """
    place = path.rpartition(":")[0] or path.rpartition(".")[0]
    if place.rpartition(".")[2] == "__main__":
        raise NotAllowed(f"{path} is in a program, which runs when it is imported; {_ADVICE}")
    if place.endswith(".py"):
        if os.path.dirname(place) not in (os.getcwd(), *sys.path):
            raise NotAllowed(f"{path} is in a script outside of the folders that modules are imported from; {_ADVICE}")
        return
    if is_loaded(place):
        return
    parts = place.split(".")
    for number in range(1, len(parts)):
        package = ".".join(parts[:number])
        try:
            spec = importlib.util.find_spec(package)
        except Exception:  # the import that follows says what is wrong with it
            return
        if spec is not None and spec.submodule_search_locations is not None and not spec.has_location:
            raise NotAllowed(f"{path} is in {package}, a folder without __init__.py; {_ADVICE}")


_ADVICE = "if it is yours, put it on the queue's list of what may be run: allow=[...]"


def _matching(patterns: Sequence[str]) -> Callable[[str], object]:
    return re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)").match


class AllowList:
    """Patterns of the functions that may be run.

    Args:
        patterns: such as ``app.tasks.*``: the dotted path of functions, with ``*`` for any text.

    Raises:
        ConfigError: When it is not a list of text.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        if isinstance(patterns, str) or not all(isinstance(each, str) and each for each in patterns):
            raise ConfigError(f"allow is a list of patterns such as ['app.tasks.*'], not {patterns!r}")
        self.patterns = tuple(patterns)
        dotted = [pattern.replace(":", ".", 1) for pattern in patterns]
        self._match = _matching(dotted)
        self._match_script = _matching([each for each in dotted if each == "*" or each.startswith("/")])

    def _has(self, path: str) -> bool:
        match = self._match_script if path.startswith("/") else self._match  # a star is any text, a folder too
        return match(path) is not None

    def check_path(self, path: str) -> None:
        """Refuse the path of a function that may not be run. Nothing is imported.

        Raises:
            NotAllowed: When it is not on the list.
        """
        if not self._has(path.replace(":", ".", 1)):
            raise NotAllowed(f"{path} is not on this queue's list of what may be run: {', '.join(self.patterns)}")

    def check(self, path: str, func: Callable[..., Any]) -> None:
        """Refuse what a path on the list led to, if it comes from elsewhere: ``app.tasks:os.system`` does.

        Raises:
            NotAllowed: When it comes from elsewhere.
        """
        home = home_of(func, path) or ""
        if not self._has(home):
            raise NotAllowed(
                f"{path} leads to {home or repr(func)}, which is not on this queue's list of what may be run: "
                + ", ".join(self.patterns)
            )
