"""The supervisor: keeps several workers alive, each in a process of its own.

Three pipes and a file lead to a worker:

* its settings, as JSON in a file in memory;
* *news*: the worker writes its id once it takes tasks; all its processes hold the pipe's other end, so that its end
  means that every one of them is gone;
* the *leash*: the supervisor holds its other end; when that is closed, the worker finishes what runs and leaves.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from delayed.attempts import WORKER_LOST, noted
from delayed.errors import BrokerError, ConfigError, DecodeError
from delayed.logger import logger
from delayed.message import DEFAULT_MAX_DELIVERIES, Claim, Settlement
from delayed.sizes import size_text
from delayed.worker import memory, process, refusal
from delayed.worker.base import Worker
from delayed.worker.gates import Gates
from delayed.worker.remains import Remains

OK, FAILED = 0, 3  # what run() returns
STOPPED_BY_TASK = 5  # exit code of a worker whose task wants all workers to stop
DISMISSED = 6  # exit code of a worker that somebody asked to stop
TICK = 0.25  # seconds between looks at the workers
STABLE = 10.0  # seconds that a worker has to live for its end not to count as a failed start
BACKOFF = (0.5, 30.0)  # seconds: pause after the first failed start, and the longest
FAILURES_MAX = 5  # failed starts of one worker in a row, after which the supervisor gives up
KILL_PATIENCE = 10.0  # seconds beyond the shutdown timeout, after which what is left is killed
SETTLE_MAX = 16  # claims of a dead worker that are ended in one call
READY_PATIENCE = 30.0  # seconds that a worker gets to start in a renewal


class Member:
    """One place for a worker, and the process that is in it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.start_at = 0.0
        self.failures = 0  # ends in a row of a worker that had not lived long
        self.worker = ""  # its id, once it has said it
        self.news = -1
        self.leash = -1
        self.files: tuple[int, ...] = ()  # its board and its spool, which have to outlive it
        self.hold = contextlib.ExitStack()  # keeps others from returning its tasks before they are settled from those
        self.leaving = False  # it was told to
        self.gauge: memory.Gauge | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None

    def signal(self, number: int) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def vacate(self) -> None:
        for fd in (self.news, self.leash, *self.files):
            if fd >= 0:
                os.close(fd)
        self.news = self.leash = -1
        self.files = ()
        self.hold = contextlib.ExitStack()
        self.process = None
        self.worker = ""
        self.leaving = False


class Supervisor:
    """Keeps `workers` workers alive.

    What dies is started again, at first after half a second, then after twice as long each time, 30 s at most; the
    tasks of a dead worker go back to their queues at once, and do not wait for the end of its lease. A worker that ends
    five times in a row within 10 s of its start is a crash loop: the supervisor stops all, and says so.

    A worker that uses more than its `worker_memory` is renewed: the next one starts, then it finishes what runs, and
    leaves. Until then there are both.

    It may itself be killed: its workers then finish what runs, and leave. A worker that somebody asks to stop
    (``delayed stop``) is not started again; when all were asked, the supervisor leaves too.

    Args:
        worker: how each of them shall be; it is not run itself.
        workers: how many.

    Raises:
        ConfigError: When no other process can open the worker's store.
    """

    def __init__(self, worker: Worker, workers: int = 2) -> None:
        if not isinstance(workers, int) or workers < 1:
            raise ConfigError(f"workers must be a whole number of at least 1, not {workers!r}")
        self.worker = worker
        self.settings = worker.settings()
        self.members = [Member(number) for number in range(1, workers + 1)]
        self.departed: list[Member] = []  # dead workers whose other processes are not gone yet
        self.renewal: list[Member] = []  # those that a renewal has still to replace
        self.code = OK
        self._stop_by: float | None = None
        self._stops = 0  # how often it was told to
        self._told = 0  # how often the workers were
        self._renew = False
        self._told_ready = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """Work until :meth:`stop` or a signal; in burst mode, until all workers have left. It can be run once.

        In the main thread it handles SIGTERM and SIGINT (stop; the second one: at once) and SIGHUP
        (:meth:`renew`). As the first process of a container it reaps what is left to it.

        Returns:
            0 when it was stopped, or a burst is over; 3 when it gave up on a crash loop.
        """
        handlers = self._install_signals()
        logger.info("supervisor %d starts %d workers", os.getpid(), len(self.members))
        try:
            while not self._over():
                now = time.monotonic()
                self._mind_stop(now)
                self._mind_memory(now)
                self._mind_renewal(now)
                for member in self.members:
                    if not member.alive and not self._stops and now >= member.start_at and not self._left(member):
                        self._start(member)
                self._sleep()
                self._read_news()
                for member in self._everybody():
                    if member.process is not None and member.process.poll() is not None:
                        self._ended(member)
                if os.getpid() == 1:
                    self._reap_others()
            self._finish_departed()
            logger.info("supervisor %d has stopped", os.getpid())
            return self.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            read, write = self._wake_read, self._wake_write
            self._wake_read = self._wake_write = -1  # a late stop() must not write to somebody else's file
            os.close(read)
            os.close(write)

    def stop(self) -> None:
        """Stop all workers as SIGTERM does, from another thread or a signal handler; a second call: at once."""
        self._stops += 1
        self._wake()

    def renew(self) -> None:
        """Replace the workers one after another, each after its successor has started: new code, and no gap."""
        self._renew = True
        self._wake()

    # -- the loop ----------------------------------------------------------------------------------------------

    def _over(self) -> bool:
        if any(member.alive for member in self._everybody()):
            return False
        return bool(self._stops) or all(self._left(member) for member in self.members)

    def _everybody(self) -> list[Member]:
        """Those that a renewal is about to replace too, of whom the first may have a successor already."""
        return list(dict.fromkeys([*self.members, *self.renewal]))

    def _left(self, member: Member) -> bool:
        """Whether a worker is not to be started again: in burst mode it has done its part, or somebody stopped it."""
        return member.start_at == float("inf")

    def _sleep(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        for member in self._everybody():
            if member.news >= 0 and not member.worker:
                poll.register(member.news, select.POLLIN)
        poll.poll(TICK * 1000)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it wakes already; closed: it is over
            os.write(self._wake_write, b"\0")

    def _read_news(self) -> None:
        for member in self._everybody():
            if member.news >= 0 and not member.worker:
                with contextlib.suppress(BlockingIOError):
                    member.worker = os.read(member.news, 4096).decode().strip()
                    if member.worker:
                        member.hold.enter_context(self.worker.broker.alive(member.worker))
        for member in list(self.departed):
            with contextlib.suppress(BlockingIOError):
                if not os.read(member.news, 4096):
                    self.departed.remove(member)
                    self._give_back(member)
        if not self._told_ready and all(member.worker for member in self.members):
            self._told_ready = True
            _notify_systemd("READY=1")

    def _mind_stop(self, now: float) -> None:
        if not self._stops:
            return
        if self._stop_by is None:
            self._stop_by = now + self.worker.shutdown_timeout + self.worker.kill_timeout + KILL_PATIENCE
            _notify_systemd("STOPPING=1")
            logger.info("supervisor %d stops its workers", os.getpid())
            self._tell_all(signal.SIGTERM)
            self._told = 1
        if self._stops > 1 and self._told == 1:
            self._told = 2
            self._stop_by = min(self._stop_by, now + KILL_PATIENCE)
            self._tell_all(signal.SIGTERM)  # the second one: at once
        if now >= self._stop_by:
            self._stop_by = now + KILL_PATIENCE
            logger.error("workers that do not leave are killed")
            self._tell_all(signal.SIGKILL)

    def _tell_all(self, number: int) -> None:
        for member in self._everybody():
            member.leaving = True
            member.signal(number)

    def _mind_memory(self, now: float) -> None:
        if self._stops:
            return
        for member in self.members:
            if member.process is None or member.gauge is None or member in self.renewal:
                continue
            used = member.gauge.over(member.process.pid, now)
            if used:
                logger.warning(
                    "worker %d (pid %d) uses %s of memory, limit %s; it is renewed",
                    member.number, member.process.pid, size_text(used), size_text(member.gauge.limit),
                    extra={"action": "outgrown", "pid": member.process.pid},
                )  # fmt: skip
                self.renewal.append(member)

    def _mind_renewal(self, now: float) -> None:
        if self._stops:
            return
        if self._renew and not self.renewal:
            self._renew = False
            logger.info("supervisor %d renews its workers", os.getpid())
            self.renewal = list(self.members)
        if not self.renewal:
            return
        old = self.renewal[0]
        if not old.alive:
            self.renewal.pop(0)
            return
        if old in self.members:
            successor = Member(old.number)
            self.members[self.members.index(old)] = successor
            self._start(successor)
            return
        (successor,) = (member for member in self.members if member.number == old.number)
        ready = successor.worker or now > successor.started + READY_PATIENCE
        if ready and successor.alive and not old.leaving:
            old.leaving = True
            old.signal(signal.SIGHUP)

    # -- workers -----------------------------------------------------------------------------------------------

    def _start(self, member: Member) -> None:
        news_read, news_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        leash_read, leash_write = os.pipe2(os.O_CLOEXEC)
        board, spool = member.files = process.anonymous_file("delayed-board"), process.anonymous_file("delayed-spool")
        file = process.anonymous_file("delayed-worker")
        given = {"news": news_write, "leash": leash_read, "board": board, "spool": spool}
        os.write(file, json.dumps({**self.settings, **given}).encode())
        program = f"import sys; sys.path[:] = {_path()!r}; from delayed.supervisor import serve; serve({file})"
        arguments = [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", program]  # type: ignore[attr-defined]
        member.process = subprocess.Popen(
            arguments,
            pass_fds=[file, news_write, leash_read, board, spool],
            stdin=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C at the terminal is for the supervisor, which then stops it
        )
        for fd in (file, news_write, leash_read):
            os.close(fd)
        member.news, member.leash = news_read, leash_write
        member.started = time.monotonic()
        member.gauge = memory.worker_gauge(self.worker.worker_memory, member.started)
        member.start_at = 0.0

    def _ended(self, member: Member) -> None:
        """A worker's first process has ended."""
        assert member.process is not None
        self._read_news()
        code = member.process.returncode
        now = time.monotonic()
        if member.worker:  # the others of its processes may still be at work
            self.departed.append(_departed(member))
            member.news, member.files, member.hold = -1, (), contextlib.ExitStack()
        expected = code == 0 and (member.leaving or self._stops or self.worker.burst)
        if code == STOPPED_BY_TASK:
            if not self._stops:  # else it would be the second time: at once
                logger.info("a task of worker %d has stopped it, and with it all others here", member.number)
                self.stop()
        elif expected:
            member.start_at = float("inf") if self.worker.burst and not member.leaving else now
            member.failures = 0
        elif code == DISMISSED:
            logger.info("worker %d was asked to stop, and is not started again", member.number)
            member.start_at = float("inf")
        elif not self._stops:
            short = now - member.started < STABLE
            member.failures = member.failures + 1 if short else 0
            pause = min(BACKOFF[0] * 2 ** max(member.failures - 1, 0), BACKOFF[1]) * random.uniform(0.8, 1.0)
            member.start_at = now + pause
            logger.error(
                "worker %d (pid %d) %s after %.3g s; another one starts in %.2g s",
                member.number, member.process.pid, _words(code), now - member.started, pause,
                extra={"action": "worker_died", "pid": member.process.pid, "code": code},
            )  # fmt: skip
            if member.failures >= FAILURES_MAX:
                logger.error(
                    "crash loop: worker %d has ended %d times in a row within %g s of its start, and %s at last; "
                    "the supervisor gives up",
                    member.number, member.failures, STABLE, _words(code), extra={"action": "crash_loop"},
                )  # fmt: skip
                self.code = FAILED
                self.stop()
        member.vacate()

    def _give_back(self, member: Member) -> None:
        """All processes of a worker are gone: what it held can't be finished by anybody, but may have ended before."""
        queues = self.worker.queues
        names = [queue.name for queue in queues]
        keeps = [queue.dead_letters is not None for queue in queues]
        try:
            with member.hold:
                claims = self.worker.broker.held(member.worker, names)
                ended = {}
                if claims:
                    board, spool = member.files
                    remains = Remains(board, spool, self.worker.lanes, names, keeps, member.worker)
                    ended = {claim.ref: settlement for claim, settlement in remains.settled(claims)}
                settlements = [ended.get(claim.ref) or _return(claim, member.worker) for claim in claims]
                gates = Gates(self.worker.broker)
                for claim in claims:
                    gates.take_over(claim)
                for start in range(0, len(settlements), SETTLE_MAX):  # few at a time: they may have large answers
                    refusal.settle(self.worker.broker, member.worker, settlements[start : start + SETTLE_MAX])
                    gates.ended(settlements[start : start + SETTLE_MAX])
                with contextlib.suppress(BrokerError):  # who waits for these looks himself, later
                    gates.work()
        except BrokerError as error:
            logger.warning("the tasks of worker %s wait for the end of its lease: %s", member.worker, error)
            return
        finally:
            for fd in (member.news, *member.files):
                os.close(fd)
        if claims:
            logger.warning(
                "worker %s is gone; of its tasks %d had ended, and %d are back in their queues",
                member.worker, len(ended), len(claims) - len(ended),
                extra={"action": "gave_back", "worker": member.worker},
            )  # fmt: skip

    def _finish_departed(self) -> None:
        deadline = time.monotonic() + self.worker.kill_timeout + 1.0
        while self.departed and time.monotonic() < deadline:
            self._read_news()
            time.sleep(0.02)
        for member in self.departed:  # stand-ins, which finish what runs
            for fd in (member.news, *member.files):
                os.close(fd)
        self.departed.clear()

    def _reap_others(self) -> None:
        """As the first process of a container: orphans are its to reap."""
        process.reap_others({member.process.pid for member in self._everybody() if member.process is not None})

    def _install_signals(self) -> dict[int, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}

        def leave(number: int, frame: FrameType | None) -> None:
            self.stop()

        def renew(number: int, frame: FrameType | None) -> None:
            self.renew()

        def look(number: int, frame: FrameType | None) -> None:
            self._wake()

        handlers = {signal.SIGTERM: leave, signal.SIGINT: leave, signal.SIGHUP: renew, signal.SIGCHLD: look}
        return {number: signal.signal(number, handler) for number, handler in handlers.items()}


def serve(file: int) -> None:
    """The life of one worker: what its process is started to run."""
    settings = json.loads(os.pread(file, os.fstat(file).st_size, 0))
    os.close(file)
    news, leash, board, spool = (settings.pop(name) for name in ("news", "leash", "board", "spool"))
    for fd in (news, leash, board, spool):
        os.set_inheritable(fd, False)
    worker = Worker.from_settings(settings)

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(leash, 1)
        os.kill(os.getpid(), signal.SIGHUP)  # the supervisor is gone: finish what runs, and leave

    def told(id: str) -> None:
        with contextlib.suppress(OSError):
            os.write(news, id.encode())

    threading.Thread(target=watch, name="delayed-leash", daemon=True).start()
    worker.presence, worker.told = news, told
    worker.board, worker.spool = board, spool
    worker.worker_memory = None  # the supervisor measures it, and renews it
    try:
        worker.run()
    except ConfigError as error:
        logger.error("%s", error)
        sys.exit(2)
    if worker.stopped_by_task:
        sys.exit(STOPPED_BY_TASK)
    if worker.dismissed:
        sys.exit(DISMISSED)


def _departed(member: Member) -> Member:
    """What is remembered of a worker whose first process has ended."""
    gone = Member(member.number)
    gone.worker, gone.news, gone.files, gone.hold = member.worker, member.news, member.files, member.hold
    return gone


def _return(claim: Claim, worker: str) -> Settlement:
    """As a sweep does: to the front the first time, to the end later, and dead after too many losses. How often it put
    itself off, or was given back, counts no more than the one loss that went uncharged to the front."""
    try:
        most = claim.message().max_deliveries
    except DecodeError:
        most = DEFAULT_MAX_DELIVERIES
    if claim.attempt + (claim.deliveries > claim.attempt) >= most:
        reason = f"poison: delivered {claim.deliveries} times, and its worker was lost again"
        return noted(claim, Settlement(claim.ref, "dead", reason=reason), WORKER_LOST, worker)
    return noted(claim, Settlement(claim.ref, "back" if claim.deliveries == 1 else "retry"), WORKER_LOST, worker)


def _words(code: int) -> str:
    if code < 0:
        return f"was killed by signal {-code}"
    return f"ended with exit code {code}"


def _path() -> Sequence[str]:
    return [entry or os.getcwd() for entry in sys.path]


def _notify_systemd(state: str) -> None:
    """Tell the service manager, where it asks to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(state.encode(), address)
