"""The worker: what its kinds share. Start it with :meth:`Worker.run`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, TypeVar

from delayed.brokers.base import LEASE, Broker
from delayed.errors import ConfigError, NotEnqueueable
from delayed.events import Hooks
from delayed.functions import path_of, resolve
from delayed.logger import JsonFormatter, logger, setup_logger
from delayed.scheduler import Scheduler
from delayed.sizes import size_of
from delayed.version import __version__
from delayed.worker import memory, process
from delayed.worker.config import Config
from delayed.worker.courier import Courier, Held
from delayed.worker.monitor import Monitor
from delayed.worker.turns import Turns

if TYPE_CHECKING:
    from delayed.queue import Queue

Handler = Callable[..., Any]

_OPTIONS = (
    "processes", "kill_timeout", "success_handler", "error_handler", "hooks", "max_tasks", "max_memory", "kill_memory",
    "worker_memory", "shutdown_timeout", "burst", "preload", "sweep", "schedule", "lease", "log_arguments", "order",
)  # fmt: skip

SCHEDULER_PATIENCE = 2.0  # seconds that it gets to end what it does with a store that hangs
LEASE_MAX = 86_400.0  # seconds
LANES_MAX = 10_000  # tasks that one child runs at once at most
OK, OUTGROWN = 0, 4  # what run() returns


class WorkerOptions(TypedDict, total=False):
    """What every :class:`Worker` takes by name."""

    queues: Sequence[Queue]
    processes: int
    kill_timeout: float
    success_handler: Handler | str | None
    error_handler: Handler | str | None
    hooks: type[Hooks] | str | None
    max_tasks: int | None
    max_memory: int | str | None
    kill_memory: int | str | None
    worker_memory: int | str | None
    shutdown_timeout: float
    burst: bool
    preload: Sequence[str]
    sweep: bool
    schedule: bool
    lease: float
    log_arguments: bool
    order: Literal["strict", "turns"] | Mapping[str, float]


class Worker:
    """Takes tasks from queues and runs each in a process that can be killed.

    Its processes are the one that calls :meth:`run` (the monitor, which runs no user code), a fork server, and the
    children. Any one of them may be killed: no task is lost, and only a killed child's own task ends by that.

    Args:
        queue: the queue to serve.
        queues: or several, on one broker.
        processes: how many tasks to run at once.
        kill_timeout: seconds between the soft stop of a task and SIGKILL.
        success_handler: called in the child as ``success_handler(task)`` after a task returned; a function that
            can be imported, or its path ``package.module:function``.
        error_handler: called in a child as ``error_handler(task, kill_signal, exc_info)`` for each run that
            failed; one that was cancelled, or given back, did not. `kill_signal` is the number of the signal that
            killed the run, else None; `exc_info` is as from ``sys.exc_info()``, None for a run that was killed (but
            for a timeout a ``TaskTimeout`` with the stack); ``task.verdict`` has all that is known. What a handler
            raises is logged and harms nothing; one that takes longer than 30 s is killed.
        hooks: a subclass of :class:`delayed.Hooks`, of which each child makes an object that it calls around its tasks;
            a class that can be imported, or its path ``package.module:Class``.
        max_tasks: tasks after which a child is replaced; None: never. (A forked child runs one.)
        max_memory: how much a child may grow before it is replaced, looked at between tasks: bytes, or text such as
            ``512M`` (powers of 1024); None: any.
        kill_memory: how much a child may use, together with the processes that it started; when it is found above that,
            at one of the looks each second while it is busy, it is killed, which counts as a crash of its task. In the
            same form. Memory that processes share, such as preloaded modules, is divided among them; None: any.
        worker_memory: how much all processes of the worker may use together; above that it finishes what runs and
            leaves, but not in its first minute. A supervisor starts the next one before. In the same form; None: any.
        shutdown_timeout: seconds that running tasks get to finish after SIGTERM, before they are stopped and
            given back; ``math.inf``: as long as they take.
        burst: leave when the queues are empty.
        preload: modules that the fork server imports once, instead of each child. Their later changes are not
            seen, and they must not start threads.
        sweep: whether this worker also sweeps its queues, every 2 s, or 5.5 s while nothing is claimed; on SQLite every
            0.8 s.
        schedule: whether it also enqueues the periodic tasks of its queues; not in a burst.
        lease: seconds after which the tasks of a worker that vanished run again, a day at most; renewed at a third of
            it.
        log_arguments: whether the log of a failed run has its arguments, shortened and without those annotated with
            :data:`delayed.Hidden`; else it has no values of them but what the task's own exception says.
        order: how several queues share the worker: ``"strict"``: a later one only gets what the earlier ones leave;
            ``"turns"``: all that have tasks get the same; or a weight for each queue, by name, such as
            ``{"mails": 3, "reports": 1}``: three of `mails` for each one of `reports`, as long as both have tasks.

    Raises:
        ConfigError: When an argument makes no sense; the message names it.
    """

    mode: ClassVar[str]
    one_shot: ClassVar[bool] = False
    own_options: ClassVar[tuple[str, ...]] = ()  # arguments that only this kind has
    lanes_are: ClassVar[str] = ""
    one_reader: ClassVar[bool] = True
    child: ClassVar[str] = "delayed.worker.child:Child"

    def __init__(
        self,
        queue: Queue | None = None,
        *,
        queues: Sequence[Queue] = (),
        processes: int = 1,
        kill_timeout: float = 5.0,
        success_handler: Handler | str | None = None,
        error_handler: Handler | str | None = None,
        hooks: type[Hooks] | str | None = None,
        max_tasks: int | None = None,
        max_memory: int | str | None = None,
        kill_memory: int | str | None = None,
        worker_memory: int | str | None = None,
        shutdown_timeout: float = 20.0,
        burst: bool = False,
        preload: Sequence[str] = (),
        sweep: bool = True,
        schedule: bool = True,
        lease: float = LEASE,
        log_arguments: bool = False,
        order: Literal["strict", "turns"] | Mapping[str, float] = "strict",
    ) -> None:
        self.queues: list[Queue] = [queue] if queue is not None else []
        self.queues += [each for each in queues if each is not queue]
        if not self.queues:
            raise ConfigError("a worker needs a queue: give queue=Queue(...) or queues=[...]")
        self.broker: Broker = self.queues[0].broker
        for each in self.queues[1:]:
            url = each.broker.spec()
            if each.broker is not self.broker and (url is None or url != self.broker.spec()):
                raise ConfigError(
                    f"one worker serves one broker: queue {self.queues[0].name!r} is on {self.broker!r}, "
                    f"{each.name!r} on {each.broker!r}; start a worker for each"
                )
        self.processes = whole("processes", processes, 1)
        self.kill_timeout = at_least("kill_timeout", kill_timeout, 0)
        self.shutdown_timeout = at_least("shutdown_timeout", shutdown_timeout, 0)
        self.lease = at_least("lease", lease, 0.3, LEASE_MAX)
        self.max_tasks = None if max_tasks is None else whole("max_tasks", max_tasks, 1)
        self.max_memory = _memory("max_memory", max_memory)
        self.kill_memory = _memory("kill_memory", kill_memory)
        self.worker_memory = _memory("worker_memory", worker_memory)
        self.success_handler = _handler_path("success_handler", success_handler)
        self.error_handler = _handler_path("error_handler", error_handler)
        if (
            hooks is not None
            and not isinstance(hooks, str)
            and not (isinstance(hooks, type) and issubclass(hooks, Hooks))
        ):
            raise ConfigError(f"hooks must be a subclass of delayed.Hooks, or its path, not {hooks!r}")
        self.hooks = _handler_path("hooks", hooks)
        self.burst = burst
        self.preload = list(preload)
        self.sweep = sweep
        self.schedule = schedule
        self.log_arguments = log_arguments
        self.order = _order(order, [queue.name for queue in self.queues])
        self.lanes = 1  # tasks that a child runs at once
        self.uvloop = False
        self.id = ""
        # For a supervisor: a descriptor that all processes of this worker shall hold, and who wants to know its id.
        self.presence = -1
        # ... and, if they are not to be of its own: of the files in which its tasks note their ends and their answers.
        self.board = self.spool = -1
        self.told: Callable[[str], None] | None = None
        self.stopped_by_task = False  # the last run ended because a task raised StopWorkers
        self.dismissed = False  # whether somebody asked it to stop, so that a supervisor shall not start it again
        self._monitor: Monitor | None = None
        self._stop_early = False
        self._lock = threading.Lock()

    def settings(self) -> dict[str, Any]:
        """Plain data from which :meth:`from_settings` makes the same worker in another process.

        Raises:
            ConfigError: When another process can't open its store.
        """
        return {
            "kind": path_of(type(self)),
            "queues": [queue.spec() for queue in self.queues],
            "options": {name: getattr(self, name) for name in (*_OPTIONS, *self.own_options)},
            "log_level": logger.getEffectiveLevel(),
            "log_json": _logs_json(),
        }

    @staticmethod
    def from_settings(settings: Mapping[str, Any]) -> Worker:
        """The worker of :meth:`settings`, in a process whose logger is set up the same way."""
        from delayed.queue import Queue

        setup_logger(settings["log_level"], as_json=settings["log_json"])
        kind: Any = resolve(settings["kind"])
        worker: Worker = kind(queues=[Queue.from_spec(spec) for spec in settings["queues"]], **settings["options"])
        return worker

    def run(self) -> int:
        """Work until :meth:`stop` or a signal; in burst mode, until the queues are empty. May be called again.

        In the main thread it handles SIGTERM and SIGINT (take nothing more, let what runs finish within
        `shutdown_timeout`, give the rest back; the second one: at once) and SIGHUP (let what runs finish, then
        leave), and restores the former handlers when it returns.

        Returns:
            0 when it was stopped, or a burst is over; 4 when it left because it used more than `worker_memory`.

        Raises:
            ConfigError: When a module can't be preloaded, or the fork server does not start.
        """
        guard = sys.modules.get("delayed.worker.child")
        if guard is not None and guard.inside:
            raise ConfigError(
                "a worker was started inside a task's process; in a script, start it under "
                'if __name__ == "__main__": so that importing the script does not'
            )
        with self._lock:
            if self._monitor is not None:
                raise ConfigError("this worker runs already")
            # Unique per start: a newcomer with the old host name and pid must not keep a dead worker's claims alive.
            self.id = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(8).hex()}"
            stack = contextlib.ExitStack()
            monitor = self._monitor = self._make_monitor(self.presence, stack.enter_context(self.broker.alive(self.id)))
        if self._stop_early:
            monitor.ask_stop()
        handlers = self._install_signals(monitor)
        try:
            logger.info("worker %s starts: %s", self.id, self._describe(), extra={"action": "worker_started"})
            if self.told is not None:
                self.told(self.id)
            with stack, self._scheduling():
                monitor.run()
            self.dismissed = monitor.dismissed
            logger.info("worker %s has stopped", self.id, extra={"action": "worker_stopped"})
            return OUTGROWN if monitor.outgrown else OK
        finally:
            self._monitor = None
            self._stop_early = False
            self.stopped_by_task = monitor.stopped_by_task
            for number, handler in handlers.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def _scheduling(self) -> Iterator[None]:
        """Enqueue periodic tasks meanwhile."""
        for queue in self.queues:
            queue.declared_schedules()  # what is wrong with one is told here, not in a thread
        scheduler = Scheduler(queues=self.queues)
        thread = threading.Thread(target=scheduler.run, name="delayed-scheduler", daemon=True)
        wanted = self.schedule and not self.burst
        if wanted:
            thread.start()
        try:
            yield
        finally:
            scheduler.stop()
            if wanted:
                thread.join(SCHEDULER_PATIENCE)

    def stop(self) -> None:
        """Stop as SIGTERM does, from another thread or a signal handler; a second call: at once.

        Returns immediately. If the worker does not run yet, its next :meth:`run` ends at its beginning.
        """
        monitor = self._monitor
        if monitor is None:
            self._stop_early = True
        else:
            monitor.ask_stop()

    def _describe(self) -> str:
        names = ", ".join(f"{queue.name} ({queue.codec.trust})" for queue in self.queues)
        each = f" ({self.lanes} {self.lanes_are} in each of {self.processes} processes)" if self.lanes_are else ""
        return f"{self.mode}, {self.processes * self.lanes} at once{each}, queues {names} on {self.broker!r}"

    def _turns(self) -> Turns | None:
        if self.order == "strict" or len(self.queues) == 1:
            return None
        weights = self.order if isinstance(self.order, dict) else {}
        return Turns({queue.name: weights.get(queue.name, 1.0) for queue in self.queues})

    def _make_monitor(self, *presence: int) -> Monitor:
        config = Config(
            worker=self.id,
            url=self.broker.spec(),
            queues=[queue.name for queue in self.queues],
            codecs=[queue.codec.spec() for queue in self.queues],
            keeps=[queue.dead_letters is not None for queue in self.queues],
            seats=[],
            board=self.board,
            spool=self.spool,
            answer_max=self.broker.answer_max,
            life=-1,
            life_write=-1,
            one_shot=self.one_shot,
            child=self.child,
            lanes=self.lanes,
            one_reader=self.one_reader or self.lanes == 1,
            uvloop=self.uvloop,
            kill_timeout=self.kill_timeout,
            lease=self.lease,
            max_tasks=self.max_tasks,
            max_memory=self.max_memory,
            kill_memory=self.kill_memory,
            success_handler=self.success_handler,
            error_handler=self.error_handler,
            hooks=self.hooks,
            preload=self.preload,
            log_level=logger.getEffectiveLevel(),
            log_json=_logs_json(),
            log_arguments=self.log_arguments,
            presence=[fd for fd in presence if fd >= 0],
            sole=threading.current_thread() is threading.main_thread(),
        )

        def make_courier(
            notify: Callable[[], None], freed: Callable[[Iterable[Held]], None], info: Callable[[], Mapping[str, Any]]
        ) -> Courier:
            return Courier(
                self.broker,
                config.queues,
                self.id,
                lease=self.lease,
                sweep=self.sweep,
                burst=self.burst,
                turns=self._turns(),
                bounds={queue.name: queue.dead_letters for queue in self.queues if queue.dead_letters is not None},
                notify=notify,
                freed=freed,
                info=info,
            )

        about = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "mode": self.mode,
            "processes": self.processes,
            "lanes": self.lanes,
            "queues": config.queues,
            "started": round(time.time(), 3),
            "version": __version__,
        }
        gauge = memory.worker_gauge(self.worker_memory, process.now())
        return Monitor(config, self.processes, self.shutdown_timeout, make_courier, about, gauge)

    def _install_signals(self, monitor: Monitor) -> dict[int, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}

        def leave(number: int, frame: FrameType | None) -> None:
            monitor.ask_stop()

        def finish(number: int, frame: FrameType | None) -> None:
            monitor.ask_stop(gently=True)

        handlers = {signal.SIGTERM: leave, signal.SIGINT: leave, signal.SIGHUP: finish}
        return {number: signal.signal(number, handler) for number, handler in handlers.items()}


def _logs_json() -> bool:
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logger.handlers)


N = TypeVar("N", int, float)


def at_least(name: str, value: N, least: float, most: float = inf) -> N:
    """`value`, if it is a number in these bounds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
        bounds = f"of at least {least:g}" if most == inf else f"from {least:g} to {most:g}"
        raise ConfigError(f"{name} must be a number {bounds}, not {value!r}")
    return value


def whole(name: str, value: int, least: int, most: int | None = None) -> int:
    """`value`, if it is a whole number in these bounds."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ConfigError(f"{name} must be a whole number {bounds}, not {value!r}")
    return value


def _order(order: str | Mapping[str, float], names: Sequence[str]) -> str | dict[str, float]:
    """How queues of these names share a worker."""
    if not isinstance(order, Mapping):
        if order not in ("strict", "turns"):
            raise ConfigError(f"order must be 'strict', 'turns', or a weight for each queue, not {order!r}")
        return order
    for name in names:
        if name not in order:
            raise ConfigError(f"order has no weight for queue {name!r}: give each queue of the worker one")
    for name, weight in order.items():
        if name not in names:
            raise ConfigError(f"order has a weight for {name!r}, and the worker has no such queue")
        if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not 0 < weight < inf:
            raise ConfigError(f"the weight of queue {name!r} must be a number above 0, not {weight!r}")
    return dict(order)


def _memory(name: str, value: int | str | None) -> int | None:
    if value is not None and not memory.MEASURABLE:
        raise ConfigError(f"{name} can't be kept here: how much memory a process uses is only known on Linux")
    return None if value is None else size_of(name, value)


def _handler_path(name: str, handler: Handler | str | None) -> str | None:
    if handler is None or isinstance(handler, str):
        return handler
    try:
        return path_of(handler)
    except NotEnqueueable as error:
        raise ConfigError(f"{name} runs in another process and must be importable there: {error}") from error
