"""Tasks that run when others have returned: what their headers have of those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from delayed.errors import ConfigError, NotEnqueueable

if TYPE_CHECKING:
    from delayed.handle import TaskHandle
    from delayed.queue import Queue

P = ParamSpec("P")
A_contra = TypeVar("A_contra", contravariant=True)
T_co = TypeVar("T_co", covariant=True)

AFTER_MAX = 2000  # tasks that one may wait for: their ids have to find room in its header
RESULT, RESULTS = 1, 2  # what is passed: the result of one task, the list of them; as in worker/gifts.py


class Next(Protocol[A_contra, P, T_co]):
    """A decorated function, whose first argument is a result."""

    def delay(self, result: A_contra, /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[T_co]: ...


def after(handles: Sequence[TaskHandle[Any]], queue: Queue, passing: int = 0) -> dict[str, Any]:
    """What a header has of the tasks that another one waits for.

    Args:
        queue: of the one that waits.
        passing: RESULT, RESULTS, or 0 if it gets none.

    Raises:
        ConfigError: When they are too many, in another store, or can't be read there where they are passed.
    """
    if len(handles) > AFTER_MAX:
        raise ConfigError(f"a task may wait for {AFTER_MAX} others, not for {len(handles)}; let some wait for some")
    found: dict[str, list[int]] = {}
    for name, other in {handle.queue: handle._queue() for handle in handles}.items():
        if not queue.broker.same_store(other.broker):
            raise ConfigError(
                f"queue {name!r} is in {other.broker!r}, and queue {queue.name!r} in {queue.broker!r}: a task can wait "
                "for those in its own store only"
            )
        if passing and not queue.codec.reads(other.codec):
            raise ConfigError(
                f"the results of queue {name!r} can't be read in queue {queue.name!r}, which has another serializer or "
                "secret: give them the same, or use .options(after=...) and let the task ask for the result"
            )
        found[name] = [handle.id for handle in handles if handle.queue == name]
    return {"after": found, "with": passing} if passing else {"after": found}


def then(handles: Sequence[TaskHandle[Any]], passing: int, func: Any, args: Any, kwargs: Any) -> TaskHandle[Any]:
    """Enqueue the call of a decorated function that gets the results of these tasks first.

    Raises:
        NotEnqueueable: When the function is not decorated.
    """
    if not hasattr(func, "adelay"):
        raise NotEnqueueable(f"then() takes a function that is decorated with @delayed, not {func!r}")
    handle: TaskHandle[Any] = func.options(after=handles)._enqueue(args, kwargs, passing)
    return handle
