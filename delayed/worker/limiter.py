"""The limiter: lets in as many tasks as a limit allows, and keeps for the others their turn.

A limit is one small value of its queue, under ``limit:`` and its name, that is only changed as it was read:

    in    [[id, delivery], …] of the tasks that are inside
    wait  [id, …] of some that wait for a place, the first one first
    more  whether others wait too, who are not noted: they are looked for when few of the noted ones are left
    next  when the next one may begin, by the store's clock
    line  when the turn of one comes who stands in line now

No lease is needed: a task is inside as long as that very claim of it holds; where a limit is full, somebody looks.
Who has a turn has it under ``turn:`` and his id, and is back until then: so each waits once, however many there are.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Sequence
from time import monotonic
from typing import Any, NamedTuple

from delayed.brokers.base import Broker
from delayed.errors import BrokerError
from delayed.fields import ID_MAX
from delayed.logger import logger
from delayed.message import COUNT_MAX, LIFE, Stored
from delayed.waits import TRIES, pause

WAITING_MAX = 200  # tasks that are noted as waiting for a place
FEW = 20  # ... and when so few of them are left, others are looked for
LOOK_INTERVAL = 1.0  # seconds between two such looks that found nobody
VERIFY_INTERVAL = 1.0  # seconds between two looks whether who is inside of a full limit still runs
VERIFY_MAX = 20  # tasks that one such look asks for
EARLY = 0.002  # seconds by which a turn may come early: stores' clocks tell milliseconds
LATE = 0.1  # seconds by which one may come late without those behind having to wait for it
TURN_TTL = 60.0  # seconds after which a turn that was not taken is over
TTL = 30 * 86400.0  # seconds that a limit is kept in which nothing changes while somebody is inside: no run is so long
IDLE_TTL = 3600.0  # ... while nobody is, and nobody stands in line


class Place(NamedTuple):
    """A claim that is inside a limit, or wants to be.

    Attributes:
        queue, id, delivery: of the claim.
        name: of the limit.
        at_once: how many may be inside; None: any number, and nobody has to leave.
        spacing: seconds between two that begin; None: none.
    """

    queue: str
    id: int
    delivery: int
    name: str
    at_once: int | None
    spacing: float | None


class Shut(NamedTuple):
    """Why a task was not let in.

    Attributes:
        noted: whether it is woken when there is a place.
        seconds: until its turn; None if it waits for a place.
    """

    noted: bool
    seconds: float | None = None


class Limiter:
    """The limits of the queues that one worker serves."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._verified: dict[tuple[str, str], float] = {}  # before when it is not looked again who is inside
        self._looked: dict[tuple[str, str], float] = {}  # ... and who else waits

    def change(
        self, queue: str, name: str, leaving: Collection[Place], asking: Sequence[Place], mine: Collection[int]
    ) -> list[Shut | None]:
        """Let out who leaves, let in who may, and wake who waits for the places of those who left.

        Args:
            mine: ids of tasks that are certainly inside.

        Returns:
            For each of `asking` why it was not let in; None if it was.

        Raises:
            BrokerError: When the store can't be reached, or others change the limit all the time.
        """
        at_once = next((place.at_once for place in (*asking, *leaving)), None)
        turns = [f"turn:{place.id}" for place in asking if place.spacing is not None]
        now = self._broker.clock(queue) if turns else 0.0
        for attempt in range(TRIES):
            stored = self._broker.get_keys(queue, [f"limit:{name}", *turns])
            found = stored.pop(f"limit:{name}", None)
            state = _State(found.value if found is not None else None)
            before = state.dump()
            places = state.leave(leaving)
            if asking and state.is_full(asking):
                gone = self._gone(queue, name, state, mine)
                state.forget(gone)
                places += len(gone)
            booked = {int(turn.removeprefix("turn:")): _seconds(each.value) for turn, each in stored.items()}
            answers, fresh = state.admit(asking, now, booked)
            woken = state.take_waiting(places, at_once)
            if state.dump() == before or self._put(queue, name, state, found, now):
                break
            pause(attempt)
        else:
            raise BrokerError(f"the limit {name!r} of queue {queue!r} is changed by too many at once")
        for id, turn in fresh.items():
            self._broker.put_key(queue, f"turn:{id}", b"%r" % turn, ttl=max(turn - now, 0.0) + TURN_TTL)
        missed = sum(not self._broker.reschedule(queue, id, 0.0) for id in woken)
        if places and state.more and len(state.waiting) < FEW:
            missed += max(places - len(woken), 0)
            self._find_others(queue, name)
        while missed:  # they have ended, or come by themselves
            missed = self._wake_others(queue, name, at_once, missed)
        return answers

    def look_again(self, place: Place) -> bool:
        """Whether a task that is back would be let in now. If not, it is noted: who was woken before he was back is not
        any more.
        """
        if place.at_once is None:
            return False  # it comes when it is its turn
        for attempt in range(TRIES):
            found = self._get(place.queue, place.name)
            state = _State(found.value if found is not None else None)
            if found is None or len(state.inside) < place.at_once:
                return True
            if place.id in state.waiting or len(state.waiting) >= WAITING_MAX:
                return False
            state.waiting.append(place.id)
            if self._put(place.queue, place.name, state, found):
                return False
            pause(attempt)
        return True

    def _get(self, queue: str, name: str) -> Stored | None:
        return self._broker.get_keys(queue, [f"limit:{name}"]).get(f"limit:{name}")

    def _put(self, queue: str, name: str, state: _State, found: Stored | None, now: float = 0.0) -> bool:
        """Keep a limit if it is as it was found; False if it is not.

        Args:
            now: by the store's clock; 0: it is not known yet.
        """
        version = found.version if found is not None else 0
        ttl = TTL
        if not state.inside:
            line = max(state.line, state.next)
            ttl = IDLE_TTL + (max(line - (now or self._broker.clock(queue)), 0.0) if line else 0.0)
        return bool(self._broker.put_key(queue, f"limit:{name}", state.dump(), ttl=ttl, version=version))

    def _wake_others(self, queue: str, name: str, at_once: int | None, number: int) -> int:
        """Wake the next ones who wait; how many of them do not wait any more."""
        for attempt in range(TRIES):
            found = self._get(queue, name)
            if found is None:
                return 0
            state = _State(found.value)
            woken = state.take_waiting(number, at_once)
            if not woken:
                return 0
            if self._put(queue, name, state, found):
                return sum(not self._broker.reschedule(queue, id, 0.0) for id in woken)
            pause(attempt)
        return 0

    def _find_others(self, queue: str, name: str) -> None:
        """Note some more of those who wait for a place."""
        if monotonic() < self._looked.get((queue, name), 0.0):
            return
        entries = self._broker.peek(queue, "scheduled", WAITING_MAX, payloads=False)
        ids = [entry.message.id for entry in entries if (entry.message.gates or {}).get("limit", ("",))[0] == name]
        if not ids:
            _remember(self._looked, (queue, name), LOOK_INTERVAL)
        for attempt in range(TRIES):
            found = self._get(queue, name)
            state = _State(found.value if found is not None else None)
            before = state.dump()
            state.waiting += [id for id in ids if id not in state.waiting]
            state.more = len(entries) == WAITING_MAX
            if state.dump() == before or self._put(queue, name, state, found):
                return
            pause(attempt)

    def _gone(self, queue: str, name: str, state: _State, mine: Collection[int]) -> list[int]:
        """Some of those inside that are there no more: their worker could not say so."""
        if monotonic() < self._verified.get((queue, name), 0.0):
            return []
        _remember(self._verified, (queue, name), VERIFY_INTERVAL)
        others = [id for id in state.inside if id not in mine]
        gone = []
        for id in random.sample(others, min(len(others), VERIFY_MAX)):
            entry = self._broker.get(queue, id)
            runs = entry is not None and entry.state == "running" and entry.delivery == state.inside[id] % LIFE
            if not runs:
                gone.append(id)
        return gone


class _State:
    """What is kept of one limit; see the module."""

    def __init__(self, data: bytes | None) -> None:
        try:
            found = json.loads(data) if data else {}
            self.inside = {_whole(id, ID_MAX): _whole(number, COUNT_MAX) for id, number in found.get("in", ())}
            self.waiting = [_whole(id, ID_MAX) for id in found.get("wait", ())]
            self.more = bool(found.get("more"))
            self.next, self.line = _number(found.get("next", 0.0)), _number(found.get("line", 0.0))
        except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
            logger.error("what is kept of a limit can't be read, and is made anew: %.200r", data)
            self.inside, self.waiting, self.more, self.next, self.line = {}, [], False, 0.0, 0.0

    def dump(self) -> bytes | None:
        """The bytes to be kept; None if there is nothing to be."""
        found: dict[str, Any] = {}
        if self.inside:
            found["in"] = [[id, delivery] for id, delivery in self.inside.items()]
        if self.waiting:
            found["wait"] = self.waiting
        if self.more:
            found["more"] = 1
        if self.line:
            found |= {"next": round(self.next, 6), "line": round(self.line, 6)}
        return json.dumps(found, separators=(",", ":")).encode() if found else None

    def is_full(self, asking: Sequence[Place]) -> bool:
        """Whether not all of these would find a place."""
        fresh = sum(place.id not in self.inside for place in asking)
        return any(place.at_once is not None and len(self.inside) + fresh > place.at_once for place in asking)

    def leave(self, leaving: Collection[Place]) -> int:
        """Let these out; how many places they leave."""
        ids = [place.id for place in leaving if self.inside.get(place.id) == place.delivery]
        self.forget(ids)
        return len(ids)

    def forget(self, ids: Collection[int]) -> None:
        """These are inside no more."""
        for id in ids:
            del self.inside[id]

    def take_waiting(self, places: int, at_once: int | None) -> list[int]:
        """Who is to be woken for so many places that became free, as far as they are free still."""
        if at_once is None:
            return []
        number = max(min(places, at_once - len(self.inside)), 0)
        woken = self.waiting[:number]
        del self.waiting[:number]
        return woken

    def admit(
        self, asking: Sequence[Place], now: float, booked: dict[int, float]
    ) -> tuple[list[Shut | None], dict[int, float]]:
        """Let in who may; why not, for each, and the turns that were given.

        Args:
            booked: the turns that some were given before, by their ids.
        """
        answers: list[Shut | None] = []
        turns: dict[int, float] = {}
        late = 0.0  # when the next one may begin of those whose turn has come, one after the other
        for place in asking:
            id, at_once, spacing = place.id, place.at_once, place.spacing
            if at_once is not None and id not in self.inside and len(self.inside) >= at_once:
                noted = id in self.waiting or len(self.waiting) < WAITING_MAX
                if not noted:
                    self.more = True
                elif id not in self.waiting:
                    self.waiting.append(id)
                answers.append(Shut(noted))
                continue
            if spacing is not None:
                turn = booked.get(id)
                if turn is None:
                    turn = max(self.line, self.next, now)
                    self.line = turn + spacing
                    turns[id] = turn
                at = max(turn, self.next, late)
                if at > now + EARLY:
                    late = at + spacing if id in booked else late
                    self.inside.pop(id, None)
                    answers.append(Shut(False, at - now))
                    continue
                turns.pop(id, None)  # it takes it now
                # Who comes a moment late does not delay the next one; those who come later do not begin all at once.
                self.next = max(self.next, turn, now - max(spacing, LATE)) + spacing
                self.line = max(self.line, self.next)
            if at_once is not None:
                self.inside[id] = place.delivery
                if id in self.waiting:
                    self.waiting.remove(id)
            answers.append(None)
        return answers, turns


def _remember(times: dict[tuple[str, str], float], limit: tuple[str, str], seconds: float) -> None:
    """Note that something is not to be done again so soon."""
    if len(times) > 1000:
        times.clear()
    times[limit] = monotonic() + seconds * random.uniform(0.8, 1.2)


def _whole(value: object, most: int) -> int:
    if type(value) is not int or not 0 < value <= most:
        raise ValueError
    return value


def _number(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]
    if not 0 <= number < 1e12:
        raise ValueError
    return number


def _seconds(data: bytes) -> float:
    try:
        return _number(data)
    except ValueError:
        return 0.0
