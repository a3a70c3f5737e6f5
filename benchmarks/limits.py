"""What the machine can do at most, by the simplest program that does it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

_FORK_LOOP = """
import os, time
start = time.perf_counter()
for _ in range({n}):
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
print({n} / (time.perf_counter() - start))
"""


def forks(n: int = 2000) -> float:
    """Forks a second of a bare loop of fork, _exit and waitpid in an interpreter that has loaded nothing."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _FORK_LOOP.format(n=n)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def pings(url: str, n: int = 5000) -> float:
    """PING round trips a second of redis-py from one process."""
    import redis

    with redis.Redis.from_url(url) as client:
        client.ping()
        start = time.perf_counter()
        for _ in range(n):
            client.ping()
        return n / (time.perf_counter() - start)


def ping_after(url: str, pause: float, n: int = 200) -> float:
    """Median seconds of one PING after `pause` seconds in which the machine did nothing."""
    import redis

    times = []
    with redis.Redis.from_url(url) as client:
        client.ping()
        for _ in range(n):
            time.sleep(pause)
            start = time.perf_counter()
            client.ping()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def sleeping_threads(many: int, seconds: float) -> dict[str, float]:
    """Seconds until the last of so many calls that sleep has ended, each in a thread of a bare ThreadPoolExecutor:
    while those are started (`cold`), and when all are there (`warm`).
    """
    from concurrent.futures import ThreadPoolExecutor

    def sleep(_: int) -> tuple[float, float]:
        begun = time.monotonic()
        time.sleep(seconds)
        return begun, time.monotonic()

    found = {}
    with ThreadPoolExecutor(many) as pool:
        for way in ("cold", "warm"):
            begins, ends = zip(*pool.map(sleep, range(many)), strict=True)
            found[way] = max(ends) - min(begins)
            time.sleep(seconds)  # until all wait for more
    return found


def pipelined(url: str, n: int = 50_000, batch: int = 1000) -> float:
    """PINGs a second of redis-py from one process, so many in one round trip."""
    import redis

    with redis.Redis.from_url(url) as client:
        client.ping()
        start = time.perf_counter()
        for _ in range(n // batch):
            pipe = client.pipeline(transaction=False)
            for _ in range(batch):
                pipe.ping()
            pipe.execute()
        return n // batch * batch / (time.perf_counter() - start)


def selects(url: str, n: int = 2000) -> float:
    """Round trips of ``SELECT 1`` a second of psycopg from one process."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SELECT 1").fetchall()
        start = time.perf_counter()
        for _ in range(n):
            conn.execute("SELECT 1").fetchall()
        return n / (time.perf_counter() - start)


def mongo_claims(url: str, n: int = 1000) -> float:
    """Claims a second by one ``find_one_and_update`` for each, as durable as this library's, from one process."""
    import pymongo
    from pymongo.write_concern import WriteConcern

    with pymongo.MongoClient[dict[str, object]](url) as client:
        concern = WriteConcern(w="majority", j=True)
        tasks = client.get_default_database().get_collection("claims", write_concern=concern)
        tasks.create_index([("state", 1), ("_id", 1)])
        tasks.insert_many([{"_id": number, "state": "ready"} for number in range(n + 1)])
        claim = {"$set": {"state": "running"}, "$inc": {"deliveries": 1}}
        tasks.find_one_and_update({"state": "ready"}, claim, sort=[("_id", 1)])
        start = time.perf_counter()
        for _ in range(n):
            tasks.find_one_and_update({"state": "ready"}, claim, sort=[("_id", 1)])
        return n / (time.perf_counter() - start)


_ECHO = """
import os
while data := os.read(0, 1):
    os.write(1, data)
"""


def pipe_trips(n: int = 10_000) -> float:
    """Round trips a second of one byte through two pipes, to another process and back."""
    command = [sys.executable, "-I", "-S", "-c", _ECHO]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as echo:
        assert echo.stdin and echo.stdout
        there, back = echo.stdin.fileno(), echo.stdout.fileno()
        os.write(there, b".")
        os.read(back, 1)
        start = time.perf_counter()
        for _ in range(n):
            os.write(there, b".")
            os.read(back, 1)
        taken = time.perf_counter() - start
    return n / taken


def writes(n: int = 100_000) -> float:
    """Bytes that are appended to an open file one by one, a second."""
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        fd = os.open(file.name, os.O_WRONLY | os.O_APPEND)
        start = time.perf_counter()
        for _ in range(n):
            os.write(fd, b".")
        taken = time.perf_counter() - start
        os.close(fd)
    return n / taken


def calls(n: int = 1_000_000) -> float:
    """Calls a second of a function that does nothing."""

    def nothing() -> None:
        pass

    start = time.perf_counter()
    for _ in range(n):
        nothing()
    return n / (time.perf_counter() - start)
