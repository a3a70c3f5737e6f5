"""The handles of many tasks together: what ``f.map(...)`` returns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, Self, TypeVar, overload

from delayed import after, answers
from delayed.errors import NotKept, ResultTimeout, TaskError
from delayed.handle import CANCEL_TIMEOUT, Seen, TaskHandle, _queue_of
from delayed.results import Waiting

if TYPE_CHECKING:
    from delayed.after import Next
    from delayed.queue import Queue

P = ParamSpec("P")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)

LOOK_MAX = 500  # answers that are asked for in one call
CANCELS = 16  # running tasks that are cancelled at once

# The number of a task in its group, and its answer; None if there may be none, an error if it can't be waited for.
_Told = tuple[int, "bytes | BaseException | None"]
_Ended = tuple[int, "Seen | TaskError"]  # the number of a task, and its answer, or why there is none
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
    def results(self, timeout: float | None = None, *, progress_bar: bool = False) -> list[R_co]: ...
    @overload
    def results(
        self, timeout: float | None = None, *, return_exceptions: bool, progress_bar: bool = False
    ) -> list[Any]: ...
    def results(
        self, timeout: float | None = None, *, return_exceptions: bool = False, progress_bar: bool = False
    ) -> list[Any]:
        """What the tasks returned, in their order; waits until all have ended.

        Args:
            timeout: seconds; None: as long as it takes.
            return_exceptions: whether what a task raised is put in the place of its result. If not (the default) the
                first failure that is heard of is raised, with a note which task it was; the others go on.
            progress_bar: whether to show a bar on stderr, if that is a terminal.

        Raises:
            ResultTimeout: When not all have ended in time.
            Exception: What :meth:`TaskHandle.result` raises.
        """
        found: list[Any] = [None] * len(self)
        with _bar(self, progress_bar) as advance:
            for number, ended in self._ends(timeout):
                found[number] = self._outcome(number, ended, return_exceptions)
                advance(_is_good(ended))
        return found

    async def aresults(self, timeout: float | None = None, *, return_exceptions: bool = False) -> list[Any]:
        """As :meth:`results`; the event loop goes on meanwhile. ``await group`` is the same without a timeout."""
        import asyncio  # few programs need it, and it takes long to load

        found: list[Any] = [None] * len(self)
        inbox: asyncio.Queue[_Told] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(told: _Told) -> None:
            with suppress(RuntimeError):  # nobody waits any more: the loop is closed
                loop.call_soon_threadsafe(inbox.put_nowait, told)

        deadline = _deadline(timeout)
        with _Watch(self, put) as watch:
            await asyncio.to_thread(watch.begin)
            while watch.left:
                try:
                    told = await asyncio.wait_for(inbox.get(), _left(deadline))
                except TimeoutError:
                    raise self._late(timeout, len(watch.left)) from None
                ended = await asyncio.to_thread(watch.take, *told)
                if ended is not None:
                    found[told[0]] = self._outcome(told[0], ended, return_exceptions)
        return found

    def __await__(self) -> Generator[Any, None, list[R_co]]:
        return self.aresults().__await__()

    def as_completed(self, timeout: float | None = None) -> Iterator[TaskHandle[R_co]]:
        """The handles, each as soon as its task has ended: those first that have already.

        Args:
            timeout: seconds for all of them; None: as long as it takes.

        Raises:
            ResultTimeout: When not all have ended in time.
            NotKept: At once, when the tasks have no option `keep`.
        """
        for number, ended in self._ends(timeout):
            if isinstance(ended, NotKept):
                raise ended
            yield self[number]

    def wait(self, timeout: float | None = None, *, progress_bar: bool = False) -> bool:
        """Wait until all have ended, well or not.

        Args:
            timeout: seconds; None: as long as it takes.
            progress_bar: whether to show a bar on stderr, if that is a terminal.

        Returns:
            Whether they have.

        Raises:
            NotKept: At once, when the tasks have no option `keep`.
        """
        try:
            with _bar(self, progress_bar) as advance:
                for _, ended in self._ends(timeout):
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

    def cancel(self, timeout: float = CANCEL_TIMEOUT) -> int:
        """Keep from running what has not ended, or stop it. None of it is tried again.

        Args:
            timeout: seconds that workers get to stop what runs.

        Returns:
            How many tasks were cancelled; the others had ended before.

        Raises:
            ResultTimeout: When a worker has not stopped one in time.
        """
        from concurrent.futures import ThreadPoolExecutor

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
            stopped = list(pool.map(lambda handle: handle.cancel(timeout), rest))
        return cancelled + stopped.count(True)

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

    def _ends(self, timeout: float | None) -> Iterator[_Ended]:
        """The end of each task, in the order in which they are heard of."""
        inbox: SimpleQueue[_Told] = SimpleQueue()
        deadline = _deadline(timeout)
        with _Watch(self, inbox.put) as watch:
            watch.begin()
            while watch.left:
                try:
                    number, data = inbox.get(timeout=_left(deadline))
                except Empty:
                    raise self._late(timeout, len(watch.left)) from None
                ended = watch.take(number, data)
                if ended is not None:
                    yield number, ended

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

    def _answers(self) -> Iterator[tuple[int, bytes]]:
        """(number, data) of the answers that there are."""
        for start in range(0, len(self), LOOK_MAX):
            ids = self._ids[start : start + LOOK_MAX]
            found = self._queue.broker.get_results(self._queue.name, ids)
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

    def _late(self, timeout: float | None, left: int) -> ResultTimeout:
        return ResultTimeout(f"{left} of {len(self)} tasks have not ended within {timeout:g} s")

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (json.dumps(self._queue.spec(secret=False)), self._ids, self._kept)

    def __repr__(self) -> str:
        return f"<Group of {len(self)} tasks in queue {self._queue.name!r}>"


class _Watch:
    """Listens for the ends of a group's tasks. What is told may be told twice, or too early; :meth:`take` looks.

    Args:
        put: called from any thread, with what is told.

    Attributes:
        left: the numbers of the tasks that have not ended as far as is known.
    """

    def __init__(self, group: Group[Any], put: Callable[[_Told], Any]) -> None:
        self._group = group
        self._queue = group._queue
        self._put = put
        self._stack = ExitStack()
        self.left = set(range(len(group)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(self) -> None:
        """Listen, and then tell of what there is already."""
        for number in self.left:
            self._expect(number)
        found = set()
        for number, data in self._group._answers():
            found.add(number)
            self._put((number, data))
        rest = self.left - found
        if rest and not self._group._kept:
            self._put((min(rest), None))  # so that it is told at once if there will be no answers

    def take(self, number: int, told: bytes | BaseException | None) -> Seen | TaskError | None:
        """What the end of a task is that was told of; None if it has not ended, or is known already."""
        if number not in self.left:
            return None
        try:
            seen = self._look(number, told if isinstance(told, bytes) else None)
        except TaskError as error:
            self.left.discard(number)
            return error
        if not seen.final and isinstance(told, BaseException):
            raise told
        if not seen.final:
            return None
        self.left.discard(number)
        return seen

    def _look(self, number: int, data: bytes | None) -> Seen:
        if data:
            kept = answers.unpack(data)
            if kept.final and kept.verdict.ok:
                return Seen(kept, data, True)
        handle = self._group[number]
        seen = handle._look(self._queue)
        if not seen.final:  # what may have come before this is looked for after it
            self._expect(number, seen.data)
            seen = handle._look(self._queue)
        return seen

    def _expect(self, number: int, seen: bytes = b"") -> None:
        def tell(future: Waiting) -> None:
            if not future.cancelled():
                self._put((number, future.exception() or future.result()))

        future = self._stack.enter_context(self._queue.postbox.expecting(self._group.ids[number], seen))
        future.add_done_callback(tell)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)


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
