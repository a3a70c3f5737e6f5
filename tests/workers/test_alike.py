"""Tasks whose headers are alike: what is known from the first of them changes nothing of what becomes of the others."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from delayed import PreforkedWorker, Queue, Retry, ThreadedWorker
from delayed.delay import delay, delay_with_params
from delayed.task import Task
from tests.workers import alike, tasks
from tests.workers.conftest import Bench, Ledger, wait_for

HANDLER = "tests.workers.tasks:on_error"
RETRY = Retry(1, 0, jitter=False)
VARIES = re.compile(r"\d[\d.e-]* m?s\b|\d+ MB|0x[0-9a-f]+|q-[0-9a-f]{8}")  # from run to run
LOG_HEAD = re.compile(r"^\S+ \S+ (?=[A-Z]+ )|(?<=[A-Z])\s+\d+(?= )")  # date, time and pid
DEEDS: list[tuple[Any, ...]] = [
    ("nothing",),
    ("tell",),
    ("fail",),
    ("call_wrongly",),
    ("nothing", "too", "many"),
    ("nothing", alike.Unreadable()),
    ("exit",),
    ("die",),
    ("interrupt",),
    ("retry",),
    ("hang",),
    ("hang_in_c",),
    ("return_coroutine",),
    ("print",),
    ("close",),
    ("commit",),
    ("commit_and_fail",),
]
CALLS = [(args, dict[str, Any]()) for args in DEEDS] + [(("nothing",), {"unknown": 1})]
KINDS = [PreforkedWorker, ThreadedWorker]


class Run:
    """A task that a worker has run in a child which had, or had not, run another with the same header before."""

    def __init__(
        self, folder: Path, mode: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, after: bool, **options: Any
    ) -> None:
        folder.mkdir()
        bench = Bench(f"sqlite:///{folder}/tasks.db", folder)
        try:
            if after:
                bench.put(alike.do, timeout=1, retry=RETRY)
            self.id = bench.put(alike.do, *args, kwargs=kwargs, timeout=1, retry=RETRY)
            bench.burst(mode, dead_letters=True, **options)
            lines = bench.ledger.lines
            self.ways = [line.split()[1:] for line in lines if line.startswith("way")][after:]
            self.lines = [self.clean(line) for line in lines if not line.startswith("way")]
            reasons = [entry.reason.splitlines() for entry in bench.queue.dead]
            self.letters = [(self.clean(words[0]), self.clean(words[-1])) for words in reasons]
            said = ("printed", "WARNING", "ERROR")
            lines = [line for line in bench.log().splitlines() if any(word in line for word in said)]
            self.log = [self.clean(LOG_HEAD.sub("", line)) for line in lines]
        finally:
            bench.close()

    def clean(self, line: str) -> str:
        return re.sub(rf"\b{self.id}\b", "ID", VARIES.sub("…", line))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.mark.parametrize("mode", ["preforked", "threaded"])
@pytest.mark.parametrize(("args", "kwargs"), CALLS)
def test_a_task_ends_as_it_would_without_another_before_it(
    tmp_path: Path, mode: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    alone = Run(tmp_path / "alone", mode, args, kwargs, after=False, error_handler=HANDLER)
    second = Run(tmp_path / "second", mode, args, kwargs, after=True, error_handler=HANDLER)

    assert second.lines == alone.lines
    assert second.letters == alone.letters
    assert second.log == alone.log
    assert [way[0] for way in second.ways] == [way[0] for way in alone.ways]
    if alone.ways:
        assert (alone.ways[0][1], second.ways[0][1]) == ("longer", "shorter")


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
@pytest.mark.parametrize("mode", ["preforked", "threaded"])
def test_a_copy_that_a_task_leaves_runs_nothing(bench: Bench, mode: str) -> None:
    ledger = str(bench.ledger.path)
    bench.start(mode)
    bench.queue.enqueue_many([Task.create(alike.do, (ledger,)) for _ in range(300)])  # they are quick
    wait_for(bench.settled)
    bench.queue.pause()
    deeds = ["fork", *["nothing"] * 20, "wait"]
    bench.queue.enqueue_many([Task.create(alike.do, (ledger, deed)) for deed in deeds])  # so these come together
    bench.queue.resume()
    wait_for(bench.settled)

    assert bench.ledger.lines[300:] == [f"way {deed} shorter" for deed in deeds] + ["the copy has gone"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_for_beside_the_call_is_done_for_each(tmp_path: Path, ledger: Ledger, kind: Any) -> None:
    handled = Queue("handled", f"sqlite:///{tmp_path}/tasks.db")
    kept = Queue("kept", f"sqlite:///{tmp_path}/tasks.db")
    path = str(ledger.path)
    for _ in range(3):
        handled.enqueue(Task.create(tasks.mark, (path,)))
    handles = [delay_with_params(kept)(keep=60)(sum)([1, number]) for number in range(3)]

    kind(handled, burst=True, success_handler="tests.workers.tasks:on_success").run()
    kind(kept, burst=True).run()

    assert len(ledger.find("success")) == 3
    assert [handle.result(timeout=0) for handle in handles] == [1, 2, 3]
    handled.broker.close()
    kept.broker.close()


@pytest.mark.parametrize("kind", KINDS)
def test_each_queue_has_rules_of_its_own(tmp_path: Path, ledger: Ledger, kind: Any) -> None:
    url = f"sqlite:///{tmp_path}/tasks.db"
    trusting = Queue("trusting", url)
    typed = Queue("typed", url, serializer="json", allow=["tests.workers.alike.*"])
    strict = Queue("strict", url, serializer="json", allow=["tests.workers.tasks.*"], dead_letters=True)
    sealed = Queue("sealed", url, secret="a secret of sixteen bytes", dead_letters=True)
    path = str(ledger.path)
    told = datetime(2026, 1, 1)
    for number in range(3):
        for queue in (trusting, typed):
            delay(queue)(alike.note_time)(path, number, told)
        for queue in (strict, sealed):
            forged = Queue(queue.name, url, serializer=queue.codec.serializer.name, secret=[], allow=["*"])
            delay(forged)(alike.note_time)(path, number, told)
            forged.broker.close()

    queues = [trusting, typed, strict, sealed]
    kind(trusting, queues=queues[1:], burst=True, **({"threads": 1} if kind is ThreadedWorker else {})).run()

    assert sorted(ledger.lines) == sorted([f"time {number} {told!r}" for number in range(3)] * 2)
    assert [len(queue.dead) for queue in queues] == [0, 0, 3, 3]
    for queue in queues:
        queue.broker.close()
