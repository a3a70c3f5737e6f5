"""The producing side of a queue: ids, sessions, and sending again until the store has answered."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TypeVar

from delayed.brokers.base import Broker, Joined
from delayed.errors import BrokerFull, BrokerUnavailable, EnqueueRefused, EnqueueUncertain
from delayed.message import Message, Once

TIMEOUT = 5.0  # seconds that an enqueue tries
BACKOFF = (0.05, 1.0)  # seconds before the first and the slowest further attempt
T = TypeVar("T")

IDS_MAX = 1024  # ids reserved at once by a producer that is busy


class Session:
    """A name under which one enqueue after another is sent, numbered, so that a store knows a resend."""

    __slots__ = ("name", "seq")

    def __init__(self) -> None:
        self.name = os.urandom(16).hex()
        self.seq = 0


_Send = Callable[[Session], "int | None"]  # one attempt; the id of who holds the key of a unique task


class Producer:
    """Puts messages into one queue, each once, whatever becomes of the answers.

    Any thread may use it, and so may a process that was forked while another thread did: it starts afresh there.

    Args:
        broker: the store.
        queue: the queue's name.
        timeout: seconds that an enqueue goes on trying while the store can't be reached.
    """

    def __init__(self, broker: Broker, queue: str, timeout: float = TIMEOUT) -> None:
        self.broker = broker
        self.queue = queue
        self.timeout = timeout
        self._start_afresh()
        _producers.add(self)

    def _start_afresh(self) -> None:
        self._lock = threading.Lock()
        self._next = self._end = 0  # ids that are reserved and not used yet
        self._block = 1  # ids to reserve the next time: few for a producer that sends one task and is gone
        self._sessions: list[Session] = []  # those without an enqueue under way

    def reserve_ids(self, n: int) -> Sequence[int]:
        """`n` ids that nobody else has.

        Raises:
            EnqueueRefused: When the store can't be reached.
        """
        with self._lock:
            if self._next + n > self._end:
                size = max(n, self._block)
                self._next = self._ask(lambda: self.broker.reserve_ids(self.queue, size))
                self._end = self._next + size
                self._block = min(size * 2, IDS_MAX)
            first = self._next
            self._next += n
        return range(first, first + n)

    def clock(self) -> float:
        """What the store's clock shows; see :meth:`Broker.clock`. What expires is dated by it.

        Raises:
            EnqueueRefused: When the store can't be reached.
        """
        return self._ask(lambda: self.broker.clock(self.queue))

    def _ask(self, question: Callable[[], T]) -> T:
        attempts = Attempts(self.timeout)
        while True:
            try:
                return question()
            except BrokerUnavailable as error:
                if not attempts.again():
                    raise EnqueueRefused(f"not enqueued: {error}") from error

    def enqueue(self, messages: Sequence[Message]) -> None:
        """Store all messages or none.

        Raises:
            EnqueueRefused: When nothing of them is stored: no attempt has reached the store.
            EnqueueUncertain: When they may be stored or not.
            BrokerFull: When the store has no room; nothing of them is stored.
        """

        def send(session: Session) -> int | None:
            self.broker.enqueue(self.queue, messages, session.name, session.seq)
            return None

        self._send(messages, send)

    def enqueue_once(self, message: Message, once: Once) -> int:
        """Store a message unless another task holds its key, and return the id of the one that holds it.

        Raises:
            EnqueueRefused, EnqueueUncertain, BrokerFull: As :meth:`enqueue`.
        """

        def send(session: Session) -> int:
            return self.broker.enqueue_once(self.queue, message, once, session.name, session.seq)

        holder = self._send((message,), send)
        assert holder is not None
        return holder

    def _send(self, messages: Sequence[Message], send: _Send) -> int | None:
        try:
            session = self._sessions.pop()
        except IndexError:
            session = Session()
        session.seq += 1
        sessions = self._sessions
        try:
            answer = send(session)
        except BrokerFull:
            sessions.append(session)
            raise
        except BrokerUnavailable as error:
            # Whatever else ends the call, a Ctrl-C for instance, leaves the session behind: its number is in doubt.
            answer = self._resend(messages, send, session, self.timeout, error.sent, error)
        sessions.append(session)
        return answer

    def _resend(
        self,
        messages: Sequence[Message],
        send: _Send,
        session: Session,
        timeout: float,
        sent: bool,
        error: BrokerUnavailable | None,
    ) -> int | None:
        attempts = Attempts(timeout)
        while error is None or attempts.again():
            try:
                return send(session)
            except BrokerUnavailable as again:  # a full store too: it may have room in a moment, or have it stored
                error = again
                sent = sent or again.sent
        if not sent:
            raise EnqueueRefused(f"not enqueued: {error}") from error
        first = messages[0].func
        raise EnqueueUncertain(
            f"{first} with id {messages[0].id} may be enqueued or not: {error}; "
            "call .retry() of this error to settle that, without enqueueing twice",
            [message.id for message in messages],
            lambda timeout: self._resend(messages, send, session, timeout, True, None),
        ) from error


class JoinedProducer:
    """Puts messages into one queue as a part of a transaction that is not ours: nothing is sent again."""

    def __init__(self, joined: Joined, queue: str) -> None:
        self._joined = joined
        self._queue = queue

    def reserve_ids(self, n: int) -> Sequence[int]:
        """As :meth:`Producer.reserve_ids`."""
        first = self._joined.reserve_ids(self._queue, n)
        return range(first, first + n)

    def clock(self) -> float:
        """As :meth:`Producer.clock`."""
        return self._joined.clock(self._queue)

    def enqueue(self, messages: Sequence[Message]) -> None:
        """As :meth:`Producer.enqueue`."""
        self._joined.enqueue(self._queue, messages)

    def enqueue_once(self, message: Message, once: Once) -> int:
        """As :meth:`Producer.enqueue_once`."""
        return self._joined.enqueue_once(self._queue, message, once)


class Attempts:
    """The pauses between attempts, until a deadline."""

    def __init__(self, timeout: float) -> None:
        self._deadline = time.monotonic() + timeout
        self._pause = BACKOFF[0]

    def again(self) -> bool:
        """Sleep before the next attempt; False if there is no time for one."""
        if time.monotonic() + self._pause >= self._deadline:
            return False
        time.sleep(self._pause)
        self._pause = min(self._pause * 2, BACKOFF[1])
        return True


_producers: weakref.WeakSet[Producer] = weakref.WeakSet()


def _after_fork() -> None:
    # The parent goes on with the same sessions and ids; another process may use neither.
    for producer in list(_producers):
        producer._start_afresh()


os.register_at_fork(after_in_child=_after_fork)
