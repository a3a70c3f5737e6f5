"""What a worker's log has of the arguments of tasks."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from delayed import Queue
from delayed.message import Message
from tests.workers import secretive
from tests.workers.conftest import Bench

S = "hunter2"  # of which nothing may be seen

only_sqlite = pytest.mark.parametrize("bench", ["sqlite"], indirect=True)


@only_sqlite
def test_by_default_it_has_none(bench: Bench, mode: str) -> None:
    bench.put(secretive.fail, "visible", S, "more")
    bench.put(secretive.die, "visible", S)
    bench.put(secretive.succeed, "visible", S)  # one too many
    bench.burst(mode)

    log = bench.log()
    assert "secretive:fail (attempt 1) raised ValueError: my own words" in log
    assert "killed by signal 9" in log
    assert "bad arguments" in log
    assert "visible" not in log
    assert S not in log


@only_sqlite
def test_if_asked_it_has_those_of_failed_tasks(bench: Bench, mode: str) -> None:
    bench.put(secretive.fail, "visible", S, "x" * 1000, secretive.Loud())
    bench.put(secretive.die, "visible", S)
    bench.put(secretive.succeed, "unseen")
    bench.burst(mode, log_arguments=True)

    log = bench.log()
    ledger = re.escape(repr(str(bench.ledger.path))[:20])
    assert re.search(
        rf"secretive:fail\({ledger}.*, 'visible', \*\*\*, 'x*…, <Loud without repr>\) \(attempt 1\) raised", log
    )
    assert re.search(rf"secretive:die\({ledger}.*, 'visible', \*\*\*\) is the one that was killed", log)
    assert S not in log
    assert "unseen" not in log


def burst_of_json(bench: Bench, *options: str) -> str:
    """The log of a worker as a person starts it, for tasks that came as JSON."""
    line = ["worker", "--queue", bench.queue.name, "--serializer", "json", "--allow", "tests.*", "--burst", *options]
    done = subprocess.run(
        [sys.executable, "-m", "delayed", *line, "--url", bench.url], capture_output=True, text=True, timeout=40
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@only_sqlite
def test_what_can_not_be_decoded_shows_nothing_of_itself(bench: Bench) -> None:
    """Neither in the log nor in the dead letter."""
    queue = Queue(bench.queue.name, bench.url, serializer="json", allow=["*"])
    payloads = [
        b"\1\4\0\0[[" + S.encode(),
        b"\1\4\0\0" + json.dumps([S]).encode(),
        b"\1\4\0\0" + json.dumps([[], {S: 1}, S]).encode(),
        S.encode(),
        b"\1\3\0\0" + S.encode(),
        b"\1\4\1\0" + S.encode(),
        b"\1\4\0\1" + S.encode(),
    ]
    first = queue.broker.reserve_ids(queue.name, len(payloads))
    messages = [Message(first + i, "tests.workers.secretive:take", each) for i, each in enumerate(payloads)]
    queue.broker.enqueue(queue.name, messages, "s" * 32, 1)
    log = burst_of_json(bench, "--log-arguments")

    dead = queue.broker.peek(queue.name, "dead", 10)
    assert len(dead) == len(payloads)
    assert log.count(" undecodable: ") == len(payloads)
    assert S not in log
    assert S not in "".join(entry.reason for entry in dead)


@only_sqlite
def test_arguments_of_a_wrong_type_are_told_by_their_place(bench: Bench) -> None:
    queue = Queue(bench.queue.name, bench.url, serializer="json", allow=["*"])
    first = queue.broker.reserve_ids(queue.name, 1)
    payload = b"\1\4\0\0" + json.dumps([["", [{"a": [1]}, {"a": [1, S]}]], {}]).encode()
    queue.broker.enqueue(queue.name, [Message(first, "tests.workers.secretive:take", payload)], "s" * 32, 1)
    log = burst_of_json(bench)

    assert re.search(r"bad arguments: tests\.workers\.secretive:take: number\[1\].*a.*\[1\]: .*, got <str>", log)
    assert S not in log
