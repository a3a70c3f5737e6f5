"""What all calls of one function with the same options have in common, so that little is left to be made for each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from delayed.message import Alike, Message
from delayed.tracing import outgoing

if TYPE_CHECKING:
    from delayed.queue import Queue
    from delayed.task import Task


class Form:
    """What the messages of such calls have in common, on one queue as it is now.

    Args:
        template: a task as they are, whatever its arguments; it is not to be changed any more.
        queue: where they go.
    """

    __slots__ = ("_after", "_around_date", "_before", "_between", "_codec", "_timeout", "template")

    def __init__(self, template: Task, queue: Queue) -> None:
        self.template = template
        self._codec = queue.codec
        self._timeout = queue.default_timeout
        message = template.unsealed(self._codec, 0, self._timeout)
        self._before = message[1:2]  # the payload comes next
        self._between = message[3:6]  # then the date
        self._after = message[7:]
        self._around_date = message.header_around_date()

    @classmethod
    def of(cls, template: Task, queue: Queue) -> Form | None:
        """The form of such calls; None if they differ in more than their arguments and dates."""
        codec = queue.codec
        differs = (template.expires, template.unique, template.fair_by, template.gates) != (None, None, None, None)
        return None if differs or codec.plain or codec.allow is not None else cls(template, queue)

    def fits(self, queue: Queue) -> bool:
        """Whether the queue is still as it was."""
        return queue.codec is self._codec and queue.default_timeout == self._timeout

    def message(self, id: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Message:
        """The message of one call; see :meth:`Task.to_message`.

        Raises:
            NotEnqueueable: When the arguments can't be serialized.
        """
        payload = self._codec.encode(args, kwargs, self.template.by_value)
        date = time.time_ns() // 1_000_000 / 1000
        made: Alike = tuple.__new__(Alike, (id, *self._before, payload, *self._between, date, *self._after))
        made.around_date = self._around_date
        trace = outgoing()
        return self._codec.seal(made if trace is None else made._replace(trace=trace))
