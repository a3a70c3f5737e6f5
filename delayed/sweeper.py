"""The sweeper: returns what dead workers left to the queues."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

from delayed.brokers.base import SWEEP_INTERVAL
from delayed.errors import BrokerError, ConfigError
from delayed.logger import logger
from delayed.queue import Queue
from delayed.stopping import Stop

BACKOFF_MAX = 30.0  # seconds between attempts at most while the store can't be reached


class Sweeper:
    """Sweeps queues, again and again. Any number may run; every worker does the same unless told not to.

    Args:
        queue: the queue to sweep.
        queues: or several.
        interval: seconds from one sweep of a queue to the next.

    Raises:
        ConfigError: When there is no queue, or the interval is not above 0.
    """

    def __init__(
        self, queue: Queue | None = None, interval: float = SWEEP_INTERVAL, *, queues: Sequence[Queue] = ()
    ) -> None:
        self.queues = [queue] if queue is not None else []
        self.queues += [each for each in queues if each is not queue]
        if not self.queues:
            raise ConfigError("a sweeper needs a queue: give queue=Queue(...) or queues=[...]")
        if not isinstance(interval, (int, float)) or not interval > 0:
            raise ConfigError(f"interval must be a number of seconds above 0, not {interval!r}")
        self.interval = interval
        self._stopped = Stop()

    def run(self) -> None:
        """Sweep until :meth:`stop`. A store that can't be reached is logged and tried again, for ever."""
        failures = 0
        while not self._stopped:
            failures = 0 if self._sweep() else failures + 1
            pause = min(self.interval * 2 ** min(failures, 10), max(BACKOFF_MAX, self.interval))
            # Several sweepers that began together spread out.
            self._stopped.wait(pause * random.uniform(0.9, 1.0))
        self._stopped.clear()

    def stop(self) -> None:
        """End :meth:`run`, from another thread or a signal handler. If it does not run yet, its next call ends."""
        self._stopped.set()

    def _sweep(self) -> bool:
        healthy = True
        unswept = deque(self.queues)
        while unswept and not self._stopped:
            queue = unswept.popleft()
            try:
                swept = queue.broker.sweep(queue.name)
            except BrokerError as error:
                logger.warning("sweeping %s failed: %s", queue.name, error)
                healthy = False
                continue
            if swept.returned or swept.dead:
                unswept.append(queue)  # again: a broker returns no more at a time than others can wait for
                logger.info(
                    "swept %s: %d lost tasks are back, %d are dead", queue.name, swept.returned, swept.dead,
                    extra={"action": "swept", "queue": queue.name, "returned": swept.returned, "dead": swept.dead},
                )  # fmt: skip
        return healthy
