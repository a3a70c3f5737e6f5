"""The plugin for pytest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from delayed.testing import Tasks


@pytest.fixture
def delayed_tasks() -> Iterator[Tasks]:
    """What is enqueued in the test, on any queue: kept in memory, to be looked at and run; see delayed.testing."""
    from delayed.testing import capture

    with capture() as tasks:
        yield tasks
