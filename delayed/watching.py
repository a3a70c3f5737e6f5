"""Waiting for the ends of many tasks at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self

from delayed import answers
from delayed.errors import TaskError
from delayed.handle import Seen
from delayed.results import Waiting

if TYPE_CHECKING:
    from delayed.group import Group
    from delayed.patience import Patience

Ended = tuple[int, "Seen | TaskError"]  # the number of a task in its group, and its answer, or why there is none
Heard = Ended | BaseException | None  # an error: nothing more will be heard; None: all was told that was there already

# The number of a task in its group, and its answer; None if there may be none, an error if it can't be waited for.
_Told = tuple[int, "bytes | BaseException | None"]


class Watch:
    """Tells of the end of each task of a group, once.

    A thread of its own asks the store, so that whoever waits can leave at any time, whatever the store is at. It ends
    soon after.

    Args:
        put: called, mostly from that thread, with what is heard.
        patience: for how long the store is asked again when it can't be reached.
    """

    def __init__(self, group: Group[Any], put: Callable[[Heard], Any], patience: Patience) -> None:
        self._group = group
        self._queue = group._queue
        self._put = put
        self._patience = patience
        self._left = set(range(len(group)))  # the numbers of tasks that have not ended as far as is known
        self._told: SimpleQueue[_Told | None] = SimpleQueue()  # maybe twice, or too early; None: nobody waits any more
        self._turn = threading.Lock()
        self._closed = False
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._turn:
            self._closed = True
        self._told.put(None)
        self._stack.close()

    def begin(self) -> None:
        """Listen, and have it told what there is already, and then what comes. It may be left while it does this.

        Raises:
            RuntimeError: When no thread can be started.
        """
        for number in range(len(self._group)):
            self._expect(number)
        if self._left and not self._closed:
            threading.Thread(target=self._run, name="delayed-group", daemon=True).start()

    def _run(self) -> None:
        try:
            for number, data in self._group._answers(self._patience):
                self._take(number, data)
                if self._closed:
                    return
            if not self._group._kept:
                self._find_unkept()
            self._put(None)
            while self._left and not self._closed:
                self._take_told()
        except BaseException as error:  # it is raised where somebody waits
            self._put(error)

    def _find_unkept(self) -> None:
        """Tell of those that will have no answer. It takes a look at each, so what is told meanwhile goes first."""
        for number in sorted(self._left):
            while not self._told.empty() and not self._closed:
                self._take_told()
            if self._closed:
                return
            self._take(number, None)

    def _take_told(self) -> None:
        told = self._told.get()
        if told is not None:
            self._take(*told, again=True)

    def _take(self, number: int, told: bytes | BaseException | None, *, again: bool = False) -> None:
        """Tell of the end of a task, if it has ended and that is not known already.

        Args:
            again: whether what was expected has come, so that it has to be expected again.
        """
        if number not in self._left:
            return
        ended: Seen | TaskError
        try:
            ended = self._look(number, told if isinstance(told, bytes) else None, again)
        except TaskError as error:
            ended = error
        if isinstance(ended, TaskError) or ended.final:
            self._left.discard(number)
            self._put((number, ended))
        elif isinstance(told, BaseException):
            raise told

    def _look(self, number: int, data: bytes | None, again: bool) -> Seen:
        if data:
            kept = answers.unpack(data)
            if kept.final and kept.verdict.ok:
                return Seen(kept, data, True)
        look = partial(self._group[number]._look, self._queue)
        seen = self._patience.insist(look)
        if not seen.final and again:  # what may have come before this is looked for after it
            self._expect(number, seen.data)
            seen = self._patience.insist(look)
        return seen

    def _expect(self, number: int, seen: bytes = b"") -> None:
        def tell(future: Waiting) -> None:
            if not future.cancelled():
                self._told.put((number, future.exception() or future.result()))

        with self._turn:
            if self._closed:
                return
            future = self._stack.enter_context(self._queue.postbox.expecting(self._group.ids[number], seen))
        future.add_done_callback(tell)
