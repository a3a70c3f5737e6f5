"""Tasks that are kept in memory, and run by the test that enqueued them, in a time of their own."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

from delayed import answers, context, transactions
from delayed.attempts import noted
from delayed.brokers.base import Joined
from delayed.brokers.deadline import Attempts
from delayed.brokers.memory import MemoryBroker
from delayed.consumer import Consumer
from delayed.durations import seconds_of
from delayed.errors import ConfigError, NotSerializable, TaskControl, TaskFailed, TaskStopped
from delayed.functions import owner_of, path_of
from delayed.logger import logger
from delayed.message import GATES, Answer, Claim, Entry, Message, Once, Settlement, State
from delayed.producer import JoinedProducer, Producer
from delayed.queue import Queue
from delayed.task import Task
from delayed.worker import gifts, outcome, verdict
from delayed.worker.courier import Held
from delayed.worker.deciding import Decision
from delayed.worker.fate import settle
from delayed.worker.gates import Gates
from delayed.worker.verdict import Verdict

RUNS_MAX = 10_000  # in one call: tasks that enqueue each other for ever are an error of the program
_LEASE = 1e9  # seconds; nobody renews it


class Run(NamedTuple):
    """One run of a task.

    Attributes:
        task: what was run; its `attempt` is the number of the run.
        verdict: how it ended.
        result: what it returned, None if it did not.
        error: what it raised, None if it did not.
        last: whether the task has ended with it, rather than being tried again.
    """

    task: Task
    verdict: Verdict
    result: Any
    error: BaseException | None
    last: bool


class Tasks:
    """What was enqueued while :func:`capture` is on, and the runs of it.

    Whatever is enqueued is encoded as its queue does it, and decoded again to be run: what would not arrive fails in
    the test. A run goes by the task's own retry policy, in this process and thread; its timeout is not kept, and it has
    no ``current.transaction()``. Nothing is run before it is asked for, unless `inline` is set.

    Attributes:
        inline: whether ``.delay()`` runs the task before it returns, if it is due. False by default.
        runs: all runs so far, oldest first.
    """

    def __init__(self) -> None:
        self.inline = False
        self.runs: list[Run] = []
        self.broker = _Broker(self, f"memory://testing-{os.urandom(8).hex()}")
        self._queues: dict[str, Queue] = {}
        self._producers: dict[str, Producer] = {}
        self._worker = os.urandom(8).hex()
        self._gates = Gates(self.broker)
        self._claims = 0
        self._running = False

    # -- looking -----------------------------------------------------------------------------------------------

    @property
    def enqueued(self) -> list[Task]:
        """The tasks that wait: first those that are due, in the order in which they will be run, then the others."""
        return [self._task(name, entry.message) for name, entry in self._waiting()]

    @property
    def dead(self) -> list[str]:
        """The dead letters: why each task is one."""
        return [entry.reason for name in self._queues for entry in self.broker.peek(name, "dead")]

    def of(self, func: Callable[..., Any]) -> list[Task]:
        """The tasks that wait and call `func`."""
        return [task for task in self.enqueued if task.func_path == path_of(func)]

    def assert_enqueued(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Task:
        """Fail unless a task waits that calls ``func(*args, **kwargs)``; without arguments: that calls `func`.

        It does not matter which arguments are given by name, nor whether defaults are given.

        Returns:
            The first such task.

        Raises:
            AssertionError: When there is none. It says what there is.
        """
        __tracebackhide__ = True  # of pytest
        mine = self.of(func)
        wanted = _bound(func, args, kwargs)
        for task in mine:
            if not (args or kwargs) or _bound(func, task.args, task.kwargs) == wanted:
                return task
        shown = [repr(task) for task in mine or self.enqueued]
        call = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
        raise AssertionError(
            f"no task waits that calls {func.__qualname__}({call}); there are:"
            + "".join(f"\n  {each}" for each in shown or ["none"])
        )

    def assert_not_enqueued(self, func: Callable[..., Any]) -> None:
        """Fail if a task waits that calls `func`.

        Raises:
            AssertionError: When there is one.
        """
        __tracebackhide__ = True
        mine = self.of(func)
        if mine:
            raise AssertionError("a task waits:" + "".join(f"\n  {task!r}" for task in mine))

    # -- running -----------------------------------------------------------------------------------------------

    def run_all(self, *, raising: bool = True) -> list[Run]:
        """Run what is due, and what that enqueues, until nothing is.

        Args:
            raising: whether a task that fails for good ends this with its error; it has no retry left, or can't be
                decoded, or is not found. False: its run is only noted.

        Returns:
            The runs, in their order.

        Raises:
            BaseException: What a task raised, see `raising`.
            ConfigError: When there is no end of it.
        """
        __tracebackhide__ = True
        before = len(self.runs)
        for _ in range(RUNS_MAX):
            if not self.run_next(raising=raising):
                return self.runs[before:]
        raise ConfigError(f"{RUNS_MAX:,} tasks were run, and there are more: do they enqueue each other for ever?")

    def run_next(self, *, raising: bool = True) -> Run | None:
        """Run the next task that is due, of any queue; None if none is. See :meth:`run_all`."""
        __tracebackhide__ = True
        if not self._queues:
            return None
        held = self._take()
        if held is None:
            return None
        run = self._run(held)
        self.runs.append(run)
        failed = run.last and not run.verdict.ok and run.verdict.code != verdict.CANCELLED
        if raising and failed and run.error is not None:
            raise run.error
        return run

    def advance(self, duration: float | str, *, raising: bool = True) -> list[Run]:
        """Let time pass, and run what becomes due meanwhile, each at its time.

        Args:
            duration: seconds, a timedelta, or text such as ``"5m"`` or ``"1h30m"``.
            raising: see :meth:`run_all`.

        Returns:
            The runs, in their order.
        """
        __tracebackhide__ = True
        before = len(self.runs)
        end = self.broker.time + seconds_of("duration", duration)
        while True:
            self.run_all(raising=raising)
            due = min((entry.due for _, entry in self._waiting() if entry.state == "scheduled"), default=None)
            if due is None or self.broker.time + due > end:
                break
            self.broker.time += due
        self.broker.time = end
        self.run_all(raising=raising)
        return self.runs[before:]

    # -- inside ------------------------------------------------------------------------------------------------

    def _producing(self, queue: Queue) -> Producer | JoinedProducer:
        joined = transactions.find(self.broker) if transactions.is_open() else None
        return self._producer(queue) if joined is None else JoinedProducer(joined, self._producer(queue).queue)

    def _producer(self, queue: Queue) -> Producer:
        self._queues.setdefault(queue.name, queue)
        if queue.name not in self._producers:
            self._producers[queue.name] = _Producer(self, queue.name)
        return self._producers[queue.name]

    def _stored(self) -> None:
        if self.inline and not self._running:
            self.run_all()

    def _waiting(self) -> list[tuple[str, Entry]]:
        places = [(name, state) for name in self._queues for state in _WAITING]
        found = [(name, entry) for name, state in places for entry in self.broker.peek(name, state, 10**9)]
        return sorted(found, key=lambda each: each[1].due)  # stable: those that are due keep the queue's order

    def _task(self, queue: str, message: Message) -> Task:
        codec = self._queues[queue].codec
        return Task.from_message(codec.open(message, message.header()), codec)

    def _take(self) -> Held | None:
        """Claim the next task that need not wait for another one; None if none is due."""
        while True:
            self._claims += 1
            names = list(self._queues)
            claims = self.broker.claim(names, self._worker, self._claims, self._claims, 1, _LEASE)
            if not claims:
                return None
            held = Held(_unlimited(claims[0]), 0.0, 0)
            ends = self._gates.ask([held])
            if not ends:
                return held
            self._settle(ends[0][1])

    def _settle(self, settlement: Settlement) -> None:
        self.broker.settle(self._worker, [settlement])
        self._gates.ended([settlement])
        while self._gates.busy:
            self._gates.work()

    def _run(self, held: Held) -> Run:
        claim = held.claim
        message: Message | None = None
        task: Task | None = None
        result: Any = None
        error: BaseException | None = None
        if claim.begin_by < self.broker.clock(claim.queue):
            return self._end(claim, Verdict(verdict.EXPIRED), None)
        if held.blocked:
            found = Verdict(verdict.BLOCKED, text=held.blocked)
            return self._end(claim, found, TaskFailed(f"task {claim.id} {found}", found))
        outer, was_running = context.run, self._running
        begun, cpu = time.monotonic(), time.process_time()
        try:
            message = claim.message()
            context.run = context.Run(message, claim.ref, claim.attempt, begun, None, lambda *_: None)
            self._running = True
            task = self._task(claim.queue, message)
            if held.gift:
                task.args = (gifts.unpack(held.gift, self._queues[claim.queue].codec), *task.args)
            result = _called(task)
        except Exception as raised:
            error = raised
        except (TaskStopped, TaskControl, SystemExit) as raised:
            error = raised
        finally:  # whatever else it is, KeyboardInterrupt or pytest.fail(), is for the test
            context.run, self._running = outer, was_running
        code = verdict.RETURNED if error is None else outcome.outcome_of(error)
        found = Verdict(code) if error is None else outcome.describe(code, error, "")
        if error is not None and message is not None:
            found = self._decide(claim, message, error).on(found)
        found = found._replace(wall=time.monotonic() - begun, cpu=time.process_time() - cpu)
        settlement = settle(claim, found, keep=self._queues[claim.queue].dead_letters is not None)
        if settlement is not None:
            if message is not None and message.keep is not None and settlement.action in ("done", "dead"):
                settlement = settlement._replace(answer=self._answer(claim, message.keep, found, result, error))
            self._settle(noted(claim, settlement, found, self._worker))
        if task is None:
            task = Task(claim.id, func_path=message.func if message is not None else "?")
        task.attempt, task.queue, task.verdict = claim.attempt, claim.queue, found
        last = settlement is None or settlement.action in ("done", "dead")
        return Run(task, found, result, error, last)

    def _answer(self, claim: Claim, keep: float, found: Verdict, result: Any, error: BaseException | None) -> Answer:
        codec = self._queues[claim.queue].codec
        body = b""
        try:
            if error is None:
                body = codec.encode_result(claim.id, result)
            elif isinstance(error, Exception) and not codec.plain:
                body = codec.encode_result(claim.id, answers.Raised(error))
        except NotSerializable as refused:
            if error is None:
                found = found._replace(type="delayed.errors.NotSerializable", text=str(refused))
        return Answer(answers.pack(found, body), keep)

    def _decide(self, claim: Claim, message: Message, error: BaseException) -> Decision:
        """What its retry policy says of an error, as in a worker."""
        decision = Decision(message, error, claim.attempt)
        if decision.path is not None:
            try:
                decision.ask(self._queues[claim.queue].codec)
            except (Exception, SystemExit):  # of no more use than in a worker, where the log has it
                logger.exception("retry policy %s failed; the task's outcome stands", decision.path)
        return decision

    def _end(self, claim: Claim, found: Verdict, error: Exception | None) -> Run:
        """End a task that is not run."""
        message = claim.message()
        answer = Answer(answers.pack(found), message.keep) if message.keep is not None else None
        settlement = settle(claim, found, keep=self._queues[claim.queue].dead_letters is not None)
        assert settlement is not None
        self._settle(settlement._replace(answer=answer))
        task = self._task(claim.queue, message)
        task.attempt, task.queue, task.verdict = claim.attempt, claim.queue, found
        return Run(task, found, None, error, True)


def _unlimited(claim: Claim) -> Claim:
    """The claim without a limit: one task runs at once here, and time stands still."""
    if GATES not in claim.header:
        return claim
    message = claim.message()
    gates = {name: gate for name, gate in (message.gates or {}).items() if name != "limit"}
    return claim._replace(header=message._replace(gates=gates).header())


_WAITING: tuple[State, ...] = ("ready", "scheduled")


class _Broker(MemoryBroker):
    """A store in memory with a time that stands still."""

    def __init__(self, tasks: Tasks, url: str) -> None:
        super().__init__(url)
        self._tasks = tasks
        self.time = 1e6
        self._begun = time.time() - self.time

    def _now(self) -> float:
        super()._now()
        return self.time

    def join(self, conn: Any) -> Joined:
        return _Joined(self._tasks, conn)

    def _milliseconds(self) -> int:
        return int((self._begun + self.time) * 1000)


class _Joined(Joined):
    """A transaction of the test's: what is enqueued in it is there when its block has ended well."""

    def __init__(self, tasks: Tasks, conn: Any) -> None:
        self.connection = conn
        self._tasks = tasks
        self._held: list[tuple[str, Message, Once | None]] = []
        self._handled = sys.exc_info()[1]  # what is being handled around the block

    def reserve_ids(self, queue: str, n: int) -> int:
        return self._tasks.broker.reserve_ids(queue, n)

    def clock(self, queue: str) -> float:
        return self._tasks.broker.clock(queue)

    def enqueue(self, queue: str, messages: Sequence[Message]) -> None:
        self._held += [(queue, message, None) for message in messages]

    def enqueue_once(self, queue: str, message: Message, once: Once) -> int:
        self._held.append((queue, message, once))
        return message.id

    def leave(self) -> None:
        if sys.exc_info()[1] is self._handled:
            for queue, message, once in self._held:
                producer = self._tasks._producers[queue]
                if once is None:
                    producer.enqueue((message,))
                else:
                    producer.enqueue_once(message, once)


class _Producer(Producer):
    """Puts messages into that store, and tells so."""

    def __init__(self, tasks: Tasks, queue: str) -> None:
        super().__init__(tasks.broker, queue)
        self._tasks = tasks

    def enqueue(self, messages: Sequence[Message], attempts: Attempts | None = None) -> None:
        super().enqueue(messages, attempts)
        self._tasks._stored()

    def enqueue_once(self, message: Message, once: Once, attempts: Attempts | None = None) -> int:
        holder = super().enqueue_once(message, once, attempts)
        self._tasks._stored()
        return holder


@contextmanager
def capture() -> Iterator[Tasks]:
    """Keep in memory what is enqueued in the block, on whatever queue and by whatever thread, instead of its store.

    Raises:
        ConfigError: When it is on already.
    """
    if isinstance(vars(Queue)["broker"], _Captured):
        raise ConfigError("what is enqueued is captured already: use one capture() at a time")
    tasks = Tasks()

    consumers: dict[str, Consumer] = {}

    def consuming(queue: Queue) -> Consumer:
        tasks._producer(queue)
        fresh = Consumer(tasks.broker, queue.name, queue.codec, queue.requeue_timeout)
        return consumers.setdefault(queue.name, fresh)

    with (
        mock.patch.object(Queue, "broker", _Captured(lambda queue: tasks.broker)),
        mock.patch.object(Queue, "_producing", lambda queue: tasks._producing(queue)),
        mock.patch.object(Queue, "_consumer", consuming),
        mock.patch.object(Queue, "postbox", property(lambda queue: _Postbox(tasks))),
    ):
        yield tasks


class _Postbox:
    """Where handles wait for answers: nothing happens here by itself, so what is due is run."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    @contextmanager
    def expecting(self, id: int, seen: bytes = b"") -> Iterator[Future[None]]:
        self._tasks.run_all(raising=False)
        future: Future[None] = Future()
        future.set_exception(ConfigError(f"task {id} is not due, or is tried again later: call advance() before"))
        yield future


class _Captured(property):
    """So that one can tell."""


def _called(task: Task) -> Any:
    """What a task returns; one that is to be awaited is run to its end, in another thread if a loop runs in this."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        running = False
    else:
        running = True
    if not running:  # not in the handler: what the task raises would have that error as its context
        return task.run()
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(task.run).result()


def _bound(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The arguments by their names, with the defaults of the others."""
    try:
        bound = inspect.signature(owner_of(func)[0]).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return tuple(args), dict(kwargs)
    bound.apply_defaults()
    return bound.arguments
