"""The command line: ``delayed worker``, ``status``, ``cancel`` and the others, one file each.

click and rich are imported in this package only, and not before a command needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave the process.

    Args:
        args: what to parse; None means the arguments of the process.
    """
    # Not at the top: ``python -m delayed.cli.discover`` passes through here and needs none of it.
    from delayed.cli.app import run

    raise SystemExit(run(args))
