"""Hearing of answers in a Redis queue: a subscription, on a connection of its own."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import redis

from delayed.brokers._redis_client import RedisClient
from delayed.brokers.base import Listener

SLICE = 0.5  # seconds after which a wait looks whether it was closed
POLL = 0.1  # seconds between looks where nobody may subscribe


class RedisListener(Listener):
    """See :class:`Listener`.

    Args:
        ready: the key of the queue's ready tasks, by which the channel is named, and found on a cluster.
    """

    def __init__(self, client: RedisClient, ready: bytes) -> None:
        self._client = client
        self._closed = False
        self._connection: Any = None
        ((_, pool),) = client.lines([ready])
        connection = client.connect(pool)
        try:
            with client.errors():
                connection.send_command("SUBSCRIBE", ready + b"_answers")
                connection.read_response(disable_decoding=True, push_request=True)
            self._connection = connection
        except BaseException as error:
            connection.disconnect()
            if not isinstance(error.__cause__, redis.exceptions.NoPermissionError):
                raise

    def wait(self, timeout: float) -> bool:
        if self._connection is None:
            time.sleep(min(timeout, POLL))
            return True
        end = time.monotonic() + timeout
        with self._client.errors():
            while not self._closed and (left := end - time.monotonic()) > 0:
                if self._connection.can_read(timeout=min(left, SLICE)):
                    while self._connection.can_read(timeout=0):
                        self._connection.read_response(disable_decoding=True, push_request=True)
                    return True
        return False

    def close(self) -> None:
        self._closed = True  # its thread ends the wait, for nobody else may touch the connection meanwhile

    def __del__(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.disconnect()
