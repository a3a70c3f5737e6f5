"""Waiting for answers: one thread and one listener for each queue, however many wait for its tasks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress

from delayed.brokers._forks import afresh_after_fork
from delayed.brokers.base import Broker, Listener
from delayed.errors import BrokerError
from delayed.logger import logger

FLOOR = 2.0  # seconds between looks, should something have been missed
LINGER = 1.0  # seconds that the listener stays when nobody waits any more
SLICE = 0.5  # seconds that one wait lasts at most
LOOKS = 20  # tasks of which one look finds out whether they are there still; of more than 400, a twentieth
BACKOFF = (0.1, 2.0)  # seconds: first and longest pause while the store can't be reached
TOGETHER = 1e-5  # seconds that a look is put off for each one who waits, so that one serves several answers

Waiting = Future["bytes | None"]


class Postbox:
    """Where those wait who want the answers of tasks of one queue. Any thread may; a forked process begins anew.

    Args:
        broker: the store.
        queue: the queue's name.
    """

    def __init__(self, broker: Broker, queue: str) -> None:
        self._broker = broker
        self._queue = queue
        self._listener: Listener | None = None
        self.start_afresh()
        afresh_after_fork(self)

    def start_afresh(self) -> None:
        """In the child of a fork: nobody waits here."""
        _parents.append(self._listener)
        self._listener = None
        self._lock = threading.Lock()
        self._waiting: dict[int, dict[Waiting, bytes]] = {}  # id -> who waits, and what each has seen already
        self._thread: threading.Thread | None = None
        self._turn = 0  # whose turn it is to be looked for

    @contextmanager
    def expecting(self, id: int, seen: bytes = b"") -> Iterator[Waiting]:
        """A future of the answer of a task, other than `seen`; of None if there may be none any more.

        What was stored before this has to be looked for after it.

        Raises:
            RuntimeError: When no thread can be started.
        """
        future: Waiting = Future()
        try:
            with self._lock:
                self._waiting.setdefault(id, {})[future] = seen
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="delayed-results", daemon=True)
                    thread.start()
                    self._thread = thread  # not before it runs: nobody else would start one
            yield future
        finally:
            with self._lock:
                waiting = self._waiting.get(id, {})
                waiting.pop(future, None)
                if not waiting:
                    self._waiting.pop(id, None)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # of which nobody else would hear; the next one who waits starts anew
            with self._lock:
                self._thread = None
                listener, self._listener = self._listener, None
                waiting = [future for futures in self._waiting.values() for future in futures]
            for future in waiting:
                with suppress(InvalidStateError):
                    future.set_exception(error)
            if listener is not None:
                with suppress(Exception):
                    listener.close()

    def _serve(self) -> None:
        """Hand out what is heard of, until nobody waits any more."""
        pause = BACKOFF[0]
        looked = time.monotonic()
        left = looked + LINGER
        while True:
            with self._lock:
                number = len(self._waiting)
                if number:
                    left = time.monotonic() + LINGER
                elif time.monotonic() > left or self._listener is None:  # to listen again would open what was closed
                    self._thread = None
                    listener, self._listener = self._listener, None
                    break
            try:
                fresh = self._listener is None
                if self._listener is None:
                    self._listener = self._broker.listen(self._queue)
                heard = fresh or self._listener.wait(SLICE)
                if heard:
                    time.sleep(min(number * TOGETHER, SLICE))
                late = time.monotonic() > looked + FLOOR
                if heard or late:
                    self._deliver()
                if late:
                    self._find_gone()
                    looked = time.monotonic()
                pause = BACKOFF[0]
            except BrokerError as error:
                logger.debug("queue %s: waiting for answers: %s", self._queue, error)
                listener, self._listener = self._listener, None
                if listener is not None:
                    listener.close()
                time.sleep(pause)
                pause = min(pause * 2, BACKOFF[1])
        if listener is not None:
            listener.close()

    def _deliver(self) -> None:
        """Hand out the answers that there are."""
        with self._lock:
            ids = list(self._waiting)
        if ids:
            for id, data in self._broker.get_results(self._queue, ids).items():
                self._hand(id, data)

    def _hand(self, id: int, data: bytes | None) -> None:
        with self._lock:
            waiting = [future for future, seen in self._waiting.get(id, {}).items() if data is None or seen != data]
        for future in waiting:
            with suppress(InvalidStateError):  # cancelled, or told already
                future.set_result(data)

    def _find_gone(self) -> None:
        """Find some of the tasks that are gone without an answer, or dead."""
        with self._lock:
            ids = list(self._waiting)
        self._turn %= max(len(ids), 1)
        number = max(LOOKS, len(ids) // 20)
        some = (ids + ids)[self._turn : self._turn + min(number, len(ids))]
        self._turn += number
        for id in some:
            entry = self._broker.get(self._queue, id)
            if (entry is None or entry.state == "dead") and not self._broker.get_results(self._queue, [id]):
                self._hand(id, None)


_parents: list[Listener | None] = []  # of the parent's, kept because their end might say goodbye to the server
