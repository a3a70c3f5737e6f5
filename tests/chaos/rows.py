"""The rows of the published matrix: what is done to whom. A *kill row* is random chaos with a few kinds of faults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.chaos.chaos import Plan
from tests.chaos.house import KINDS
from tests.chaos.nemesis import KILLS, RESTARTS
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.stores import STORES

BOTH = ("forked", "preforked")
EARLIER = "2ad3d33"  # some sixty changes ago: there is no release in this format yet
DRIVERS = {
    "sqlite": ("delayed.brokers.sqlite",),
    "postgres": ("delayed.brokers.postgres",),
    "mongodb": ("delayed.brokers.mongo",),
}


@dataclass(frozen=True)
class Size:
    """How much of it.

    Attributes:
        tasks: at least so many, of a kill row.
        kills: faults of a kill row.
        pace: by how much slower than on a machine that has nothing else to do.
        lease: of the workers in kill rows, seconds.
        slack: see :meth:`Arena.judge`.
    """

    tasks: int = 10_000
    kills: int = 200
    pace: float = 1.0
    lease: float = 15.0
    slack: float = 8.0


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        id: by which it is called.
        words: what is done.
        kinds: of workers that it is played with.
        stores: on which.
        faults: those that are done; none in a row of scenarios.
        seconds: how long harm is done, so that workers have the time to do their work in between.
        calm: whether nothing may run again in it, but what raised.
        settings: what else of the :class:`Plan` is its own.
        scenarios: by name, instead of chaos.
        tasks: how many of a scenario, about; 0: as many as it has by itself.
        earlier: the commit that every second process runs; "": all run this one.
    """

    id: str
    words: str
    kinds: tuple[str, ...] = BOTH
    stores: tuple[str, ...] = tuple(STORES)
    faults: tuple[str, ...] = ()
    seconds: float = 60.0
    calm: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    scenarios: tuple[str, ...] = ()
    tasks: int = 0
    earlier: str = ""

    def plan(self, store: str, kind: str, seed: int, size: Size, other: str = "") -> Plan:
        """What is to happen in a trial of it; `other`: where the earlier version is."""
        settings = {"mix": "quick", "busy": True, "processes": 4, "backlog": 16, **self.settings}
        if settings["mix"] == "effects":
            settings["preload"] = DRIVERS[store]
        return Plan(
            store,
            kind,
            seconds=self.seconds * size.pace,
            tasks=size.tasks,
            kills=size.kills,
            seed=seed,
            lease=size.lease,
            faults=self.faults,
            slack=size.slack,
            other=other,
            **settings,
        )


ALL = tuple(KINDS)
MANY = tuple(kind for kind in ALL if kind not in BOTH)  # whose children run several tasks at once
SUPERVISED = ("supervisor", "supervisor", "sweeper")

KILL_ROWS = (
    Row("K1", "kill a child", ALL, faults=("kill child",), seconds=50.0),
    Row("K2", "kill a monitor", ALL, faults=("kill monitor",), seconds=100.0, calm=True),
    Row("K3", "kill a fork server", ALL, faults=("kill fork server",), seconds=80.0, calm=True),
    Row(
        "K4",
        "kill monitor and fork server of a supervised worker",
        ALL,
        faults=("kill both",),
        seconds=100.0,
        settings={"houses": SUPERVISED},
    ),
    Row("K5", "kill a supervisor, a sweeper", faults=("kill supervisor", "kill sweeper"), seconds=100.0, calm=True),
    Row("K6", "kill a producer", faults=("kill producer",), seconds=60.0, calm=True),
    Row("X", "any kill, stop and freeze, and restarts of the store", seconds=120.0, settings={"busy": False}),
    Row(
        "T19",
        "any kill, and restarts of the store, while every task has a transaction",
        ("preforked", "forked"),
        ("sqlite", "postgres", "mongodb"),
        (*KILLS, *RESTARTS),
        100.0,
        settings={"mix": "effects"},
    ),
    Row(
        "U",
        "any kill, while every second process runs an earlier version",
        faults=KILLS,
        seconds=100.0,
        earlier=EARLIER,
    ),
)

WORDS = {
    "K7": "a host is lost: the first process of a PID namespace is killed, and all in it die with it",
    "K8": "all processes of a worker are killed in the same instant, and it has no supervisor",
    "K9": "both guardians are killed while their child is in C code and holds the GIL",
    "N1": "connections are reset",
    "N2": "replies to enqueues are lost",
    "N3": "requests, and replies to claims, settlements, renewals and sweeps are lost",
    "N4": "replies to claims come late",
    "N5": "a worker is cut off, for less than its lease and for longer",
    "N6": "the network is slow",
    "N7": "a worker is heard by the store, and hears nothing",
    "Z1": "a whole worker stands still",
    "Z2": "a monitor stands still",
    "Z3": "a child stands still",
    "Z4": "a fork server stands still",
    "Z5": "the store stands still, for less than a lease and for longer",
    "B1": "the store is killed again and again",
    "B3": "the store is away, for less than a lease and for longer",
    "B4": "sessions end, writes are refused, the primary steps down",
    "R1": "scripts are forgotten, connections end, the server pauses",
    "R2": "memory is full while producers press",
    "R3": "a server refuses: busy, read-only, no snapshots, no permission",
    "B2": "a Redis that keeps nothing on its disk is killed",
    "B5": "a replica that lacks the last half second is promoted",
    "G1": "workers are replaced one after the other, and wait for a part of what they run",
    "C3": "a cgroup is frozen in which a whole worker is",
    "C1": "the clock of a worker jumps by hours and years",
    "C2": "the clock of the store goes forward by an hour, and back",
    "T2": "tasks hang, in Python and in C, among others that do not",
    "T10": "tasks hang that hold up the event loop, or the GIL, of others",
    "M1": "ten thousand claims end at once behind a hundred thousand tasks",
    "S1": "the disk is full, and then has no block left",
    "S2": "somebody reads for long while sixteen processes write; writes and syncs of a worker fail",
}  # what is done in a row of scenarios
KINDS_OF = {
    "Z1": ALL,
    "M1": ("preforked",),
    "T2": ALL,
    "T10": MANY,
    "K9": ALL,
}  # rows of scenarios that are for others too, or for fewer
TASKS = {"N2": 10_000, "T2": 1000}  # of those that are to show more than their short form does


def scenario_rows() -> list[Row]:
    """One row for each id that scenarios have."""
    rows = []
    for id in sorted({scenario.id for scenario in SCENARIOS.values()}):
        here = {name: scenario for name, scenario in SCENARIOS.items() if scenario.id == id}
        stores = tuple(store for store in STORES if any(store in scenario.stores for scenario in here.values()))
        words = WORDS.get(id) or ", ".join(name.replace("_", " ") for name in here)
        rows.append(Row(id, words, KINDS_OF.get(id, BOTH), stores, scenarios=tuple(here), tasks=TASKS.get(id, 0)))
    return rows


ROWS: dict[str, Row] = {row.id: row for row in (*KILL_ROWS, *scenario_rows())}
