"""A queue, workers on it as real processes, and the three logs of what happens to them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Self

from delayed import EnqueueRefused, EnqueueUncertain, Queue, Task
from delayed.errors import BrokerError
from delayed.message import Counts
from delayed.retry import Retry
from delayed.worker.orphans import MARK
from tests.chaos import tasks
from tests.chaos.checker import Bounds, Verdict, judge
from tests.chaos.history import History
from tests.chaos.processes import below, born_at, children_of, descriptors, fork_servers_of, send, state_of, with_marker
from tests.chaos.progress import Progress
from tests.chaos.records import ENQUEUED, LEDGER, NEMESIS, Record, note, now, read

ROOT = Path(__file__).parent.parent.parent
LOOK = 0.03  # seconds between two looks at who lives
LATE = 0.25  # seconds by which a look may be late; beyond that the machine stood still, and nobody else is to blame
QUIET = 1.0  # seconds for which the queue has to be empty
LEAVE_PATIENCE = 15.0  # seconds that a process gets to leave after SIGTERM
LEFT_PATIENCE = 5.0  # ... and what it leaves behind to vanish
DESCRIPTORS = 2  # that a guardian may have more of at the end


class House(subprocess.Popen[bytes]):
    """A worker, a supervisor, a sweeper or a producer: the first of its processes.

    Attributes:
        role: which of these it is.
        under: whether it is the child of this process, which only waits for it.
    """

    role: str = "worker"
    under: bool = False

    @property
    def first(self) -> int:
        """The pid of its first process, as seen from here; 0 while there is none."""
        return next(iter(children_of(self.pid)), 0) if self.under else self.pid

    def monitors(self) -> list[int]:
        """The pids of the monitors in it."""
        if self.role == "worker":
            return [self.first] if self.poll() is None and self.first else []
        if self.role != "supervisor":
            return []
        return [pid for pid in children_of(self.pid) if state_of(pid) not in ("", "Z")]


class Arena:
    """See the module. A context: at its end every process is gone, and the logs are complete.

    Args:
        folder: an empty folder for the logs.
        url: the store that workers and producers use.
        direct: the same store for the judge, if they reach it another way.
        mode: forked, preforked, threaded or async.
        processes: children of a worker.
        lease: of the workers, seconds.
        broker: see :func:`tests.chaos.house.main`.
        preload: what the fork servers load besides the tasks.
        temporary: the folder for temporary files of workers; "": the usual one.
        other: the folder of another version of the library, which every second process runs; "": all run this one.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        mode: str = "preforked",
        *,
        direct: str = "",
        processes: int = 2,
        lease: float = 3.0,
        broker: str = "",
        preload: Sequence[str] = (),
        temporary: str = "",
        other: str = "",
    ) -> None:
        self.folder = folder
        self.url = url
        self.mode = mode
        self.processes = processes
        self.lease = lease
        self.broker = broker
        self.preload = preload
        self.progress = Progress(folder)
        self.temporary = temporary
        self._places = cycle([ROOT, _place_of(Path(other), folder)] if other else [ROOT])
        self.name = f"chaos-{secrets.token_hex(4)}"
        self.direct = direct or url
        self.queue = Queue(self.name, url)
        self._judge = Queue(self.name, self.direct)
        self.extra: dict[str, str] = {}  # environment of the processes that are started from now on
        self.under: Sequence[str] = ()  # the command that starts them, and waits for them; none: they are started here
        self.houses: list[House] = []
        self.ready: set[int] = set()  # fork servers that have forked
        self._numbers = iter(range(1, 1 << 40))
        self._born: dict[int, int] = {}  # fork server -> monitor
        self._full_size: dict[tuple[int, int], int] = {}  # guardian, and when it was born -> its descriptors when warm
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="chaos-watcher", daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()
        for pid in with_marker(str(self.folder)):
            send(pid, signal.SIGKILL)
        for house in self.houses:
            house.wait()
        for queue in (self.queue, self._judge):
            queue.broker.close()

    # -- who is there --------------------------------------------------------------------------------------------

    def start(self, role: str = "worker", url: str = "", **options: Any) -> House:
        """Start a worker, a supervisor of two, or a sweeper; `url` is its own way to the store."""
        settings = {"kill_timeout": 0.5, "lease": self.lease, "processes": self.processes, **options}
        settings["preload"] = ["tests.chaos.tasks", *self.preload]
        order = {"role": role, "url": url or self.url, "queue": self.name, "mode": self.mode, "broker": self.broker}
        house = self._spawn(role, "tests.chaos.house", {**order, "options": settings})
        self.note("slots", slots=self.slots())
        return house

    def run(self, module: str, **order: Any) -> House:
        """Start a process that is none of the library's: ``python -m module order``."""
        return self._spawn(module.rpartition(".")[2], module, order)

    def slots(self) -> int:
        """How many tasks run at once."""
        workers = {"worker": 1, "supervisor": 2}
        return self.processes * sum(workers.get(each.role, 0) for each in self.houses if each.poll() is None)

    def _spawn(self, role: str, module: str, order: Mapping[str, Any]) -> House:
        place = next(self._places)
        paths = [str(place), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with open(self.folder / f"{role}-{len(self.houses)}.log", "wb") as log:
            house = House(
                [*self.under, sys.executable, "-m", module, json.dumps(order)],
                cwd=place,
                env={**self.environ(), "PYTHONPATH": os.pathsep.join(paths)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        house.role, house.under = role, bool(self.under)
        self.houses.append(house)
        return house

    def environ(self) -> dict[str, str]:
        """What the processes of this arena find the ledger by, and are found by."""
        temporary = {"TMPDIR": self.temporary} if self.temporary else {}
        return {**os.environ, **temporary, tasks.FOLDER: str(self.folder), tasks.URL: self.direct, **self.extra}

    def guardians(self) -> list[tuple[int, int]]:
        """(monitor, fork server) of every worker, as far as they are there. Notes who is new."""
        monitors = [pid for house in list(self.houses) for pid in house.monitors()]
        pairs = [(monitor, server) for monitor in monitors for server in fork_servers_of(monitor)]
        for monitor, server in pairs:
            if self._born.get(server) != monitor:
                self._born[server] = monitor
                self.note("born", role="forkserver", pid=server, parent=monitor)
        return pairs

    def note_heirs(self, monitor: int) -> None:
        """Note the fork servers that a monitor had just started when it died: they look after its children.

        Look several times: until one has executed its program it can't be told from its monitor.
        """
        for pause in (0.0, 0.03, 0.1, 0.3):
            time.sleep(pause)
            for pid in with_marker(f"{MARK}={socket.gethostname()}:{monitor}:"):
                with contextlib.suppress(ProcessLookupError):
                    if os.getsid(pid) != pid and self._born.get(pid) != monitor:
                        self._born[pid] = monitor
                        self.note("born", role="forkserver", pid=pid, parent=monitor, heir=True)

    def note(self, what: str, **facts: Any) -> None:
        note(self.folder / NEMESIS, what, **facts)

    def _watch(self) -> None:
        last = now()
        while not self._over.wait(LOOK):
            for _, server in self.guardians():
                if server not in self.ready and children_of(server):
                    self.ready.add(server)
                    self.note("ready", pid=server)
            at = now()
            if at - last > LOOK + LATE:
                self.note("late", since=last)
            last = at

    # -- tasks ---------------------------------------------------------------------------------------------------

    def put(self, func: Callable[..., Any], *args: Any, kind: str = "", **options: Any) -> int:
        """Enqueue one task, and note what became of that; returns the number of its intent."""
        number = next(self._numbers)
        enqueue(self.folder, self.queue, number, func, *args, kind=kind, **options)
        return number

    def history(self) -> History:
        """What the logs say so far."""
        return History(*self.logs())

    def logs(self) -> tuple[list[Record], list[Record], list[Record]]:
        return read(self.folder / LEDGER), read(self.folder / ENQUEUED), read(self.folder / NEMESIS)

    # -- harm ----------------------------------------------------------------------------------------------------

    def kill(self, pid: int, role: str) -> bool:
        """SIGKILL; False if there is no such process any more."""
        sent = now()
        if not send(pid, signal.SIGKILL):
            return False
        self.note("kill", role=role, pid=pid, sent=sent)
        return True

    def freeze(self, monitor: int) -> list[int]:
        """Stop all processes of a worker; returns whom to :meth:`thaw`."""
        self.note("stop", role="worker", pid=monitor, worker=monitor)
        pids = list(below(monitor))
        pids += [pid for pid in below(monitor) if pid not in pids]  # those that were forked meanwhile
        return [pid for pid in pids if send(pid, signal.SIGSTOP)]

    def thaw(self, monitor: int, pids: list[int]) -> None:
        for pid in reversed(pids):
            send(pid, signal.SIGCONT)
        self.note("cont", role="worker", pid=monitor, worker=monitor)

    # -- the end -------------------------------------------------------------------------------------------------

    def counts(self) -> Counts:
        """How many tasks the queue has in each state."""
        return self._judge.broker.counts(self.name)

    def overdue(self) -> int:
        """How many claims there are whose lease has ended."""
        return sum(entry.due <= 0 for entry in self._judge.broker.peek(self.name, "running", 1000))

    def answers(self, ids: Sequence[int]) -> Mapping[int, bytes]:
        """The answers that are kept of these tasks."""
        return self._judge.broker.get_results(self.name, ids)

    def drain(self, bound: float | None = None, quiet: float = QUIET) -> bool:
        """Wait until the queue has been empty for `quiet` seconds; note whether it became so.

        Args:
            bound: how long it may not become shorter, seconds; None: three leases and half a minute.
        """
        bound = 3 * self.lease + 30.0 if bound is None else bound
        deadline = time.monotonic() + bound
        least, empty_since = math.inf, None
        counts: Any = "the store can't be reached"
        while time.monotonic() < deadline:
            with contextlib.suppress(BrokerError):
                counts = self.counts()
                left = counts.scheduled + counts.ready + counts.running
                if left < least:
                    least, deadline = left, time.monotonic() + bound
                if left:
                    empty_since = None
                elif empty_since is None:
                    empty_since = time.monotonic()
                elif time.monotonic() - empty_since > quiet:
                    self.note("drained", drained=True, words="")
                    return True
            time.sleep(0.05)
        self.note("drained", drained=False, words=f"the queue is not empty: {counts}")
        return False

    def warm(self) -> None:
        """Note how many descriptors each guardian has: at the end they shall have no more."""
        for pair in self.guardians():
            for pid in pair:
                self._full_size.setdefault((pid, born_at(pid)), descriptors(pid))

    def close(self) -> None:
        """Stop every process, and note what is left of them, and in the store."""
        for (pid, born), before in self._full_size.items():
            more = descriptors(pid) - before
            if born == born_at(pid) and more > DESCRIPTORS:
                self.note("leak", words=f"guardian {pid} has {more} more descriptors than at the beginning")
        deadline = time.monotonic() + LEFT_PATIENCE
        while (dead := self._zombies()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in dead:
            self.note("leak", words=f"process {pid} has died, and nobody looks after it")
        for house in self.houses:
            send(house.first, signal.SIGTERM)
        deadline = time.monotonic() + LEAVE_PATIENCE
        for house in self.houses:
            with contextlib.suppress(subprocess.TimeoutExpired):
                house.wait(max(0.0, deadline - time.monotonic()))
        deadline = time.monotonic() + LEFT_PATIENCE
        while (left := with_marker(str(self.folder))) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in left:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[:120].decode(errors="replace")
            self.note("leak", words=f"process {pid} ({state_of(pid)}) lives on: {command}")
        for entry in self._judge.broker.peek(self.name, "dead", 1000):
            self.note("dead", id=entry.message.id, reason=entry.reason[:200])

    def _zombies(self) -> list[int]:
        return [
            pid
            for house in self.houses
            if house.poll() is None
            for pid in below(house.pid)
            if pid != house.pid and state_of(pid) == "Z"
        ]

    def judge(self, slack: float = 5.0) -> Verdict:
        """The verdict, on what the logs say.

        Args:
            slack: how slow the machine may be, seconds: most bounds grow with it.
        """
        lease = self.lease
        # A fork server that was just being started, and was never seen, keeps the children until it finds itself alone.
        orphan = max(1.0, slack / 4)
        # What has just ended is known to the supervisor. Where there is none, each child may have ended one.
        supervised = all(house.role != "worker" for house in self.houses)
        bounds = Bounds(
            lease,
            flush=max(Bounds.flush, slack / 16),  # a store on a busy disk takes its time for it
            child=slack,
            worker=lease + 2 * slack,
            dead_air=2 * lease + 2 * slack,
            orphan=orphan,
            repeated=Bounds.repeated if supervised else 100.0 * self.processes,
        )
        return judge(*self.logs(), bounds)


def _place_of(other: Path, folder: Path) -> Path:
    """A folder in which there is another version of the library, and nothing else: its tests are not ours."""
    place = folder / "other"
    place.mkdir()
    (place / "delayed").symlink_to(other.resolve(strict=True) / "delayed")
    return place


def enqueue(
    folder: Path, queue: Queue, number: int, func: Callable[..., Any], *args: Any, kind: str = "", **options: Any
) -> None:
    """Enqueue one task, whose first argument is the number of its intent, and note what became of that."""
    log = folder / ENQUEUED
    retry, delay = options.pop("retry", Retry(100, delay=0.0)), options.get("delay", 0.0)
    facts = {"retry": retry.max if retry else 0, "delay": delay, "exclusive": options.get("exclusive", False)}
    note(log, "intent", intent=number, kind=kind or func.__name__, **facts)
    task = Task.create(func, (number, *args), retry=retry, **options)
    try:
        queue.enqueue(task)
    except EnqueueRefused:
        note(log, "refused", intent=number)
    except EnqueueUncertain as error:
        note(log, "uncertain", intent=number, id=error.ids[0])
    else:
        note(log, "ok", intent=number, id=task.id)
