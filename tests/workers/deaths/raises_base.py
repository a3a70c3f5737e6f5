"""Raises what ``except Exception`` does not catch."""

from __future__ import annotations

import builtins

from tests.workers.deaths import Death, ends, raised


def die(ledger: str, name: str) -> None:
    raise getattr(builtins, name)


async def die_on_the_loop(ledger: str, name: str) -> None:
    raise getattr(builtins, name)


DEATHS = [
    Death(func, ends(raised(name)), (name,))
    for name in ("KeyboardInterrupt", "GeneratorExit", "BaseException")
    for func in (die, die_on_the_loop)
]
