"""What the machine can do at most, by the simplest program that does it."""

from __future__ import annotations

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
