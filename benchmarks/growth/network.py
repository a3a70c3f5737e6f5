"""What two more milliseconds to the store cost: a drain through a proxy that adds them, and one that adds none."""

from __future__ import annotations

from benchmarks.limits import pings
from benchmarks.peers import measures
from benchmarks.peers.stands import Stand
from benchmarks.proxy import delaying

ADDED = 0.002  # seconds to a round trip
WHO = ("delayed", "taskiq", "dramatiq")
WAYS = {"near": 0.0, "far": ADDED}


def trip(stand: Stand, added: float) -> float:
    """Seconds of a round trip through the proxy."""
    with delaying(stand.url, added / 2) as url:
        return 1 / pings(url, 200)


def drain(subject: measures.Subject, added: float, tasks: int) -> float:
    """Tasks a second by one process, of a queue that was filled directly."""
    with measures.site(subject, "one") as place, delaying(place.url, added / 2) as url:
        place.client("fill", "count", tasks, 0)
        place.move(url)
        return place.drained(tasks)
