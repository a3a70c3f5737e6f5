"""From a function to one that can be called later.

>>> @delayed(queue, timeout=10)
... def add(a: int, b: int) -> int:
...     return a + b
>>> add(1, 2)        # calls it, as before
3
>>> add.delay(1, 2)  # enqueues the call
TaskHandle(id=3657433088000, queue='default')
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from delayed.durations import seconds_of, unix_time
from delayed.errors import ConfigError, NotEnqueueable
from delayed.form import Calls, Form
from delayed.functions import DECORATIONS
from delayed.handle import TaskHandle
from delayed.options import Options
from delayed.queue import Queue
from delayed.schedule import LATE, Schedule, checked_late, rule_of
from delayed.task import Task

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from delayed.group import Group
    from delayed.message import Message
    from delayed.signature import Signature

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")
_Rule = tuple[dict[str, Any], float]  # when a function is called by itself, and how late a call is made up for
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
A = TypeVar("A")
A_contra = TypeVar("A_contra", contravariant=True)  # the only argument of a function
_GATES = ("limit", "after")  # options of which a task has what its header has
Awaited = Coroutine[Any, Any, T]  # what a function returns whose result is to be awaited


class _Enqueues(Protocol[A_contra, T_co]):
    """What can enqueue a call with one argument."""

    def delay(self, item: A_contra, /) -> TaskHandle[T_co]: ...


class Call(Generic[P, R_co]):
    """One function with options, to be called later on one queue."""

    __slots__ = ("_due", "_form", "_func", "_gated", "_kept", "_options", "_queue", "_signature", "_template")

    def __init__(
        self, func: Callable[P, R_co], queue: Queue | None, options: Options, due: float | None = None
    ) -> None:
        self._func = func
        self._queue = queue
        self._options = options
        self._due = due  # unix time before which it may not run
        self._gated = options.limit is not None or bool(options.after)
        # The handle of a unique call may be that of another task.
        self._kept = options.keep is not None if options.unique is None else None
        self._template: Task | None = None
        self._form: Form | None = None
        self._signature: Signature | None = None

    @overload
    def delay(self: Call[P, Awaited[T]], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[T]: ...
    @overload
    def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R_co]: ...
    def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[Any]:
        """Enqueue ``function(*args, **kwargs)``.

        Raises:
            NotEnqueueable: When no worker could run it: the function can't be imported there, or the arguments
                can't be serialized.
            SignatureMismatch: When the arguments don't fit the function.
            EnqueueRefused: When it is certainly not stored.
            EnqueueUncertain: When it may be stored or not.
            AlreadyEnqueued: When it is unique, to be rejected if there is another, and there is.
        """
        if self._gated:
            return self._enqueue(args, kwargs)
        queue = self._queue or self._bind()
        template = self._template or self._prepare(queue)
        if self._signature is not None:
            self._signature.check(args, kwargs)
        form = self._form
        if form is not None and form.is_for(queue.codec, queue.default_timeout):
            task = Task.of_form(form, args, kwargs)
        else:
            task = template.with_args(args, kwargs)
            if self._due is not None:
                task.delay = max(0.0, self._due - time.time())
        return TaskHandle(queue.enqueue(task), queue.name, queue, self._kept)

    @overload
    async def adelay(self: Call[P, Awaited[T]], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[T]: ...
    @overload
    async def adelay(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R_co]: ...
    async def adelay(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[Any]:
        """:meth:`delay` in a thread, so that the event loop goes on meanwhile. In the block of a
        :meth:`Queue.transaction` it is :meth:`delay`, because the connection is this thread's.
        """
        return await self._aside(self.delay, *args, **kwargs)

    def map(self: _Enqueues[A, T], /, items: Iterable[A]) -> Group[T]:
        """Enqueue ``function(item)`` for each item, much faster than one by one.

        Returns:
            The handles, in the order of the items.

        Raises:
            NotEnqueueable, SignatureMismatch, EnqueueRefused, EnqueueUncertain: As :meth:`delay`. A thousand at a time
                are stored, all or none.
        """
        return cast("Call[..., T]", self)._enqueue_all((item,) for item in items)

    async def amap(self: _Enqueues[A, T], /, items: Iterable[A]) -> Group[T]:
        """:meth:`map` in a thread, as :meth:`adelay`."""
        call = cast("Call[..., T]", self)
        return await call._aside(call.map, items)

    @overload
    def starmap(self: Call[P, Awaited[T]], /, items: Iterable[Iterable[Any]]) -> Group[T]: ...
    @overload
    def starmap(self, /, items: Iterable[Iterable[Any]]) -> Group[R_co]: ...
    def starmap(self, /, items: Iterable[Iterable[Any]]) -> Group[Any]:
        """Enqueue ``function(*item)`` for each item; as :meth:`map`. Type checkers do not look into the items: whether
        they fit is checked here, before anything is stored.
        """
        return self._enqueue_all(map(tuple, items))

    @overload
    async def astarmap(self: Call[P, Awaited[T]], /, items: Iterable[Iterable[Any]]) -> Group[T]: ...
    @overload
    async def astarmap(self, /, items: Iterable[Iterable[Any]]) -> Group[R_co]: ...
    async def astarmap(self, /, items: Iterable[Iterable[Any]]) -> Group[Any]:
        """:meth:`starmap` in a thread, as :meth:`adelay`."""
        return await self._aside(self.starmap, items)

    def options(self, **options: Any) -> Call[P, R_co]:
        """The same function with other options."""
        due = None if "delay" in options else self._due
        return Call(self._func, self._queue, self._options.updated(options), due)

    def after(self, delay: float | timedelta | str) -> Call[P, R_co]:
        """The same function, to run after `delay` from its enqueue: ``f.after("5m").delay(...)``.

        Args:
            delay: seconds, a :class:`datetime.timedelta`, or text such as ``250ms`` or ``1h30m``. The store's clock
                counts it.

        Raises:
            ConfigError: When it makes no sense.
        """
        return self.options(delay=delay)

    def at(self, when: datetime) -> Call[P, R_co]:
        """The same function, to run at that time, or at once if it has passed: ``f.at(when).delay(...)``.

        Args:
            when: with a time zone. How long it is until then, the clock of the enqueuing host says.

        Raises:
            ConfigError: When it has no time zone, or is a hundred years away.
        """
        return Call(self._func, self._queue, self._options, unix_time("at(...)", when))

    def schedule(self, rule: Mapping[str, Any], late: float) -> Schedule:
        """The schedule by which this function is called without arguments.

        Raises:
            ConfigError: When it needs some.
            NotEnqueueable: When no worker could find it.
        """
        self._check_not_unique()
        queue = self._queue or self._bind()
        template = self._template or self._prepare(queue)
        if self._signature is not None:
            try:
                self._signature.check((), {})
            except TypeError as error:  # SignatureMismatch, NotEnqueueable
                raise ConfigError(f"what is called by itself can have no arguments: {error}") from None
        message = self._task(template, queue, (), {}).unsealed(queue.codec, 0, queue.default_timeout)
        return Schedule.of(rule, late, message)

    def message(self, queue: Queue, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Message:
        """The message of a call on `queue`, whatever the function's own is, without an id and not sealed.

        Raises:
            ConfigError: When it has an option that no such call can have.
            NotEnqueueable, SignatureMismatch: As :meth:`delay`.
        """
        self._check_not_unique()
        call = Call(self._func, queue, self._options)
        template = call._prepare(queue)
        if call._signature is not None:
            call._signature.check(args, kwargs)
        return call._task(template, queue, args, kwargs).unsealed(queue.codec, 0, queue.default_timeout)

    def _check_not_unique(self) -> None:
        if self._options.unique is not None:
            raise ConfigError("what is called by itself is enqueued once each time as it is: leave out unique=...")

    def __reduce__(self) -> tuple[Any, ...]:
        return Call, (self._func, self._queue, self._options, self._due)

    async def _aside(self, enqueue: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """What `enqueue` returns, in a thread, unless it is a part of a transaction of this one."""
        queue = self._queue or self._bind()
        if queue.in_transaction():
            return enqueue(*args, **kwargs)
        return await queue._aside(lambda: enqueue(*args, **kwargs))

    def _enqueue(self, args: tuple[Any, ...], kwargs: dict[str, Any], passing: int = 0) -> TaskHandle[Any]:
        """Enqueue the call of a task with gates; `passing`: whether results come before its arguments, see
        :mod:`delayed.after`.
        """
        queue = self._queue or self._bind()
        template = self._template or self._prepare(queue)
        if self._signature is not None:
            self._signature.check((None, *args) if passing else args, kwargs)
        task = template.with_args(args, kwargs)
        task.gates = self._gates(queue, task, passing)
        if self._due is not None:
            task.delay = max(0.0, self._due - time.time())
        return TaskHandle(queue.enqueue(task), queue.name, queue, self._kept)

    def _task(self, template: Task, queue: Queue, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
        """The task of one call."""
        task = template.with_args(args, kwargs)
        if self._gated:
            task.gates = self._gates(queue, task, 0)
        return task

    def _gates(self, queue: Queue, task: Task, passing: int) -> dict[str, Any]:
        """What has to be so before a call runs, for its header."""
        from delayed.after import after

        limit, handles = self._options.limit, self._options.after
        gates = after(handles, queue, passing) if handles else {}
        if limit is not None:
            value = None
            if limit.by is not None:
                value = self._argument(limit.by, task, passing)
            gates["limit"] = limit.data(task.func_path, value)
        return gates

    def _argument(self, name: str, task: Task, passing: int) -> Any:
        if self._signature is None:
            raise ConfigError(f"Python knows no parameters of {task.func_path}, so none of them can name a limit")
        passed = object()  # nobody knows yet what it will be, and it has no text
        return self._signature.argument(name, (passed, *task.args) if passing else task.args, task.kwargs)

    def _enqueue_all(self, calls: Iterable[tuple[Any, ...]]) -> Group[Any]:
        from delayed.group import Group

        queue = self._queue or self._bind()
        template = self._template or self._prepare(queue)
        signature = self._signature
        given = []
        for args in calls:
            if signature is not None:
                signature.check(args, {})
            given.append(args)
        form = self._form
        if form is not None and form.is_for(queue.codec, queue.default_timeout):
            return Group(queue, queue.enqueue_many(Calls(form, given)), kept=self._kept)
        tasks = [self._task(template, queue, args, {}) for args in given]
        if self._due is not None:
            delay = max(0.0, self._due - time.time())
            for task in tasks:
                task.delay = delay
        return Group(queue, queue.enqueue_many(tasks), kept=self._kept)

    def _bind(self) -> Queue:
        self._queue = default_queue()
        return self._queue

    def _prepare(self, queue: Queue) -> Task:
        # Not at decoration: only when its module is complete can the path of a function be checked.
        template = queue.task(self._func)
        for name, value in self._options._asdict().items():
            if name not in _GATES:
                setattr(template, name, value)
        from delayed.signature import signature_of  # loads inspect, which a child that enqueues nothing needs not

        self._signature = signature_of(self._func)
        if self._due is None and not self._gated and type(queue) is Queue:  # others may change what they enqueue
            self._form = Form.of(template, queue)
        self._template = template
        return template


class DelayedFunction(Protocol[P, R_co]):
    """A function that was decorated: itself, and the ways to call it later."""

    __name__: str
    __qualname__: str

    @property
    def queue(self) -> Queue:
        """Where its calls go."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call it now, here."""

    @overload
    def delay(self: DelayedFunction[P, Awaited[T]], *args: P.args, **kwargs: P.kwargs) -> TaskHandle[T]: ...
    @overload
    def delay(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R_co]:
        """Enqueue the call; see :meth:`Call.delay`."""

    @overload
    def adelay(self: DelayedFunction[P, Awaited[T]], *args: P.args, **kwargs: P.kwargs) -> Awaited[TaskHandle[T]]: ...
    @overload
    def adelay(self, *args: P.args, **kwargs: P.kwargs) -> Awaited[TaskHandle[R_co]]:
        """Enqueue the call without blocking the event loop."""

    def map(self: _Enqueues[A, T], items: Iterable[A]) -> Group[T]:
        """Enqueue a call for each item, which is its only argument: ``f.map([1, 2, 3])``; see :meth:`Call.map`."""

    def amap(self: _Enqueues[A, T], items: Iterable[A]) -> Awaited[Group[T]]:
        """:meth:`map` without blocking the event loop."""

    @overload
    def starmap(self: DelayedFunction[P, Awaited[T]], items: Iterable[Iterable[Any]]) -> Group[T]: ...
    @overload
    def starmap(self, items: Iterable[Iterable[Any]]) -> Group[R_co]:
        """Enqueue a call for each item, which has its arguments: ``f.starmap([(1, 2), (3, 4)])``."""

    @overload
    def astarmap(self: DelayedFunction[P, Awaited[T]], items: Iterable[Iterable[Any]]) -> Awaited[Group[T]]: ...
    @overload
    def astarmap(self, items: Iterable[Iterable[Any]]) -> Awaited[Group[R_co]]:
        """:meth:`starmap` without blocking the event loop."""

    def options(self, **options: Any) -> Call[P, R_co]:
        """Other options for a call: ``f.options(timeout=5, delay=60).delay(...)``."""

    def after(self, delay: float | timedelta | str) -> Call[P, R_co]:
        """To run after a while: ``f.after("5m").delay(...)``; see :meth:`Call.after`."""

    def at(self, when: datetime) -> Call[P, R_co]:
        """To run at a time: ``f.at(datetime(2030, 1, 1, tzinfo=UTC)).delay(...)``; see :meth:`Call.at`."""

    @overload
    def timeout(self: DelayedFunction[P, Awaited[T]], timeout: float | None) -> Callable[P, TaskHandle[T]]: ...
    @overload
    def timeout(self, timeout: float | None) -> Callable[P, TaskHandle[R_co]]:
        """``f.timeout(5)(...)`` enqueues the call with that timeout in seconds; None: no limit."""


class Delayed:
    """The decorator that :func:`delayed` makes. Called again, it takes other options, or the function."""

    __slots__ = ("_options", "_queue", "_rule")

    def __init__(self, queue: Queue | None, options: Options, rule: _Rule | None = None) -> None:
        self._queue = queue
        self._options = options
        self._rule = rule

    @overload
    def __call__(self, func: Callable[P, R], /, **options: Any) -> DelayedFunction[P, R]: ...
    @overload
    def __call__(self, timeout: float | None = ..., /, **options: Any) -> Delayed: ...
    def __call__(self, first: Any = ..., /, **options: Any) -> Any:
        """``()`` and ``(timeout=10, …)`` give a decorator, and so does ``(10)``; ``(func, …)`` decorates."""
        if callable(first) or isinstance(first, (staticmethod, classmethod)):
            return _decorate(first, self._queue, self._options.updated(options), self._rule)
        if first is not ...:
            if "timeout" in options:
                raise ConfigError("the timeout is given twice")
            options["timeout"] = first
        return Delayed(self._queue, self._options.updated(options), self._rule)

    def every(self, period: Any = None, *, cron: str | None = None, tz: str | None = None, late: Any = LATE) -> Delayed:
        """The same decorator for a function without arguments that is also enqueued by itself, again and again.

        >>> @delayed(queue).every("5m")
        ... def look() -> None: ...
        >>> @delayed(queue, retry=3).every(cron="0 3 * * *", tz="Europe/Rome")
        ... def tidy() -> None: ...

        Whoever serves the queue does it, however many they are, once for each tick; `delayed worker` with the module's
        name does, and so does a worker in a program that has imported the module.

        Args:
            period: seconds, a timedelta, or text such as ``"5m"``, from 0.1 s: at its multiples since 1970 in UTC.
            cron: or an expression of cron, such as ``"*/5 9-17 * * mon-fri"``; needs ``delayed[cron]``.
            tz: the time zone that `cron` means; UTC by default.
            late: seconds, or text: how late the last tick is made up for, if nobody was there for it; half an hour at
                most, 5 minutes by default. Earlier ones are left out.

        Raises:
            ConfigError: When a value makes no sense.
            MissingDependency: When `cron` is given and ``cronsim`` is not installed.
        """
        plain = rule_of(period, cron, tz)
        return Delayed(self._queue, self._options, (plain, checked_late(seconds_of("late", late))))

    def __repr__(self) -> str:
        return f"<Delayed {self._queue!r} {self._options!r}>"


@overload
def delayed(func: Callable[P, R], /, **options: Any) -> DelayedFunction[P, R]: ...
@overload
def delayed(queue: Queue | None = None, /, **options: Any) -> Delayed: ...
def delayed(first: Any = None, /, **options: Any) -> Any:
    """Make a decorator that gives functions a ``.delay()``.

    ``@delayed(queue)``, ``@delayed(queue, timeout=10)``, ``@delayed()`` and ``@delayed`` all decorate; the last two
    use the queue "default" in the default store.

    Args:
        queue: where the calls go; None: the queue "default".
        timeout: seconds that one run may take; None: no limit. Default: the queue's `default_timeout`.
        retry: a number of retries (-1: for ever), a :class:`Retry`, a function that decides (as `policy` of
            :class:`Retry`), or None (the default) for no retry.
        priority: higher goes first; between -32768 and 32767, 0 by default.
        delay: how long from the enqueue until it may run first: seconds, a :class:`datetime.timedelta`, or text such
            as ``30s`` or ``1h30m``; 0 by default.
        key: a name for the task; None by default.
        max_deliveries: how often it is handed out when its workers vanish each time; 11 by default.
        memory: what one run may allocate, on top of what its process has before it: bytes, or text such as ``512M``
            (powers of 1024). Beyond it Python raises :class:`MemoryError`. None (the default): no limit.
        cpu: seconds of CPU that one run may use, rounded up to whole ones; then it is stopped like a task whose time is
            up. None (the default): no limit.
        expires: how long after its enqueue, by the store's clock, its first run has to begin, or it is not run at all:
            as `delay`. None (the default): any time will do.
        exclusive: whether its run is killed where its lease can't be renewed, at four fifths of the lease: before
            anybody else may begin it. It is then given back, uncharged. False (the default): a worker that is cut off
            from the store goes on with it, beside the next run.
        keep: for how long after the end of a task its answer is kept, for :meth:`TaskHandle.result`: seconds, or text
            such as ``90s``, ``5m``, ``1h``, ``7d``. None (the default): none is kept.
        unique: whether a call is left out while there is one that is the same, whose handle is then returned. True: by
            function and arguments; or a key, such as ``"import-{customer_id}"``, in which arguments are named; or a
            :class:`Unique`, which says more. None (the default): it is not.
        fair_by: the name of an argument, such as ``"customer_id"``, by whose values the queue takes turns, so that the
            many calls of one do not hold up those of others. None (the default): first come, first served.
        at_once: how many of its tasks run at once at most, over all workers of the queue; None (the default): any
            number.
        rate: how often they begin, ``100/m`` for instance; None (the default): as often as there are some.
        limit: both, for each value of an argument, or for several functions together: a :class:`Limit`.
        after: tasks that have to have returned before it runs: what ``.delay()`` or ``.map()`` returned, or several of
            these; they have to have the option `keep`. If one fails, this one does without being run. None by default.

    `memory` and `cpu` hold in forked and preforked workers on Linux; others refuse the task: :class:`LimitsRefused`.

    Raises:
        UnknownOption: When an option is not one of these.
        ConfigError: When a value makes no sense.
    """
    if isinstance(first, Queue) or first is None:
        return Delayed(first, Options().updated(options))
    if callable(first) or isinstance(first, (staticmethod, classmethod)):
        return _decorate(first, None, Options().updated(options))
    raise ConfigError(f"delayed() takes a Queue, or nothing for the default one, not {first!r}: delayed(Queue('name'))")


class _Enqueuer(Protocol):
    # Of any result: with an overload for what is to be awaited, functions that have overloads themselves are refused.
    def __call__(self, func: Callable[P, Any], /) -> Callable[P, TaskHandle[Any]]: ...


class _EnqueuerInTime(Protocol):
    def __call__(self, func: Callable[P, Any], timeout: float | None) -> Callable[P, TaskHandle[Any]]: ...


class _EnqueuerWithParams(Protocol):
    def __call__(self, **options: Any) -> _Enqueuer: ...


def delay(queue: Queue | None = None) -> _Enqueuer:
    """``delay(queue)(func)(*args)`` enqueues the call of a function that is not decorated."""
    return delay_with_params(queue)()


def delay_in_time(queue: Queue | None = None) -> _EnqueuerInTime:
    """``delay_in_time(queue)(func, timeout=10)(*args)``: the same with a timeout in seconds."""

    def in_time(func: Callable[P, Any], timeout: float | None) -> Callable[P, TaskHandle[Any]]:
        return delay_with_params(queue)(timeout=timeout)(func)

    return in_time


def delay_with_params(queue: Queue | None = None) -> _EnqueuerWithParams:
    """``delay_with_params(queue)(timeout=10, priority=1)(func)(*args)``: the same with any options."""

    def with_params(**options: Any) -> _Enqueuer:
        checked = Options().updated(options)

        def enqueuer(func: Callable[P, Any], /) -> Callable[P, TaskHandle[Any]]:
            return Call(func, queue, checked).delay

        return enqueuer

    return with_params


def _decorate(func: Any, queue: Queue | None, options: Options, rule: _Rule | None = None) -> Any:
    target = getattr(func, "__func__", func) if isinstance(func, (staticmethod, classmethod)) else func
    if hasattr(target, "adelay"):
        raise ConfigError(
            f"{target.__qualname__} is decorated with delayed already; "
            f"to enqueue its calls elsewhere too: delay(queue)({target.__name__})"
        )
    call: Call[..., Any] = Call(cast("Callable[..., Any]", target), queue, options)
    parts: tuple[Any, ...] = (
        call.delay,
        call.adelay,
        call.map,
        call.amap,
        call.starmap,
        call.astarmap,
        call.options,
        call.after,
        call.at,
        lambda timeout: call.options(timeout=timeout).delay,
        queue if queue is not None else default_queue(),
    )
    try:
        for name, value in zip(DECORATIONS, parts, strict=True):
            setattr(target, name, value)
    except (AttributeError, TypeError):
        raise NotEnqueueable(
            f"{target!r} can't have attributes, so it can't be decorated: enqueue it with delay(queue)(...)"
        ) from None
    if rule is not None:
        parts[-1].add_schedule(lambda: call.schedule(*rule))
    return func


_default: Queue | None = None
_default_lock = threading.Lock()


def default_queue() -> Queue:
    """The queue "default" in the default store: where ``@delayed()`` puts its calls."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Queue()
        return _default
