"""The allow-list of a queue: whoever can write to a store names the functions that workers call."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from typing import Any

from delayed.errors import ConfigError, NotAllowed
from delayed.functions import home_of


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
        self._match = re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)").match

    def check_path(self, path: str) -> None:
        """Refuse the path of a function that may not be run. Nothing is imported.

        Raises:
            NotAllowed: When it is not on the list.
        """
        if self._match(path.replace(":", ".", 1)) is None:
            raise NotAllowed(f"{path} is not on this queue's list of what may be run: {', '.join(self.patterns)}")

    def check(self, path: str, func: Callable[..., Any]) -> None:
        """Refuse what a path on the list led to, if it comes from elsewhere: ``app.tasks:os.system`` does.

        Raises:
            NotAllowed: When it comes from elsewhere.
        """
        home = home_of(func, path) or ""
        if self._match(home) is None:
            raise NotAllowed(
                f"{path} leads to {home or repr(func)}, which is not on this queue's list of what may be run: "
                + ", ".join(self.patterns)
            )
