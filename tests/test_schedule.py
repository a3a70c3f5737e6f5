"""Periodic tasks: when they are due, and that each time comes once, however many schedulers there are."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from delayed import BrokerUnavailable, ConfigError, MissingDependency, NotEnqueueable, Queue, Scheduler, delayed
from delayed.brokers.memory import MemoryBroker
from delayed.delay import Call
from delayed.options import Options
from delayed.ticks import Cron, Every, ticks_of
from tests import functions
from tests.workers.conftest import wait_for

ROME = ZoneInfo("Europe/Rome")


def at(text: str, zone: Any = dt.UTC, fold: int = 0) -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


def following(rule: Any, begin: float, number: int) -> list[str]:
    found = []
    for _ in range(number):
        begin = rule.after(begin)
        found.append(dt.datetime.fromtimestamp(begin, ROME).strftime("%d %H:%M %Z"))
    return found


# -- rules ---------------------------------------------------------------------------------------------------------


def test_periods_are_counted_alike_by_everybody() -> None:
    rule = Every("5m")

    assert rule.after(at("2026-11-21T10:00:00")) == at("2026-11-21T10:05:00")
    assert rule.after(at("2026-11-21T10:04:59.999")) == at("2026-11-21T10:05:00")
    assert rule.last(at("2026-11-21T10:00:00"), at("2026-11-21T10:04:59")) is None
    assert rule.last(at("2026-11-21T09:59:59"), at("2026-11-21T10:04:59")) == at("2026-11-21T10:00:00")
    tenths = Every(0.1)
    ticks = [1e9]
    for _ in range(1000):
        ticks.append(tenths.after(ticks[-1]))
    assert ticks[-1] == 1e9 + 100, "nothing adds up to an error"


def test_clocks_that_are_put_forward_and_back() -> None:
    nightly = Cron("30 2 * * *", "Europe/Rome")
    assert following(nightly, at("2026-03-28T12:00", ROME), 2) == ["29 03:00 CEST", "30 02:30 CEST"]
    assert following(nightly, at("2026-10-24T12:00", ROME), 2) == ["25 02:30 CEST", "26 02:30 CET"]
    assert following(nightly, at("2026-10-25T02:10", ROME, fold=1), 1) == ["26 02:30 CET"]
    often = Cron("*/30 * * * *", "Europe/Rome")
    assert following(often, at("2026-10-25T01:30", ROME), 5) == [
        "25 02:00 CEST", "25 02:30 CEST", "25 02:00 CET", "25 02:30 CET", "25 03:00 CET",
    ]  # fmt: skip
    assert following(often, at("2026-03-29T01:00", ROME), 3) == ["29 01:30 CET", "29 03:00 CEST", "29 03:30 CEST"]


def test_the_last_tick_of_a_cron() -> None:
    rule = ticks_of({"cron": "*/10 * * * *"})

    assert rule.last(at("2026-11-21T10:00"), at("2026-11-21T10:25")) == at("2026-11-21T10:20")
    assert rule.last(at("2026-11-21T10:21"), at("2026-11-21T10:25")) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "give a period or an expression of cron"),
        ({"period": "5m", "cron": "* * * * *"}, "give a period or an expression of cron"),
        ({"period": "often"}, "every must be a duration"),
        ({"period": 0.01}, "every must be a duration from 0.1 s"),
        ({"cron": "* * *"}, "no expression of cron: .*one is for example"),
        ({"cron": "0 0 30 2 *"}, "no expression of cron|never comes"),
        ({"cron": "* * * * *", "tz": "Mars/Olympus"}, "no time zone 'Mars/Olympus'"),
        ({"period": "5m", "tz": "UTC"}, "tz goes with cron"),
        ({"period": "5m", "late": "2h"}, "late may be half an hour at most, not 7200 s"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(settings: dict[str, Any], words: str) -> None:
    period = settings.pop("period", None)
    with pytest.raises(ConfigError, match=words):
        delayed(Queue("q", "memory://")).every(period, **settings)


def test_without_cronsim_periods_work_and_cron_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    delayed(Queue("q", "memory://")).every("5m")

    with pytest.raises(MissingDependency, match=r"pip install 'delayed\[cron\]'"):
        delayed(Queue("q", "memory://")).every(cron="* * * * *")


def test_a_function_that_needs_arguments_is_refused() -> None:
    store = Queue("q", "memory://")
    store.add_schedule(lambda: Call(functions.add, store, Options()).schedule({"every": 5}, 1))

    with pytest.raises(ConfigError, match=r"can have no arguments: add\(.* missing .*'a'"):
        store.schedules()


# -- scheduling ----------------------------------------------------------------------------------------------------

queue = Queue("periodic", "memory://schedules")


@delayed(queue, retry=2, timeout=5).every(0.2)
def look() -> None: ...


class Lost:
    @delayed(queue).every("1h")
    @staticmethod
    def look() -> None: ...


def drain(queue: Queue) -> list[str]:
    keys = []
    while (task := queue.dequeue()) is not None:
        assert task.key is not None
        keys.append(task.key)
        queue.release(task)
    return keys


def run_for(seconds: float, *schedulers: Scheduler) -> None:
    threads = [threading.Thread(target=each.run) for each in schedulers]
    for thread in threads:
        thread.start()
    time.sleep(seconds)  # what is tested is what happens in a time
    for each in schedulers:
        each.stop()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def ticks_in(keys: list[str], name: str) -> list[float]:
    moments = [key.removeprefix(name + "@") for key in keys if key.startswith(name)]
    return sorted(dt.datetime.fromisoformat(each).timestamp() for each in moments)


def test_each_tick_comes_once_from_many_schedulers() -> None:
    queue.broker.purge("periodic")
    queue.broker.reserve_ids("periodic", 600_000 << 11)  # ids that are ahead of the clock change nothing
    began = time.time()

    run_for(2.5, *(Scheduler(queue) for _ in range(4)))

    ended = time.time()
    keys = drain(queue)
    assert len(keys) == len(set(keys))
    ticks = ticks_in(keys, "tests.test_schedule:look")
    gaps = {round(later - tick, 3) for tick, later in itertools.pairwise(ticks)}
    assert gaps == {0.2}, "none is missing"
    assert began - 0.5 < ticks[0] < began + 0.5 and ended - 0.6 < ticks[-1] <= ended + 0.1
    assert len(ticks_in(keys, "tests.test_schedule:Lost.look")) <= 1


@pytest.mark.parametrize("store", ["sqlite", "redis", "postgres", "mongo"])
def test_each_tick_comes_once_from_many_processes(store: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tasks.db" if store == "sqlite" else request.getfixturevalue(f"{store}_url")
    if store == "mongo":
        url = url.rstrip("/") + f"/schedules_{os.getpid()}"
    name = f"periodic-{os.getpid()}-{store}"
    code = f"""
import threading, sys
from delayed import Queue, Scheduler, delayed
queue = Queue({name!r}, {url!r})
@delayed(queue).every(0.1)
def look(): ...
look.__module__ = "app"
sys.modules["app"] = sys.modules["__main__"]
scheduler = Scheduler(queue)
threading.Timer(4.0, scheduler.stop).start()
scheduler.run()
"""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    for process in processes:
        assert process.wait(40) == 0

    found = Queue(name, url)
    messages = [entry.message for state in ("ready", "scheduled") for entry in found.broker.peek(name, state, 1000)]
    keys = [message.key or "" for message in messages]
    found.broker.purge(name)
    found.broker.close()
    assert len(keys) == len(set(keys)) and len(keys) >= 10
    ticks = ticks_in(keys, "app:look")
    assert {round(later - tick, 3) for tick, later in itertools.pairwise(ticks)} == {0.1}


def test_what_was_missed_comes_once_if_it_is_not_too_old() -> None:
    store = Queue("late", "memory://late")
    missed, forgotten = every_hour(store, late=1800), every_hour(store, late=0.001)
    minutes = time.time() % 3600 / 60
    run_for(0.3, Scheduler(store))

    keys = drain(store)
    assert (len(keys) == 1) == (minutes < 30), keys
    run_for(0.3, Scheduler(store))
    assert drain(store) == [], "another scheduler does not make up for it again"
    assert missed is not forgotten


def every_hour(store: Queue, late: float) -> Any:
    call: Call[...] = Call(functions.echo if late > 1 else functions.raise_type_error, store, Options())
    store.add_schedule(lambda: call.schedule({"every": 3600}, late))
    return call


class Broken(MemoryBroker):
    """A store that can't be reached at first."""

    failures = 3

    def clock(self, queue: str) -> float:
        if self.failures:
            self.failures -= 1
            raise BrokerUnavailable("not yet")
        return super().clock(queue)


def test_a_store_that_is_away_is_waited_for() -> None:
    store = Queue("away", Broken("memory://away"))

    @delayed(store).every(0.1)
    def tick() -> None: ...

    with pytest.raises(NotEnqueueable, match="made inside a function"):
        Scheduler(store).run()
    store._schedules.clear()
    store.add_schedule(lambda: look_schedule(store))
    run_for(2.0, Scheduler(store))
    assert len(drain(store)) > 5


class SetBack(MemoryBroker):
    """A store whose clock is an hour fast, until it is set right."""

    fast = 3600.0

    def _milliseconds(self) -> int:
        return super()._milliseconds() + int(self.fast * 1000)


def test_a_clock_that_is_set_back_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delayed.scheduler.LOOK", 0.1)
    broker = SetBack("memory://set-back")
    store = Queue("set-back", broker)
    store.add_schedule(lambda: look_schedule(store))
    scheduler = Scheduler(store)
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    wait_for(lambda: enqueued_ticks(store))
    began = enqueued_ticks(store)[0]
    broker.fast = 0.0

    wait_for(lambda: enqueued_ticks(store)[0] < began - 3000)

    scheduler.stop()
    thread.join(5)
    assert not thread.is_alive()


def enqueued_ticks(store: Queue) -> list[float]:
    entries = store.broker.peek(store.name, "ready", 1000)
    return ticks_in([entry.message.key or "" for entry in entries], "tests.test_schedule:look")


def look_schedule(store: Queue) -> Any:
    return Call(look, store, Options()).schedule({"every": 0.1}, 1)


def test_a_schedule_travels_with_its_queue_and_not_with_a_pickle() -> None:
    import pickle

    sealed = Queue("sealed-schedules", "sqlite:///nowhere.db", secret="a secret that is long enough", serializer="json")
    delayed(sealed).every("1h")(hourly)

    spec = json.loads(json.dumps(sealed.spec()))
    (schedule,) = Queue.from_spec(spec).declared_schedules()
    assert (schedule.name, schedule.rule) == ("tests.test_schedule:hourly", {"every": 3600.0})
    message = schedule.message(5, at("2026-11-21T10:00"), sealed.codec, 5.0)
    assert message.key == "tests.test_schedule:hourly@2026-11-21T10:00:00.000Z"
    assert sealed.codec.open(message, message.header()).payload[:4] == b"\1\4\0\0"
    assert pickle.loads(pickle.dumps(sealed)).declared_schedules() == []


def hourly() -> None: ...


# -- in a worker ---------------------------------------------------------------------------------------------------

APP = """
import sys
from delayed import Queue, delayed

queue = Queue("letters")

@delayed(queue).every(0.3)
def look() -> None:
    with open("ledger", "a") as file:
        file.write("look\\n")

@delayed(queue).every(cron="0 3 * * *", tz="Europe/Rome")
def tidy() -> None: ...

def note(*words: str) -> None:
    with open("ledger", "a") as file:
        print("noted", *words, file=file)

class Post:
    @classmethod
    @delayed(queue, timeout=5).every("1d")
    def empty(cls) -> None: ...
"""


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]])
def test_workers_of_a_module_enqueue_its_periodic_tasks(workers: list[str], tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    environ = {**os.environ, "DELAYED_URL": f"sqlite:///{tmp_path}/tasks.db", "COLUMNS": "160"}
    command = [sys.executable, "-m", "delayed"]
    shown = subprocess.run(
        [*command, "schedule", "app"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    (head, first, *rest) = shown.stdout.splitlines()
    assert head.split() == ["next", "in", "rule", "function", "queue"]
    assert "every 0:00:00.300000" in first and len(rest) == 2 and "0 3 * * * Europe/Rome" in shown.stdout

    code = "import app; app.queue.schedule('notes', app.note, 'this', every=0.2)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, check=True, timeout=30)
    worker = subprocess.Popen([*command, "worker", "app", "--mode", "preforked", *workers], cwd=tmp_path, env=environ)
    deadline = time.monotonic() + 20
    ledger = tmp_path / "ledger"
    while not (ledger.exists() and all(ledger.read_text().count(word) >= 4 for word in ("look", "noted this"))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker.terminate()
    assert worker.wait(20) == 0


def test_a_module_without_periodic_tasks_is_told(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("from delayed import Queue\nqueue = Queue('q')\n")
    done = subprocess.run(
        [sys.executable, "-m", "delayed", "schedule", "app"], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (
        0,
        "app has no periodic tasks; @delayed(queue).every('5m') makes one, and so does queue.schedule()\n",
    )


def test_what_is_scheduled_in_a_queue_is_shown(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    environ = {**os.environ, "DELAYED_URL": f"sqlite:///{tmp_path}/tasks.db", "COLUMNS": "160"}
    stored = Queue("letters", environ["DELAYED_URL"])
    stored.schedule("tenant [/b]", functions.add, 1, cron="0 3 * * *")
    stored.broker.put_key("letters", "schedule:odd", b"odd")
    stored.broker.close()

    def shown(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "delayed", "schedule", *words]
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30)

    table, listed, nothing = shown("app"), shown("--queue", "letters", "--json"), shown()

    head, *rows = table.stdout.splitlines()
    assert head.split() == ["next", "in", "rule", "name", "function", "queue"] and len(rows) == 4
    assert [row for row in rows if "tenant [/b]" in row and "0 3 * * * UTC" in row and "tests.functions:add" in row]
    assert "the schedule 'odd' of letters is not kept: the stored schedule is not whole" in table.stderr
    (one,) = json.loads(listed.stdout)
    assert (one["name"], one["function"], one["queue"]) == ("tenant [/b]", "tests.functions:add", "letters")
    assert nothing.returncode == 2 and "name a module, or queues with --queue" in nothing.stderr
