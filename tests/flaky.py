"""A store in memory whose requests for small values get lost on the way, as a test's script says."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, TypeVar

from delayed.brokers.memory import MemoryBroker
from delayed.errors import BrokerFull, BrokerUnavailable

R = TypeVar("R")


class FlakyKeys(MemoryBroker):
    """Treats its requests as the script says, one entry each, and then as it should.

    "refused": the request never arrives. "lost": it takes effect, and its answer is lost. "full": no room. "": all is
    well. A function is called when its turn has come, after which all is well.
    """

    def __init__(self, *script: str | Callable[[], object]) -> None:
        super().__init__(f"memory://{secrets.token_hex(8)}")
        self.script = list(script)
        self.requests: list[str] = []

    def _ask(self, name: str, call: Callable[[], R]) -> R:
        self.requests.append(name)
        what = self.script.pop(0) if self.script else ""
        if what == "refused":
            raise BrokerUnavailable("no connection", sent=False)
        if what == "full":
            raise BrokerFull("no room")
        if callable(what):
            what()
        found = call()
        if what == "lost":
            raise BrokerUnavailable("no answer", sent=True)
        return found

    def get_keys(self, *args: Any) -> Any:
        return self._ask("get", lambda: super(FlakyKeys, self).get_keys(*args))

    def put_key(self, *args: Any, **options: Any) -> int:
        return self._ask("put", lambda: super(FlakyKeys, self).put_key(*args, **options))

    def list_keys(self, *args: Any) -> list[str]:
        return self._ask("list", lambda: super(FlakyKeys, self).list_keys(*args))

    def add_key(self, *args: Any) -> int:
        return self._ask("add", lambda: super(FlakyKeys, self).add_key(*args))
