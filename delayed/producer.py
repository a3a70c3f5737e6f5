"""The producing side of a queue: ids, sessions, and sending again until the store has answered."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any, TypeVar

from delayed.brokers.base import Broker, Joined
from delayed.brokers.deadline import Attempts, left, waited
from delayed.errors import BrokerFull, BrokerUnavailable, EnqueueRefused, EnqueueUncertain
from delayed.message import Message, Once

TIMEOUT = 5.0  # seconds that an enqueue tries
T = TypeVar("T")

IDS_MAX = 1024  # ids reserved at once by a producer that is busy


LOOK = 0.1  # seconds between two looks of who is in line whether the store is away


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
        timeout: seconds that an enqueue goes on trying while the store can't be reached. Who asks several times for
            one call gives each time the same :meth:`attempts`.
    """

    away = False  # whether the store could not be reached the last time

    def __init__(self, broker: Broker, queue: str, timeout: float = TIMEOUT) -> None:
        self.broker = broker
        self.queue = queue
        self.timeout = timeout
        self._start_afresh()
        _producers.add(self)

    def _start_afresh(self) -> None:
        self._lock: Any = threading.RLock()  # not for its second turn, but because it tells whose it is
        self._next = self._end = 0  # ids that are reserved and not used yet
        self._block = 1  # ids to reserve the next time: few for a producer that sends one task and is gone
        self._sessions: list[Session] = []  # those without an enqueue under way

    def attempts(self) -> Attempts:
        """What the questions of one call share."""
        return Attempts(self.timeout)

    def reserve_ids(self, n: int, attempts: Attempts | None = None) -> Sequence[int]:
        """`n` ids that nobody else has.

        Raises:
            EnqueueRefused: When the store can't be reached.
        """
        attempts = attempts or self.attempts()
        lock = self._lock
        if lock._is_owned():
            raise EnqueueRefused("not enqueued: called by a signal handler amid another call")
        taken = False
        try:
            # Whoever holds it may be waiting for a store that does not answer.
            taken = lock.acquire(blocking=False) or attempts.make(lambda: lock.acquire(timeout=left(self.timeout)))
            if not taken:
                raise EnqueueRefused("not enqueued: another thread waits for the store")
            if self._next + n > self._end:
                size = max(n, self._block)
                self._next = self._ask(lambda: self.broker.reserve_ids(self.queue, size), attempts)
                self._end = self._next + size
                self._block = min(size * 2, IDS_MAX)
            first = self._next
            self._next += n
        finally:
            if taken or lock._is_owned():  # a signal handler may have raised before it was noted
                lock.release()
        return range(first, first + n)

    def clock(self, attempts: Attempts | None = None) -> float:
        """What the store's clock shows; see :meth:`Broker.clock`. What expires is dated by it.

        Raises:
            EnqueueRefused: When the store can't be reached.
        """
        return self._ask(lambda: self.broker.clock(self.queue), attempts or self.attempts())

    def _ask(self, question: Callable[[], T], attempts: Attempts) -> T:
        while True:
            try:
                answer = attempts.make(question)
                self.away = False
                return answer
            except BrokerUnavailable as error:
                self.away = True
                if not attempts.again():
                    raise EnqueueRefused(f"not enqueued: {error}") from error

    def prepare(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages for :meth:`enqueue`, which then takes less time; see :meth:`Broker.prepare`."""
        return self.broker.prepare(self.queue, messages)

    def enqueue(self, messages: Sequence[Message], attempts: Attempts | None = None) -> None:
        """Store all messages or none.

        Raises:
            EnqueueRefused: When nothing of them is stored: no attempt has reached the store.
            EnqueueUncertain: When they may be stored or not.
            BrokerFull: When the store has no room; nothing of them is stored.
        """

        def send(session: Session) -> int | None:
            self.broker.enqueue(self.queue, messages, session.name, session.seq)
            return None

        self._send(messages, send, attempts)

    def enqueue_once(self, message: Message, once: Once, attempts: Attempts | None = None) -> int:
        """Store a message unless another task holds its key, and return the id of the one that holds it.

        Raises:
            EnqueueRefused, EnqueueUncertain, BrokerFull: As :meth:`enqueue`.
        """

        def send(session: Session) -> int:
            return self.broker.enqueue_once(self.queue, message, once, session.name, session.seq)

        holder = self._send((message,), send, attempts)
        assert holder is not None
        return holder

    def _send(self, messages: Sequence[Message], send: _Send, attempts: Attempts | None) -> int | None:
        attempts = attempts or self.attempts()
        try:
            session = self._sessions.pop()
        except IndexError:
            session = Session()
        session.seq += 1
        sessions = self._sessions
        try:
            answer = attempts.make(lambda: send(session))
        except BrokerFull:
            sessions.append(session)
            raise
        except BrokerUnavailable as error:
            # Whatever else ends the call, a Ctrl-C for instance, leaves the session behind: its number is in doubt.
            self.away = True
            answer = self._resend(messages, send, session, attempts, error.sent, error)
        sessions.append(session)
        self.away = False
        return answer

    def _resend(
        self,
        messages: Sequence[Message],
        send: _Send,
        session: Session,
        attempts: Attempts,
        sent: bool,
        error: BrokerUnavailable | None,
    ) -> int | None:
        while error is None or attempts.again():
            try:
                return attempts.make(lambda: send(session))
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
            lambda timeout: self._resend(messages, send, session, Attempts(timeout), True, None),
        ) from error


class JoinedProducer:
    """Puts messages into one queue as a part of a transaction that is not ours: nothing is sent again."""

    def __init__(self, joined: Joined, queue: str) -> None:
        self._joined = joined
        self._queue = queue

    def attempts(self) -> Attempts | None:
        """None: there is one, of the caller's connection."""
        return None

    def reserve_ids(self, n: int, attempts: Attempts | None = None) -> Sequence[int]:
        """As :meth:`Producer.reserve_ids`."""
        first = self._joined.reserve_ids(self._queue, n)
        return range(first, first + n)

    def clock(self, attempts: Attempts | None = None) -> float:
        """As :meth:`Producer.clock`."""
        return self._joined.clock(self._queue)

    def prepare(self, messages: Sequence[Message]) -> Sequence[Message]:
        """As :meth:`Producer.prepare`."""
        return list(messages)

    def enqueue(self, messages: Sequence[Message], attempts: Attempts | None = None) -> None:
        """As :meth:`Producer.enqueue`."""
        self._joined.enqueue(self._queue, messages)

    def enqueue_once(self, message: Message, once: Once, attempts: Attempts | None = None) -> int:
        """As :meth:`Producer.enqueue_once`."""
        return self._joined.enqueue_once(self._queue, message, once)


async def aside(call: Callable[[], T], is_away: Callable[[], bool], timeout: float) -> T:
    """What `call` returns, which enqueues, in a thread of asyncio's pool.

    Args:
        is_away: whether the store can't be reached. Only then the time counts in which no thread is free.
        timeout: seconds that an enqueue goes on trying.

    Raises:
        EnqueueRefused: When others who wait for the store have all the threads until it is too late.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    asked = time.monotonic()
    turn = threading.Lock()  # whoever gets it decides: the thread, or who waits for one
    refused = False
    timer: asyncio.TimerHandle

    def run() -> T:
        if not turn.acquire(blocking=False):
            raise EnqueueRefused("nobody waits for it any more")
        if is_away():
            waited.set(time.monotonic() - asked)  # in a context of its own
        return call()

    def look() -> None:
        nonlocal timer, refused
        if not is_away():
            timer = loop.call_later(LOOK, look)
        elif turn.acquire(blocking=False):
            refused = True
            step.cancel()

    step = loop.run_in_executor(None, copy_context().run, run)
    timer = loop.call_later(timeout, look)
    try:
        return await step
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if not refused or (task is not None and task.cancelling()):
            raise
        text = "not enqueued: asyncio's threads are all taken by others who wait for the store"
        raise EnqueueRefused(text) from None
    finally:
        timer.cancel()


_producers: weakref.WeakSet[Producer] = weakref.WeakSet()


def _after_fork() -> None:
    # The parent goes on with the same sessions and ids; another process may use neither.
    for producer in list(_producers):
        producer._start_afresh()


os.register_at_fork(after_in_child=_after_fork)
