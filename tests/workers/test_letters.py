"""What failed for good is kept as a dead letter where the queue asks for that, and may run again."""

from __future__ import annotations

import os
import signal

from delayed.attempts import attempts_of
from delayed.message import Entry
from delayed.retry import Retry
from delayed.task import Task
from delayed.worker.fate import REASON_MAX
from tests.workers import tasks
from tests.workers.conftest import Bench, alive, fork_server_of, wait_for


def letters(bench: Bench) -> dict[int, Entry]:
    return {entry.message.id: entry for entry in bench.queue.dead}


def test_what_failed_for_good_is_kept_with_its_whole_verdict(bench: Bench, mode: str) -> None:
    raised = bench.put(tasks.fail, "häßlich")
    late = bench.put(tasks.stuck_in_regex, timeout=0.3)
    killed = bench.put(tasks.kill_self, signal.SIGKILL)
    left = bench.put(os._exit, ())
    bench.queue.enqueue(exited := Task.create(os._exit, (3,)))
    bench.queue.enqueue(wrong := Task.create(tasks.fail, ("too", "many", "arguments")))
    bench.put(tasks.mark, "done")
    bench.put(tasks.fail_until, "second", 1, retry=1)

    bench.burst(mode, dead_letters=True)

    found = letters(bench)
    assert bench.settled()
    assert {"done", "done second"} <= set(bench.ledger.lines)
    assert set(found) == {raised, late, killed, left, exited.id, wrong.id}
    lines = found[raised].reason.splitlines()
    assert lines[0].startswith("raised ValueError: häßlich after ")
    assert "CPU" in lines[0] and lines[0].endswith(", in attempt 1")
    assert lines[1] == "Traceback (most recent call last):" and lines[-1] == "ValueError: häßlich"
    assert "timed out (limit 0.3 s)" in found[late].reason and "stuck_in_regex" in found[late].reason
    assert found[killed].reason.startswith("killed by signal 9 (SIGKILL), not by its worker")
    assert found[exited.id or 0].reason.startswith("exited with 3")
    assert found[wrong.id or 0].reason.startswith("bad arguments: ")
    assert "TypeError" in found[left].reason
    assert "it is kept as a dead letter" in bench.log()


def test_nothing_is_kept_where_nobody_asked(bench: Bench, mode: str) -> None:
    bench.put(tasks.fail, "text")
    bench.put(tasks.kill_self, signal.SIGKILL)
    bench.queue.enqueue(Task.create(tasks.fail, ("too", "many", "arguments")))

    bench.burst(mode)

    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)
    assert "it failed for good" in bench.log()


def test_only_the_last_attempt_makes_a_letter(bench: Bench, mode: str) -> None:
    id = bench.put(tasks.fail, "text", retry={"max": 2, "delay": 0.01})

    bench.burst(mode, dead_letters=True)

    (letter,) = bench.queue.dead
    assert (letter.message.id, letter.attempt, letter.delivery) == (id, 3, 3)
    assert letter.reason.splitlines()[0].endswith(", in attempt 3")
    assert bench.ledger.lines == ["failing"] * 3
    told = attempts_of(letter)
    assert [(each.attempt, each.verdict.type, each.verdict.text) for each in told] == [
        (1, "ValueError", "text"),
        (2, "ValueError", "text"),
        (3, "ValueError", "text"),
    ]
    assert len({each.worker for each in told}) == 1 and told[0].worker in bench.log()
    assert all(each.verdict.wall > 0 and not each.verdict.traceback for each in told)


def test_what_its_policy_does_not_retry_is_kept_at_once(bench: Bench, mode: str) -> None:
    id = bench.put(tasks.fail, "text", retry=Retry(5, never=(ValueError,)))

    bench.burst(mode, dead_letters=True)

    assert list(letters(bench)) == [id]
    assert bench.ledger.lines == ["failing"]


def test_a_requeued_letter_runs_again_with_all_of_its_retries(bench: Bench, mode: str) -> None:
    id = bench.put(tasks.fail_until, "word", 3, retry={"max": 1, "delay": 0.01})
    bench.burst(mode, dead_letters=True)
    assert list(letters(bench)) == [id]

    assert bench.queue.dead.requeue(id) == [id]
    bench.burst(mode, dead_letters=True)

    assert bench.queue.broker.counts(bench.queue.name) == (0, 0, 0, 0)
    assert bench.ledger.lines == ["try word"] * 4 + ["done word"]


def test_a_long_verdict_is_cut_in_the_middle(bench: Bench) -> None:
    bench.put(recurse, 60)

    bench.burst(dead_letters=True)

    (letter,) = bench.queue.dead
    assert REASON_MAX - 200 < len(letter.reason.encode()) <= REASON_MAX
    assert letter.reason.startswith("raised ValueError: ")
    assert "bytes are left out" in letter.reason
    assert letter.reason.endswith("the last line")


def recurse(ledger: str, depth: int) -> None:
    """Raise at the end of a chain of errors, which makes a long traceback."""
    try:
        if depth == 0:
            raise ValueError("ünlesbar " * 100)
        recurse(ledger, depth - 1)
    except ValueError as error:
        raise ValueError("ünlesbar " * 100 + "\nthe last line") from error


def test_a_stand_in_keeps_them_too(bench: Bench, mode: str) -> None:
    raised = bench.put(fail_later, 1.0)
    stuck = bench.put(tasks.begin_and_be_stuck, timeout=1.0)
    worker = bench.start(mode, processes=2, dead_letters=True)
    wait_for(lambda: len(bench.ledger.find("begin")) == 2)
    server = fork_server_of(worker)

    worker.kill()

    wait_for(lambda: not alive(server))
    found = letters(bench)
    assert set(found) == {raised, stuck}
    assert found[raised].reason.startswith("raised ValueError: late")
    assert "Traceback" in found[raised].reason
    assert found[stuck].reason.startswith("timed out (limit 1 s)")


def fail_later(ledger: str, seconds: float) -> None:
    tasks.note(ledger, "begin")
    tasks.sleep_in_steps(seconds)
    raise ValueError("late")


def test_a_worker_tells_the_store_how_many_are_kept(bench: Bench) -> None:
    ids = [bench.put(tasks.fail, str(number)) for number in range(5)]
    worker = bench.start(dead_letters=(2, "1d"))

    wait_for(lambda: sorted(letters(bench)) == ids[3:])

    assert worker.poll() is None


def test_hooks_hear_of_a_failure_for_good_as_ever(bench: Bench, mode: str) -> None:
    bench.put(tasks.fail, "text")

    bench.burst(mode, dead_letters=True, hooks="tests.workers.hooks:Everything")

    assert len(bench.queue.dead) == 1
    assert [line for line in bench.ledger.lines if "exhausted" in line]
    assert not [line for line in bench.ledger.lines if line.startswith("dead ") or " dead " in line]
