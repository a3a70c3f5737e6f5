"""Whoever does the harm: draws from a list of faults, at random moments, and logs each."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from tests.chaos.arena import Arena
from tests.chaos.processes import children_of, send
from tests.chaos.stores import Store
from tests.servers import Server

T = TypeVar("T")

KILLS = (
    "kill child",
    "kill monitor",
    "kill fork server",
    "kill both",
    "kill supervisor",
    "kill sweeper",
    "kill producer",
)
STOPS = ("stop child", "stop monitor", "stop fork server", "stop worker")  # for less than a lease
FREEZES = ("freeze worker", "freeze monitor")  # for longer
RESTARTS = ("restart store",)
Fault = Callable[[], bool]  # does it; False if there is nobody to do it to


class Nemesis:
    """Harms an arena, until :meth:`rest`.

    Args:
        arena: whom to harm.
        store: what to restart.
        dice: decides everything.
        only: the faults that are done, as far as the store allows; none: all.
        busy: whether no child and no guardian is harmed but of a worker that runs something.
    """

    def __init__(
        self, arena: Arena, store: Store, dice: random.Random, only: Collection[str] = (), busy: bool = False
    ) -> None:
        self.arena = arena
        self.store = store
        self.dice = dice
        self.busy = busy
        self.done: dict[str, int] = {}  # how often, by the name of the fault
        self._later: list[threading.Thread] = []
        self._stops: dict[int, float] = {}  # worker -> until when it is not stopped again, monotonic
        self._lock = threading.Lock()
        self.faults: dict[str, tuple[int, Fault]] = {
            "kill child": (8, self.kill_child),
            "kill monitor": (5, self.kill_monitor),
            "kill fork server": (5, self.kill_fork_server),
            "kill both": (3, self.kill_both),
            "kill supervisor": (1, lambda: self.kill_house("supervisor")),
            "kill sweeper": (1, lambda: self.kill_house("sweeper")),
            "kill producer": (1, lambda: self.kill_house("producer")),
            "stop child": (2, self.stop_child),
            "stop monitor": (2, self.stop_monitor),
            "stop fork server": (2, self.stop_fork_server),
            "stop worker": (1, self.stop_worker),
            "freeze worker": (1, self.freeze_worker),
            "freeze monitor": (1, self.freeze_monitor),
        }
        if store.server is not None:
            self.faults["restart store"] = (1, self.restart_store)
        if only:
            self.faults = {name: fault for name, fault in self.faults.items() if name in only}

    def strike(self) -> str:
        """Do one fault; returns its name, or "" if there is nobody now to do it to."""
        names = list(self.faults)
        (name,) = self.dice.choices(names, [self.faults[name][0] for name in names])
        if not self.faults[name][1]():
            return ""
        self.done[name] = self.done.get(name, 0) + 1
        return name

    def rest(self) -> None:
        """Wait until all that was stopped goes on."""
        for thread in self._later:
            thread.join()

    # -- kills ---------------------------------------------------------------------------------------------------

    def kill_child(self) -> bool:
        """Rather one that runs something."""
        running = [run["pid"] for run in self.arena.progress.running()]
        pid = self._one(running if self.busy else running or self._children())
        return pid is not None and self.arena.kill(pid, "child")

    def kill_monitor(self) -> bool:
        pair = self._pair()
        return pair is not None and self.arena.kill(pair[0], "monitor")

    def kill_fork_server(self) -> bool:
        pair = self._pair()
        return pair is not None and self.arena.kill(pair[1], "forkserver")

    def kill_both(self) -> bool:
        pair = self._pair()
        if pair is None:
            return False
        first, second = self.dice.sample([(pair[0], "monitor"), (pair[1], "forkserver")], 2)
        done = self.arena.kill(*first) | self.arena.kill(*second)
        thread = threading.Thread(target=self.arena.note_heirs, args=(pair[0],), daemon=True)
        thread.start()
        self._later.append(thread)
        return done

    def kill_house(self, role: str) -> bool:
        pid = self._one([house.pid for house in self.arena.houses if house.role == role and house.poll() is None])
        return pid is not None and self.arena.kill(pid, role)

    # -- stops: shorter than a lease, but for freezes ---------------------------------------------------------------

    def stop_child(self) -> bool:
        return self._stop(self._one(self._children()), "child", 0)

    def stop_monitor(self) -> bool:
        pair = self._spared()
        return pair is not None and self._stop(pair[0], "monitor", pair[0])

    def freeze_monitor(self) -> bool:
        """For longer than its leases: somebody has to notice, and to take over."""
        pair = self._spared()
        return pair is not None and self._stop(pair[0], "monitor", pair[0], self._long())

    def stop_fork_server(self) -> bool:
        pair = self._spared()
        return pair is not None and self._stop(pair[1], "forkserver", pair[0])

    def _spared(self) -> tuple[int, int] | None:
        """The guardians of a worker none of which has been stopped for a lease, so that stops do not add up to one."""
        now = time.monotonic()
        return self._pair([pair for pair in self.arena.guardians() if self._stops.get(pair[0], 0.0) < now])

    def _stop(self, pid: int | None, role: str, worker: int, seconds: float | None = None) -> bool:
        seconds = self._short() if seconds is None else seconds
        if pid is None or not send(pid, signal.SIGSTOP):
            return False
        self.arena.note("stop", role=role, pid=pid, worker=worker)
        self._stops[worker] = time.monotonic() + seconds + self.arena.lease

        def go_on() -> None:
            send(pid, signal.SIGCONT)
            self.arena.note("cont", role=role, pid=pid, worker=worker)

        self._in_a_while(seconds, go_on)
        return True

    def stop_worker(self) -> bool:
        return self._freeze(self._short())

    def freeze_worker(self) -> bool:
        return self._freeze(self._long())

    def _freeze(self, seconds: float) -> bool:
        pair = self._spared()
        if pair is None:
            return False
        monitor = pair[0]
        self._stops[monitor] = time.monotonic() + seconds + self.arena.lease
        pids = self.arena.freeze(monitor)
        self._in_a_while(seconds, lambda: self.arena.thaw(monitor, pids))
        return True

    def _long(self) -> float:
        return self.arena.lease * self.dice.uniform(1.5, 2.5)

    def _short(self) -> float:
        """So short that a lease, which is renewed at a third of it, does not end meanwhile."""
        return self.arena.lease * self.dice.uniform(0.05, 0.4)

    # -- the store -------------------------------------------------------------------------------------------------

    def restart_store(self) -> bool:
        server = self.store.server
        if server is None or not self._lock.acquire(blocking=False):
            return False
        self.arena.note("down", lossy=False)
        server.kill()
        self._in_a_while(self.dice.uniform(0.1, 1.0), lambda: self._start(server))
        return True

    def _start(self, server: Server) -> None:
        try:
            server.start()
            self.arena.note("up")
        finally:
            self._lock.release()

    # -- parts -------------------------------------------------------------------------------------------------------

    def _one(self, some: Sequence[T]) -> T | None:
        return self.dice.choice(some) if some else None

    def _pair(self, some: Sequence[tuple[int, int]] | None = None) -> tuple[int, int] | None:
        """The guardians of one worker, mostly of one that runs something; of any, if `some` is None."""
        pairs = self.arena.guardians() if some is None else some
        rather = self.busy or self.dice.random() < 0.75
        parents = {run["ppid"] for run in self.arena.progress.running()} if rather else set()
        found = [pair for pair in pairs if pair[1] in parents]
        return self._one(found if self.busy else found or pairs)

    def _children(self) -> list[int]:
        return [pid for _, server in self.arena.guardians() for pid in children_of(server)]

    def _in_a_while(self, seconds: float, what: Callable[[], None]) -> None:
        def later() -> None:
            time.sleep(seconds)
            with contextlib.suppress(OSError):
                what()

        thread = threading.Thread(target=later, name="chaos-later")
        thread.start()
        self._later.append(thread)
