"""Waiting in tests, always with a bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from delayed.errors import BrokerUnavailable


def eventually(condition: Callable[[], Any], timeout: float = 10.0) -> Any:
    """The first true answer of `condition`; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def insist(call: Callable[[], Any], timeout: float = 20.0) -> Any:
    """Send the same request until it is answered, as every caller of a broker does."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return call()
        except BrokerUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
