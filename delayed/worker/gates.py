"""Gates: what has to be so before a claimed task is handed to a child. The part of a courier that asks for it.

Its duties:

1. look whether the tasks that one waits for have returned, and pass on what they have;
2. ask the limiter whether it may run now;
3. wake who waits: for an answer that was stored, and for a place that is free again.

A task whose gate is shut goes back, uncharged, for a while that grows. That is for safety only: it is noted where
somebody finds it who opens the gate, and once it is back its gate is looked at again, so that no such word is lost.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from delayed import answers, waits
from delayed.brokers.base import Broker
from delayed.errors import DecodeError
from delayed.message import GATES, Claim, Ref, Settlement
from delayed.worker import gifts
from delayed.worker.limiter import Limiter, Place, Shut
from delayed.worker.process import now

if TYPE_CHECKING:
    from delayed.worker.courier import Held

LOOK_MAX = 500  # answers that are asked for in one call
SAMPLE = 20  # tasks of which one look finds out whether they are there still
GIFT_MAX = 256 << 20  # bytes of results that are passed to one task
# Seconds for which a task is back: first, and at most; each time twice as long. It is woken before, if nobody dies.
WAIT = (1.0, 15.0)
LONG_WAIT = (8.0, 60.0)  # ... behind many others, or for another task

_End = tuple["Held", Settlement]
_Awaited = Place | waits.Place  # a place inside a limit; or the task whose answer somebody waits for


class Gates:
    """The gates of what one worker claims."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._limiter = Limiter(broker)
        self._inside: dict[Ref, Place] = {}  # the place of a claim inside a limit
        self._leaving: deque[Place] = deque()  # that have ended, and are inside still
        self._answered: list[waits.Place] = []  # tasks whose answers were stored just now
        self._back: dict[Ref, _Awaited] = {}  # what goes back, and what it waits for
        self._again: list[tuple[waits.Place, _Awaited]] = []  # the same when it is back

    # -- what has ended ----------------------------------------------------------------------------------------

    @property
    def minds(self) -> bool:
        """Whether it is to be told of settlements without answers too."""
        return bool(self._inside or self._back)

    @property
    def busy(self) -> bool:
        """Whether there is something for :meth:`work` to do."""
        return bool(self._leaving or self._answered or self._again)

    def ended(self, settlements: Iterable[Settlement]) -> None:
        """These settlements were sent: :meth:`work` does what follows."""
        for settlement in settlements:
            place = settlement.ref.queue, settlement.ref.id
            awaited = self._back.get(settlement.ref)
            if awaited is not None and settlement.action == "back":
                self._again.append((place, awaited))
            self.left(settlement.ref)
            if settlement.answer is not None:
                self._answered.append(place)

    def left(self, ref: Ref) -> None:
        """The claim of a task is over. May be called from any thread."""
        self._back.pop(ref, None)
        inside = self._inside.pop(ref, None)
        if inside is not None:
            self._leaving.append(inside)

    def answered(self, place: waits.Place) -> None:
        """The answer of a task was stored."""
        self._answered.append(place)

    def take_over(self, claim: Claim) -> None:
        """A claim of this worker was let in by another guardian of it."""
        if GATES in claim.header:
            limit = _gates_of(claim).get("limit")
            if limit is not None and limit[1] is not None:
                self._inside[claim.ref] = Place(claim.queue, claim.id, claim.delivery, *limit)

    def work(self) -> None:
        """Leave what has ended, and wake who can go on for it.

        Raises:
            BrokerError: When the store can't be reached; what was not done is done the next time.
        """
        if self._answered:
            waits.wake(self._broker, self._answered)
            self._answered.clear()
        while self._leaving:
            self._change(self._leaving[0].queue, self._leaving[0].name, ())
        while self._again:
            place, awaited = self._again[-1]
            if self._has_opened(awaited):
                self._broker.reschedule(*place, 0.0)
                if not isinstance(awaited, Place):  # whoever stored the answer may have looked before it was noted
                    waits.wake(self._broker, (awaited,))
            self._again.pop()

    def _has_opened(self, awaited: _Awaited) -> bool:
        if isinstance(awaited, Place):
            return self._limiter.look_again(awaited)
        queue, id = awaited
        data = self._broker.get_results(queue, [id]).get(id)
        try:
            kept = answers.unpack(data) if data else None
        except DecodeError:
            return True
        return kept is not None and kept.final and (kept.verdict.ok or self._is_dead(queue, id))

    # -- what was claimed --------------------------------------------------------------------------------------

    def ask(self, claimed: Sequence[Held]) -> list[_End]:
        """Ask the gates of these tasks; how the claims of those end that find one shut.

        The others can be handed out. Where a task failed that one waits for, that one gets the reason as `blocked`.

        Raises:
            BrokerError: When the store can't be reached. All of them are to go back.
        """
        ends: list[_End] = []
        asking: list[tuple[Held, dict[str, Any]]] = []
        for held in claimed:
            gates = _gates_of(held.claim)
            if not gates or held.begin_by < now():
                continue  # its child tells what is wrong with it, or it has expired
            if held.claim.attempt > gates.get("runs", inf):
                ends.append((held, _poison(held.claim)))
            else:
                asking.append((held, gates))
        found = self._answers(gates["after"] for _, gates in asking if "after" in gates)
        limits: dict[tuple[str, str], list[tuple[Held, Place]]] = {}
        for held, gates in asking:
            if "after" in gates:
                awaited = self._look(held, gates, found)
                if isinstance(awaited, str):
                    held.blocked, held.begin_by = awaited, -inf
                    continue
                if awaited is not None:
                    waits.note(self._broker, *awaited, (held.claim.queue, held.claim.id))
                    ends.append(self._wait(held, awaited, _pause(held.claim, LONG_WAIT)))
                    continue
            if "limit" in gates:
                claim = held.claim
                place = Place(claim.queue, claim.id, claim.delivery, *gates["limit"])
                limits.setdefault((place.queue, place.name), []).append((held, place))
        for (queue, name), some in limits.items():
            ends += self._change(queue, name, some)
        return ends

    def _wait(self, held: Held, awaited: _Awaited, seconds: float) -> _End:
        self._back[held.claim.ref] = awaited
        return held, Settlement(held.claim.ref, "back", seconds)

    def _change(self, queue: str, name: str, asking: Sequence[tuple[Held, Place]]) -> list[_End]:
        """Let those into a limit that may, and out of it what has ended; the ends of those that may not."""
        leaving = [place for place in list(self._leaving) if (place.queue, place.name) == (queue, name)]
        mine = {ref.id for ref in list(self._inside) if ref.queue == queue}  # others may leave meanwhile
        found = self._limiter.change(queue, name, leaving, [place for _, place in asking], mine)
        for place in leaving:
            self._leaving.remove(place)
        ends = []
        for (held, place), shut in zip(asking, found, strict=True):
            if shut is not None:
                ends.append(self._shut(held, place, shut))
            elif place.at_once is not None:
                self._inside[held.claim.ref] = place
        return ends

    def _shut(self, held: Held, place: Place, shut: Shut) -> _End:
        if shut.seconds is not None:
            return held, Settlement(held.claim.ref, "back", shut.seconds)
        return self._wait(held, place, _pause(held.claim, WAIT if shut.noted else LONG_WAIT))

    # -- what has to have returned -----------------------------------------------------------------------------

    def _answers(self, after: Iterable[dict[str, list[int]]]) -> dict[waits.Place, bytes]:
        """The answers that there are of all these tasks."""
        wanted: dict[str, set[int]] = {}
        for each in after:
            for queue, ids in each.items():
                wanted.setdefault(queue, set()).update(ids)
        found: dict[waits.Place, bytes] = {}
        for queue, some in wanted.items():
            ids = sorted(some)
            for start in range(0, len(ids), LOOK_MAX):
                part = self._broker.get_results(queue, ids[start : start + LOOK_MAX])
                found.update(((queue, id), data) for id, data in part.items())
        return found

    def _look(self, held: Held, gates: dict[str, Any], found: dict[waits.Place, bytes]) -> waits.Place | str | None:
        """The task that one has to wait for still, or why it can never begin; None if it can now."""
        missing: list[waits.Place] = []
        results: list[tuple[str, int, bytes]] = []
        passing = gates.get("with", 0)
        for queue, ids in gates["after"].items():
            for id in ids:
                data = found.get((queue, id))
                try:
                    kept = answers.unpack(data) if data else None
                except DecodeError as error:
                    return _blocked(held, queue, id, f"has returned what can't be read: {error}")
                if kept is None or not kept.final or not (kept.verdict.ok or self._is_dead(queue, id)):
                    missing.append((queue, id))
                elif not kept.verdict.ok:
                    return _blocked(held, queue, id, str(kept.verdict))
                elif passing and not kept.body:
                    return _blocked(held, queue, id, f"has a result that could not be kept: {kept.verdict.text}")
                else:
                    results.append((queue, id, kept.body))
        if not missing:
            size = sum(len(body) for _, _, body in results)
            if passing and size > GIFT_MAX:
                return f"the results that it was to be given have {size} bytes, and may have {GIFT_MAX}"
            held.gift = gifts.pack(passing, results) if passing else b""
            return None
        for queue, id in {missing[-1], *random.sample(missing, min(len(missing), SAMPLE - 1))}:
            why = self._why_never(queue, id)
            if why:
                return _blocked(held, queue, id, why)
        return missing[-1]  # the others have most probably ended when this one has

    def _is_dead(self, queue: str, id: int) -> bool:
        """Whether a task that has failed has ended, and is no dead letter that was brought back since."""
        entry = self._broker.get(queue, id)
        return entry is None or entry.state == "dead"

    def _why_never(self, queue: str, id: int) -> str:
        """Why there will be no answer of a task that has none now; "" if there will be one."""
        entry = self._broker.get(queue, id)
        if entry is not None and entry.state != "dead":
            return "" if entry.message.keep is not None or entry.message.func == "?" else "keeps no answer"
        if self._broker.get_results(queue, [id]):
            return ""  # it has ended just now: seen when this one is back
        return "is gone, or its answer is not kept any more" if entry is None else f"is a dead letter: {entry.reason}"


def _gates_of(claim: Claim) -> dict[str, Any]:
    """The gates of a task; none if its header can't be read."""
    try:
        return dict(claim.message().gates or {})
    except DecodeError:
        return {}


def _blocked(held: Held, queue: str, id: int, why: str) -> str:
    where = "" if queue == held.claim.queue else f" of queue {queue!r}"
    return f"it was to run after task {id}{where}, which {why}"


def _pause(claim: Claim, bounds: tuple[float, float]) -> float:
    """Seconds for which a task is back."""
    first, most = bounds
    return min(first * 2.0 ** min(claim.deliveries - 1, 10), most) * random.uniform(0.8, 1.2)


def _poison(claim: Claim) -> Settlement:
    reason = f"poison: it was begun {claim.attempt - 1} times, and its worker was lost, or it failed, each time"
    return Settlement(claim.ref, "dead", reason=reason)
