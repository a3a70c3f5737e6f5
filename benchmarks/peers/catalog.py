"""Who is measured, and in which ways."""

from __future__ import annotations

from typing import NamedTuple

WAYS = {
    "one": "one process",
    "two": "two cores",
    "forked": "a fork for each task, one worker",
    "forked two": "a fork for each task, two cores",
    "threads": "one process, threads",
    "coroutines": "one process, coroutines",
}


class Peer(NamedTuple):
    """One subject.

    Attributes:
        module: the file here that knows it.
        requirements: what pip installs into its environment; empty: it runs in this one.
        store: on what it runs: `redis`, `sqlite`, `postgres` or `mongodb`.
        idle: the ways in which its idle worker is measured.
    """

    name: str
    module: str
    requirements: tuple[str, ...]
    store: str = "redis"
    idle: tuple[str, ...] = ("one",)

    @property
    def ours(self) -> bool:
        """Whether it is this library, on whatever store."""
        return self.module == "delayed"


OURS, OURS_ON_SQLITE, OURS_ON_POSTGRES, OURS_ON_MONGODB = (
    "delayed",
    "delayed-sqlite",
    "delayed-postgres",
    "delayed-mongodb",
)
PEERS = {
    peer.name: peer
    for peer in (
        Peer(OURS, "delayed", (), idle=("one", "forked")),
        Peer("rq", "rq", ("rq",), idle=("one", "forked")),
        Peer("celery", "celery", ("celery[redis]",)),
        Peer("dramatiq", "dramatiq", ("dramatiq[redis]",)),
        Peer("huey", "huey", ("huey", "redis")),
        Peer("taskiq", "taskiq", ("taskiq", "taskiq-redis")),
        Peer("arq", "arq", ("arq",)),
        # It imports typing_extensions without asking for it.
        Peer("saq", "saq", ("saq[redis]", "typing-extensions")),
        Peer("sergeant", "sergeant", ("sergeant",)),
        Peer(OURS_ON_SQLITE, "delayed", (), "sqlite", idle=()),
        Peer("huey-sqlite", "huey_sqlite", ("huey",), "sqlite", idle=()),
        Peer(OURS_ON_POSTGRES, "delayed", (), "postgres"),
        Peer("procrastinate", "procrastinate", ("procrastinate", "psycopg[binary]"), "postgres"),
        Peer("pgqueuer", "pgqueuer", ("pgqueuer[asyncpg]", "uvloop"), "postgres"),
        Peer(OURS_ON_MONGODB, "delayed", (), "mongodb", idle=()),
    )
}
