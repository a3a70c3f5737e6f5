"""The store goes away while a worker works, and comes back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from delayed.message import Entry
from delayed.task import Task
from tests.servers.mongo import MongoServer, mongo_server
from tests.servers.postgres import PostgresServer, postgres_server
from tests.servers.redis import RedisServer, redis_server
from tests.workers import tasks
from tests.workers.conftest import Bench, alive, wait_for

Server = RedisServer | PostgresServer | MongoServer
SERVERS = {
    "redis": lambda: redis_server(aof=True),
    "postgres": lambda: postgres_server(durable=True),
    "mongodb": mongo_server,
}
only_redis = pytest.mark.parametrize("server", ["redis"], indirect=True)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with SERVERS[request.param]() as server:
        yield server


@pytest.fixture
def bench(server: Server, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(server.url, tmp_path)
    yield bench
    server.kill()  # before the workers are stopped: they then leave without it
    bench.close()


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ran_once(bench: Bench, total: int) -> bool:
    assert sorted(map(int, bench.ledger.lines)) == list(range(total))
    return True


def test_a_restart_of_the_store_is_a_pause(bench: Bench, server: Server, mode: str) -> None:
    total = 200 if mode == "forked" else 1000
    for number in range(total):
        bench.put(tasks.mark, number)
    worker = bench.start(mode, processes=2)
    for part in (0.2, 0.5):
        wait_for(lambda part=part: len(bench.ledger.lines) > total * part)
        server.kill()
        server.start()

    wait_for(bench.settled, 40.0)

    assert ran_once(bench, total)
    assert worker.poll() is None


def test_a_task_that_ends_while_the_store_is_away_is_settled_later(bench: Bench, server: Server, mode: str) -> None:
    bench.put(tasks.nap, "long", 0.5)
    bench.start(mode)
    wait_for(lambda: bench.ledger.find("begin"))
    server.kill()
    wait_for(lambda: bench.ledger.find("end"))
    wait_for(lambda: "can't reach" in bench.log())
    server.start()

    wait_for(bench.settled)

    assert len(bench.ledger.find("begin")) == 1


def test_a_stand_in_waits_for_the_store(bench: Bench, server: Server, mode: str) -> None:
    bench.put(tasks.nap, "long", 0.5)
    worker = bench.start(mode)
    wait_for(lambda: bench.ledger.find("begin"))
    (stand_in,) = (int(pid) for pid in Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split())
    server.kill()
    worker.kill()
    wait_for(lambda: bench.ledger.find("end"))
    server.start()

    wait_for(lambda: not alive(stand_in))

    assert bench.settled()
    assert len(bench.ledger.find("begin")) == 1


@only_redis
@pytest.mark.parametrize("who", ["the monitor", "the stand-in"])
def test_what_is_exclusive_ends_before_another_may_begin_it(bench: Bench, server: Server, who: str) -> None:
    bench.put(tasks.nap, "exclusive", 8.0, exclusive=True)
    bench.put(tasks.nap, "other", 3.0)
    worker = bench.start("preforked", processes=2)
    wait_for(lambda: len(bench.ledger.find("begin")) == 2)
    pid = next(int(line.split()[1]) for line in bench.ledger.find("begin") if line.startswith("exclusive"))

    server.kill()
    if who == "the stand-in":
        worker.kill()
    down = time.monotonic()
    wait_for(lambda: not alive(pid))
    assert 0.8 < time.monotonic() - down < 3.0, "the lease is 3 s, and was renewed a second ago at most"
    wait_for(lambda: bench.ledger.find("end"))
    server.start()

    wait_for(lambda: bench.queue.broker.counts(bench.queue.name)[1:3] in ((1, 0), (0, 1)))
    assert bench.ledger.find("end") == ["other"]
    (entry,) = wait_for(lambda: bench.queue.broker.peek(bench.queue.name, "ready") or _running(bench))
    assert entry.attempt == (entry.state == "running"), "the run that was stopped is not charged"


def _running(bench: Bench) -> list[Entry]:
    """Those that were begun again."""
    return [entry for entry in bench.queue.broker.peek(bench.queue.name, "running") if entry.delivery > 1]


@pytest.mark.parametrize("server", ["postgres"], indirect=True)
def test_sessions_that_are_ended_go_unnoticed(bench: Bench, server: PostgresServer) -> None:
    total = 3000
    bench.queue.enqueue_many([Task.create(tasks.mark, (str(bench.ledger.path), number)) for number in range(total)])
    bench.start("preforked")
    with psycopg.connect(server.url, autocommit=True) as conn:
        for part in (0.0, 0.1, 0.3, 0.5, 0.7):
            wait_for(lambda part=part: len(bench.ledger.lines) > total * part)
            wait_for(  # right after the last time there are none
                lambda: conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'delayed'"
                ).fetchall()
            )

    wait_for(bench.settled)

    assert ran_once(bench, total)


@only_redis
def test_scripts_and_connections_that_vanish_go_unnoticed(bench: Bench, server: RedisServer) -> None:
    total = 1000
    for number in range(total):
        bench.put(tasks.mark, number)
    bench.start("preforked")
    with redis.Redis.from_url(server.url) as client:
        answer: Any = client.client_id()
        for part in (0.1, 0.3, 0.5):
            wait_for(lambda part=part: len(bench.ledger.lines) > total * part)
            client.script_flush()
            for each in client.client_list():
                if int(each["id"]) != answer:
                    client.client_kill_filter(_id=each["id"])

    wait_for(bench.settled)

    assert ran_once(bench, total)


def test_a_worker_can_be_stopped_while_the_store_is_away(bench: Bench, server: Server) -> None:
    bench.put(tasks.mark, "x")
    worker = bench.start("preforked")
    wait_for(bench.settled)
    server.kill()

    worker.terminate()

    assert worker.wait(20) == 0


def test_a_worker_that_is_refused_says_so_once(tmp_path: Path) -> None:
    """It goes on trying: whoever has changed the password on the server changes it back."""
    with redis_server("--requirepass", "right") as server, redis.Redis(port=server.port, password="right") as client:
        bench = Bench(server.url.replace("//", "//:wrong@"), tmp_path)
        worker = bench.start()

        def attempts() -> int:
            stats: Any = client.info("stats")
            return int(stats["total_connections_received"])

        before = attempts()
        wait_for(lambda: attempts() > before + 5)

        assert bench.log().count("can't reach") == 1
        assert worker.poll() is None
        client.config_set("requirepass", "wrong")
        wait_for(lambda: bench.log().count("reaches") == 1)
        bench.close()


@only_redis
def test_after_a_stall_tasks_are_taken_by_the_dozen_again(bench: Bench, server: RedisServer) -> None:
    def put(count: int) -> None:
        bench.queue.enqueue_many([Task.create(tasks.mark, (bench.ledger.path, "x")) for _ in range(count)])

    put(20_000)
    bench.start("preforked", processes=1, lease=15.0)
    with redis.Redis.from_url(server.url) as client:

        def calls() -> int:
            stats: Any = client.info("commandstats")
            return int(stats["cmdstat_evalsha"]["calls"])

        wait_for(lambda: len(bench.ledger.lines) > 500)
        client.client_pause(4000, all=True)
        assert len(bench.ledger.lines) < 20_000
        wait_for(lambda: len(bench.ledger.lines) == 20_000)
        put(4000)
        before = calls()
        wait_for(lambda: len(bench.ledger.lines) == 24_000)

        assert calls() - before < 300, "dozens of tasks in each, and a few for chores"


@only_redis
@pytest.mark.parametrize("paused", [False, True])
def test_an_idle_worker_costs_next_to_nothing(bench: Bench, server: RedisServer, paused: bool) -> None:
    bench.put(tasks.mark, "x")
    worker = bench.start("preforked", lease=15.0)
    wait_for(bench.settled)
    if paused:
        bench.queue.pause()
        bench.put(tasks.mark, "y")  # which nobody may claim, nor ask for again and again
        bench.put(tasks.mark, "z", delay=0.1)
    with redis.Redis.from_url(server.url) as client:

        def sent() -> int:
            stats: Any = client.info("commandstats")  # what scripts call inside counts there too, under other names
            names = ("blpop", "evalsha", "eval", "client|unblock")
            return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names)

        start, cpu, commands = time.monotonic(), cpu_seconds(worker.pid), sent()
        time.sleep(10.0)  # the interval that is measured
        seconds = time.monotonic() - start
        commands = sent() - commands

    assert commands / seconds <= 2.0
    assert (cpu_seconds(worker.pid) - cpu) / seconds < 0.02  # well under 1 %; the clock ticks are coarse
