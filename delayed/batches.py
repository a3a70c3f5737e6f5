"""Many tasks that are enqueued together: in batches, of which each is made while the store takes the one before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from delayed.brokers.deadline import meanwhile
from delayed.form import Calls

if TYPE_CHECKING:
    from delayed.message import Message
    from delayed.producer import JoinedProducer, Producer
    from delayed.queue import Queue
    from delayed.task import Task

SIZE = 1000  # tasks that are stored in one step


class Batch:
    """Some tasks that are stored in one step, all or none. They get their ids in the store first.

    Attributes:
        tasks: those that it was made of.
        ids: theirs, in that order.
    """

    def __init__(self, queue: Queue, producer: Producer | JoinedProducer, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self._queue = queue
        self._producer = producer
        self._attempts = producer.attempts()
        self.ids = producer.reserve_ids(len(tasks), self._attempts)
        self._clock = producer.clock(self._attempts) if _expire(tasks) else 0.0
        self._messages: Sequence[Message] = ()
        self._error: Exception | None = None

    def prepare(self) -> None:
        """Make the messages; what goes wrong is raised when they are to be stored."""
        tasks, ids, clock = self.tasks, self.ids, self._clock
        codec, timeout = self._queue.codec, self._queue.default_timeout
        try:
            messages: Sequence[Message]
            if isinstance(tasks, Calls):
                messages = tasks.messages(ids, codec, timeout)
            else:
                messages = [task.to_message(codec, id, timeout, clock) for task, id in zip(tasks, ids, strict=True)]
            self._messages = self._producer.prepare(messages)
        except Exception as error:
            self._error = error

    def store(self, following: Batch | None) -> None:
        """Store them, and prepare the ones that follow meanwhile."""
        if not (self._messages or self._error):
            self.prepare()
        if self._error is not None:
            raise self._error
        with nullcontext() if following is None else meanwhile(following.prepare):
            self._producer.enqueue(self._messages, self._attempts)


def store(queue: Queue, producer: Producer | JoinedProducer, tasks: Sequence[Task]) -> Iterator[Batch]:
    """Store tasks; gives one batch after the other once that is stored."""
    parts = (tasks[start : start + SIZE] for start in range(0, len(tasks), SIZE))
    following: Batch | None = None
    part = next(parts, None)
    while part is not None:
        batch = following or Batch(queue, producer, part)
        part = next(parts, None)
        # Those that expire are dated when it is their turn.
        following = Batch(queue, producer, part) if part is not None and not _expire(part) else None
        batch.store(following)
        yield batch


def _expire(tasks: Sequence[Task]) -> bool:
    """Whether one of them does; calls of a form do not."""
    return not isinstance(tasks, Calls) and any(task.expires is not None for task in tasks)
