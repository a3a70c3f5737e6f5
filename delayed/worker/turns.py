"""Which queue a claim asks first, and for how many tasks, where a worker serves several in turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil

from delayed.message import Claim

ROUND = 64  # tasks in which each queue that has enough gets its share


class Turns:
    """Shares the room of a worker among its queues, in proportion to their weights.

    Each queue has a *pass*: the tasks that it gave, divided by its weight. The one with the least is asked first, for
    its share of a round, and the next ones for what it can't give: so no room is left empty while one has something.
    The pass of a queue that ran empty goes on with the others: what it did not use is not saved for later.

    Args:
        weights: of each queue, above 0; those of a higher one get as many times more tasks.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)
        self._total = sum(weights.values())
        self._passes = dict.fromkeys(weights, 0.0)

    def order(self) -> list[str]:
        """The queues in the order in which the next claim asks them. It stays the same until :meth:`took`."""
        return sorted(self._passes, key=self._passes.__getitem__)

    def share(self, queue: str, target: int) -> int:
        """How many tasks the next claim asks for if it begins with this queue.

        Args:
            target: how many the worker wants to hold.
        """
        return ceil(min(ROUND, target) * self._weights[queue] / self._total)

    def took(self, asked: Sequence[str], limit: int, claims: Sequence[Claim]) -> None:
        """Note what a claim that asked the queues in this order, for `limit` tasks, has got."""
        if len(claims) < limit:  # all are empty
            self._passes = dict.fromkeys(self._passes, 0.0)
            return
        given = Counter(claim.queue for claim in claims)
        last = next(queue for queue in reversed(asked) if given[queue])
        empty = asked[: asked.index(last)]
        now = self._passes[last]
        for queue in asked:
            self._passes[queue] += given[queue] / self._weights[queue]
        for queue in empty:
            self._passes[queue] = max(self._passes[queue], now)
        least = min(self._passes.values())  # so that they do not grow for ever
        self._passes = {queue: each - least for queue, each in self._passes.items()}
