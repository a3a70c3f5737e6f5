"""Real servers for the tests: started on a free loopback port, with their data in a temporary folder.

A test that needs a server takes, in this order: the one whose URL is in ``DELAYED_TEST_REDIS_URL`` (and so on for each
store), one that is on the PATH, the one of a wheel. Where there is none the test is skipped with the reason; in CI,
where a test that does not run is worth nothing, it fails.

What nobody may do to the server of an environment variable (kill it, configure it), tests do to one of their own.
"""

from __future__ import annotations

import os
import socket
from typing import NoReturn

import pytest

START_TIMEOUT = 30.0  # seconds a server gets to answer


class ServerError(Exception):
    """Raised when no server can be found, or the one that was found does not start."""


def unavailable(reason: str) -> NoReturn:
    """Skip the test that needs a server, or fail it in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
