"""Sizes of memory, as people write and read them."""

from __future__ import annotations

import re

from delayed.errors import ConfigError

_UNITS = " KMGT"


def size_of(name: str, value: object) -> int:
    """The bytes that `value` means: a number of them, or text such as ``512M`` or ``1.5G``.

    K, M, G and T are powers of 1024; ``512M``, ``512MB`` and ``512 MiB`` are the same.

    Args:
        name: what the size is of, for the error.

    Raises:
        ConfigError: When it means none, or less than one byte.
    """
    size = 0
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", value, re.IGNORECASE)
        if match:
            size = int(float(match[1]) * 1024 ** _UNITS.index(match[2].upper() or " "))
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value < float("inf"):
        size = int(value)
    if size < 1:
        raise ConfigError(f"{name} must be a size: write 512M or 2G, or a number of bytes; not {value!r}")
    return size


def size_text(size: float) -> str:
    """``812 MB``, ``3.5 MB``, ``40.0 GB``."""
    megabytes = size / 2**20
    if megabytes >= 10240:
        return f"{megabytes / 1024:.1f} GB"
    return f"{megabytes:.0f} MB" if megabytes >= 10 else f"{megabytes:.1f} MB"
