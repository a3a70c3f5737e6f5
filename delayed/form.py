"""What all calls of one function with the same options have in common, so that little is left to be made for each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from delayed.message import HEADER_MAX, Alike, Message, Series
from delayed.task import Task
from delayed.tracing import outgoing, present

if TYPE_CHECKING:
    from delayed.codec import Codec
    from delayed.queue import Queue

DATE_MAX = 24  # bytes of a date in a header


class Form:
    """What the messages of such calls have in common, on one queue as it is now.

    Args:
        template: a task as they are, whatever its arguments; it is not to be changed any more.
        queue: where they go.
    """

    __slots__ = ("_after", "_around_date", "_before", "_between", "_codec", "_dated", "_timeout", "template")

    def __init__(self, template: Task, queue: Queue) -> None:
        self.template = template
        self._codec = queue.codec
        self._timeout = queue.default_timeout
        message = template.with_payload(b"", self._codec, 0, self._timeout)
        self._before = message[1:2]  # the payload comes next
        self._between = message[3:6]  # then the date
        self._after = message[7:]
        self._around_date = message.header_around_date()
        # The last date, and the header for it: many are enqueued in one millisecond.
        self._dated: tuple[float | None, bytes] = (None, b"")

    @classmethod
    def of(cls, template: Task, queue: Queue) -> Form | None:
        """The form of such calls; None if they differ in more than their arguments and dates."""
        codec = queue.codec
        differs = (template.expires, template.unique, template.fair_by, template.gates) != (None, None, None, None)
        if differs or codec.plain or codec.allow is not None:
            return None
        form = cls(template, queue)
        return form if sum(map(len, form._around_date)) + DATE_MAX <= HEADER_MAX else None

    def is_for(self, codec: Codec, default_timeout: float | None) -> bool:
        """Whether a queue with these is as it was."""
        return codec is self._codec and default_timeout == self._timeout

    def message(self, id: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Message:
        """The message of one call; see :meth:`Task.to_message`.

        Raises:
            NotEnqueueable: When the arguments can't be serialized.
        """
        payload = self._codec.encode(args, kwargs, self.template.by_value)
        now, header = self._now()
        fields = (id, *self._before, payload, *self._between, now, *self._after)
        made: Alike = tuple.__new__(Alike, fields)
        made.written = header or Message(*fields).header()
        trace = outgoing()
        return self._codec.seal(made if trace is None else made._replace(trace=trace))

    def messages(self, ids: Sequence[int], calls: Sequence[tuple[Any, ...]]) -> Sequence[Message]:
        """Those of calls that are enqueued in one step, each with positional arguments; see :meth:`message`."""
        now, header = self._now()
        if not header or self._codec.seals is not None or present() is not None:  # each has something of its own
            return [self.message(id, args, {}) for id, args in zip(ids, calls, strict=True)]
        model = Message._make((0, *self._before, b"", *self._between, now, *self._after))
        return Series(model, header, ids, self._codec.encode_all(calls, self.template.by_value))

    def _now(self) -> tuple[float, bytes]:
        """The date, and the header for it; none for a date that few clocks show."""
        now = time.time_ns() // 1_000_000 / 1000
        date, header = self._dated
        if date != now:
            before, after = self._around_date
            header = b"%b%b%b" % (before, repr(now).encode(), after) if now > 0 else b""
            self._dated = (now, header)
        return now, header


class Calls(Sequence[Task]):
    """Many such calls, and as a sequence their tasks, each of which is made when somebody wants to see it.

    Args:
        form: theirs.
        args: the positional arguments of each.
    """

    def __init__(self, form: Form, args: Sequence[tuple[Any, ...]]) -> None:
        self._form = form
        self._args = args

    def __len__(self) -> int:
        return len(self._args)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Calls: ...
    def __getitem__(self, index: int | slice) -> Task | Calls:
        if isinstance(index, slice):
            return Calls(self._form, self._args[index])
        return Task.of_form(self._form, self._args[index], {}, fresh=False)

    def messages(self, ids: Sequence[int], codec: Codec, default_timeout: float | None) -> Sequence[Message]:
        """What a broker stores of them, on a queue with these; see :meth:`Task.to_message`."""
        if self._form.is_for(codec, default_timeout):
            return self._form.messages(ids, self._args)
        return [task.to_message(codec, id, default_timeout) for task, id in zip(self, ids, strict=True)]
