"""What the logs of a run say so far. Each line is read once, however often is asked: a run may have a million."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.chaos.processes import state_of
from tests.chaos.records import ENQUEUED, LEDGER, Record, Tail

STRIDE = 1_000_000  # intents from one producer's first to the next one's


class Progress:
    """See the module; for one thread.

    Attributes:
        made: how many intents there are, by producer: the intent divided by `STRIDE`.
        ended: how many runs have returned.
    """

    def __init__(self, folder: Path) -> None:
        self.made: Counter[int] = Counter()
        self.ended = 0
        self._enqueued = Tail(folder / ENQUEUED)
        self._ledger = Tail(folder / LEDGER)
        self._running: dict[str, Record] = {}

    def look(self) -> None:
        """Read what is new."""
        for record in self._enqueued.new():
            if record["what"] == "intent":
                self.made[record["intent"] // STRIDE] += 1
        for record in self._ledger.new():
            what = record["what"]
            if what == "S":
                self._running[record["run"]] = record
            elif what in "EX":
                self._running.pop(record["run"], None)
                self.ended += what == "E"

    def running(self) -> list[Record]:
        """How each run began that goes on now."""
        self.look()
        self._running = {run: record for run, record in self._running.items() if state_of(record["pid"])}
        return list(self._running.values())
