"""Waiting for the wake-up of a Redis queue: BLPOP on a connection of its own, ended at once from another thread.

A sleeper waits with poll(2) for two things, the answer of its BLPOP and a byte in its own socket pair, so that nothing
has to be asked again and again. When the byte comes first, CLIENT UNBLOCK ends the BLPOP: its connection stays good,
and a token that arrives in the same moment is seen, not lost.

A script can be sent right behind the BLPOP: the server runs it as soon as the wait is over, for whatever reason, and a
round trip is saved when every microsecond counts, between a wake-up and the claim.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Sequence
from typing import Any

import redis

from delayed.brokers._redis_ask import read, read_plainly
from delayed.brokers._redis_client import RedisClient
from delayed.brokers._sleepers import Sleeper, Sleepers
from delayed.errors import BrokerUnavailable

PATIENCE = 2.0  # seconds an answer may be late before its connection counts as dead: no FIN comes from a lost network


class Line:
    """One connection, and the BLPOP that is under way on it."""

    def __init__(self, client: RedisClient, pool: Any) -> None:
        self._client = client
        self._pool = pool
        self._connection = client.connect(pool)
        self._read = read_plainly if client.is_plain(pool) else read
        with client.errors():
            try:
                self._connection.send_command("CLIENT", "ID")
                self._number = int(self._connection.read_response(disable_decoding=True))
            except BaseException:
                self._connection.disconnect()
                raise
        self.busy = False
        self.result: Any = None  # of the script behind the last BLPOP; None if there was none, or it is not known
        self._followed = False

    def fileno(self) -> int:
        return int(self._connection._sock.fileno())  # redis-py has no public way to wait for two things at once

    def begin(self, keys: Sequence[bytes], timeout: float, script: bytes) -> None:
        self.result = None
        self._followed = bool(script)
        with self._client.errors():
            # 0 is for ever, and in Redis 6.2 0.001, which it rounds down, too
            wait = self._connection.pack_command("BLPOP", *keys, f"{max(timeout, 0.002):.3f}")
            self._connection.send_packed_command([*wait, script] if script else wait)
        self.busy = True

    def answer(self) -> tuple[bytes, bytes] | None:
        """The key and its token; None if the BLPOP timed out or was ended."""
        with self._client.errors():
            answer, *results = self._read(self._connection, 1 + self._followed)
        for result in results:
            if not isinstance(result, redis.exceptions.NoScriptError):  # else nothing ran
                self.result = result
        self.busy = False
        return (answer[0], answer[1]) if answer else None

    def end(self) -> tuple[bytes, bytes] | None:
        """End the BLPOP, or close the connection where that can't be done. The token, if one came meanwhile."""
        if not self.busy or self._connection._sock is None:
            return None
        with contextlib.suppress(Exception):  # not allowed, not reached: then the hard way
            for _ in range(100):  # the command may overtake the BLPOP, which goes another way: then it ends nothing
                if self._client.unblock(self._pool, self._number) or self._readable(0.005):
                    return self.answer()
        self.close()
        return None

    def _readable(self, timeout: float) -> bool:
        poll = select.poll()  # not select(2), which fails at the 1,024th open file
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.disconnect()

    @property
    def open(self) -> bool:
        return self._connection._sock is not None and not self.busy


class RedisSleeper(Sleeper):
    """One thread's wait: its lines, kept for the next one."""

    def __init__(self, client: RedisClient) -> None:
        super().__init__()
        self._client = client
        self._lines: dict[bytes, Line] = {}

    def sleep(
        self, keys: Sequence[bytes], timeout: float, sharp: bool, script: bytes
    ) -> tuple[tuple[bytes, bytes] | None, Any]:
        """The first token of any of the keys, with its key, None at the timeout or when woken; and the answer of
        `script`, None if it is empty or did not run. (On a cluster, of one of them.)

        Redis looks for timeouts ten times a second. Where that is too coarse (`sharp`) we end the wait ourselves, with
        one command more.
        """
        lines: list[Line] = []
        block = timeout + PATIENCE if sharp else timeout
        try:
            for group, pool in self._client.lines(keys):
                line = self._lines.get(group[0])
                if line is None or not line.open:
                    line = self._lines[group[0]] = Line(self._client, pool)
                lines.append(line)
                line.begin(group, block, script)
            token = self._first(lines, timeout, sharp)
            for line in lines:
                if self.leaving:
                    line.close()
                else:
                    token = line.end() or token
            return token, next((line.result for line in lines if line.result is not None), None)
        except BaseException:
            for line in lines:
                line.close()
            raise

    def _first(self, lines: Sequence[Line], timeout: float, sharp: bool) -> tuple[bytes, bytes] | None:
        poll = select.poll()
        poll.register(self._ear, select.POLLIN)
        by_number = {line.fileno(): line for line in lines}
        for number in by_number:
            poll.register(number, select.POLLIN)
        deadline = time.monotonic() + (timeout if sharp else timeout + PATIENCE)
        while by_number:
            left = deadline - time.monotonic()
            ready = poll.poll(max(left, 0.0) * 1000)
            if not ready and sharp:
                return None
            if not ready:
                raise BrokerUnavailable(f"{self._client.shown}: no answer for {PATIENCE:g} seconds after it was due")
            token = None
            for number, _ in ready:
                if number in by_number:
                    token = by_number.pop(number).answer() or token
                    poll.unregister(number)
            if token or any(number == self._ear.fileno() for number, _ in ready):
                return token
        return None

    def hang_up(self) -> None:
        for line in self._lines.values():
            line.close()


class Waiter(Sleepers[RedisSleeper]):
    """All waits of one broker in one process."""

    def __init__(self, client: RedisClient) -> None:
        super().__init__(lambda: RedisSleeper(client))

    def sleep(
        self, keys: Sequence[bytes], timeout: float, sharp: bool, script: bytes = b""
    ) -> tuple[tuple[bytes, bytes] | None, Any]:
        """See :meth:`RedisSleeper.sleep`."""
        with self.one() as sleeper:
            return (None, None) if sleeper is None else sleeper.sleep(keys, timeout, sharp, script)
