"""The handle of a task: what can be asked of it after it was enqueued."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, ParamSpec, TypeVar, cast

from delayed import after, answers, orders
from delayed.answers import Kept, Raised
from delayed.attempts import Attempt, attempts_of
from delayed.durations import seconds_of
from delayed.errors import ConfigError, NotKept, NotSerializable, ResultGone, ResultTimeout, TaskFailed
from delayed.message import Entry
from delayed.worker import verdict

if TYPE_CHECKING:
    from datetime import timedelta

    from delayed.after import Next
    from delayed.patience import Patience
    from delayed.queue import Queue
    from delayed.worker.verdict import Verdict

P = ParamSpec("P")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)

Status = Literal["scheduled", "ready", "running", "done", "failed", "dead", "gone"]
CANCEL_TIMEOUT = 30.0  # seconds that a worker gets to stop a task


class _RemoteTraceback(Exception):
    """The cause of an exception that comes from a worker: where it was raised there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.strip()}\n"""'


class Progress(NamedTuple):
    """How far a task says that it is.

    Attributes:
        done: the part of it that is done, from 0 to 1.
        text: what it is at, in its own words; "" if it said none.
    """

    done: float
    text: str


class _Place(NamedTuple):
    id: int
    queue: str


class TaskHandle(_Place, Generic[R_co]):
    """What ``.delay()`` returns: the task's id and its queue's name, by which it compares, and what became of it.

    What asks for its answer needs the option `keep`. Everything here asks the store.

    >>> handle = add.options(keep="1h").delay(1, 2)
    >>> handle.result(timeout=10)
    3
    >>> await handle
    3

    Args:
        id: the task's number, unique in its queue.
        queue: the queue's name.
        source: the queue; None: it can only be compared.
        kept: whether the task keeps its answer; None if that is not known.
    """

    kept: bool | None = None
    _home: Queue | str | None = None

    def __new__(
        cls, id: int, queue: str, source: Queue | str | None = None, kept: bool | None = None
    ) -> TaskHandle[R_co]:
        self = super().__new__(cls, id, queue)
        self._home = source
        self.kept = kept
        return self

    # -- the answer ------------------------------------------------------------------------------------------------

    def result(self, timeout: float | timedelta | str | None = None) -> R_co:
        """What the task returned; waits for its end.

        Args:
            timeout: seconds, a :class:`datetime.timedelta`, or text such as ``30s``; 0: look once; None: as long as it
                takes.

        Raises:
            Exception: What the task raised, if that survives the way, with its traceback in the worker as the cause.
            TaskFailed: When it failed otherwise; its `verdict` says how.
            NotSerializable: When it returned what can't be serialized.
            ResultTimeout: When it has not ended in time, or the store could not be reached until then.
            NotKept: At once, when it has no option `keep`.
            ResultGone: When neither the task nor its answer is there any more.
            DecodeError: When its answer can't be decoded: this queue has another serializer, or secret.
            BrokerUnavailable: When there is no timeout, and the store does not answer a question for as long as the
                queue's `enqueue_timeout`. An outage while nothing is to be asked is waited out.
            ConfigError: When the timeout makes no sense.
        """
        queue = self._queue()
        patience = patience_of(timeout, queue)
        look = partial(self._look, queue)
        try:
            seen = patience.look(look)
            while not seen.final:
                with queue.postbox.expecting(self.id, seen.data) as future:
                    seen = patience.look(look)
                    if not seen.final:
                        patience.wait(future)
                        seen = patience.look(look)
        except TimeoutError:
            raise late(f"task {self.id} has", patience) from patience.away
        return self._outcome(queue, seen)

    async def aresult(self, timeout: float | timedelta | str | None = None) -> R_co:
        """As :meth:`result`; the event loop goes on meanwhile. ``await handle`` is the same without a timeout."""
        queue = self._queue()
        patience = patience_of(timeout, queue)
        look = partial(self._look, queue)
        try:
            seen = await patience.alook(look)
            while not seen.final:
                with queue.postbox.expecting(self.id, seen.data) as future:
                    seen = await patience.alook(look)
                    if not seen.final:
                        await patience.await_(future)
                        seen = await patience.alook(look)
        except TimeoutError:
            raise late(f"task {self.id} has", patience) from patience.away
        return self._outcome(queue, seen)

    def __await__(self) -> Generator[Any, None, R_co]:
        return self.aresult().__await__()

    @property
    def verdict(self) -> Verdict | None:
        """How the task ended; None as long as it has not, and when no answer of it is kept (any more)."""
        data = self._data(self._queue())
        kept = answers.unpack(data) if data else None
        return kept.verdict if kept is not None and kept.final else None

    # -- the task --------------------------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """``scheduled``, ``ready`` or ``running``; ``dead`` as a dead letter; ``done`` or ``failed`` for as long as its
        answer is kept; else ``gone``.
        """
        queue = self._queue()
        entry = queue.broker.get(self.queue, self.id)
        if entry is not None:
            return entry.state
        data = self._data(queue)
        if not data:
            return "gone"
        kept = answers.unpack(data)
        if not kept.final:
            return "running"
        return "done" if kept.verdict.ok else "failed"

    @property
    def progress(self) -> Progress | None:
        """How far the task said that it is, half a second ago or so; None if it does not run, or has said nothing.

        A worker that runs more than a hundred tasks at once tells of a hundred of them.
        """
        broker = self._queue().broker
        entry = broker.get(self.queue, self.id)
        if entry is None or entry.state != "running":
            return None
        for worker in broker.workers(self.queue):
            for task in worker.info.get("running", ()):
                if task.get("id") == self.id and task.get("queue") == self.queue and "progress" in task:
                    return Progress(*task["progress"])
        return None

    @property
    def attempts(self) -> list[Attempt]:
        """How each attempt ended that has, oldest first: the last 20, for as long as the task is stored, also as a dead
        letter. Empty before the first has failed, and when the task is gone.
        """
        entry = self._queue().broker.get(self.queue, self.id)
        return attempts_of(entry) if entry is not None else []

    def cancel(self, timeout: float | timedelta | str = CANCEL_TIMEOUT) -> bool:
        """Keep the task from running, or stop it if it runs. It is not tried again.

        Args:
            timeout: how long its worker gets to stop it: seconds, a :class:`datetime.timedelta`, or text such as
                ``5s``.

        Returns:
            True when it is cancelled; False when it had ended before.

        Raises:
            ResultTimeout: When its worker has not stopped it in time.
            BrokerUnavailable: When the store can't be reached.
            ConfigError: When the timeout makes no sense.
        """
        seconds = seconds_of("timeout", timeout)
        queue = self._queue()
        entry = queue.broker.get(self.queue, self.id)
        if entry is None or entry.state == "dead":
            found = self.verdict
            return found is not None and found.code == verdict.CANCELLED
        done, _ = orders.cancel(queue.broker, self.queue, entry, time.monotonic() + seconds)
        if done is None:
            raise ResultTimeout(f"task {self.id} was to be cancelled, and its worker has not done so in {seconds:g} s")
        return done

    def reschedule(self, delay: float | timedelta | str) -> bool:
        """Let the task, if it waits, become due after `delay` from now; see :meth:`Queue.reschedule`."""
        return self._queue().reschedule(self.id, delay)

    def then(self, func: Next[R_co, P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[T]:
        """Enqueue ``func(result, *args, **kwargs)``, to run when this task has returned; what it returned comes first.

        If this task fails, that one does without being run.

        Args:
            func: a decorated function, or one with options: ``handle.then(g.options(keep="1h"))``.

        Raises:
            NotKept: When this task is known to keep no answer.
            ConfigError: When `func` goes to another store, or to a queue where the result can't be read.
            Exception: What :meth:`Call.delay` raises.
        """
        return after.then((self,), after.RESULT, func, args, kwargs)

    async def astatus(self) -> Status:
        """:attr:`status` in a thread, so that the event loop goes on meanwhile."""
        import asyncio

        return await asyncio.to_thread(lambda: self.status)

    async def acancel(self, timeout: float | timedelta | str = CANCEL_TIMEOUT) -> bool:
        """:meth:`cancel` in a thread, so that the event loop goes on meanwhile."""
        import asyncio

        return await asyncio.to_thread(self.cancel, timeout)

    async def areschedule(self, delay: float | timedelta | str) -> bool:
        """:meth:`reschedule` in a thread, so that the event loop goes on meanwhile."""
        import asyncio

        return await asyncio.to_thread(self.reschedule, delay)

    # -- parts -----------------------------------------------------------------------------------------------------

    def _queue(self) -> Queue:
        if isinstance(self._home, str):
            self._home = _queue_of(self._home)
        if self._home is None:
            raise ConfigError(f"{self!r} does not know its store: take one from queue.handle({self.id})")
        return self._home

    def _data(self, queue: Queue) -> bytes:
        return queue.broker.get_results(self.queue, (self.id,)).get(self.id, b"")

    def _look(self, queue: Queue) -> Seen:
        """What is there of it now.

        Raises:
            NotKept, ResultGone: When there will be nothing.
        """
        data = self._data(queue)
        entry: Entry | None = None
        if not data:
            entry = queue.broker.get(self.queue, self.id)
            if entry is None or entry.state == "dead":
                data = self._data(queue)  # it may have ended just now
        if data:
            kept = answers.unpack(data)
            final = kept.final
            if final and not kept.verdict.ok and entry is None:
                entry = queue.broker.get(self.queue, self.id)
                final = entry is None or entry.state == "dead"  # else a dead letter that was brought back
            return Seen(kept, data, final)
        if entry is None:
            raise ResultGone(
                f"there is neither task {self.id} in queue {self.queue!r} nor an answer of it: it ended without the "
                "option keep, or longer ago than that says, or it was removed"
            )
        if entry.state == "dead":
            raise TaskFailed(f"task {self.id} is a dead letter: {entry.reason}")
        if entry.message.keep is None:
            raise NotKept(f"task {self.id} keeps no answer; enqueue it with .options(keep='1h')")
        return Seen(None, b"", False)

    def _outcome(self, queue: Queue, seen: Seen) -> R_co:
        """The result, returned or raised."""
        assert seen.kept is not None
        found, body, _ = seen.kept
        cause = _RemoteTraceback(found.traceback or found.stack) if found.traceback or found.stack else None
        if body:
            value: Any = queue.codec.decode_result(self.id, body)
            if isinstance(value, Raised):
                raise value.error from cause
            if found.ok:
                return cast("R_co", value)
        if found.ok:
            error = NotSerializable("")
            error.args = (f"what task {self.id} returned could not be kept: {found.text}",)
            raise error
        raise TaskFailed(f"task {self.id} {found}", found) from cause

    def __reduce__(self) -> tuple[Callable[..., TaskHandle[Any]], tuple[Any, ...]]:
        source = self._home
        if source is not None and not isinstance(source, str):
            try:
                source = json.dumps(source.spec(secret=False))
            except ConfigError:  # no other process can open its store
                source = None
        return TaskHandle, (self.id, self.queue, source, self.kept)


class Seen(NamedTuple):
    """What a look has found.

    Attributes:
        kept: what is kept of the task, None as long as it has not ended.
        data: the same as it is stored.
        final: whether that is all there will be.
    """

    kept: Kept | None
    data: bytes
    final: bool


def patience_of(timeout: float | timedelta | str | None, queue: Queue) -> Patience:
    """How long is waited for answers of a queue's tasks.

    Raises:
        ConfigError: When the timeout is no duration.
    """
    from delayed.patience import Patience  # brings what children do not need that wait for nothing

    return Patience(timeout, queue.enqueue_timeout)


def late(who: str, patience: Patience) -> ResultTimeout:
    """The error for those who have waited long enough."""
    away = f", as far as is known: {patience.away}" if patience.away else ""
    return ResultTimeout(f"{who} not ended within {patience.timeout:g} s{away}")


@lru_cache(maxsize=64)
def _queue_of(spec: str) -> Queue:
    """The queue of handles that came from elsewhere: one for all of them."""
    from delayed.queue import Queue

    return Queue.from_spec(json.loads(spec))
