"""Taking tasks from a queue by hand, without a worker: for tests, for tools, and for the API of delayed 0.2."""

from __future__ import annotations

import os
import random
import socket
import threading
import time

from delayed.attempts import noted
from delayed.brokers.base import LEASE, Broker
from delayed.codec import Codec
from delayed.errors import DecodeError, NewerFormat, NotAllowed, NotReadable
from delayed.logger import logger
from delayed.message import EXPIRES, NEWER_PAUSE, Claim, Ref, Settlement
from delayed.task import Task
from delayed.worker import verdict
from delayed.worker.verdict import Verdict

WAIT = 1.0  # seconds that a take waits for a task
FOREVER = 86400.0  # seconds of the lease of a task without timeout: nobody renews it


class Consumer:
    """Claims of one process that nobody renews, so each gets a lease that outlives its task.

    Args:
        broker: the store.
        queue: the queue's name.
        codec: decodes what is taken.
        slack: seconds that a lease lasts longer than the task's timeout.
    """

    def __init__(self, broker: Broker, queue: str, codec: Codec, slack: float) -> None:
        self._broker = broker
        self._queue = queue
        self._codec = codec
        self._slack = slack
        self._worker = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(8).hex()}"
        self._lock = threading.Lock()  # claims are numbered, so one is under way at a time
        self._seq = 0
        self._refs: dict[int, Ref] = {}

    def take(self) -> Task | None:
        """The next task, or None if none comes within a second. What can't be decoded becomes a dead letter."""
        deadline = time.monotonic() + WAIT
        waited = False
        while True:
            with self._lock:
                self._seq += 1
                nonce = random.SystemRandom().getrandbits(63)
                claims = self._broker.claim([self._queue], self._worker, self._seq, nonce, 1, LEASE)
            for claim in claims:
                task = self._opened(claim)
                if task is not None:
                    return task
            if not claims:
                # A claim that found only what is no task is empty too, though there may be more: no wait is long then.
                left = deadline - time.monotonic()
                if waited and left <= 0:
                    return None
                self._broker.wait([self._queue], max(left, 0.0))
                waited = True

    def _opened(self, claim: Claim) -> Task | None:
        """The task of a claim, which holds for as long as that may take; None if there is none, or it does not."""
        try:
            message = claim.message()
            task = Task.from_message(self._codec.open(message, claim.header), self._codec)
        except NewerFormat as error:
            logger.warning("task %d of queue %s goes back to it: %s", claim.id, self._queue, error)
            self._broker.settle(self._worker, [Settlement(claim.ref, "back", NEWER_PAUSE)])
            return None
        except (DecodeError, NotAllowed, NotReadable) as error:
            logger.error("task %d of queue %s is dead: %s", claim.id, self._queue, error)
            dead = Settlement(claim.ref, "dead", reason=str(error))
            found = Verdict(verdict.UNDECODABLE, text=str(error))
            self._broker.settle(self._worker, [noted(claim, dead, found, self._worker)])
            return None
        if EXPIRES in claim.header and claim.begin_by < self._broker.clock(self._queue):
            logger.warning("task %d of queue %s expired: it is not handed out", claim.id, self._queue)
            self._broker.settle(self._worker, [Settlement(claim.ref, "done")])
            return None
        lease = (FOREVER if message.timeout is None else min(message.timeout, FOREVER)) + self._slack
        if not self._broker.renew(self._worker, [self._queue], [claim.ref], lease).held:
            return None
        self._refs[claim.id] = claim.ref
        return task

    def give_back(self, task: Task) -> bool:
        """Put a task that was taken at the end of its queue. False if it is no longer held."""
        return self._settle(task, "retry")

    def finish(self, task: Task) -> bool:
        """Forget a task that was taken. False if it is no longer held."""
        return self._settle(task, "done")

    def _settle(self, task: Task, action: str) -> bool:
        ref = self._refs.pop(task.id, None) if task.id is not None else None
        if ref is None:
            return False
        return self._broker.settle(self._worker, [Settlement(ref, "retry" if action == "retry" else "done")])[0]
