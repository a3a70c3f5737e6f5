"""The scheduler: enqueues periodic tasks when they are due. Every worker runs one."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Sequence

from delayed.errors import BrokerError, BrokerUnavailable, ConfigError
from delayed.logger import logger
from delayed.queue import Queue
from delayed.schedule import Schedule
from delayed.ticks import Ticks

NAP = 60.0  # seconds that it sleeps at most, since clocks are set
BACKOFF = (0.1, 5.0)  # seconds before the first and the slowest further attempt to reach the store


class Scheduler:
    """Enqueues the periodic tasks of queues: those of functions decorated with ``@delayed(queue).every(...)`` in
    modules that this process has imported.

    Any number may run, on any number of hosts: each tick is enqueued once, because all of them enqueue it under the
    same name, and the store takes it once. They go by the store's clock. A tick that nobody was there for is made up
    for, if it is the last one, and not older than its `late`.

    Args:
        queue: a queue with periodic tasks.
        queues: or several.

    Raises:
        ConfigError: When there is no queue.
    """

    def __init__(self, queue: Queue | None = None, *, queues: Sequence[Queue] = ()) -> None:
        self.queues = [queue] if queue is not None else []
        self.queues += [each for each in queues if each is not queue]
        if not self.queues:
            raise ConfigError("a scheduler needs a queue: give queue=Queue(...) or queues=[...]")
        self._stopped = threading.Event()
        self._ahead = 0.0  # seconds by which the store's clock is ahead of ours

    def run(self) -> None:
        """Enqueue what is due until :meth:`stop`. A store that can't be reached is logged and tried again."""
        plans = [_Plan(queue, schedule) for queue in self.queues for schedule in queue.schedules()]
        due: list[tuple[float, int]] = []
        try:
            if not plans or not self._look_at_clock(plans[0].queue):
                return
            for number, plan in enumerate(plans):
                missed = plan.last(self._now())
                heapq.heappush(due, (missed if missed is not None else plan.ticks.after(self._now()), number))
            while not self._stopped.is_set():
                tick, number = due[0]
                wait = tick - self._now()
                if wait > 0:
                    self._stopped.wait(min(wait, NAP))
                    continue
                self._fire(plans[number], tick)
                following = plans[number].ticks.after(tick)
                if following <= self._now():  # of what has been missed meanwhile, the last one
                    following = plans[number].last(self._now()) or following
                heapq.heapreplace(due, (following, number))
        finally:
            self._stopped.clear()

    def stop(self) -> None:
        """End :meth:`run`, from another thread or a signal handler. If it does not run yet, its next call ends."""
        self._stopped.set()

    def _now(self) -> float:
        return time.time() + self._ahead

    def _fire(self, plan: _Plan, tick: float) -> None:
        """Enqueue one tick, unless it has been, or is too old."""
        queue, schedule = plan.queue, plan.schedule
        id = None
        pause = BACKOFF[0]
        while not self._stopped.is_set():
            late = self._now() - tick
            if late > schedule.late:
                logger.warning(
                    "%s of %s was due %.0f s ago, which is too late for it (%g s): it is left out",
                    schedule.name, queue.name, late, schedule.late,
                    extra={"action": "tick_missed", "queue": queue.name, "schedule": schedule.name},
                )  # fmt: skip
                return
            try:
                id = self._reserve(queue) if id is None else id
                message = schedule.message(id, tick, queue.codec)
                queue.broker.enqueue(queue.name, [message], schedule.session(queue.name, tick), 1)
                return
            except BrokerUnavailable as error:
                logger.warning("%s of %s is due and can't be enqueued yet: %s", schedule.name, queue.name, error)
            except BrokerError as error:
                logger.error("%s of %s was due and can't be enqueued: %s", schedule.name, queue.name, error)
                return
            self._stopped.wait(pause)
            pause = min(2 * pause, BACKOFF[1])

    def _reserve(self, queue: Queue) -> int:
        """An id. It says what time it is at the store: see :meth:`Broker.reserve_ids`."""
        before = time.time()
        id = queue.broker.reserve_ids(queue.name, 1)
        ahead = (id >> 11) / 1000 - (before + time.time()) / 2
        # The ids of a queue into which very much is enqueued run a little ahead of the clock; so do not follow each.
        if abs(ahead - self._ahead) > 0.05:
            self._ahead = ahead
        return id

    def _look_at_clock(self, queue: Queue) -> bool:
        """Learn the time of the store, however long that takes; False if this is stopped meanwhile."""
        pause = BACKOFF[0]
        while not self._stopped.is_set():
            try:
                self._reserve(queue)
                return True
            except BrokerError as error:
                logger.warning("no schedules yet: %s", error)
            self._stopped.wait(pause)
            pause = min(2 * pause, BACKOFF[1])
        return False


class _Plan:
    """One schedule that is kept."""

    def __init__(self, queue: Queue, schedule: Schedule) -> None:
        self.queue = queue
        self.schedule = schedule
        self.ticks: Ticks = schedule.ticks()

    def last(self, now: float) -> float | None:
        """The last tick up to now that is not too late; None if there is none."""
        return self.ticks.last(now - self.schedule.late, now)
