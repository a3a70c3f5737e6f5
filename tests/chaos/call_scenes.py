"""What a process does while somebody counts its system calls, and who finishes its work when it has died of one.

A role is who dies: as it is, warm and with some tasks; *starting-*: from where it has loaded what it needs, with tasks
that wait for it; *settling-supervisor*: while it ends what a dead worker left; *stopping-supervisor*: told to leave.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from tests.chaos import halt, tasks
from tests.chaos.arena import House
from tests.chaos.crash_scenes import BOUND, KEEP, Stage
from tests.chaos.processes import children_of, send, state_of
from tests.chaos.syscalls import trap

BOTH = ("sqlite", "redis")
ROLES = {  # role -> (kind of worker, stores)
    "monitor": ("preforked", BOTH),
    "courier": ("preforked", BOTH),  # the monitor's thread that talks to the store
    "forkserver": ("forked", ("sqlite",)),
    "child": ("preforked", ("sqlite",)),
    "producer": ("preforked", ("sqlite",)),
    "starting-sweeper": ("preforked", BOTH),
    "starting-monitor": ("preforked", BOTH),
    "starting-courier": ("preforked", BOTH),
    "starting-forkserver": ("preforked", BOTH),
    "starting-child": ("preforked", BOTH),
    "starting-supervisor": ("preforked", BOTH),
    "settling-supervisor": ("preforked", BOTH),
    "stopping-supervisor": ("preforked", BOTH),
}
SHORT = 0.05  # seconds: the lease of who has died before a sweeper comes


def play(stage: Stage, role: str, point: str = "") -> bool:
    """The scene: some tasks, and who handles them is killed at the point, if one is given; whether it was."""
    doing = role.partition("-")[0]
    return (_SCENES.get(role) or _SCENES.get(doing) or _worker)(stage, role, point)


def _worker(stage: Stage, role: str, point: str) -> bool:
    arena = stage.arena
    _, monitor, server = stage.worker(processes=1)
    stage.put(3, tasks.noop)
    arena.drain(quiet=0.0)
    pid = {"forkserver": server, "child": children_of(server)[0]}.get(role, monitor)
    tid = pid if role != "courier" else max(map(int, (each.name for each in Path(f"/proc/{pid}/task").iterdir())))

    def burst() -> None:
        stage.put(3, tasks.nap, 0.01)
        arena.put(tasks.noop, keep=KEEP)
        arena.put(tasks.moody, 1)
        _until_dead_or_done(stage, pid)

    killed = trap(stage, role, pid, tid, point, burst)
    if killed and pid == monitor:
        arena.start()
    return killed


def _producer(stage: Stage, role: str, point: str) -> bool:
    client = stage.client("enqueue", range(1, 5))

    def burst() -> None:
        send(client.pid, signal.SIGCONT)
        client.wait(BOUND)

    killed = trap(stage, role, client.pid, client.pid, point, burst)
    known = set(stage.arena.history().intents)
    rest = stage.client("enqueue", [number for number in range(1, 5) if number not in known])
    send(rest.pid, signal.SIGCONT)
    rest.wait(BOUND)
    stage.worker()
    return killed


def _starting(stage: Stage, role: str, point: str) -> bool:
    """Tasks wait, and one of the processes that they need begins."""
    arena, who = stage.arena, role.rpartition("-")[2]
    stage.put(2, tasks.nap, 0.01)
    arena.put(tasks.noop, keep=KEEP)
    arena.preload = ["tests.chaos.halt_fork_server"]
    house, pid, tid = _halted(stage, who, "supervisor" if who == "supervisor" else "worker")
    killed = trap(stage, role, pid, tid, point, lambda: _go_on(stage, pid))
    if killed and pid == house.pid:
        arena.start(house.role)
    return killed


def _sweeper(stage: Stage, role: str, point: str) -> bool:
    """Nobody else sweeps, and there are claims whose lease has ended."""
    arena = stage.arena
    _, pid, tid = _halted(stage, "sweeper", "sweeper")
    stage.put(3, tasks.noop)
    arena.queue.broker.claim([arena.name], f"gone-{arena.name}", 1, 1, 2, SHORT)
    stage.wait_for(lambda: arena.overdue() == 2, "claims whose lease has ended")

    def burst() -> None:
        send(pid, signal.SIGCONT)
        stage.wait_for(lambda: state_of(pid) in ("", "Z") or not arena.counts().running, "a sweep")

    killed = trap(stage, role, pid, tid, point, burst)
    if killed:
        arena.start("sweeper")
    stage.worker(sweep=False)
    return killed


def _settling(stage: Stage, role: str, point: str) -> bool:
    """Of the tasks of a worker whose guardians die some have ended, and nobody but its supervisor knows which."""
    arena = stage.arena
    house = _supervised(stage)
    stage.put(20, tasks.noop)  # so that its workers expect short ones, and hand on several at once
    arena.drain(quiet=0.0)
    stage.put(6, tasks.nap, 0.3)
    stage.until_begun(21)
    running = next(run for run in arena.history().runs.values() if run.ended is None)
    monitor, server = next(pair for pair in arena.guardians() if pair[1] == running.ppid)
    for pid, guardian in ((monitor, "monitor"), (server, "forkserver")):
        arena.note("stop", role=guardian, pid=pid, worker=monitor)
        send(pid, signal.SIGSTOP)
    stage.wait_for(lambda: arena.history().runs[running.run].ended, "the end of a task that nobody hears of")

    def burst() -> None:
        arena.kill(monitor, "monitor")
        arena.kill(server, "forkserver")
        _until_dead_or_done(stage, house.pid)

    return _supervisor_dies(stage, role, point, house, burst)


def _stopping(stage: Stage, role: str, point: str) -> bool:
    house = _supervised(stage)
    stage.put(4, tasks.nap, 0.3)
    stage.until_begun()

    def burst() -> None:
        send(house.pid, signal.SIGTERM)
        stage.wait_for(lambda: state_of(house.pid) in ("", "Z"), "the end of a supervisor")

    return _supervisor_dies(stage, role, point, house, burst)


def _supervised(stage: Stage) -> House:
    """A supervisor, both of whose workers are ready."""
    house, _, _ = stage.worker("supervisor", processes=1)
    arena = stage.arena
    stage.wait_for(lambda: len(arena.ready & {server for _, server in arena.guardians()}) == 2, "two workers")
    return house


def _supervisor_dies(stage: Stage, role: str, point: str, house: House, burst: Callable[[], None]) -> bool:
    killed = trap(stage, role, house.pid, house.pid, point, burst)
    if house.poll() is not None:
        stage.arena.start("supervisor", processes=1)
    return killed


_SCENES: dict[str, Callable[[Stage, str, str], bool]] = {
    "producer": _producer,
    "starting-sweeper": _sweeper,
    "starting": _starting,
    "settling": _settling,
    "stopping": _stopping,
}


def _halted(stage: Stage, who: str, role: str) -> tuple[House, int, int]:
    """Start a house, in which one process stops itself as it begins: the house, its pid, and the thread's."""
    arena = stage.arena
    arena.extra[halt.HALT] = who
    house = arena.start(role, processes=1)
    file = arena.folder / halt.HALTED

    def stopped() -> list[int]:
        words = file.read_text().split() if file.exists() else []
        return [int(word) for word in words] if len(words) == 2 and state_of(int(words[0])) == "T" else []

    pid, tid = stage.wait_for(stopped, f"a {who} that has stopped itself")
    return house, pid, tid


def _go_on(stage: Stage, pid: int) -> None:
    send(pid, signal.SIGCONT)
    _until_dead_or_done(stage, pid)


def _until_dead_or_done(stage: Stage, pid: int) -> None:
    stage.wait_for(lambda: state_of(pid) in ("", "Z") or _empty(stage), "the end of a burst")


def _empty(stage: Stage) -> bool:
    counts = stage.arena.counts()
    return not (counts.scheduled or counts.ready or counts.running)
