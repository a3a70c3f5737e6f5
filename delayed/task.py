"""A task: one call to be made later."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

from delayed.codec import BY_VALUE, Call, Codec, Opened
from delayed.durations import seconds_of
from delayed.errors import ConfigError, FunctionNotFound, NotAllowed, NotEnqueueable, SignatureMismatch
from delayed.fields import ENDLESS
from delayed.functions import bare, loaded, path_of, resolve, seen
from delayed.hints import types_of
from delayed.message import DEFAULT_MAX_DELIVERIES, KEEP_MIN, NO_EXTRA, Message, Once
from delayed.retry import Retry
from delayed.sizes import size_of
from delayed.tracing import outgoing
from delayed.unique import Unique, named

if TYPE_CHECKING:
    from delayed.form import Form
    from delayed.retry import Decider
    from delayed.worker.verdict import Verdict


class Task:
    """One call to be made later.

    Args:
        id: its number in its queue; None until it is enqueued.
        module_name, func_name: where the function is; or
        func_path: the same as ``module:name``.
        args, kwargs: the arguments.
        timeout: seconds it may run; None: the queue's default; ``math.inf``: no limit.
        retry: a number of retries, a :class:`Retry`, a function that decides, or None.
        priority: higher is run first.
        delay: seconds from now before it may run.
        key: a name of the caller's for it.
        max_deliveries: claims after which a task that always loses its workers is dead; None: 11, and one more for
            each retry.
        memory: bytes that one run may allocate, or text such as ``512M``; None: no limit.
        cpu: seconds of CPU that one run may use; None: no limit.
        keep: seconds that its answer is kept for after its end, or text such as ``1h``; None: none is kept.
        expires: seconds from its enqueue after which it is not begun any more; None: any time will do.
        exclusive: whether its run is killed in time where its lease can't be renewed.
        unique: a :class:`Unique`, or what means one: True, or a key; None: it is not unique.
        fair_by: the name of the argument by whose values its queue takes turns; None: first come, first served.
        gates: what has to be so before it is run, see :attr:`Message.gates`; None: nothing.

    Attributes:
        verdict: in an error handler: how the run ended.
        attempt: in hooks: the number of the run, 1 for the first; else None.
        queue: in hooks: the name of the queue that it came from; else None.
    """

    __slots__ = (
        "_codec", "_data", "_form", "_fresh", "_func", "_id", "_message", "_plain", "args", "attempt", "cpu", "delay",
        "exclusive", "expires", "fair_by", "func_path", "gates", "keep", "key", "kwargs", "max_deliveries", "memory",
        "priority", "queue", "retry", "timeout", "unique", "verdict",
    )  # fmt: skip

    def __init__(
        self,
        id: int | None = None,
        module_name: str | None = None,
        func_name: str | None = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        *,
        func_path: str | None = None,
        retry: Retry | int | Mapping[str, Any] | Decider | None = None,
        priority: int = 0,
        delay: float = 0.0,
        key: str | None = None,
        max_deliveries: int | None = None,
        memory: int | str | None = None,
        cpu: float | None = None,
        keep: float | str | None = None,
        expires: float | None = None,
        exclusive: bool = False,
        unique: Unique | bool | str | None = None,
        fair_by: str | None = None,
        gates: Mapping[str, Any] | None = None,
        func: Callable[..., Any] | None = None,
    ) -> None:
        self._id = id
        self.func_path = func_path if func_path is not None else f"{module_name}:{func_name}"
        self.args = tuple(args) if args else ()
        self.kwargs = dict(kwargs) if kwargs else {}
        self.timeout = timeout
        self.retry = Retry.of(retry)
        self.priority = priority
        self.delay = delay
        self.key = key
        self.max_deliveries = max_deliveries
        self.memory = None if memory is None else size_of("memory", memory)
        self.cpu = cpu
        self.keep = None if keep is None else seconds_of("keep", keep, least=KEEP_MIN)
        self.expires = expires
        self.exclusive = exclusive
        self.unique = Unique.of(unique)
        self.fair_by = fair_by
        self.gates = gates
        self.verdict: Verdict | None = None
        self.attempt: int | None = None
        self.queue: str | None = None
        self._func = func  # where no path leads to it
        self._codec: Codec | None = None  # that has a say in what is run
        self._plain = False  # whether the arguments are plain data that may have to be made into what is annotated
        self._data: bytes | None = None
        self._message: Opened | None = None  # that it came from
        self._form: Form | None = None  # that it was made of
        self._fresh = False  # whether it is still as that has made it

    @classmethod
    def create(
        cls,
        func: Callable[..., Any],
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Task:
        """The task that calls `func`.

        Raises:
            NotEnqueueable: When no worker could find the function.
        """
        return cls(None, None, None, args, kwargs, timeout, func_path=path_of(func), **options)

    @classmethod
    def create_by_value(
        cls,
        func: Callable[..., Any],
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Task:
        """The task that calls `func`, which travels with its code if no path leads to it; needs cloudpickle."""
        try:
            return cls.create(func, args, kwargs, timeout, **options)
        except NotEnqueueable:
            name = getattr(func, "__qualname__", type(func).__qualname__)
            return cls(None, None, None, args, kwargs, timeout, func_path=BY_VALUE + name, func=bare(func), **options)

    def with_args(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
        """A task that is not enqueued yet, with other arguments and all else the same."""
        task = Task.__new__(Task)
        for name in Task.__slots__:
            setattr(task, name, getattr(self, name))
        task.args = args
        task.kwargs = kwargs
        task._id = task._data = task._form = None
        task._fresh = False
        return task

    @classmethod
    def of_form(cls, form: Form, args: tuple[Any, ...], kwargs: dict[str, Any], *, fresh: bool = True) -> Task:
        """The same of a form's template; `fresh` for who enqueues it at once, as it is."""
        task = cls.__new__(cls)
        task._form = form
        task._fresh = fresh
        task.args = args
        task.kwargs = kwargs
        task._id = task._data = task.unique = task.expires = None
        return task

    @property
    def id(self) -> int | None:
        """Its number in its queue."""
        return self._id

    @id.setter
    def id(self, value: int | None) -> None:
        self._id = value
        self._data = None

    @property
    def module_name(self) -> str:
        """The module of its function."""
        return self.func_path.rpartition(":")[0]

    @property
    def func_name(self) -> str:
        """The name of its function in the module."""
        return self.func_path.rpartition(":")[2]

    @property
    def by_value(self) -> Callable[..., Any] | None:
        """Its function, if that travels with its code, or came with it; else None."""
        return self._func

    @property
    def data(self) -> bytes | None:
        """What :meth:`serialize` made or :meth:`deserialize` was given."""
        return self._data

    def serialize(self) -> bytes:
        """The task as bytes (pickle), independent of any queue; the same bytes until its id changes."""
        if self._data is None:
            fields = (self._id, self.func_path, self.args, self.kwargs, self.timeout)
            self._data = pickle.dumps(fields, pickle.HIGHEST_PROTOCOL)
        return self._data

    @classmethod
    def deserialize(cls, data: bytes) -> Task:
        """The task of :meth:`serialize`."""
        id, func_path, args, kwargs, timeout = pickle.loads(data)
        task = cls(id, None, None, args, kwargs, timeout, func_path=func_path)
        task._data = data
        return task

    def to_message(self, codec: Codec, id: int, default_timeout: float | None, clock: float = 0.0) -> Message:
        """What a broker stores of it. Raises what :meth:`unsealed` does.

        Args:
            clock: what the store's clock shows; only asked for, and needed, if the task expires.
        """
        if self._fresh:
            self._fresh = False  # from now on others see it, who may change it, and enqueue it once more
            form = self._form
            if form is not None and form.is_for(codec, default_timeout):
                return form.message(id, self.args, self.kwargs)
        message = self.unsealed(codec, id, default_timeout)
        if self.expires is not None:
            message = message.dated(clock)
        trace = outgoing()
        return codec.seal(message if trace is None else message._replace(trace=trace))

    def unsealed(self, codec: Codec, id: int, default_timeout: float | None) -> Message:
        """The same without the seal of its queue, and without a date by which it expires; see :meth:`Message.dated`.

        Raises:
            ConfigError: When it would expire before it is due.
            NotEnqueueable: When the arguments can't be serialized, or the queue's workers would not run the function.
            SignatureMismatch: When they are not what the function's parameters are annotated with, where it is
                more than plain data and the codec carries nothing else.
        """
        if codec.plain or codec.allow is not None:
            self._check_allowed(codec)
        if self.expires is not None and self.delay >= self.expires:
            raise ConfigError(
                f"{self.func_path} would never run: it expires {self.expires:g} s after its enqueue, and is due "
                f"{self.delay:g} s after it; give it a longer expires, or a shorter delay"
            )
        args, kwargs = self._dumped(codec)
        return self.with_payload(codec.encode(args, kwargs, self._func), codec, id, default_timeout)

    def with_payload(self, payload: bytes, codec: Codec, id: int, default_timeout: float | None) -> Message:
        """As :meth:`unsealed`, when the rest was looked after."""
        timeout = default_timeout if self.timeout is None else self.timeout
        retry = self.retry
        most = self.max_deliveries
        if most is None:
            most = DEFAULT_MAX_DELIVERIES if retry is None else DEFAULT_MAX_DELIVERIES + retry.max
            if retry is not None and (retry.max < 0 or retry.policy is not None):
                most = ENDLESS
        gates = self.gates
        if gates is not None:  # each time that it waits is a delivery
            gates, most = {**gates, "runs": min(most, ENDLESS)}, ENDLESS
        return Message(  # in the order of its fields: names would take twice as long
            id,
            self.func_path,
            payload,
            None if timeout == inf else timeout,
            self.priority,
            self.delay,
            time.time_ns() // 1_000_000 / 1000 if self.expires is None else 0.0,
            retry.data() if retry is not None else None,
            min(most, ENDLESS),
            self.key,
            None,
            None if self.memory is self.cpu is None else self._limits(),
            self.keep,
            self.expires,
            self.exclusive,
            gates,
            NO_EXTRA,
            None if self.fair_by is None else self._tenant(codec, self.fair_by),
        )

    def once(self, codec: Codec) -> Once:
        """What keeps out a second task that is the same; of a unique one.

        Raises:
            ConfigError: When its key names an argument that it does not have.
            NotEnqueueable, SignatureMismatch: As :meth:`unsealed`.
        """
        assert self.unique is not None
        args, kwargs = self._dumped(codec)
        func = self._func or loaded(self.func_path)
        return self.unique.once(self.func_path, func, args, kwargs, codec, partial(self._sent, codec))

    def _sent(self, codec: Codec, name: str, default: Any) -> Any:
        """A parameter's default as the codec would get it if it were given; itself if it can't be given."""
        func = seen(self.func_path) if codec.plain else None
        types = types_of(func) if func is not None else None
        if types is None:
            return default
        try:
            return types.dump(self.func_path, (), {name: default})[1][name]
        except (SignatureMismatch, NotEnqueueable):  # such as None for a parameter that takes none
            return default

    def _tenant(self, codec: Codec, name: str) -> str:
        """What stands for whose it is."""
        func = self._func or loaded(self.func_path)
        whose = named(f"fair_by={name!r}", f"{{{name}}}", self.func_path, func, self.args, self.kwargs)
        return codec.digest(b"tenant\0" + whose.encode("utf-8", "surrogatepass"))

    def _dumped(self, codec: Codec) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as the codec gets them."""
        if codec.plain:
            func = seen(self.func_path)
            types = types_of(func) if func is not None else None
            if types is not None:
                passed = self.gates is not None and "with" in self.gates
                return types.dump(self.func_path, self.args, self.kwargs, int(passed))
        return self.args, self.kwargs

    def _check_allowed(self, codec: Codec) -> None:
        try:
            if codec.allow is not None:
                codec.allow.check_path(self.func_path)
            else:
                func = seen(self.func_path)
                if func is not None:
                    codec.check_function(self.func_path, func, True)
        except NotAllowed as error:
            raise NotEnqueueable(f"no worker would run it: {error}") from error

    def _limits(self) -> dict[str, float]:
        limits = {"memory": self.memory, "cpu": self.cpu}
        return {name: limit for name, limit in limits.items() if limit is not None}

    @classmethod
    def from_message(cls, message: Opened, codec: Codec, call: Call | None = None) -> Task:
        """The task of a message that was opened. Its arguments are as the payload has them until it is run.

        Args:
            call: what its payload was decoded to already; None: it is decoded.

        Raises:
            DecodeError: When its payload can't be decoded.
        """
        task = cls.__new__(cls)
        task._message = message
        task._form = None
        task.args, task.kwargs, func = call or codec.decode(message.payload)
        task._id = message.id
        task.func_path = path = message.func
        # What is called is what its path says, unless none leads there.
        task._func = func if func is not None and path.startswith(BY_VALUE) else None
        task._plain = plain = codec.is_plain(message.payload)
        task._codec = codec if plain or codec.allow is not None else None
        return task

    def __getattr__(self, name: str) -> Any:
        """Of a task that came from a message, or from a form, all else is looked at when somebody asks: that takes less
        time.
        """
        if name in ("_form", "_fresh"):
            return None
        if name in Task.__slots__ and self._form is not None:
            value = getattr(self._form.template, name)
        elif name in _LATER:
            value = _LATER[name](self._message)
        else:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        setattr(self, name, value)
        return value

    def __getstate__(self) -> object:
        """All that it is, for a copy or a pickle; what it came from is neither needed nor to be pickled."""
        for name in Task.__slots__:
            getattr(self, name)
        attributes, slots = cast("tuple[Any, dict[str, Any]]", super().__getstate__())
        return attributes, {**slots, "_message": None, "_form": None, "_fresh": False}

    def run(self) -> Any:
        """Call the function now, here, and return what it returns; a coroutine is run to its end.

        Raises:
            FunctionNotFound: When its path leads nowhere.
            SignatureMismatch: When the arguments don't fit, or can't be made into what is annotated.
        """
        result = self.call()
        return finished(result) if hasattr(result, "__await__") else result

    def function(self) -> Callable[..., Any]:
        """The function.

        Raises:
            FunctionNotFound: When its path leads nowhere.
            NotAllowed: When the queue that it came from does not allow it.
        """
        if self._func is not None:
            return self._func
        if self.func_path.startswith(BY_VALUE):
            raise FunctionNotFound(f"{self.func_path} should travel with its code, but the payload has none")
        func = resolve(self.func_path)
        if self._codec is not None:
            self._codec.check_function(self.func_path, func, self._plain)
            self._codec = None  # once
        return func

    def call(self, func: Callable[..., Any] | None = None) -> Any:
        """Call the function now, here, and return what it returns, even if that is to be awaited.

        Args:
            func: what :meth:`function` has returned already; None: it is asked.

        Raises:
            FunctionNotFound: When its path leads nowhere.
            SignatureMismatch: When the arguments don't fit, or can't be made into what is annotated.
        """
        if func is None:
            func = self.function()
        if self._plain:
            types = types_of(func)
            if types is not None:
                self.args, self.kwargs = types.load(self.func_path, self.args, self.kwargs)
            self._plain = False
        try:
            return func(*self.args, **self.kwargs)
        except TypeError as error:
            misfit = self.misfit(func, error)
            if misfit is not None:
                raise misfit from error
            raise

    def misfit(self, func: Callable[..., Any], error: TypeError) -> SignatureMismatch | None:
        """What to raise from an error, caught where the function was called; None if that is the function's own."""
        # Raised by the call itself if no frame below that one was entered.
        if error.__traceback__ is not None and error.__traceback__.tb_next is None and not self._fits(func):
            return SignatureMismatch(f"{self.func_path}: {error}")
        return None

    def _fits(self, func: Callable[..., Any]) -> bool:
        import inspect

        try:
            inspect.signature(func).bind(*self.args, **self.kwargs)
        except TypeError:
            return False
        except ValueError:  # a builtin without a signature: the call failed before it began, so it does not fit
            return False
        return True

    def arguments(self) -> str:
        """Its arguments in a few hundred characters at most, such as ``(1, 'two', password=***)``.

        Those that are annotated with :data:`delayed.Hidden` are asterisks. Where the function's module is not loaded,
        nobody knows which those are, and only the types of all are shown: ``(<int>, <str>, password=<str>)``.
        """
        from delayed.shown import call_shown

        return call_shown(self._func or loaded(self.func_path), self.args, self.kwargs)

    def __repr__(self) -> str:
        """Its id, its function, and its arguments as :meth:`arguments` has them."""
        return f"<Task {self._id} {self.func_path}{self.arguments()}>"


_SAME = ("timeout", "priority", "key", "max_deliveries", "keep", "exclusive", "gates")
_LATER: Mapping[str, Callable[[Any], Any]] = {
    **{name: attrgetter(name) for name in _SAME},
    **dict.fromkeys(("unique", "fair_by", "verdict", "attempt", "queue", "_data"), lambda _: None),
    "retry": lambda message: Retry.of(message.retry),
    "delay": lambda _: 0.0,
    "expires": attrgetter("lifetime"),
    "memory": lambda message: (message.limits or {}).get("memory"),
    "cpu": lambda message: (message.limits or {}).get("cpu"),
}


def finished(result: Any) -> Any:
    """What a call has returned; if that is to be awaited, what it gives when it is run to its end, here."""
    if not hasattr(result, "__await__"):
        return result
    import asyncio

    return asyncio.run(_finish(result))


async def _finish(awaitable: Any) -> Any:
    return await awaitable
