"""The handles of many tasks together: what ``f.map(...)`` returns."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, Self, TypeVar, overload

from delayed import after, answers
from delayed.durations import seconds_of
from delayed.errors import BrokerUnavailable, NotKept, ResultTimeout, TaskError
from delayed.handle import CANCEL_TIMEOUT, Seen, TaskHandle, _queue_of, late, patience_of
from delayed.watching import Ended, Heard, Watch

if TYPE_CHECKING:
    from datetime import timedelta

    from delayed.after import Next
    from delayed.patience import Patience
    from delayed.queue import Queue

P = ParamSpec("P")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)

LOOK_MAX = 500  # answers that are asked for in one call
CANCELS = 16  # running tasks that are cancelled at once

_Advance = Callable[[bool], None]  # called for each end, with whether it was a good one


class Tally(NamedTuple):
    """How far a group is.

    Attributes:
        done: tasks that have returned.
        failed: tasks that have ended otherwise.
        total: tasks in the group.
    """

    done: int
    failed: int
    total: int


class Group(Sequence[TaskHandle[R_co]], Generic[R_co]):
    """The handles of tasks of one queue, in the order in which they were given.

    What asks for their answers needs the option `keep`. Everything here asks the store.

    >>> group = square.options(keep="1h").map(range(3))
    >>> group.results(timeout=10)
    [0, 1, 4]
    >>> await group
    [0, 1, 4]

    Args:
        queue: the queue.
        ids: of the tasks.
        kept: whether all of them keep their answers; None if that is not known.
    """

    def __init__(self, queue: Queue, ids: Iterable[int], *, kept: bool | None = None) -> None:
        self._queue = queue
        self._ids = tuple(ids)
        self._kept = kept

    # -- the handles -----------------------------------------------------------------------------------------------

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the tasks, from which :meth:`Queue.group` makes the same group again."""
        return self._ids

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> TaskHandle[R_co]: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Any:
        """The handle of one task; of a slice, a group."""
        if isinstance(index, slice):
            return Group(self._queue, self._ids[index], kept=self._kept)
        return self._handle(self._ids[index])

    def __iter__(self) -> Iterator[TaskHandle[R_co]]:
        return map(self._handle, self._ids)

    def __bool__(self) -> bool:
        return True  # as a queue that is empty

    # -- the answers -----------------------------------------------------------------------------------------------

    @overload
    def results(self, timeout: float | timedelta | str | None = None, *, progress_bar: bool = False) -> list[R_co]: ...
    @overload
    def results(
        self, timeout: float | timedelta | str | None = None, *, return_exceptions: bool, progress_bar: bool = False
    ) -> list[Any]: ...
    def results(
        self,
        timeout: float | timedelta | str | None = None,
        *,
        return_exceptions: bool = False,
        progress_bar: bool = False,
    ) -> list[Any]:
        """What the tasks returned, in their order; waits until all have ended.

        Args:
            timeout: seconds, a :class:`datetime.timedelta`, or text such as ``30s``; 0: look once; None: as long as it
                takes.
            return_exceptions: whether what a task raised is put in the place of its result. If not (the default) the
                first failure that is heard of is raised, with a note which task it was; the others go on.
            progress_bar: whether to show a bar on stderr, if that is a terminal.

        Raises:
            ResultTimeout: When not all have ended in time, or the store could not be reached until then.
            Exception: What :meth:`TaskHandle.result` raises.
        """
        found: list[Any] = [None] * len(self)
        with _bar(self, progress_bar) as advance:
            for number, ended in self._ends(patience_of(timeout, self._queue)):
                found[number] = self._outcome(number, ended, return_exceptions)
                advance(_is_good(ended))
        return found

    async def aresults(
        self, timeout: float | timedelta | str | None = None, *, return_exceptions: bool = False
    ) -> list[Any]:
        """As :meth:`results`; the event loop goes on meanwhile. ``await group`` is the same without a timeout."""
        found: list[Any] = [None] * len(self)
        async with aclosing(self._aends(patience_of(timeout, self._queue))) as ends:
            async for number, ended in ends:
                found[number] = self._outcome(number, ended, return_exceptions)
        return found

    def __await__(self) -> Generator[Any, None, list[R_co]]:
        return self.aresults().__await__()

    def as_completed(self, timeout: float | timedelta | str | None = None) -> Completed[R_co]:
        """The handles, each as soon as its task has ended: those first that have already.

        >>> for handle in group.as_completed(timeout="1m"): ...
        >>> async for handle in group.as_completed(timeout="1m"): ...

        Args:
            timeout: how long for all of them, as in :meth:`results`; None: as long as it takes.

        Raises:
            ResultTimeout: When not all have ended in time.
            NotKept: At once, when one of the tasks has no option `keep`.
        """
        return Completed(self, patience_of(timeout, self._queue))

    def wait(self, timeout: float | timedelta | str | None = None, *, progress_bar: bool = False) -> bool:
        """Wait until all have ended, well or not.

        Args:
            timeout: as in :meth:`results`; None: as long as it takes.
            progress_bar: whether to show a bar on stderr, if that is a terminal.

        Returns:
            Whether they have.

        Raises:
            NotKept: At once, when one of the tasks has no option `keep`.
        """
        try:
            with _bar(self, progress_bar) as advance:
                for _, ended in self._ends(patience_of(timeout, self._queue)):
                    if isinstance(ended, NotKept):
                        raise ended
                    advance(_is_good(ended))
        except ResultTimeout:
            return False
        return True

    @property
    def progress(self) -> Tally:
        """How many tasks have ended.

        Raises:
            NotKept: When the tasks have no option `keep`.
        """
        ends = [answers.unpack(data) for _, data in self._answers()]
        ends = [kept for kept in ends if kept.final]
        if not self._kept and len(ends) < len(self):
            self._check_kept()
        done = sum(kept.verdict.ok for kept in ends)
        return Tally(done, len(ends) - done, len(self))

    def cancel(self, timeout: float | timedelta | str = CANCEL_TIMEOUT) -> int:
        """Keep from running what has not ended, or stop it. None of it is tried again.

        Args:
            timeout: how long workers get to stop what runs: seconds, a :class:`datetime.timedelta`, or text such as
                ``5s``.

        Returns:
            How many tasks were cancelled; the others had ended before.

        Raises:
            ResultTimeout: When a worker has not stopped one in time.
            BrokerUnavailable: When the store can't be reached.
            ConfigError: When the timeout makes no sense.
        """
        from concurrent.futures import ThreadPoolExecutor

        seconds = seconds_of("timeout", timeout)
        queue = self._queue
        ended = {number for number, data in self._answers() if answers.unpack(data).final}
        # The last first: workers come from the other end.
        rest = [self[number] for number in reversed(range(len(self))) if number not in ended]
        waiting = len(rest)
        rest = [handle for handle in rest if not queue.cancel(handle.id)]
        cancelled = waiting - len(rest)
        rest = [handle for handle in rest if (entry := queue.broker.get(queue.name, handle.id)) and entry.worker]
        if not rest:
            return cancelled
        with ThreadPoolExecutor(min(len(rest), CANCELS)) as pool:
            stopped = list(pool.map(lambda handle: handle.cancel(seconds), rest))
        return cancelled + stopped.count(True)

    async def acancel(self, timeout: float | timedelta | str = CANCEL_TIMEOUT) -> int:
        """:meth:`cancel` in a thread, so that the event loop goes on meanwhile."""
        import asyncio

        return await asyncio.to_thread(self.cancel, timeout)

    # -- what follows ----------------------------------------------------------------------------------------------

    def then(self, func: Next[list[R_co], P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[T]:
        """Enqueue ``func(results, *args, **kwargs)``, to run when all tasks have returned; the list of what they
        returned, in order, comes first.

        If one of them fails, that one does without being run. Raises what :meth:`TaskHandle.then` does.
        """
        if not self._ids:
            return func.delay([], *args, **kwargs)
        return after.then(tuple(self), after.RESULTS, func, args, kwargs)

    # -- parts -----------------------------------------------------------------------------------------------------

    def _handle(self, id: int) -> TaskHandle[R_co]:
        return TaskHandle(id, self._queue.name, self._queue, self._kept)

    def _ends(self, patience: Patience) -> Iterator[Ended]:
        """The end of each task, in the order in which they are heard of."""
        inbox: SimpleQueue[Heard] = SimpleQueue()
        left = len(self)
        with Watch(self, inbox.put, patience) as watch:
            watch.begin()
            now = patience.looking()
            while left:
                try:
                    heard = _ended(now.get(inbox), patience)
                except TimeoutError:
                    raise late(f"{left} of {len(self)} tasks have", patience) from patience.away
                if heard is None:
                    now = patience
                    continue
                left -= 1
                yield heard

    async def _aends(self, patience: Patience) -> AsyncGenerator[Ended, None]:
        """As :meth:`_ends`, without blocking the event loop."""
        import asyncio  # few programs need it, and it takes long to load

        inbox: asyncio.Queue[Heard] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        left = len(self)

        def put(heard: Heard) -> None:
            with suppress(RuntimeError):  # nobody waits any more: the loop is closed
                loop.call_soon_threadsafe(inbox.put_nowait, heard)

        with Watch(self, put, patience) as watch:
            await asyncio.to_thread(watch.begin)
            now = patience.looking()
            while left:
                try:
                    heard = _ended(await asyncio.wait_for(inbox.get(), now.left), patience)
                except TimeoutError:
                    raise late(f"{left} of {len(self)} tasks have", patience) from patience.away
                if heard is None:
                    now = patience
                    continue
                left -= 1
                yield heard

    def _outcome(self, number: int, ended: Seen | TaskError, quiet: bool) -> Any:
        try:
            if isinstance(ended, TaskError):
                raise ended
            return self[number]._outcome(self._queue, ended)
        except Exception as error:
            if not quiet or isinstance(error, NotKept):
                error.add_note(f"It is task {self._ids[number]}, number {number} of {len(self)} in its group.")
                raise
            return error

    def _answers(self, patience: Patience | None = None) -> Iterator[tuple[int, bytes]]:
        """(number, data) of the answers that there are. With patience a store that can't be reached is asked again."""
        for start in range(0, len(self), LOOK_MAX):
            ids = self._ids[start : start + LOOK_MAX]
            ask = partial(self._queue.broker.get_results, self._queue.name, ids)
            found = ask() if patience is None else patience.insist(ask)
            for number, id in enumerate(ids, start):
                if id in found:
                    yield number, found[id]

    def _check_kept(self) -> None:
        """Raise if the first task that has no answer will never have one because it keeps none."""
        found = {number for number, _ in self._answers()}
        number = next((number for number in range(len(self)) if number not in found), None)
        if number is not None:
            try:
                self[number]._look(self._queue)
            except NotKept:
                raise
            except TaskError:
                pass  # gone, or dead

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (json.dumps(self._queue.spec(secret=False)), self._ids, self._kept)

    def __repr__(self) -> str:
        return f"<Group of {len(self)} tasks in queue {self._queue.name!r}>"


class Completed(Generic[R_co]):
    """What :meth:`Group.as_completed` returns, for ``for`` or ``async for``: handles whose tasks have ended."""

    def __init__(self, group: Group[R_co], patience: Patience) -> None:
        self._group = group
        self._patience = patience
        self._handles: Iterator[TaskHandle[R_co]] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TaskHandle[R_co]:
        if self._handles is None:
            self._handles = self._completed()
        return next(self._handles)

    async def __aiter__(self) -> AsyncGenerator[TaskHandle[R_co], None]:
        async with aclosing(self._group._aends(self._patience)) as ends:
            async for number, ended in ends:
                if isinstance(ended, NotKept):
                    raise ended
                yield self._group[number]

    def _completed(self) -> Iterator[TaskHandle[R_co]]:
        for number, ended in self._group._ends(self._patience):
            if isinstance(ended, NotKept):
                raise ended
            yield self._group[number]


def _ended(heard: Heard, patience: Patience) -> Ended | None:
    """The end of a task, unless it is an error that was heard of.

    Raises:
        TimeoutError: When the store could not be reached for all the time there was.
    """
    if isinstance(heard, BrokerUnavailable) and patience.timeout is not None:
        raise TimeoutError
    if isinstance(heard, BaseException):
        raise heard
    return heard


def _is_good(ended: Seen | TaskError) -> bool:
    return isinstance(ended, Seen) and ended.kept is not None and ended.kept.verdict.ok


@contextmanager
def _bar(group: Group[Any], wanted: bool) -> Iterator[_Advance]:
    if not wanted:
        yield lambda good: None
        return
    from delayed.bar import bar

    with bar(len(group)) as advance:
        yield advance


def _again(spec: str, ids: tuple[int, ...], kept: bool | None) -> Group[Any]:
    return Group(_queue_of(spec), ids, kept=kept)
