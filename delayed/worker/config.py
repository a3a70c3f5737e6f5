"""What a fork server and its children are told at their start: plain data that crosses an exec as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

ONE_AT_A_TIME = "delayed.worker.child:Child"  # the kind of child that runs one task after the other


class Config(NamedTuple):
    """The settings of one worker.

    Attributes:
        worker: its id.
        url: of the broker, for a stand-in; None if another process can't open it.
        queues: their names; a task frame names one by its index.
        codecs: the spec of each queue's codec.
        keeps: for each queue, whether its tasks that failed for good are kept as dead letters.
        seats: for each seat the descriptors of both ends of its channel, the monitor's first, and of its stack file.
        board: descriptor of the board's file.
        control: descriptor of the fork server's end of the control channel.
        spool: descriptor of the file in which tasks leave their answers.
        life: descriptor of the read end of the life pipe, whose end kills the children.
        life_write: ... of its write end, held by monitor and fork server.
        sole: whether the monitor is all that its process is there for, so that it may be killed if it is frozen.
        one_shot: whether a child runs one task only.
        child: the path of the class of its children.
        lanes: how many tasks a child runs at once.
        one_reader: whether they are all read in one place, and begin when a lane is free; else each lane reads its own.
        uvloop: whether an event loop is uvloop's.
        max_tasks: tasks after which a child retires; None: never.
        max_memory: bytes that a child may grow before it retires; None: any.
        kill_memory: bytes that a child, with what it started, may use before it is killed; None: any.
        success_handler, error_handler: their paths, or None.
        hooks: the path of the class of hooks, or None.
        preload: modules that the fork server imports.
        lease: seconds.
        answer_max: bytes that the store takes of one.
        kill_timeout: seconds between the soft stop and SIGKILL.
        log_level: of the logger "delayed".
        log_json: whether to log as JSON.
        log_arguments: whether to log the arguments of failed runs.
        path: sys.path of the monitor.
        presence: descriptors that all processes of the worker hold, so that their end tells others that they are gone.
    """

    worker: str
    url: str | None
    queues: list[str]
    codecs: list[dict[str, Any]]
    keeps: list[bool]
    seats: list[tuple[int, int, int]]
    board: int
    spool: int
    life: int
    life_write: int
    one_shot: bool
    kill_timeout: float
    lease: float
    answer_max: int = 0
    control: int = -1
    child: str = ONE_AT_A_TIME
    lanes: int = 1
    one_reader: bool = True
    uvloop: bool = False
    max_tasks: int | None = None
    max_memory: int | None = None
    kill_memory: int | None = None
    success_handler: str | None = None
    error_handler: str | None = None
    hooks: str | None = None
    preload: Sequence[str] = ()
    log_level: int = 20
    log_json: bool = False
    log_arguments: bool = False
    path: Sequence[str] = ()
    presence: Sequence[int] = ()
    sole: bool = False

    @property
    def shared(self) -> bool:
        """Whether several tasks may be in one child."""
        return self.child != ONE_AT_A_TIME

    @property
    def holds_limits(self) -> bool:
        """Whether a child can hold a task to limits of its own: they are its process's, so nobody else may be in it."""
        return not self.shared

    def dump(self) -> bytes:
        return json.dumps(self._asdict()).encode()

    @classmethod
    def load(cls, data: bytes) -> Config:
        return cls(**json.loads(data))
