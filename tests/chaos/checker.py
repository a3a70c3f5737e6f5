"""The verdicts: what the three logs of :mod:`tests.chaos.history` prove against the library. It reads nothing else.

=============  =======================================================================================================
lost           ``.delay()`` returned, and the task neither returned in any run nor used up its retries; a dead letter
               that has not is one too
ghost          a run of a task that ``.delay()`` said it had refused, that nobody asked for, or that was cancelled
twin           two tasks for one call, or two calls with one task
rerun          another run of a task that nothing explains: the one before returned, or still could have
repeated       runs that follow one that had returned just before both of its guardians died, more than of chance
overlap        a sign of life of a run after the next one of the same task had begun
unfenced       the store took something from a run after the next one had begun
effects_lost   a task has ended, or knows that it has committed, and what it wrote in its transaction is not there
effects_dup    what a task wrote in its transaction is there more than once
orphan         a run went on for longer than the bound after both of its guardians had died
stuck          when nobody did any harm any more, the queue did not become empty in time
leak           something was left over: a process, a descriptor, a row
recovery       longer than the bound from a death to the next run, when nothing else happened meanwhile
dead_air       longer than the bound with tasks to run, and room for them, and none began
figures        what a scenario measured is beyond its bound
=============  =======================================================================================================
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

from tests.chaos.history import History, Intent, Run
from tests.chaos.records import Record

# What is raised in a run that has to go although its time is not up; the last one in a coroutine.
STOPS = ("TaskLost", "TaskStopped", "CancelledError")
WORKER_KILLED = "its worker was killed"
CHANCE = 3  # kills that may hit a run that has just returned, in however few
GIVING_UP = 1.0  # seconds that a run may go on after its worker can know again that its claim was lost


@dataclass(frozen=True)
class Bounds:
    """What is asked of a correct system, in seconds.

    Attributes:
        lease: the workers' lease.
        flush: from a run's last act until its outcome has to be in the store.
        back: from the return of the store until a worker, which waits longer each time, asks it again.
        child: from the death of a child to the next run of its task.
        worker: from the death of both guardians to the next run of what they had.
        dead_air: how long no task begins although there are some, and room for them.
        orphan: how long a run may go on after the deaths of both its guardians.
        repeated: of a hundred workers killed, how many runs may just have returned, so that nobody has heard of it:
            between its last line and the next instruction of its process, which many coroutines pass all the time.
    """

    lease: float = 15.0
    flush: float = 0.25
    back: float = 2.0
    child: float = 1.0
    worker: float = 18.0
    dead_air: float = 30.0
    orphan: float = 1.0
    repeated: float = 10.0


@dataclass
class Verdict:
    """What was found, in sentences, by column; and the figures.

    Attributes:
        findings: by column; a column without a finding is one that passed.
        explained: reruns that had to be, by what explains them.
        repeated: those of them that follow a run that had returned.
        recovery: seconds from each death to the next run, by who died.
        dead_air: the longest time in which nothing began, seconds.
        outlived: the longest time by which a run outlived both its guardians, seconds.
        figures: what a scenario measured, in words.
    """

    findings: dict[str, list[str]]
    tasks: int = 0
    runs: int = 0
    explained: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    recovery: dict[str, list[float]] = field(default_factory=dict)
    dead_air: float = 0.0
    outlived: float = 0.0
    figures: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """The columns that failed."""
        return [column for column, found in self.findings.items() if found]

    @property
    def passed(self) -> bool:
        return not self.failed


def judge(
    ledger: Sequence[Record], enqueued: Sequence[Record], nemesis: Sequence[Record], bounds: Bounds | None = None
) -> Verdict:
    """The verdict on one run of the harness."""
    return Checker(History(ledger, enqueued, nemesis), bounds or Bounds()).verdict()


class Checker:
    """One method for each column; each returns its findings."""

    def __init__(self, history: History, bounds: Bounds) -> None:
        self.history = history
        self.bounds = bounds
        self.explained: Counter[str] = Counter()
        self.repeated = 0
        self.unlucky: list[str] = []  # those of them whose outcome nothing kept from the store but the time
        self.recoveries: dict[str, list[float]] = defaultdict(list)
        self.longest_air = 0.0
        self.outlived = 0.0

    def verdict(self) -> Verdict:
        columns: dict[str, Callable[[], list[str]]] = {
            "lost": self.lost,
            "ghost": self.ghost,
            "twin": self.twin,
            "rerun": self.rerun,
            "repeated": self.too_many_repeated,  # after rerun(), which counts
            "overlap": self.overlap,
            "unfenced": self.unfenced,
            "effects_lost": self.effects_lost,
            "effects_dup": self.effects_dup,
            "orphan": self.orphan,
            "stuck": self.stuck,
            "leak": self.leak,
            "recovery": self.recovery,  # after rerun(), which measures
            "dead_air": self.dead_air,
            "figures": self.figures,
        }
        findings = {column: find() for column, find in columns.items()}
        history = self.history
        return Verdict(
            findings,
            len(history.intents),
            len(history.runs),
            self.explained,
            self.repeated,
            dict(self.recoveries),
            self.longest_air,
            self.outlived,
            [_figure(record) for record in history.having("figure")],
        )

    # -- tasks ---------------------------------------------------------------------------------------------------

    def lost(self) -> list[str]:
        dead = {record["id"]: f"; a dead letter: {record['reason']}" for record in self.history.having("dead")}
        return [
            f"intent {intent.number} ({intent.kind}): .delay() returned, and {_runs(intent)}"
            + "".join(dead.get(id, "") for id in intent.ids)
            for intent in self.history.intents.values()
            if intent.stored is not None
            and not self._has_ended(intent)
            and not (dead.keys() & intent.ids and intent.runs and intent.runs[-1].attempt > intent.retry)
            and not self.history.forgets(intent)
        ]

    def _has_ended(self, intent: Intent) -> bool:
        if intent.unwanted or any(run.returned for run in intent.runs):
            return True
        if any(record["intent"] == intent.number for record in self.history.having("effect")):
            return True  # it ended with its transaction, whatever became of its process then
        last = intent.runs[-1] if intent.runs else None
        if last is None or last.attempt <= intent.retry:
            return False
        failed = bool(last.error) and last.error not in STOPS
        return failed or self.history.killed(last.pid, last.begun, self.history.end) is not None

    def ghost(self) -> list[str]:
        return [
            f"intent {intent.number} was {'refused' if intent.known else 'never made'}, and {_runs(intent)}"
            for intent in self.history.intents.values()
            if intent.runs and (intent.refused or not intent.known)
        ] + [
            f"intent {intent.number} was cancelled, and {run} began {run.begun - intent.cancelled:.3f} s later"
            for intent in self.history.intents.values()
            for run in intent.runs
            if intent.cancelled is not None and run.begun > intent.cancelled
        ]

    def twin(self) -> list[str]:
        owners: dict[int, list[int]] = defaultdict(list)
        for intent in self.history.intents.values():
            for id in intent.ids:
                owners[id].append(intent.number)
        return [
            f"intent {intent.number} is stored as {len(intent.ids)} tasks: {sorted(intent.ids)}"
            for intent in self.history.intents.values()
            if len(intent.ids) > 1
        ] + [f"the id {id} was given to the intents {numbers}" for id, numbers in owners.items() if len(numbers) > 1]

    # -- runs ----------------------------------------------------------------------------------------------------

    def rerun(self) -> list[str]:
        found = []
        for intent in self.history.intents.values():
            for before, run in pairwise(intent.runs):
                if before.id != run.id:
                    continue  # a twin
                why = self._explain(intent, before, run)
                if why:
                    self.explained[why] += 1
                    self.repeated += before.returned
                    if (
                        before.returned
                        and why == WORKER_KILLED
                        and self._settled(before) <= before.sign + self.bounds.flush
                    ):
                        self.unlucky.append(f"intent {intent.number}: {run} follows {before}, which had returned")
                else:
                    how = "returned" if before.returned else f"raised {before.error}" if before.error else "was alive"
                    found.append(f"intent {intent.number}: {run} follows {before}, which {how}")
        return found

    def too_many_repeated(self) -> list[str]:
        most = max(CHANCE, self.history.workers_killed() * self.bounds.repeated / 100)
        return self.unlucky if len(self.unlucky) > most else []

    def _explain(self, intent: Intent, before: Run, run: Run) -> str:
        """Why there had to be another run; "" if nothing says so. Measures how soon it began, after a death."""
        history = self.history
        if before.error and before.error not in STOPS:
            return "raised" if before.attempt <= intent.retry else ""
        dead = history.worker_dead(before)
        if dead is not None and dead <= run.begun and (before.ended is None or dead <= self._settled(before)):
            self._recovered("worker", dead, run.begun)
            return WORKER_KILLED
        if not before.returned or before.run in history.unsaid:
            killed = history.killed(before.pid, before.begun, run.begun)
            if killed is not None:
                self._recovered("child", killed, run.begun)
                return "its child was killed"
            leave = history.told_to_leave(before)
            if leave is not None and leave <= run.begun:
                return "its worker was told to leave"
        if self._unguarded(before, run):
            return "its monitor was frozen, and its fork server killed"
        # A lease that ends was renewed a third of it ago at most.
        if any(end - start >= self.bounds.lease * 0.6 for start, end in history.frozen(before, run.begun, whole=True)):
            return "its worker was frozen or cut off"
        if intent.exclusive and run.attempt == before.attempt and self._out_of_reach(before, run.begun):
            return "it was exclusive, and the store was out of reach"
        if self._was_forgotten(before, run):
            return "the store forgot its last moments"
        return ""

    def _was_forgotten(self, before: Run, run: Run) -> bool:
        """Whether the store forgot how a run ended, or that it had begun."""
        ended = before.ended if before.ended is not None else inf
        return any(
            before.begun <= up and at <= run.begun and ended >= since - self.bounds.flush
            for since, at, up in self.history.forgotten
        )

    def _out_of_reach(self, run: Run, until: float) -> bool:
        """Whether there was an outage in this time in which a lease that nobody can renew ends."""
        return any(
            min(end, until) - max(start, run.begun) >= self.bounds.lease * 0.4 for start, end in self.history.outages
        )

    def _unguarded(self, before: Run, run: Run) -> bool:
        """Whether a lease ended while the monitor was frozen, whose fork server died before it had to stand in."""
        lease = self.bounds.lease
        for start, end in self.history.frozen(before, run.begun):
            dead = self.history.server_killed(before, min(end, start + lease * 0.6))
            in_time = before.ended is None or (dead is not None and dead <= self._settled(before))
            if dead is not None and in_time and end - start >= lease * 0.6:
                return True
        return False

    def _recovered(self, role: str, dead: float, begun: float) -> None:
        if not self.history.disturbed(dead, begun):
            self.recoveries[role].append(begun - dead)

    def _settled(self, run: Run) -> float:
        """When the outcome of a run that has ended has to be in the store."""
        assert run.ended is not None
        until = run.ended + self.bounds.flush
        away = [(start, end + self.bounds.back) for start, end in self.history.outages]
        for start, end in sorted([*away, *self.history.excused, *self.history.frozen(run, self.history.end)]):
            if start <= until:
                until = max(until, end + self.bounds.flush)
        return until

    def overlap(self) -> list[str]:
        found = []
        for intent in self.history.intents.values():
            for number, run in enumerate(intent.runs):
                for before in intent.runs[:number]:
                    if (
                        before.sign > run.begun
                        and before.id == run.id
                        and not self._could_not_know(intent, before, run)
                    ):
                        found.append(
                            f"intent {intent.number}: {before} was alive {before.sign - run.begun:.3f} s after {run} "
                            "had begun"
                        )
        return found

    def _could_not_know(self, intent: Intent, before: Run, run: Run) -> bool:
        """Whether a run could not know that it had lost its claim, and ended as soon as it could: it was frozen or cut
        off, or the store forgot the claim.

        One of an exclusive task that is only cut off knows the time.
        """
        if self._was_forgotten(before, run):
            back = max(up for _, at, up in self.history.forgotten if before.begun <= up and at <= run.begun)
            return before.sign <= back + self.bounds.lease / 3 + self.bounds.back + GIVING_UP
        windows = list(self.history.frozen(before, self.history.end, whole=True, cut=not intent.exclusive))
        long = [end for start, end in windows if min(end, run.begun) - start >= self.bounds.lease * 0.6]
        # It learns it with the next renewal.
        return bool(long) and before.sign <= max(long) + self.bounds.lease / 3 + GIVING_UP

    def unfenced(self) -> list[str]:
        found = []
        kept = {record["run"] for record in self.history.having("effect")}
        for intent in self.history.intents.values():
            for number, run in enumerate(intent.runs):
                for before in intent.runs[:number]:
                    if before.id != run.id:
                        continue
                    if before.run in kept and before.commits is not None and before.commits > run.begun:
                        found.append(f"intent {intent.number}: {before} committed after {run} had begun")
                    if self._ended_for_it(before, run, intent.runs[number + 1 :]):
                        found.append(f"intent {intent.number}: the claim of {run} was ended by {before}")
        return found

    @staticmethod
    def _ended_for_it(before: Run, run: Run, later: Sequence[Run]) -> bool:
        """Whether the end of one run took the claim of the next, which nobody else can have taken."""
        at = run.lost_claim
        if at is None or before.ended is None or any(each.begun <= at for each in later):
            return False
        return run.begun < before.ended < at

    # -- effects ---------------------------------------------------------------------------------------------------

    def effects_lost(self) -> list[str]:
        kept: Counter[int] = Counter(record["intent"] for record in self.history.having("effect"))
        return [
            f"intent {intent.number} has ended, and what it wrote is not there"
            for intent in self.history.intents.values()
            if intent.kind == "effect"
            and not kept[intent.number]
            and any(r.returned or r.committed for r in intent.runs)
        ]

    def effects_dup(self) -> list[str]:
        kept: Counter[int] = Counter(record["intent"] for record in self.history.having("effect"))
        return [f"what intent {number} wrote is there {times} times" for number, times in kept.items() if times > 1]

    def orphan(self) -> list[str]:
        found = []
        for intent in self.history.intents.values():
            for run in intent.runs:
                dead = self.history.unguarded(run)
                if dead is None or run.begun > dead:
                    continue
                self.outlived = max(self.outlived, run.sign - dead)
                if run.sign - dead > self.bounds.orphan:
                    found.append(
                        f"intent {intent.number}: {run} went on for {run.sign - dead:.2f} s after its guardians"
                    )
        return found

    # -- the whole -------------------------------------------------------------------------------------------------

    def stuck(self) -> list[str]:
        return [record["words"] for record in self.history.having("drained") if not record["drained"]]

    def leak(self) -> list[str]:
        return [record["words"] for record in self.history.having("leak")]

    def recovery(self) -> list[str]:
        bounds = {"child": self.bounds.child, "worker": self.bounds.worker}
        return [
            f"{took:.2f} s from the death of a {role} to the next run; the bound is {bounds[role]:g} s"
            for role, times in self.recoveries.items()
            for took in times
            if took > bounds[role]
        ]

    def dead_air(self) -> list[str]:
        slots = max((record["slots"] for record in self.history.having("slots")), default=0)
        waiting = busy = 0
        since: float | None = None
        for at, tasks, runs, resets in self._changes():
            if since is not None:
                self.longest_air = max(self.longest_air, at - since)
            waiting, busy = waiting + tasks, busy + runs
            if not waiting or busy >= slots:
                since = None
            elif resets or since is None:
                since = at
        if self.longest_air <= self.bounds.dead_air:
            return []
        return [f"nothing began for {self.longest_air:.2f} s; the bound is {self.bounds.dead_air:g} s"]

    def figures(self) -> list[str]:
        return [
            f"{_figure(record)} is beyond its bound"
            for record in self.history.having("figure")
            if not record["least"] <= record["value"] <= record["most"]
        ]

    def _changes(self) -> list[tuple[float, int, int, bool]]:
        """(when, change of the tasks that wait, change of those that run, whether the silence ends) in order.

        While the store is away or the machine stands still there is no room.
        """
        changes: list[tuple[float, int, int, bool]] = []
        for intent in self.history.intents.values():
            if intent.stored is not None and intent.runs:
                due = intent.stored + intent.delay
                changes.append((min(due, intent.runs[0].begun), 1, 0, False))
                changes.append((intent.runs[0].begun, -1, 0, True))
            for run in intent.runs:
                changes += [(run.begun, 0, 1, True), (run.sign, 0, -1, False)]
        for start, end in self.history.excused:
            changes += [(start, 0, 1 << 20, True), (end, 0, -(1 << 20), True)]
        return sorted(changes, key=lambda change: change[0])


def _figure(record: Record) -> str:
    least, most = record["least"], record["most"]
    bounds = [f"{sign} {bound:g}" for sign, bound in ((">=", least), ("<=", most)) if bound not in (-inf, inf)]
    return f"{record['name']}: {record['value']:g}" + (f" ({', '.join(bounds)})" if bounds else "")


def _runs(intent: Intent) -> str:
    if not intent.runs:
        return "it has no run"
    ends = ["returned" if run.returned else run.error or "broke off" for run in intent.runs]
    return f"its runs: {', '.join(ends)}"
