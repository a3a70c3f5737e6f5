"""What people ask of a running worker: to stop, to cancel a task, to show where in its code a task is.

The courier fetches the orders, and carries the replies. What an order needs is done here, in the monitor's loop, in
steps: a task may begin, or end, between two of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from delayed import tracing
from delayed.logger import logger
from delayed.message import Settlement
from delayed.worker import board as boards
from delayed.worker import verdict
from delayed.worker.courier import Held
from delayed.worker.verdict import Verdict

if TYPE_CHECKING:
    from delayed.worker.monitor import Monitor

STACK_PATIENCE = 2.0  # seconds to wait for a child to write its stacks
STACK_PAUSE = 0.05  # seconds in which nothing more may come, for it to be all
LOOP_PAUSE = 0.3  # ... from an event loop, which writes when it turns, each tenth of a second


class _Look:
    """A task whose stacks somebody wants to see."""

    def __init__(self, order: str, held: Held, at: float) -> None:
        self.order = order
        self.held = held
        self.until = at + STACK_PATIENCE
        self.text = ""  # what there was at the last look
        self.since = at  # when that changed


class Orders:
    """The orders of one worker."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.courier = monitor.courier
        self.cancels: list[Held] = []  # tasks that are to be cancelled, and have not ended yet
        self.looks: list[_Look] = []

    def mind(self, at: float) -> None:
        """Obey what is new, and take the next step of the rest."""
        while self.courier.orders:
            self._obey(self.courier.orders.popleft(), at)
        self.cancels = [held for held in self.cancels if self._cancel(held, at)]
        self.looks = [look for look in self.looks if self._look(look, at)]

    def ended(self, held: Held, found: Verdict) -> Verdict:
        """A task that is to be cancelled has not returned: the verdict, whatever else it would have been."""
        found = found._replace(code=verdict.CANCELLED)
        self._answer(held, str(found), done=True)
        return found

    def _obey(self, order: Mapping[str, Any], at: float) -> None:
        id, do, task = order["id"], order.get("do"), order.get("task")
        held = self.courier.find(str(order.get("queue")), task) if isinstance(task, int) else None
        more = tracing.extra_of(held.claim) if held is not None else {}
        logger.info("worker %s is asked to %s %s", self.courier.worker, do, "" if task is None else task, extra=more)
        if do == "stop":
            self.monitor.dismissed = True
            if not self.monitor.stop_asked:  # a second time would be: at once
                self.monitor.ask_stop()
            return
        if do not in ("cancel", "stack"):
            self.courier.reply(id, f"this worker does not know how to {do}: it is older", done=False)
        elif held is None:
            self.courier.reply(id, "this worker does not have it, or not any more", done=False)
        elif do == "cancel":
            if not held.cancel:
                self.cancels.append(held)
            held.cancel += (id,)
        else:
            self.looks.append(_Look(id, held, at))
            if self._runs(held):
                self.monitor.ladder.look(held.seat, at)

    def _runs(self, held: Held) -> bool:
        return self._there(held) and self.monitor.board.state(held.seat, held.slot) == boards.BEGUN

    def _there(self, held: Held) -> bool:
        """Whether a child has the task, and has not said that it ended."""
        return held.seat >= 0 and self.monitor.seats[held.seat].tasks.get(held.slot) is held

    def _cancel(self, held: Held, at: float) -> bool:
        """The next step towards the end of a task; False if that was the last."""
        if not held.cancel:
            return False
        if self._runs(held):
            self.monitor.ladder.stop(held.seat, boards.STOP_CANCELLED, at, held.serial)
            return True
        if self._there(held):  # handed over; perhaps the child has just read it, and begins
            self.monitor.handing.take_back(self.monitor.seats[held.seat])
        for waiting in (self.courier.inbox, self.monitor.handing.alone):
            with contextlib.suppress(ValueError):
                waiting.remove(held)
                settlement = Settlement(held.claim.ref, "done")
                found = Verdict(verdict.CANCELLED, text="cancelled before it began")
                self.courier.settle((held, self.monitor.keeper.settled(held.claim, settlement, found)))
                self._answer(held, "cancelled before it began", done=True)
                return False
        if self._there(held):
            return True
        self._answer(held, "it returned before it could be stopped, or went back to its queue", done=False)
        return False

    def _answer(self, held: Held, text: str, *, done: bool) -> None:
        """Reply to all who wanted this task to be cancelled."""
        orders, held.cancel = held.cancel, ()
        for order in orders:
            self.courier.reply(order, text, done=done)

    def _look(self, look: _Look, at: float) -> bool:
        """Reply with the stacks once they stand still; False if there is nothing more to wait for."""
        held, ladder, board = look.held, self.monitor.ladder, self.monitor.board
        if not self._runs(held):
            self.courier.reply(look.order, "it has not begun, or has just ended", done=False)
            return False
        ladder.urge(held.seat, at)
        text = ladder.stack_of(held.seat, board.slot(held.seat, held.slot).lane, held.serial)
        if text != look.text:
            look.text, look.since = text, at
        pause = LOOP_PAUSE if board.beat(held.seat) else STACK_PAUSE
        if at < look.until and (not text or at < look.since + pause):
            return True
        self.courier.reply(look.order, text or "its process does not answer", done=bool(text))
        ladder.clear_stack(held.seat)  # else it would be taken for where a later task has crashed
        return False
