"""What the three logs say, put in order: which task had which runs, and what was done to whom.

The ledger, by tasks (each names its run, by a random number that it drew itself)::

    S begin (intent, id, run, attempt, token, pid, ppid) · T sign of life · E returned · X raised (why)
    H looked at its own claim (held) · B about to commit · C has committed

The enqueue log, by producers::

    intent (intent, kind, retry, delay, exclusive) · ok (intent, id) · refused (intent) · uncertain (intent)
    cancel (intent): it will ask for that · cancelled (intent): it was told so

The nemesis log, by whoever does the harm, and looks after it::

    born (role, pid, parent) · ready (pid): it forks · leave (pid)
    kill (role, pid, sent: just before, also: the pids of those who died with it,
        unsaid: its last run had returned, but it could not tell anybody yet)
    stop, cont (role, pid, worker) · cut, healed (worker): from the store · down (lossy, since), up: the store
    late (since): the machine itself stood still · slots (slots): tasks that run at once
    drained (drained, words): whether the queue became empty · dead (id, reason) · leak (words)
    effect (intent, run): a row of the store
    figure (name, value, least, most): what a scenario measured, and between what it has to be
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.records import Record

DYING = 0.25  # seconds from SIGKILL until a process is gone, on a busy machine; so long its children run what they have
SAYING = 0.05  # seconds from the end of a run until its child has noted it, on a busy machine
_HARM = ("kill", "stop", "cont", "leave", "down", "up", "cut", "healed")


@dataclass
class Run:
    """One run of a task, as it told of itself.

    Attributes:
        ended: when it returned or raised; None if it never did.
        error: the name of what it raised; "" if it raised nothing.
        sign: its last sign of life.
        lost_claim: when it found that its claim did not hold any more; None if it never did.
        commits: when it was about to commit its transaction; None if it never was.
        committed: whether it knows that it has.
    """

    intent: int
    id: int
    run: str
    attempt: int
    token: int
    pid: int
    ppid: int
    begun: float
    sign: float
    ended: float | None = None
    error: str = ""
    lost_claim: float | None = None
    commits: float | None = None
    committed: bool = False

    @property
    def returned(self) -> bool:
        return self.ended is not None and not self.error

    def __str__(self) -> str:
        return f"run {self.run} (token {self.token}, pid {self.pid})"


@dataclass
class Intent:
    """A task that a producer wanted: one, whatever became of the answers.

    Attributes:
        stored: when the producer learned that it is; None if it did not.
        refused: whether the producer was told that it is certainly not.
        exclusive: whether no two runs of it may overlap.
        unwanted: whether it was about to be cancelled.
        cancelled: when it was said to be; None if it was not.
        ids: under which the store has it, as far as a producer or a run has told.
        runs: its runs, in the order in which they began.
    """

    number: int
    kind: str = ""
    retry: int = 0
    delay: float = 0.0
    stored: float | None = None
    refused: bool = False
    known: bool = False
    exclusive: bool = False
    unwanted: bool = False
    cancelled: float | None = None
    ids: set[int] = field(default_factory=set)
    runs: list[Run] = field(default_factory=list)


Window = tuple[float, float]  # from, until


class History:
    """See the module."""

    def __init__(self, ledger: Sequence[Record], enqueued: Sequence[Record], nemesis: Sequence[Record]) -> None:
        self.runs: dict[str, Run] = {}
        self.intents: dict[int, Intent] = {}
        self.nemesis = sorted(nemesis, key=lambda record: record["at"])
        self._kinds: dict[str, list[Record]] = defaultdict(list)
        for record in self.nemesis:
            self._kinds[record["what"]].append(record)
        self.end = max((record["at"] for log in (ledger, enqueued, nemesis) for record in log), default=0.0)
        self._read_enqueued(enqueued)
        self._read_ledger(ledger)
        self._kills: dict[int, list[Window]] = defaultdict(list)
        for record in self.having("kill"):
            for pid in (record["pid"], *record.get("also", ())):
                self._kills[pid].append((record.get("sent", record["at"]), record["at"]))
        unsaid = {record["pid"] for record in self.having("kill") if record.get("unsaid")}
        last = {run.pid: run for run in sorted(self.runs.values(), key=lambda run: run.begun)}
        self.unsaid = {run.run for pid, run in last.items() if pid in unsaid or self._hardly_ended(run)}
        self._parents = {record["pid"]: record["parent"] for record in self.having("born")}
        self.outages = self._windows("down", "up")
        self.forgotten = [  # since when the store has forgotten, when it went away, and when it was back
            (record.get("since", 0.0), at, up)
            for at, up in self.outages
            for record in self.having("down")
            if record["at"] == at and record["lossy"]
        ]
        self.excused = [*self.outages, *[(record["since"], record["at"]) for record in self.having("late")]]

    def forgets(self, intent: Intent) -> bool:
        """Whether it was stored in moments that the store has forgotten. It dies a moment after that was noted."""
        stored = intent.stored
        return stored is not None and any(since <= stored <= up for since, _, up in self.forgotten)

    def _hardly_ended(self, run: Run) -> bool:
        """Whether it returned, and its process was killed before it can have told anybody for sure."""
        sent = self.killed(run.pid, run.begun, self.end)
        return sent is not None and run.ended is not None and sent - run.ended < SAYING

    def having(self, what: str) -> list[Record]:
        """The records of this kind in the nemesis log."""
        return self._kinds.get(what, [])

    # -- what was done to whom -----------------------------------------------------------------------------------

    def killed(self, pid: int, since: float, until: float) -> float | None:
        """When this process was killed in that time; None if it was not."""
        return next((sent for sent, at in self._kills.get(pid, ()) if at >= since and sent <= until), None)

    def worker_of(self, run: Run) -> int | None:
        """The pid of the monitor of the worker that the run was in, whose fork server's child it is."""
        if run.ppid in self._parents.values():
            return run.ppid  # its fork server had died, and the monitor has adopted it
        return self._parents.get(run.ppid)

    def worker_dead(self, run: Run) -> float | None:
        """When the last guardian of the run was killed; None if one was left that could stand in."""
        worker = self.worker_of(run)
        if worker is None or (monitor := self.killed(worker, run.begun - DYING, self.end)) is None:
            return None
        servers = [record["pid"] for record in self.having("born") if record["parent"] == worker]
        deaths = self._kills.get(servers[-1]) if servers else None
        if deaths:
            return max(monitor, deaths[0][0])
        # The last one lives; but one that was just being started could not stand in yet.
        return None if servers and servers[-1] in self._ready_before(monitor) else monitor

    def unguarded(self, run: Run) -> float | None:
        """As :meth:`worker_dead`, but None also if a fork server was being started, which keeps the children alive."""
        worker = self.worker_of(run)
        servers = [record["pid"] for record in self.having("born") if record["parent"] == worker]
        return self.worker_dead(run) if servers and servers[-1] in self._kills else None

    def workers_killed(self) -> int:
        """How many lost both guardians."""
        last = {record["parent"]: record["pid"] for record in self.having("born") if not record.get("heir")}
        return sum(monitor in self._kills and server in self._kills for monitor, server in last.items())

    def server_killed(self, run: Run, by: float) -> float | None:
        """When the fork server was killed that the run's worker had at a time; None if it lived then."""
        worker = self.worker_of(run)
        servers = [record["pid"] for record in self.having("born") if record["parent"] == worker and record["at"] <= by]
        return self.killed(servers[-1], 0.0, by) if servers else None

    def _ready_before(self, at: float) -> set[int]:
        return {record["pid"] for record in self.having("ready") if record["at"] < at}

    def frozen(self, run: Run, until: float, *, whole: bool = False, cut: bool = True) -> Iterable[Window]:
        """The times before `until` in which the run's worker was stopped or cut off.

        Args:
            whole: those in which all of it was: when only one of its guardians is frozen, nobody may notice anything.
            cut: those too in which it was cut off.
        """
        worker = self.worker_of(run)

        def applies(record: Any) -> bool:
            return record.get("worker") == worker and not (whole and record.get("role") in ("monitor", "forkserver"))

        windows = self._windows("stop", "cont", applies)
        for start, end in [*windows, *(self._windows("cut", "healed", applies) if cut else ())]:
            if start < until and end > run.begun:
                yield start, min(end, until)

    def disturbed(self, start: float, end: float) -> bool:
        """Whether between a death and the next run there was more harm, by which that had to wait.

        The death itself does not count, nor does what harms one task alone, nor the loss of another worker: who is
        to run the task was not in it.
        """
        alone = ("child", "producer", "sweeper", "host")
        return any(
            start < record.get("sent", record["at"]) < end
            for record in self.nemesis
            if record["what"] in _HARM and record.get("role") not in alone
        ) or any(late_end > start and late_start < end for late_start, late_end in self.excused)

    def told_to_leave(self, run: Run) -> float | None:
        worker = self.worker_of(run)
        return next((record["at"] for record in self.having("leave") if record["pid"] == worker), None)

    def _windows(self, start: str, end: str, applies: Any = lambda record: True) -> list[Window]:
        """From each record of the one kind to the next of the other about the same process; the last may stay open."""
        found: list[Window] = []
        opened: dict[Any, float] = {}
        for record in self.nemesis:
            if not applies(record):
                continue
            who = record.get("pid", record.get("worker"))
            if record["what"] == start:
                opened.setdefault(who, record["at"])
            elif record["what"] == end and who in opened:
                found.append((opened.pop(who), record["at"]))
        return [*found, *[(at, self.end) for at in opened.values()]]

    # -- reading -----------------------------------------------------------------------------------------------------

    def _intent(self, number: int) -> Intent:
        return self.intents.setdefault(number, Intent(number))

    def _read_enqueued(self, records: Sequence[Record]) -> None:
        for record in records:
            intent = self._intent(record["intent"])
            intent.known = True
            if record["what"] == "intent":
                intent.kind = record.get("kind", "")
                intent.retry = record.get("retry", 0)
                intent.delay = record.get("delay", 0.0)
                intent.exclusive = record.get("exclusive", False)
            elif record["what"] == "ok":
                intent.stored = record["at"]
                intent.refused = False  # a retry of the error may succeed
                intent.ids.add(record["id"])
            elif record["what"] == "refused":
                intent.refused = True
            elif record["what"] == "cancel":
                intent.unwanted = True
            elif record["what"] == "cancelled":
                intent.cancelled = record["at"]

    def _read_ledger(self, records: Sequence[Record]) -> None:
        for record in records:
            what, at = record["what"], record["at"]
            if what == "S":
                facts = {name: record[name] for name in ("intent", "id", "run", "attempt", "token", "pid", "ppid")}
                run = self.runs[record["run"]] = Run(**facts, begun=at, sign=at)
                intent = self._intent(run.intent)
                intent.ids.add(run.id)
                intent.runs.append(run)
                continue
            run = self.runs[record["run"]]
            run.sign = max(run.sign, at)
            if what in "EX":
                run.ended, run.error = at, record.get("why", "")
            elif what == "H" and not record["held"]:
                run.lost_claim = at
            elif what == "B":
                run.commits = at
            elif what == "C":
                run.committed = True
        for intent in self.intents.values():
            intent.runs.sort(key=lambda run: run.begun)
