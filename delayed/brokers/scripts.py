"""The files in ``lua/`` and ``sql/``."""

from __future__ import annotations

import pkgutil


def script(name: str) -> str:
    """The text of a file, such as ``sql/sqlite_1.sql``."""
    data = pkgutil.get_data("delayed.brokers", name)
    if data is None:
        raise FileNotFoundError(f"delayed/brokers/{name} can't be read by the loader of this package")
    return data.decode()
