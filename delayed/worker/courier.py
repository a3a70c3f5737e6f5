"""The courier: the thread of a monitor that talks to the broker, so that no slow store delays a deadline.

Its duties:

1. exchange: carry settlements to the store and claims back, both in one round trip, in batches;
2. wait for tasks when there are none;
3. renew the leases of all that is held, and sweep;
4. announce the worker, fetch what people ask of it, and carry the replies back;
5. outlive any outage: back off, and send the very same request again until it is answered.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import Any

from delayed.brokers.base import RENEW_INTERVAL, WAIT_TIMEOUT, Broker
from delayed.brokers.deadline import meanwhile
from delayed.errors import BrokerError, BrokerUnavailable
from delayed.logger import logger
from delayed.message import ASKING, EXPIRES, GATES, Action, Answer, Bounds, Claim, Settlement, Swept, is_task
from delayed.tracing import extra_of
from delayed.worker import fate, refusal
from delayed.worker.gates import Gates
from delayed.worker.process import now
from delayed.worker.turns import Turns

FLUSH_SIZE = 64  # settlements that are sent without waiting for more
FLUSH_BYTES = 32 << 20  # bytes of answers that are sent at once, if they are several
PACED = 32  # tasks in one exchange by which the pace of the store can be told
TRIPS = 3  # announcements by whose quickest it is known how far away the store is
FLUSH_DELAY = 0.003  # seconds that a settlement waits for others while more tasks are under way
BACKOFF = (0.05, 2.0)  # seconds: first and longest pause after a failure
BURST_PATIENCE = 1.1  # seconds: burst mode waits for a task due sooner; more than the first pause of a retry
SWEEP_SLICE = 0.05  # seconds of sweeping after which others have their turn
SWEEP_SHARE = 0.25  # of the pause between sweeps, that these may take before it grows
SWEEP_LATEST = 0.4  # of a lease, from one sweep of a queue to the next
REST = 2.75  # times the usual pause between sweeps and announcements, where there is nothing to look after
CHORES_TOGETHER = 0.5  # seconds that a chore is done early, or late, to be done together with another; not a sweep
LATE = 0.05  # seconds by which a wait at the store is longer: it may end too early, and would have to be begun again
ANNOUNCE_INTERVAL = 2.0  # seconds between announcements while tasks are held; longer while none are
PROGRESS_INTERVAL = 0.5  # seconds between announcements while tasks say how far they are
ANNOUNCEMENT_AGE = 15.0  # seconds that an announcement holds
REPLY_AGE = 10.0  # seconds that a reply is announced
ORDERS_KNOWN = 1000  # orders that are remembered, so that one which is sent again is obeyed once
GATES_PAUSE = 1.0  # seconds until gates are asked, or minded, again that could not be
TRUST = 0.8  # part of a lease after which a claim must be renewed before it is handed out


class Held:
    """A claim that this worker holds, and where its task is.

    What is the same for nearly all stands in the class, for one of these is made for each task.

    Attributes:
        claim: the claim.
        confirmed: when the request was sent whose answer last said that the claim holds.
        queue: its index in the worker's list.
        seat: the seat that it was handed to; -1: none.
        slot: ... and the slot in it.
        serial: of that hand-over.
        lost, lost_at: whether another worker may have it by now, and since when.
        cancel: the orders to cancel its task that have no reply yet.
        answer: bytes of its answer in the spool.
        begin_by: after that its task is not begun any more.
        in_doubt: its child died in a transaction that may have ended it.
        blocked: why it can't be begun at all, if it can't; else "".
        gift: the results that it is given, see :mod:`.gifts`; else empty.
    """

    seat = -1
    slot = -1
    serial = 0
    lost = False
    lost_at = 0.0
    cancel: tuple[str, ...] = ()
    answer = 0
    begin_by = inf
    in_doubt = False
    blocked = ""
    gift = b""

    def __init__(self, claim: Claim, confirmed: float, queue: int) -> None:
        self.claim = claim
        self.confirmed = confirmed
        self.queue = queue


class Courier(threading.Thread):
    """The thread; see the module.

    Args:
        turns: decides which of the queues a claim asks first; None: strictly the first one.
        bounds: of the dead letters of those queues that have some of their own.
        notify: called (from this thread) when there is something for the monitor in `inbox`, `lost` or
            `orders`.
        freed: called (from this thread) with the claims that have ended in the store.
        info: makes what the worker says of itself.
    """

    def __init__(
        self,
        broker: Broker,
        queues: Sequence[str],
        worker: str,
        *,
        lease: float,
        sweep: bool,
        burst: bool,
        turns: Turns | None,
        bounds: Mapping[str, Bounds],
        notify: Callable[[], None],
        freed: Callable[[Iterable[Held]], None],
        info: Callable[[], Mapping[str, Any]],
    ) -> None:
        super().__init__(name="delayed-courier", daemon=True)
        self.broker = broker
        self.queues = list(queues)
        self._queue_index = {name: index for index, name in enumerate(self.queues)}
        self.worker = worker
        self.lease = lease
        self.burst = burst
        self.turns = turns
        self.bounds = dict(bounds)  # that the store was not told of yet
        self.notify = notify
        self.freed = freed
        self.info = info

        self.inbox: deque[Held] = deque()  # claimed, for the monitor to hand out
        self.lost: deque[Held] = deque()  # claims that another worker may have now
        self.orders: deque[Mapping[str, Any]] = deque()  # what people ask of this worker, for the monitor to obey
        self.target = 0  # how many unfinished tasks to hold; set by the monitor
        self.low = 0  # claim more when fewer than this are left; set by the monitor
        self.dry = False  # the last claim got less than it asked for
        self.empty = False  # in burst mode: nothing is held, and nothing is left in the queues
        self.healthy = True  # the last request was answered
        self.beat: Callable[[], None] = lambda: None  # called at every turn; set by the monitor, as is ...
        self.vouched: Callable[[float], None] = lambda at: None  # ... what is told of `renewed`
        self.keeps = False  # there have been answers among the settlements; set by the monitor
        self.ambiguous = 0  # settlements whose answer was lost, and that took effect the first time

        self._gates = Gates(broker)
        self._gates_at = 0.0  # before when they are not minded again
        self._complaint = ""  # what the last request failed for, as far as it was logged
        self._condition = threading.Condition()
        self._outbox: list[tuple[Held | None, Settlement]] = []
        self._outbox_since = 0.0
        self._warned = False  # whether the store has been asked for what is wrong with its settings
        self._answers: deque[tuple[str, int, Answer]] = deque()  # of tasks that have ended their claims themselves
        # Not by their ids: who has lost a task may claim it again before the end of the old claim is sent.
        self._held: set[Held] = set()
        self._untaken: tuple[Sequence[Claim], float] = ((), 0.0)  # claimed by the last exchange, and when that was sent
        self._taking = 0.0  # seconds that it took to take them while the store was asked, ...
        self._trouble: Exception | None = None  # ... and what went wrong with it
        self._settling = 0  # of those held, how many lie in the outbox or are under way
        self._waiting = False
        self._closing = False
        self._close_by = 0.0
        self._seq = 0
        self._unanswered: tuple[int, int] | None = None
        self._slack = min(CHORES_TOGETHER, lease / 30, broker.sweep_interval / 4)
        self._renew_at = 0.0
        self.renewed = 0.0  # when a request was sent since which all that is held has been confirmed
        self._sweep_at = 0.0 if sweep else inf
        self._unswept: deque[str] = deque()  # the queues that are still to be swept of those whose time it was
        self._unswept_for: dict[str, str] = {}  # those that can't be, and why, as far as it was logged
        self._round_since = 0.0  # when the first of them was swept
        self._swept_for = 0.0  # seconds that those took which have been
        self._resting = False  # whether nothing was claimed in any of them
        self._announce_at = 0.0
        self._announced = 0.0
        self._trips: deque[float] = deque(maxlen=TRIPS)
        self.trip = 0.0  # seconds to the store and back
        self.pace = 0.0  # seconds that the store takes for a task, to end one or to hand one out; moving average
        self._pause = BACKOFF[0]
        self._orders_known: deque[str] = deque(maxlen=ORDERS_KNOWN)
        self._replies: dict[str, tuple[dict[str, Any], float]] = {}  # order -> (what is replied, until when)

    # -- called by the monitor ---------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """How many claims are not ended in the store."""
        return len(self._held) + len(self._untaken[0])

    def settle(self, *ends: tuple[Held, Settlement]) -> None:
        """End claims, soon."""
        with self._condition:
            before = len(self._outbox)
            if not before:
                self._outbox_since = now()
            self._outbox += ends
            self._settling += len(ends)
            if self._waiting:
                self.broker.wake(self.queues)
            elif not before or before < FLUSH_SIZE <= len(self._outbox) or self._settling == len(self._held):
                self._condition.notify()

    def forget(self, held: Held) -> None:
        """Drop a claim that was lost: there is nothing to settle."""
        with self._condition:
            self._held.discard(held)
            self._gates.left(held.claim.ref)
            if self._gates.busy:
                self._nudge()
            self._condition.notify()
        self.freed((held,))

    def put(self, held: Held, answer: Answer) -> None:
        """Store the answer of a task whose claim its own transaction has ended, soon."""
        with self._condition:
            self._answers.append((held.claim.queue, held.claim.id, answer))
            self._nudge()

    def aim(self, target: int, low: int) -> None:
        """Set how many tasks to hold, and below which number to claim more."""
        if (target, low) != (self.target, self.low):
            with self._condition:
                self.target, self.low = target, low
                # A switch to a thread that finds nothing to do takes longer than to look.
                stock = self.held - self._settling
                if target > stock and (self.dry or stock < max(low, 1)):
                    self._condition.notify()

    def renew_now(self) -> None:
        """Verify all claims at once: the monitor has been away for too long."""
        with self._condition:
            self._renew_at = 0.0
            self._nudge()

    def find(self, queue: str, id: int) -> Held | None:
        """The claim of a task, if this worker holds it; the newest of several."""
        held = tuple(self._held)  # in one step, for the courier's thread goes on
        mine = [it for it in held if it.claim.id == id and it.claim.queue == queue]
        return max(mine, key=lambda it: it.claim.delivery, default=None)

    def reply(self, order: str, text: str, *, done: bool) -> None:
        """Answer an order, at once: say what came of it, and whether that was what was asked."""
        with self._condition:
            self._replies[order] = {"done": done, "text": text}, now() + REPLY_AGE
            self._announce_at = 0.0
            self._nudge()

    def announce_soon(self) -> None:
        """There is something new to say of the running tasks."""
        at = self._announced + PROGRESS_INTERVAL
        if at < self._announce_at:
            with self._condition:
                self._announce_at = min(at, self._announce_at)
                self._nudge()

    def stop(self, timeout: float) -> None:
        """Claim nothing more; send what is to be settled, within `timeout` seconds, then end."""
        with self._condition:
            self._closing = True
            self._close_by = now() + timeout
            self._nudge()

    def _nudge(self) -> None:
        if self._waiting:
            self.broker.wake(self.queues)
        self._condition.notify()

    # -- the thread --------------------------------------------------------------------------------------------

    def run(self) -> None:
        while True:
            self.beat()
            try:
                if not self._turn():
                    break
                if not self.healthy:
                    self.healthy = True
                    logger.info("worker %s reaches %r again", self.worker, self.broker)
                self._pause = BACKOFF[0]
                if not self._warned:
                    self._warn()
            except Exception as error:
                self._fail(error)
                if self._closing and now() > self._close_by:
                    logger.error(
                        "worker %s leaves with %d claims unsettled: they run again when their lease ends",
                        self.worker,
                        len(self._held),
                    )
                    return
        self._say_goodbye()

    def _warn(self) -> None:
        """Say what is wrong with the settings of the store, once it is there."""
        self._warned = True
        with contextlib.suppress(BrokerError):
            for warning in self.broker.check():
                logger.warning("%s", warning)

    def _turn(self) -> bool:
        """Do one thing; False when there is nothing left to do."""
        if self._closing or self._answers or self._gates.busy:
            self._take_rest()  # whoever has come through a gate counts before those who are let go on
        if self._answers:
            self._put_answers()
        if self._gates.busy and now() >= self._gates_at:
            self._mind_gates()
        at = now()
        with self._condition:
            while self._closing and self.inbox:
                self._put(self.inbox.popleft(), "back")
            untaken = len(self._untaken[0])
            stock = len(self._held) + untaken - self._settling
            hungry = not self._closing and not self.dry and stock < max(self.low, 1) and self.target > stock
            flush = bool(self._outbox) and (
                len(self._outbox) >= FLUSH_SIZE
                or self._settling == len(self._held) + untaken
                or at >= self._outbox_since + FLUSH_DELAY
                or self._closing
            )
            behind = untaken and not (hungry or flush)  # and no exchange follows
            # Each end of a wait costs commands.
            chore = min(self._announce_at + self._slack, self._sweep_at)
            if self._held or not self.healthy:
                chore = min(chore, self._renew_at + self._slack)
            if self._gates.busy:
                chore = min(chore, self._gates_at)
            if self._closing and not self._outbox and (not (self._held or untaken) or at > self._close_by):
                return False
            idle = False
            if not (hungry or flush or behind) and at < chore:
                timeout = min(chore - at, WAIT_TIMEOUT)
                if self._outbox:
                    timeout = min(timeout, self._outbox_since + FLUSH_DELAY - at)
                idle = self.dry and self.target > stock and not self._closing and not self._outbox
                if not idle:
                    self._condition.wait(max(timeout, 0.0))
                    return True
                timeout += min(LATE, self.lease / 30)
                self._waiting = True
        if idle:
            try:
                self._mind_end()
                self._wait(timeout, self.target - stock)
            finally:
                self._waiting = False
        elif hungry or flush:
            self._exchange(max(self.target - stock, 0) if not self._closing else 0)
        elif behind:
            self._take_rest()
        if at >= chore:
            self._take_rest()
            self._chores(at)
            if not (self._unswept or self._outbox):
                self._mind_end()  # there may never be time for a wait
            if now() > at + SWEEP_SLICE:
                self.dry = False  # something may have come meanwhile, and the next chore may be due already
        return True

    def _mind_gates(self) -> None:
        """Let go on who can since some tasks have ended."""
        try:
            self._gates.work()
        except Exception as error:  # a full store, or whatever it is: it must not keep others from being settled
            self._gates_at = now() + GATES_PAUSE
            logger.warning("worker %s: some that wait for others are not woken yet: %s", self.worker, error)

    def _put_answers(self) -> None:
        while self._answers:
            queue, id, answer = self._answers[0]
            try:
                self.broker.put_result(queue, id, answer)
                self._gates.answered((queue, id))
            except BrokerUnavailable:
                raise
            except BrokerError as error:
                logger.error("the answer of task %d can't be stored: %s", id, error)
            self._answers.popleft()

    def _put(self, held: Held, action: Action) -> None:
        self._outbox.append((held, Settlement(held.claim.ref, action)))
        self._settling += 1

    def _mind_end(self) -> None:
        """In burst mode: tell the monitor if nothing is left to do."""
        if self.burst and self.dry and not self._held and self._nothing_left():
            self.empty = True
            self.notify()

    def _nothing_left(self) -> bool:
        for queue in self.queues:
            counts = self.broker.counts(queue)
            if (counts.ready or counts.scheduled) and self.broker.paused(queue):
                continue
            if counts.ready:
                return False
            if counts.scheduled and all(it.due < BURST_PATIENCE for it in self.broker.peek(queue, "scheduled", 1)):
                return False  # due soon, or since that was counted
        return True

    def _next_claim(self) -> tuple[int, int]:
        """(sequence number, nonce): a new pair, or that of a claim whose answer was lost."""
        if self._unanswered is None:
            self._seq += 1
            self._unanswered = self._seq, random.SystemRandom().getrandbits(64)
        return self._unanswered

    def _whom_to_ask(self, limit: int) -> tuple[Sequence[str], int]:
        """The queues in the order in which the next claim asks them, and for how many tasks."""
        if self.turns is None:
            return self.queues, limit
        queues = self.turns.order()
        return queues, min(limit, self.turns.share(queues[0], self.target))

    def _answered(self, queues: Sequence[str], limit: int, claims: Sequence[Claim]) -> None:
        """A claim has got these."""
        self._unanswered = None
        self.dry = len(claims) < limit
        if self.turns is not None:
            self.turns.took(queues, limit, claims)

    def _wait(self, timeout: float, limit: int) -> None:
        """Wait for something to claim; claim it in the same breath where the store can."""
        seq, nonce = self._next_claim()
        queues, limit = self._whom_to_ask(limit)
        sent = now()
        self.dry = False  # also if the answer is lost: then the same claim is sent again
        claims = self.broker.wait_and_claim(queues, timeout, self.worker, seq, nonce, limit, self.lease)
        if claims is not None:
            self._answered(queues, limit, claims)
            self._take(claims, sent)

    def _exchange(self, limit: int) -> None:
        with self._condition:
            batch, self._outbox = self._outbox, []
            if self.keeps:
                fit = fate.fitting([settlement for _, settlement in batch], FLUSH_BYTES)
                batch, self._outbox = batch[:fit], batch[fit:]
        seq, nonce = self._next_claim()
        queues, limit = self._whom_to_ask(limit)
        resent = False
        settlements = [settlement for _, settlement in batch]
        before: list[bool] = []  # whether those were accepted that the store did not take together
        try:
            while True:
                sent = now()
                self._taking = 0.0
                try:
                    with meanwhile(self._take_meanwhile):
                        accepted, claims = self.broker.settle_and_claim(
                            self.worker, settlements, queues, seq, nonce, limit, self.lease
                        )
                    self._note_pace(now() - sent, len(settlements) + len(claims))
                    break
                except BrokerError as error:
                    self._take_meanwhile()
                    if settlements and not isinstance(error, BrokerUnavailable):
                        with contextlib.suppress(BrokerError):
                            before, settlements = refusal.settle_each(self.broker, self.worker, settlements), []
                            continue
                    self._fail(error)
                    resent = True
                    if self._closing and now() > self._close_by:
                        raise
                    self._keep_all()
        except BaseException:  # what has ended must not be forgotten, whatever it is
            with self._condition:
                self._outbox[:0] = batch
            raise
        for (held, settlement), good in zip(batch, before or accepted, strict=True):
            if good:
                continue
            if resent:
                self.ambiguous += 1
            elif held is not None and held.in_doubt:
                logger.info("task %d: its transaction had committed before it was stopped", settlement.ref.id)
            elif held is not None and not held.lost:
                logger.warning(
                    "task %d: %s was refused, its claim had gone to another worker",
                    settlement.ref.id,
                    settlement.action,
                    extra={"action": "refused", "task_id": settlement.ref.id, **extra_of(held.claim)},
                )
        ended = [held for held, _ in batch if held is not None]
        self._held.difference_update(ended)
        with self._condition:
            self._settling -= len(ended)
        self.freed(ended)
        if self.keeps or self._gates.minds:
            self._gates.ended(settlement for _, settlement in batch)
        if limit:
            self._answered(queues, limit, claims)
        try:
            self._take_rest()  # what could not be taken meanwhile
        finally:
            self._untaken = (claims, sent)
        if not self.broker.works_meanwhile:
            self._take_rest()
        if not claims and (batch or self.dry):
            self.notify()
        trouble, self._trouble = self._trouble, None
        if trouble is not None:
            raise trouble

    def _note_pace(self, seconds: float, tasks: int) -> None:
        # Of few it is the trip that counts; and who was busy meanwhile can't tell when the answer came.
        if tasks >= PACED and self._taking < seconds / 2:
            pace = max(seconds - self.trip, 0.0) / tasks
            self.pace += (pace - self.pace) * (0.2 if self.pace else 1.0)

    def _take_rest(self) -> None:
        """Take what the last exchange has claimed."""
        (claims, sent), self._untaken = self._untaken, ((), 0.0)
        if claims:
            self._take(claims, sent)

    def _take_meanwhile(self) -> None:
        """The same while the store is asked for something: what it would have to be asked for itself waits, and what
        goes wrong is raised later.
        """
        begun = now()
        header = b""
        try:
            for claim in self._untaken[0]:
                if claim.header is not header:  # many have the same
                    header = claim.header
                    if ASKING in header:
                        return
            self._take_rest()
        except Exception as error:
            self._trouble = error
        self._taking = now() - begun

    def _take(self, claims: Sequence[Claim], sent: float) -> None:
        fresh: list[Held] = []
        expiring: list[Held] = []
        gated: list[Held] = []
        if not self._held:
            self._vouch(sent)
            if self.healthy:  # else it is still to be found out what was lost
                self._renew_at = sent + min(RENEW_INTERVAL, self.lease / 3)
        index, header, asking = self._queue_index, b"", False
        for claim in claims:
            if not is_task(claim):  # the last defence: the monitor trusts what it is given
                logger.error("%r handed out what is no task, and it is not run: %.200r", self.broker, claim.ref)
                continue
            held = Held(claim, sent, index[claim.queue])
            if claim.header is not header:  # many have the same
                header = claim.header
                asking = ASKING in header
            if asking:
                if GATES in header:
                    gated.append(held)
                if EXPIRES in header:
                    expiring.append(held)
            self._held.add(held)
            fresh.append(held)
        if expiring and not self._date(expiring):
            fresh = [held for held in fresh if held not in expiring]
            gated = [held for held in gated if held not in expiring]
        if gated:
            shut = self._ask(gated)
            fresh = [held for held in fresh if held not in shut]
        self.inbox.extend(fresh)
        if fresh:
            self._announce_at = min(self._announce_at, sent + ANNOUNCE_INTERVAL)
            self.notify()

    def _date(self, expiring: Sequence[Held]) -> bool:
        """Note until when these tasks may begin. False if the store does not say what time it is: they go back."""
        try:
            clocks = {name: (now(), self.broker.clock(name)) for name in {held.claim.queue for held in expiring}}
        except BrokerError as error:
            logger.warning("%d tasks that may have expired go back to the queue: %s", len(expiring), error)
            self.settle(*[(held, Settlement(held.claim.ref, "back")) for held in expiring])
            return False
        for held in expiring:
            at, clock = clocks[held.claim.queue]
            held.begin_by = at + held.claim.begin_by - clock
        return True

    def _ask(self, gated: Sequence[Held]) -> set[Held]:
        """Ask the gates of these tasks; those that find one shut go back."""
        try:
            ends = self._gates.ask(gated)
        except Exception as error:  # whatever it is, what was claimed must not be forgotten for it
            logger.warning("%d tasks with gates go back to the queue: %s", len(gated), error)
            ends = [(held, Settlement(held.claim.ref, "back", GATES_PAUSE)) for held in gated]
        if ends:
            self.settle(*ends)
        return {held for held, _ in ends}

    def _chores(self, at: float) -> None:
        soon = at + self._slack
        if soon >= self._renew_at and (self._held or not self.healthy):
            self._renew()
            self._renew_at = at + min(RENEW_INTERVAL, self.lease / 3)
        while self.bounds:
            queue, bounds = next(iter(self.bounds.items()))
            self.broker.bound(queue, bounds)
            del self.bounds[queue]
        if at >= self._sweep_at:
            self._sweep()
        if soon >= self._announce_at:
            self._announce_at = at + (ANNOUNCE_INTERVAL if self._held else REST * ANNOUNCE_INTERVAL)
            if not self._closing:
                self._announce()

    def _sweep(self) -> None:
        """Sweep the queues for a moment; what is left of them then follows when others have had their turn."""
        begun = at = now()
        if not self._unswept:
            self._unswept.extend(self.queues)
            self._round_since, self._swept_for, self._resting = begun, 0.0, True
        while self._unswept and at < begun + SWEEP_SLICE and not self._closing:
            queue = self._unswept[0]
            try:
                swept = self.broker.sweep(queue, self.lease)
                self._unswept_for.pop(queue, None)
            except BrokerUnavailable:
                raise
            except BrokerError as error:
                if self._unswept_for.get(queue) != str(error):
                    logger.error("queue %s can't be swept: %s", queue, error)
                self._unswept_for[queue] = str(error)
                swept = Swept(0, 0, False)
            self._unswept.popleft()
            self._resting = self._resting and swept.idle
            if swept.returned:
                self.dry = False
                logger.warning("%d tasks of queue %s lost their worker: ready again", swept.returned, queue)
            if swept.dead:
                logger.error("%d tasks of queue %s were delivered too often and are dead", swept.dead, queue)
            if swept.returned or swept.dead:
                self._unswept.append(queue)  # for a broker returns no more at a time than others can wait for
            at = now()
        self._swept_for += at - begun
        if self._unswept and not self._closing:
            self._sweep_at = at
            return
        if self._resting:
            # Nobody has claimed anything, so no lease ends within the next one.
            pause = min(self.broker.sweep_interval * REST, self.lease / 2.7) * random.uniform(0.95, 1.0)
            if pause > ANNOUNCE_INTERVAL and not self._held:  # each end of a wait costs commands: see `_turn`
                together = at if at > self._announced + ANNOUNCE_INTERVAL else at + pause
                with self._condition:
                    if self._announce_at > at:  # else a reply waits for it
                        self._announce_at = min(together, self._announced + REST * ANNOUNCE_INTERVAL)
        else:
            pause = min(self.broker.sweep_interval, self.lease / 4) * random.uniform(0.8, 1.2)
        if self._swept_for > pause * SWEEP_SHARE:  # there are many queues, and the store is slow
            pause = self._swept_for / SWEEP_SHARE
        # From half a lease on, the broker takes a pause between two sweeps of a queue for an outage.
        self._sweep_at = at + max(min(pause, self.lease * SWEEP_LATEST - (at - self._round_since)), 0.0)

    def _announce(self) -> None:
        self._announced = now()
        with self._condition:
            self._replies = {order: it for order, it in self._replies.items() if it[1] > now()}
            replies = {order: reply for order, (reply, _) in self._replies.items()}
        info = {**self.info(), "replies": replies}
        asked = now()
        orders = self.broker.announce(self.worker, self.queues, info, ANNOUNCEMENT_AGE)
        self._trips.append(now() - asked)
        self.trip = min(self._trips)  # the others waited for the interpreter, or a busy store
        for order in orders:
            if isinstance(order.get("id"), str) and order["id"] not in self._orders_known:
                self._orders_known.append(order["id"])
                self.orders.append(order)
        if self.orders:
            self.notify()

    def _vouch(self, sent: float) -> None:
        self.renewed = sent
        self.vouched(sent)

    def _keep_all(self) -> None:
        """Renew what is held, if it is time: other requests may get through while one does not."""
        if now() > self.renewed + min(RENEW_INTERVAL, self.lease / 3):
            with contextlib.suppress(BrokerError):
                # What is not known may be what the request under way has got: its answer will tell.
                self._renew(look=False)

    def _renew(self, *, look: bool = True) -> None:
        """Renew what is held; `look`: give back what is held and not known."""
        sent = now()
        with self._condition:
            settling = {held for held, _ in self._outbox}
            mine = {held.claim.ref: held for held in self._held}
        renewal = self.broker.renew(self.worker, self.queues, list(mine), self.lease)
        for ref in renewal.held:
            mine[ref].confirmed = sent
        self._vouch(sent)
        for ref in renewal.lost:
            held = mine[ref]
            if held not in settling and not held.lost:
                held.lost = True
                held.lost_at = now()
                self.lost.append(held)
        with self._condition:
            known = {held.claim.ref for held in self._held}
            for claim in renewal.unknown if look else ():
                if claim.ref not in known and is_task(claim):
                    logger.info("task %d was claimed but the answer was lost: it goes back", claim.id)
                    self._outbox.append((None, Settlement(claim.ref, "back")))
        self.notify()

    def _fail(self, error: Exception) -> None:
        if self.healthy or not (isinstance(error, BrokerUnavailable) or str(error) == self._complaint):
            self.healthy = False
            self._complaint = str(error)
            logger.error(
                "worker %s can't reach %r: %s; it goes on trying, and keeps what it finished",
                self.worker,
                self.broker,
                error,
                exc_info=not isinstance(error, BrokerError),
                extra={"action": "broker_unavailable"},
            )
        self._renew_at = 0.0  # after an outage, claims are verified before anything more is handed out
        with self._condition:
            self._condition.wait(self._pause * random.uniform(0.5, 1.0))
        # Far within a lease: one that ends because we wait would let what has finished run again.
        self._pause = min(self._pause * 2, BACKOFF[1], self.lease / 10)

    def _say_goodbye(self) -> None:
        try:
            self.broker.announce(self.worker, self.queues, None, 0.0)
        except BrokerError:
            logger.debug("worker %s could not say goodbye", self.worker, exc_info=True)
