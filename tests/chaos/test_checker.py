"""The checker, on logs written by hand: one good story, and for each column what makes it fail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import pytest

from tests.chaos import processes, records
from tests.chaos.checker import Bounds, Verdict, judge
from tests.chaos.records import Record

MONITOR, SERVER, CHILD, OTHER = 10, 11, 12, 13  # pids
BOUNDS = Bounds(lease=3.0, flush=0.25, child=1.0, worker=6.0, dead_air=5.0)


class Story:
    """Three logs that are being written; times are seconds."""

    def __init__(self) -> None:
        self.ledger: list[Record] = []
        self.enqueued: list[Record] = []
        self.nemesis: list[Record] = []
        self.harm(0.0, "slots", slots=2)
        self.harm(0.0, "born", role="forkserver", pid=SERVER, parent=MONITOR)
        self.harm(0.1, "ready", pid=SERVER)
        self.harm(0.0, "drained", drained=True, words="")

    def task(self, at: float, number: int = 1, answer: str = "ok", **facts: Any) -> Self:
        self.enqueued.append({"what": "intent", "at": at, "intent": number, "kind": "nap", "retry": 3, **facts})
        if answer:
            self.enqueued.append({"what": answer, "at": at, "intent": number, "id": 100 + number})
        return self

    def begin(self, at: float, run: str, number: int = 1, token: int = 1, **facts: Any) -> Self:
        known = {"intent": number, "id": 100 + number, "run": run, "attempt": token, "token": token}
        self.ledger.append({"what": "S", "at": at, **known, "pid": CHILD, "ppid": SERVER, **facts})
        return self

    def then(self, at: float, what: str, run: str, **facts: Any) -> Self:
        self.ledger.append({"what": what, "at": at, "run": run, **facts})
        return self

    def harm(self, at: float, what: str, **facts: Any) -> Self:
        self.nemesis.append({"what": what, "at": at, **facts})
        return self

    def kill(self, at: float, *pids: int) -> Self:
        for pid in pids:
            self.harm(at, "kill", role="?", pid=pid)
        return self

    def judge(self) -> Verdict:
        return judge(self.ledger, self.enqueued, self.nemesis, BOUNDS)


def ran_once() -> Story:
    return Story().task(1.0).begin(1.1, "a").then(1.5, "T", "a").then(2.0, "E", "a")


def broke_off(**facts: Any) -> Story:
    return Story().task(1.0, **facts).begin(1.1, "a").then(1.5, "T", "a")


def frozen_monitor(start: float, end: float) -> Story:
    """... of a task that returned at 2.0."""
    story = ran_once().harm(start, "stop", role="monitor", pid=MONITOR, worker=MONITOR)
    return story.harm(end, "cont", role="monitor", pid=MONITOR, worker=MONITOR)


def test_a_task_that_ran_once_is_no_finding() -> None:
    verdict = ran_once().judge()

    assert verdict.passed
    assert (verdict.tasks, verdict.runs, verdict.explained.total()) == (1, 1, 0)


# -- each column fails --------------------------------------------------------------------------------------------

FAULTS = {
    "a task without a run is lost": ("lost", Story().task(1.0)),
    "a dead letter that could be tried again is lost": (
        "lost",
        broke_off().kill(1.6, CHILD).harm(9.0, "dead", id=101, reason="it could not be read"),
    ),
    "a dead letter that never ran is lost": ("lost", Story().task(1.0).harm(9.0, "dead", id=101, reason="?")),
    "a run that broke off is no outcome": ("lost", broke_off().kill(1.6, CHILD)),
    "a failure with retries left is no outcome": (
        "lost",
        Story().task(1.0).begin(1.1, "a").then(1.2, "X", "a", why="ValueError"),
    ),
    "a refused task that runs is a ghost": (
        "ghost",
        Story().task(1.0, answer="refused").begin(1.1, "a").then(2.0, "E", "a"),
    ),
    "a run that nobody asked for is a ghost": ("ghost", Story().begin(1.1, "a").then(2.0, "E", "a")),
    "two ids of one call are twins": ("twin", ran_once().begin(1.3, "b", id=999).then(1.4, "E", "b")),
    "one id of two calls is a clash": ("twin", ran_once().task(2.0, 2).begin(2.5, "b", 2, id=101).then(2.6, "E", "b")),
    "what was stored long before the store forgot its last moments is lost": (
        "lost",
        Story().task(1.0).harm(5.0, "down", lossy=True, since=4.0).harm(5.5, "up"),
    ),
    "what ended long before the store forgot its last moments does not run again": (
        "rerun",
        ran_once().harm(5.0, "down", lossy=True, since=4.0).harm(5.5, "up").begin(6.0, "b", token=2),
    ),
    "a run that goes on after it could know that its claim was forgotten overlaps": (
        "overlap",
        broke_off()
        .harm(2.0, "down", lossy=True, since=1.0)
        .harm(2.5, "up")
        .begin(3.0, "b", token=1)
        .then(9.0, "T", "a"),
    ),
    "a rerun after a return is not explained": ("rerun", ran_once().begin(5.0, "b", token=2).then(5.1, "E", "b")),
    "a rerun beside nothing that happened is not explained": (
        "rerun",
        broke_off().begin(2.0, "b", token=2).then(2.1, "E", "b"),
    ),
    "a monitor that dies alone explains nothing": (
        "rerun",
        broke_off().kill(1.6, MONITOR).begin(2.0, "b", token=2).then(2.1, "E", "b"),
    ),
    "a fork server that dies alone explains nothing": (
        "rerun",
        broke_off().kill(1.6, SERVER).begin(2.0, "b", token=2).then(2.1, "E", "b"),
    ),
    "a child that dies long after it returned explains nothing": (
        "rerun",
        ran_once().kill(2.1, CHILD).begin(5.0, "b", token=2, pid=OTHER).then(5.1, "E", "b"),
    ),
    "guardians that were gone long before it began were not its own": (
        "rerun",
        ran_once().kill(0.5, MONITOR, SERVER).begin(5.0, "b", token=2).then(5.1, "E", "b"),
    ),
    "an outcome that was there long before both died had to be stored": (
        "rerun",
        ran_once().kill(2.5, MONITOR, SERVER).begin(5.0, "b", token=2).then(5.1, "E", "b"),
    ),
    "an outcome that could be stored for long before both died had to be": (
        "rerun",
        ran_once().harm(1.9, "down", lossy=False).harm(2.5, "up").kill(5.0, SERVER, MONITOR).begin(7.0, "b", token=2),
    ),
    "a frozen monitor explains nothing": (
        "rerun",
        frozen_monitor(1.9, 7.0).begin(5.0, "b", token=2).then(5.1, "E", "b"),
    ),
    "a fork server that was killed when it had to stand in for a frozen monitor explains nothing": (
        "rerun",
        frozen_monitor(1.9, 7.0).kill(4.5, SERVER).begin(5.0, "b", token=2).then(5.1, "E", "b"),
    ),
    "an outcome that was there long before the monitor was frozen had to be stored": (
        "rerun",
        frozen_monitor(3.0, 8.0).kill(3.5, SERVER).begin(6.0, "b", token=2).then(6.1, "E", "b"),
    ),
    "a run after the last retry is not explained": (
        "rerun",
        Story()
        .task(1.0, retry=0)
        .begin(1.1, "a")
        .then(1.2, "X", "a", why="ValueError")
        .begin(2.0, "b", token=2)
        .then(2.1, "E", "b"),
    ),
    "a fork server that stood still explains nothing": (
        "rerun",
        broke_off()
        .harm(1.6, "stop", role="forkserver", pid=SERVER, worker=MONITOR)
        .harm(7.0, "cont", role="forkserver", pid=SERVER, worker=MONITOR)
        .begin(5.0, "b", token=2)
        .then(5.1, "E", "b"),
    ),
    "an outage is no reason to run again what is not exclusive": (
        "rerun",
        broke_off().harm(1.6, "down", lossy=False).harm(5.0, "up").begin(5.5, "b", token=2, attempt=1),
    ),
    "an exclusive run that the store's outage ended is not charged": (
        "rerun",
        broke_off(exclusive=True).harm(1.6, "down", lossy=False).harm(5.0, "up").begin(5.5, "b", token=2),
    ),
    "an exclusive run that was cut off, and goes on, overlaps": (
        "overlap",
        broke_off(exclusive=True)
        .harm(1.6, "cut", worker=MONITOR)
        .harm(7.0, "healed", worker=MONITOR)
        .begin(5.0, "b", token=2)
        .then(5.1, "T", "a"),
    ),
    "a run that lives on beside the next overlaps": (
        "overlap",
        broke_off().kill(1.6, MONITOR, SERVER).begin(2.0, "b", token=2).then(2.1, "E", "b").then(2.05, "T", "a"),
    ),
    "a frozen run that goes on after it could know overlaps": (
        "overlap",
        broke_off()
        .harm(1.6, "stop", role="worker", pid=MONITOR, worker=MONITOR)
        .harm(7.0, "cont", role="worker", pid=MONITOR, worker=MONITOR)
        .begin(5.0, "b", token=2)
        .then(11.0, "E", "b")
        .then(9.5, "T", "a"),
    ),
    "a claim that the run before ended is not fenced": (
        "unfenced",
        broke_off().begin(5.0, "b", token=2).then(6.0, "E", "a").then(7.0, "H", "b", held=False).then(7.0, "E", "b"),
    ),
    "a commit after the next run began is not fenced": (
        "unfenced",
        broke_off()
        .begin(5.0, "b", token=2)
        .then(6.0, "B", "a")
        .then(6.1, "C", "a")
        .then(7.0, "E", "b")
        .harm(8.0, "effect", intent=1, run="a"),
    ),
    "an effect that is not there is lost": (
        "effects_lost",
        Story().task(1.0, kind="effect").begin(1.1, "a").then(1.2, "C", "a").then(1.3, "E", "a"),
    ),
    "an effect that is there twice is one too many": (
        "effects_dup",
        ran_once().harm(8.0, "effect", intent=1, run="a").harm(8.0, "effect", intent=1, run="b"),
    ),
    "a queue that does not become empty is stuck": (
        "stuck",
        ran_once().harm(60.0, "drained", drained=False, words="1 running"),
    ),
    "a run that goes on without guardians is an orphan": (
        "orphan",
        broke_off().kill(1.6, MONITOR, SERVER).then(2.7, "E", "a"),
    ),
    "what is left over is a leak": ("leak", ran_once().harm(60.0, "leak", words="process 99 lives")),
    "a child's task that waits too long is slow": (
        "recovery",
        broke_off().kill(1.6, CHILD).begin(2.7, "b", token=2).then(2.8, "E", "b"),
    ),
    "a worker's task that waits too long is slow": (
        "recovery",
        broke_off().kill(1.6, MONITOR, SERVER).begin(7.7, "b", token=2).then(7.8, "E", "b"),
    ),
    "tasks that wait while there is room are dead air": (
        "dead_air",
        Story().task(1.0).begin(6.1, "a").then(6.2, "E", "a"),
    ),
    "what was measured has bounds": (
        "figures",
        ran_once().harm(9.0, "figure", name="killed after", value=2.5, least=0.0, most=2.0),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_in_its_column(name: str) -> None:
    column, story = FAULTS[name]

    verdict = story.judge()

    assert column in verdict.failed
    assert all(verdict.findings[column])


# -- what is no fault ----------------------------------------------------------------------------------------------

INNOCENT = {
    "the child was killed": ("its child was killed", broke_off().kill(1.6, CHILD).begin(2.0, "b", token=2)),
    "the child was killed when it had returned, and could not say so": (
        "its child was killed",
        ran_once().harm(2.1, "kill", role="child", pid=CHILD, unsaid=True).begin(2.5, "b", token=2, pid=OTHER),
    ),
    "the child was killed just when it had returned": (
        "its child was killed",
        ran_once().kill(2.01, CHILD).begin(2.5, "b", token=2, pid=OTHER),
    ),
    "both guardians were killed": (
        "its worker was killed",
        broke_off().kill(1.6, SERVER).kill(1.7, MONITOR).begin(5.0, "b", token=2),
    ),
    "both were just dying when it began": (
        "its worker was killed",
        ran_once().kill(1.0, SERVER, MONITOR).begin(5.0, "b", token=2),
    ),
    "both were killed just after it returned": (
        "its worker was killed",
        ran_once().kill(2.1, SERVER, MONITOR).begin(5.0, "b", token=2),
    ),
    "its outcome could not be stored before both were killed": (
        "its worker was killed",
        ran_once().harm(1.9, "down", lossy=False).kill(4.0, SERVER, MONITOR).harm(4.5, "up").begin(6.0, "b", token=2),
    ),
    "both were killed when the store was there again, and they were just about to ask it": (
        "its worker was killed",
        ran_once().harm(1.9, "down", lossy=False).harm(3.5, "up").kill(4.5, SERVER, MONITOR).begin(6.0, "b", token=2),
    ),
    "its monitor was frozen, and its fork server killed before it had to stand in": (
        "its monitor was frozen, and its fork server killed",
        frozen_monitor(1.9, 7.0).kill(2.5, SERVER).begin(5.0, "b", token=2),
    ),
    "it raised": (
        "raised",
        Story().task(1.0).begin(1.1, "a").then(1.2, "X", "a", why="ValueError").begin(2.0, "b", token=2),
    ),
    "its worker was frozen": (
        "its worker was frozen or cut off",
        broke_off()
        .harm(1.6, "stop", role="worker", pid=MONITOR, worker=MONITOR)
        .harm(7.0, "cont", role="worker", pid=MONITOR, worker=MONITOR)
        .then(7.5, "X", "a", why="TaskLost")
        .begin(5.0, "b", token=2),
    ),
    "it was exclusive, and the store was away": (
        "it was exclusive, and the store was out of reach",
        broke_off(exclusive=True).harm(1.6, "down", lossy=False).harm(5.0, "up").begin(5.5, "b", token=2, attempt=1),
    ),
    "its worker was told to leave": (
        "its worker was told to leave",
        broke_off().harm(1.6, "leave", pid=MONITOR).then(1.7, "X", "a", why="TaskStopped").begin(2.0, "b", token=1),
    ),
    "the store forgot": (
        "the store forgot its last moments",
        ran_once().harm(1.7, "down", lossy=True).harm(1.8, "up").begin(5.0, "b", token=1),
    ),
}


@pytest.mark.parametrize("name", INNOCENT)
def test_a_rerun_that_had_to_be_is_counted_and_no_finding(name: str) -> None:
    why, story = INNOCENT[name]
    story.then(12.0, "E", "b")

    verdict = story.judge()

    assert verdict.passed, verdict.findings
    assert verdict.explained == {why: 1}


@pytest.mark.parametrize("ready", [False, True])
def test_a_new_fork_server_is_a_guardian_once_it_can_stand_in(ready: bool) -> None:
    story = broke_off().kill(1.6, SERVER).harm(1.7, "born", role="forkserver", pid=OTHER, parent=MONITOR)
    if ready:
        story.harm(1.75, "ready", pid=OTHER)
    story.kill(1.8, MONITOR).begin(5.0, "b", token=2).then(5.1, "E", "b")

    assert story.judge().failed == (["rerun"] if ready else [])


def test_a_task_whose_retries_are_used_up_is_not_lost() -> None:
    story = Story().task(1.0, retry=0)
    story.begin(1.1, "a").then(1.2, "X", "a", why="ValueError")
    story.task(1.0, number=2, retry=0).begin(1.1, "b", number=2, pid=OTHER).kill(1.2, OTHER)

    assert story.judge().passed


def test_a_dead_letter_whose_retries_are_used_up_is_not_lost() -> None:
    story = broke_off(retry=0).harm(9.0, "dead", id=101, reason="killed at its timeout")

    assert story.judge().passed


@pytest.mark.parametrize(("kills", "failed"), [(100, []), (20, ["repeated"])])
def test_runs_that_had_returned_run_again_by_chance_only(kills: int, failed: list[str]) -> None:
    story = Story()
    for number in range(1, 5):  # each worker dies just when a run has returned
        worker = {"pid": 1000 + number, "ppid": 2000 + number}
        story.harm(0.0, "born", role="forkserver", pid=2000 + number, parent=3000 + number)
        story.task(1.0, number).begin(1.1, f"a{number}", number, **worker).then(2.0, "E", f"a{number}")
        story.kill(2.1, 3000 + number, 2000 + number)
        story.begin(3.0, f"b{number}", number, token=2, pid=OTHER).then(3.1, "E", f"b{number}")
    for number in range(4, kills):  # and many when none has
        story.harm(0.0, "born", role="forkserver", pid=7000 + number, parent=5000 + number)
        story.kill(5.0, 5000 + number, 7000 + number)

    verdict = story.judge()

    assert verdict.failed == failed, verdict
    assert verdict.repeated == 4


@pytest.mark.parametrize("heir", [False, True])
def test_a_fork_server_that_is_being_started_is_a_guardian_too(heir: bool) -> None:
    born = {"role": "forkserver", "pid": OTHER, "parent": MONITOR}
    story = broke_off().kill(1.6, SERVER)
    if heir:  # it is seen when its monitor has died
        story.kill(1.7, MONITOR).harm(1.75, "born", **born, heir=True)
    else:
        story.harm(1.65, "born", **born).kill(1.7, MONITOR)
    story.then(3.0, "T", "a").begin(4.0, "b", token=2, pid=99).then(4.1, "E", "b")

    verdict = story.judge()

    assert verdict.passed
    assert not verdict.outlived


def test_how_long_runs_outlive_their_guardians_is_measured() -> None:
    story = broke_off().kill(1.6, SERVER).kill(1.7, MONITOR).then(1.75, "T", "a").begin(4.0, "b", token=2, pid=OTHER)

    verdict = story.then(4.1, "E", "b").judge()

    assert verdict.passed
    assert verdict.outlived == pytest.approx(0.05)


def test_a_task_whose_commit_took_effect_is_not_lost() -> None:
    story = broke_off().kill(1.8, CHILD).harm(3.0, "effect", intent=1, run="a")

    assert story.judge().passed


def test_a_task_that_was_cancelled_is_not_lost_and_runs_no_more() -> None:
    story = Story().task(1.0)
    story.enqueued.append({"what": "cancel", "at": 1.1, "intent": 1})
    assert story.judge().passed

    story.enqueued.append({"what": "cancelled", "at": 1.2, "intent": 1})
    assert story.begin(1.3, "a").then(1.4, "E", "a").judge().failed == ["ghost"]


def test_what_was_stored_in_moments_that_the_store_forgot_may_be_lost() -> None:
    story = Story().task(4.5).harm(5.0, "down", lossy=True, since=4.0).harm(5.5, "up")

    assert story.judge().passed


def test_an_uncertain_task_may_run_or_not() -> None:
    story = Story().task(1.0, answer="uncertain").task(1.0, number=2, answer="uncertain")

    assert story.begin(1.1, "a").then(1.2, "E", "a").judge().passed


def test_an_outage_is_no_dead_air() -> None:
    story = Story().task(1.0).harm(1.5, "down", lossy=False).harm(9.0, "up")

    verdict = story.begin(9.5, "a").then(9.6, "E", "a").judge()

    assert verdict.passed
    assert verdict.dead_air == pytest.approx(0.5)


def test_a_machine_that_stood_still_is_no_dead_air() -> None:
    story = Story().task(1.0).harm(9.0, "late", since=1.5)

    assert story.begin(9.5, "a").then(9.6, "E", "a").judge().passed


def test_a_rerun_of_what_had_returned_is_counted_apart() -> None:
    assert ran_once().kill(2.1, SERVER, MONITOR).begin(5.0, "b", token=2).then(5.1, "E", "b").judge().repeated == 1
    assert broke_off().kill(2.1, SERVER, MONITOR).begin(5.0, "b", token=2).then(5.1, "E", "b").judge().repeated == 0


def test_recovery_is_measured_from_the_last_death() -> None:
    story = broke_off().kill(1.6, SERVER).kill(1.8, MONITOR).begin(4.8, "b", token=2).then(5.0, "E", "b")

    assert story.judge().recovery == {"worker": [pytest.approx(3.0)]}


def test_a_process_is_told_from_another_one() -> None:
    assert processes.born_at(os.getpid()) == processes.born_at(os.getpid()) > 0
    assert processes.born_at(1 << 22) == 0


# -- the log itself ------------------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was_noted(tmp_path: Path) -> None:
    records.note(tmp_path / "log", "S", intent=1, words="é")

    (record,) = records.read(tmp_path / "log")

    assert (record["what"], record["intent"], record["words"]) == ("S", 1, "é")
    assert 0 <= records.now() - record["at"] < 10


def test_a_log_that_grows_is_read_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tail = records.Tail(log)
    assert tail.new() == []

    records.note(log, "S", intent=1)
    whole = log.read_bytes()
    log.write_bytes(whole + whole[:-5])
    assert [record["intent"] for record in tail.new()] == [1]

    log.write_bytes(whole + whole)
    assert len(tail.new()) == 1
    assert tail.new() == []


def test_a_line_that_is_not_finished_is_left_out_and_one_that_is_wrong_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    records.note(log, "S", intent=1)
    whole = log.read_bytes()

    log.write_bytes(whole + whole[:-5])
    assert len(records.read(log)) == 1

    log.write_bytes(whole.replace(b'"intent":1', b'"intent":2'))
    with pytest.raises(records.TornRecord):
        records.read(log)
