"""The scheduler: enqueues periodic tasks when they are due. Every worker runs one."""

from __future__ import annotations

import contextlib
import heapq
import random
import time
from collections.abc import Sequence
from itertools import count

from delayed.errors import BrokerUnavailable, ConfigError, DelayedError
from delayed.logger import logger
from delayed.queue import Queue
from delayed.schedule import Schedule
from delayed.schedules import Follower
from delayed.stopping import Stop
from delayed.ticks import Ticks

LOOK = 6.0  # seconds between two looks at the clock, and for what was scheduled meanwhile, more or less
BACK = 1.0  # seconds by which the store's clock has to be back before that means that somebody has set it
BACKOFF = (0.1, 5.0)  # seconds before the first and the slowest further attempt to reach the store


class Scheduler:
    """Enqueues the periodic tasks of queues: those of functions decorated with ``@delayed(queue).every(...)`` in
    modules that this process has imported, and those that programs have scheduled with :meth:`Queue.schedule`.

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
        self._stopped = Stop()
        self._ahead: float | None = None  # of the store's clock, by ours, which is monotonic; None: not known yet
        self._serial = count()
        self._due: list[tuple[float, int, _Plan]] = []  # a heap; those that are dropped stay until it is their turn
        self._stored: dict[tuple[int, str], _Plan] = {}  # by the number of the queue, and the name
        self._look_at = 0.0  # when to look for changes, monotonic
        self._away: set[int] = set()  # the numbers of the queues for which the last look was in vain

    def run(self) -> None:
        """Enqueue what is due until :meth:`stop`. A store that can't be reached is logged and tried again.

        Raises:
            NotEnqueueable: When a worker could not find a decorated function.
        """
        self._due, self._stored, self._look_at = [], {}, 0.0
        followers = [Follower(queue) for queue in self.queues]
        plans = [_Plan(queue, schedule) for queue in self.queues for schedule in queue.declared_schedules()]
        try:
            if not self._wait_for_clock():
                return
            for plan in plans:
                self._add(plan)
            while not self._stopped:
                self._follow(followers)
                if not self._due:
                    self._sleep(LOOK)
                    continue
                tick, _, plan = self._due[0]
                if plan.dropped:
                    heapq.heappop(self._due)
                    continue
                wait = tick - self._now()
                if wait > 0:
                    self._sleep(wait)
                    continue
                self._fire(plan, tick)
                following = plan.ticks.after(tick)
                if following <= self._now():  # of what has been missed meanwhile, the last one
                    following = plan.last(self._now()) or following
                heapq.heapreplace(self._due, (following, next(self._serial), plan))
        finally:
            self._stopped.clear()

    def stop(self) -> None:
        """End :meth:`run`, from another thread or a signal handler. If it does not run yet, its next call ends."""
        self._stopped.set()

    def _sleep(self, seconds: float) -> None:
        """Until then, or until it is time to look."""
        self._stopped.wait(max(0.0, min(seconds, self._look_at - time.monotonic())))

    def _now(self) -> float:
        return time.monotonic() + (self._ahead or 0.0)

    def _add(self, plan: _Plan) -> None:
        """Keep a schedule from now on."""
        now = self._now()
        missed = plan.last(now)
        tick = missed if missed is not None else plan.ticks.after(now)
        heapq.heappush(self._due, (tick, next(self._serial), plan))

    def _follow(self, followers: Sequence[Follower]) -> None:
        """Look, every few seconds, what time it is, and what was scheduled, changed and removed."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK * random.uniform(0.8, 1.2)  # those that began together shall not stay so
        if self._due:
            self._check_clock()
        for number, follower in enumerate(followers):
            try:
                changes = follower.changes()
            except DelayedError as error:
                if number not in self._away:
                    logger.warning("the schedules of %s can't be read for now: %s", follower.queue.name, error)
                self._away.add(number)
                continue
            self._away.discard(number)
            if changes and not self._due:
                self._check_clock()
            for name, found in changes.items():
                old = self._stored.pop((number, name), None)
                if old is not None:
                    old.dropped = True
                if found is not None:
                    plan = _Plan(follower.queue, found.schedule, follower, found.version)
                    self._add(plan)
                    self._stored[number, name] = plan

    def _check_clock(self) -> None:
        with contextlib.suppress(DelayedError):  # ours goes on
            self._look_at_clock()

    def _fire(self, plan: _Plan, tick: float) -> None:
        """Enqueue one tick, unless it has been, or is too old."""
        queue, schedule = plan.queue, plan.schedule
        id = None
        pause = BACKOFF[0]
        while not self._stopped:
            late = self._now() - tick
            if late > schedule.late:
                logger.warning(
                    "%s of %s was due %.0f s ago, which is too late for it (%g s): it is left out",
                    schedule.name, queue.name, late, schedule.late,
                    extra={"action": "tick_missed", "queue": queue.name, "schedule": schedule.name},
                )  # fmt: skip
                return
            try:
                if plan.follower is not None and not plan.follower.holds(schedule.name, plan.version):
                    plan.dropped = True
                    self._look_at = 0.0
                    return
                id = queue.broker.reserve_ids(queue.name, 1) if id is None else id
                message = schedule.message(id, tick, queue.codec, self._now())
                queue.broker.enqueue(queue.name, [message], schedule.session(queue.name, tick), 1)
                return
            except BrokerUnavailable as error:
                logger.warning("%s of %s is due and can't be enqueued yet: %s", schedule.name, queue.name, error)
            except DelayedError as error:
                logger.error("%s of %s was due and can't be enqueued: %s", schedule.name, queue.name, error)
                return
            self._stopped.wait(pause)
            pause = min(2 * pause, BACKOFF[1])

    def _look_at_clock(self) -> None:
        """Learn the time of the store."""
        queue = self.queues[0]
        before = time.monotonic()
        clock = queue.broker.clock(queue.name)
        ahead = clock - (before + time.monotonic()) / 2
        was_set_back = self._ahead is not None and ahead < self._ahead - BACK
        self._ahead = ahead
        if was_set_back:  # what is planned may be far away now; what it has had already, the store does not take again
            plans = [plan for _, _, plan in self._due if not plan.dropped]
            self._due = []
            for plan in plans:
                self._add(plan)

    def _wait_for_clock(self) -> bool:
        """Learn the time of the store, however long that takes; False if this is stopped meanwhile."""
        pause = BACKOFF[0]
        while not self._stopped:
            try:
                self._look_at_clock()
                return True
            except DelayedError as error:
                logger.warning("no schedules yet: %s", error)
            self._stopped.wait(pause)
            pause = min(2 * pause, BACKOFF[1])
        return False


class _Plan:
    """One schedule that is kept.

    Attributes:
        follower: who tells whether it is in the store still; None: it is a decorated function's.
        version: of what is stored.
        dropped: whether it is to be forgotten.
    """

    def __init__(self, queue: Queue, schedule: Schedule, follower: Follower | None = None, version: int = 0) -> None:
        self.queue = queue
        self.schedule = schedule
        self.follower = follower
        self.version = version
        self.dropped = False
        self.ticks: Ticks = schedule.ticks()

    def last(self, now: float) -> float | None:
        """The last tick up to now that is not too late; None if there is none."""
        return self.ticks.last(max(now - self.schedule.late, self.schedule.since), now)
