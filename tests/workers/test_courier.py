"""What a courier does when the store refuses something for good: all else goes on."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import inf
from statistics import median
from typing import Any

import pytest

from delayed import answers
from delayed.brokers import deadline
from delayed.brokers.base import LEASE
from delayed.brokers.memory import MemoryBroker
from delayed.errors import BrokerError, BrokerFull, BrokerUnavailable
from delayed.logger import logger
from delayed.message import Answer, Claim, Message, Settlement, Swept, done
from delayed.worker import verdict
from delayed.worker.courier import FLUSH_SIZE, Courier, Held
from delayed.worker.process import now
from tests.workers.conftest import wait_for

LIMITED = {"limit": ["limit", 1, None], "runs": 11}


class Fussy(MemoryBroker):
    """A store that can be full for small values, and takes no settlement of which `refuses` says so."""

    full = False
    warning = "it keeps nothing on its disk"
    refuses = staticmethod(lambda settlement: False)
    count = 1  # queues of the courier
    lost = 0  # tasks to be found by sweeps, one by each
    slow = 0.0  # seconds that a sweep takes
    bad = ""  # the name of a queue that can't be swept
    away = 0.0  # seconds that a claim takes
    quiet = False  # whether sweeps say that nobody has claimed anything, if so
    cut: Callable[[], None] | None = None  # called by the next wait, which then claims, and whose answer is lost
    meanwhile: Callable[[], None] | None = None  # called by each sweep
    deaf = False  # whether a wait is not ended by a wake-up; then it claims when `heard` is set

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.waits, self.heard = threading.Event(), threading.Event()
        self.sweeps: list[tuple[float, str]] = []  # when each began, and of which queue
        self.announced: list[float] = []  # when the worker has said what it does

    def gaps(self, since: int = 0) -> list[float]:
        """Seconds between the sweeps of each queue, from a certain one on."""
        times: dict[str, list[float]] = {}
        for at, queue in self.sweeps[since:]:
            times.setdefault(queue, []).append(at)
        return [after - before for each in times.values() for before, after in pairwise(each)]

    def wait_and_claim(self, queues: Sequence[str], timeout: float, *rest: Any) -> list[Claim] | None:
        if self.cut is not None:
            cut, self.cut = self.cut, None
            cut()
            self.claim(queues, *rest)
            raise BrokerUnavailable("the connection was cut")
        if not self.deaf:
            return super().wait_and_claim(queues, timeout, *rest)
        self.waits.set()
        assert self.heard.wait(10.0)
        self.deaf = False
        worker, seq, nonce, limit, lease = rest
        return self.claim(queues, worker, seq, nonce, limit, lease)

    def settle_and_claim(self, worker: str, settlements: Sequence[Settlement], *rest: Any) -> Any:
        time.sleep(self.away)
        if any(self.refuses(settlement) for settlement in settlements):
            raise BrokerError("no place for that")
        return super().settle_and_claim(worker, settlements, *rest)

    def settle(self, worker: str, settlements: Sequence[Settlement]) -> list[bool]:
        if any(self.refuses(settlement) for settlement in settlements):
            raise BrokerError("no place for that")
        return super().settle(worker, settlements)

    def sweep(self, queue: str, lease: float = LEASE) -> Swept:
        self.sweeps.append((time.monotonic(), queue))
        if self.meanwhile is not None:
            self.meanwhile()
        time.sleep(self.slow)
        if queue == self.bad:
            raise BrokerError("no")
        if not self.lost:
            swept = super().sweep(queue, lease)
            return swept._replace(idle=swept.idle and self.quiet)
        self.lost -= 1
        return Swept(1, 0, False)

    def announce(self, *args: Any) -> Any:
        self.announced.append(time.monotonic())
        return super().announce(*args)

    def check(self) -> list[str]:
        return [self.warning]

    def put_key(self, *args: Any, **options: Any) -> int:
        if self.full:
            raise BrokerFull("there is no room")
        return super().put_key(*args, **options)


class Busy(Fussy):
    """A store that lets who asks it do something else meanwhile, with a worker that has much to do."""

    works_meanwhile = True
    breaks: Iterator[str] = iter(())  # of each exchange: whether it breaks "before" or "after" that, or "hurries"
    amid = False  # whether an exchange is under way
    taken = 0  # exchanges during which what was claimed by the one before was taken
    courier: Courier

    def __init__(self) -> None:
        super().__init__(f"memory://{secrets.token_hex(8)}")
        self.seen: list[Held] = []  # that were worked on
        self.asked: list[bool] = []  # of each look at the clock, whether it was amid an exchange
        self._one_at_a_time = threading.Lock()

    def fill(self, total: int, **options: Any) -> Courier:
        """Enqueue so many tasks, and make a courier that claims 150 of them at a time."""
        first = self.reserve_ids("q", total)
        messages = [Message(id, "m:f", b"") for id in range(first, first + total)]
        messages[::200] = [message._replace(**options) for message in messages[::200]]
        self.enqueue("q", messages, secrets.token_hex(16), 1)
        self.courier = made(self, 15.0, sweep=False)
        self.courier.aim(300, 150)
        return self.courier

    def work(self) -> int:
        """Do some of the tasks that were claimed; how many were done up to now."""
        with self._one_at_a_time:
            inbox = self.courier.inbox
            some = [inbox.popleft() for _ in range(min(len(inbox), FLUSH_SIZE))]
            self.seen += some
            self.courier.settle(*[(held, done(held.claim)) for held in some])
            return len(self.seen)

    def settle_and_claim(self, worker: str, settlements: Sequence[Settlement], *rest: Any) -> Any:
        breaks = next(self.breaks, "")
        if breaks == "before":
            raise BrokerUnavailable("the connection was cut")
        answer = super().settle_and_claim(worker, settlements, *rest)
        waiting = len(self.courier.inbox)
        if breaks != "hurries":
            self.amid = True
            deadline.idle()
            self.amid = False
        self.taken += len(self.courier.inbox) > waiting
        self.work()
        if breaks == "after":
            raise BrokerUnavailable("the connection was cut")
        return answer

    def clock(self, queue: str) -> float:
        self.asked.append(self.amid)
        return super().clock(queue)


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Fussy:
    broker = Fussy(f"memory://{secrets.token_hex(8)}")
    broker.count, broker.slow, broker.bad = getattr(request, "param", (1, 0.0, ""))
    return broker


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the library warns of, from before the courier is started."""
    found: list[str] = []
    monkeypatch.setattr(logger, "warning", lambda text, *args, **more: found.append(text % args))
    return found


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As :func:`said`, of errors."""
    found: list[str] = []
    monkeypatch.setattr(logger, "error", lambda text, *args, **more: found.append(text % args))
    return found


@pytest.fixture
def courier(request: pytest.FixtureRequest, broker: Fussy, said: list[str]) -> Iterator[Courier]:
    courier = made(broker, getattr(request, "param", None) or 15.0, sweep=hasattr(request, "param"))
    courier.start()
    yield courier
    left(courier)


def made(broker: Fussy, lease: float, *, sweep: bool, burst: bool = False) -> Courier:
    courier = Courier(
        broker,
        ["q", *(f"q{number}" for number in range(1, broker.count))],
        "w",
        lease=lease,
        sweep=sweep,
        burst=burst,
        turns=None,
        bounds={},
        notify=lambda: None,
        freed=lambda held: None,
        info=dict,
    )
    courier.aim(10, 5)
    return courier


def left(courier: Courier) -> None:
    courier.stop(5.0)
    courier.join(10.0)
    assert not courier.is_alive()


def put(broker: Fussy, gates: Any = None) -> int:
    id = broker.reserve_ids("q", 1)
    broker.enqueue("q", [Message(id, "m:f", b"", gates=gates)], secrets.token_hex(16), 1)
    return id


def test_a_full_store_keeps_no_task_from_being_settled(broker: Fussy, courier: Courier) -> None:
    first = put(broker, LIMITED)
    wait_for(lambda: courier.inbox)
    broker.full = True
    second, plain = put(broker, LIMITED), put(broker)
    wait_for(lambda: len(courier.inbox) == 2)

    for held in list(courier.inbox):
        courier.settle((held, Settlement(held.claim.ref, "done")))

    assert [held.claim.id for held in courier.inbox] == [first, plain]
    wait_for(lambda: broker.get("q", first) is None and broker.get("q", plain) is None)
    assert broker.get_keys("q", ["limit:limit"]), "that it has ended can't be noted yet"
    courier.inbox.clear()

    broker.full = False

    wait_for(lambda: courier.inbox)
    assert courier.inbox[0].claim.id == second
    assert courier.inbox[0].claim.attempt == 1


@pytest.mark.parametrize(
    "breaks",
    [[], [*["", "", ""] * 4, *["", "before", "", "after"] * 4], ["", "", "hurries"] * 9],
    ids=["", "breaks", "hurries"],
)
def test_what_is_claimed_is_taken_while_the_store_is_asked_for_more(breaks: list[str]) -> None:
    broker = Busy()
    broker.breaks = iter(breaks)
    courier = broker.fill(3000)
    courier.start()
    wait_for(lambda: broker.work() == 3000)
    left(courier)

    assert broker.taken
    assert len({held.claim.id for held in broker.seen}) == 3000
    assert not any(broker.counts("q"))


def test_what_has_to_be_asked_for_is_taken_after_the_answer() -> None:
    broker = Busy()
    courier = broker.fill(1000, expires=broker.clock("q") + 3600)
    broker.asked.clear()
    courier.start()
    wait_for(lambda: broker.work() == 1000)
    left(courier)

    assert sum(held.begin_by < inf for held in broker.seen) == 5
    assert broker.asked and not any(broker.asked)
    assert not any(broker.counts("q"))


def test_what_goes_wrong_meanwhile_ends_no_exchange(said: list[str], complaints: list[str]) -> None:
    broker = Busy()
    courier = broker.fill(1000)
    failed: list[bool] = []

    def notify() -> None:
        if broker.amid and len(failed) < 3:
            failed.append(True)
            raise OSError("no descriptor is left")

    courier.notify = notify
    courier.start()
    wait_for(lambda: broker.work() == 1000)
    left(courier)

    assert len(failed) == 3
    assert any("no descriptor is left" in text for text in complaints)
    assert not any("refused" in text for text in said), "what was settled is not settled again"
    assert not any(broker.counts("q"))


def test_who_is_told_to_leave_right_after_a_claim_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Busy()
    courier = broker.fill(200)
    courier.aim(0, 0)
    told = False

    def tell() -> float:
        nonlocal told
        if courier.held and not courier.inbox and not told:  # it was claimed by an exchange, and is not taken
            told = True
            courier.aim(0, 0)
            courier.stop(5.0)
        return now()

    monkeypatch.setattr("delayed.worker.courier.now", tell)
    courier.start()
    wait_for(lambda: broker.announced)  # which it does in the same breath with its first claim, else
    courier.aim(200, 100)
    courier.join(10.0)

    assert told and not courier.is_alive()
    assert broker.counts("q") == (0, 200, 0, 0)
    assert {entry.attempt for entry in broker.peek("q", "ready", 200)} == {0}


@pytest.mark.parametrize("store", [Busy, Fussy])
def test_who_waits_at_a_gate_is_let_go_on_after_those_who_have_come_through(store: type[Fussy]) -> None:
    broker = store() if store is Busy else store(f"memory://{secrets.token_hex(8)}")
    courier = made(broker, 15.0, sweep=False)
    broker.courier, broker.work = courier, lambda: 0  # type: ignore[attr-defined]
    first = put(broker, LIMITED)
    courier.start()
    wait_for(lambda: courier.inbox)
    (inside,) = courier.inbox
    courier.inbox.clear()
    waits = put(broker, LIMITED)
    wait_for(lambda: (found := broker.get("q", waits)) is not None and found.state == "scheduled")
    exchange = broker.settle_and_claim

    def comes(*args: Any) -> Any:
        if not coming:
            coming.append(put(broker, LIMITED))
        return exchange(*args)

    coming: list[int] = []
    broker.settle_and_claim = comes  # type: ignore[method-assign]
    courier.settle((inside, done(inside.claim)))  # with the same exchange another is claimed
    wait_for(lambda: courier.inbox)

    assert (inside.claim.id, courier.inbox[0].claim.id) == (first, coming[0])
    entry = broker.get("q", waits)
    assert entry is not None and (entry.state, entry.delivery) == ("scheduled", 1), "it was not woken in vain"
    left(courier)


def returned(body: bytes) -> Answer:
    return Answer(answers.pack(verdict.Verdict(verdict.RETURNED), body), 60.0)


def test_an_answer_that_the_store_refuses_keeps_nobody_waiting(broker: Fussy, courier: Courier) -> None:
    broker.refuses = lambda settlement: settlement.answer is not None and len(settlement.answer.data) > 2000
    large, small = put(broker), put(broker)
    wait_for(lambda: len(courier.inbox) == 2)

    first, second = list(courier.inbox)
    courier.inbox.clear()
    courier.settle((first, Settlement(first.claim.ref, "done", answer=returned(b"x" * 3000))))
    courier.settle((second, Settlement(second.claim.ref, "done", answer=returned(b"y"))))

    wait_for(lambda: len(broker.get_results("q", [large, small])) == 2)
    found = {id: answers.unpack(data) for id, data in broker.get_results("q", [large, small]).items()}
    assert (found[large].body, found[large].verdict.text) == (b"", "can't be stored: no place for that")
    assert found[small].body == b"y"
    third = put(broker)
    wait_for(lambda: courier.inbox)
    assert courier.inbox[0].claim.id == third, "more is claimed"


def test_a_reason_that_the_store_refuses_is_kept_in_plainer_words(broker: Fussy, courier: Courier) -> None:
    broker.refuses = lambda settlement: not settlement.reason.isascii()
    id = put(broker)
    wait_for(lambda: courier.inbox)
    (held,) = courier.inbox
    courier.inbox.clear()

    courier.settle((held, Settlement(held.claim.ref, "dead", reason="5 \N{RIGHTWARDS ARROW} 6")))

    wait_for(lambda: broker.counts("q").dead)
    (letter,) = broker.peek("q", "dead", 1)
    assert (letter.message.id, letter.reason) == (id, "5 \\u2192 6")


def test_what_is_refused_whatever_is_in_it_is_sent_again_as_it_was(broker: Fussy, courier: Courier) -> None:
    refused = []
    broker.refuses = lambda settlement: refused.append(settlement) or True
    id = put(broker)
    wait_for(lambda: courier.inbox)
    (held,) = courier.inbox
    courier.inbox.clear()
    courier.settle((held, Settlement(held.claim.ref, "done", answer=returned(b"z"))))
    wait_for(lambda: len(refused) > 5)

    broker.refuses = lambda settlement: False

    wait_for(lambda: broker.get_results("q", [id]))
    assert answers.unpack(broker.get_results("q", [id])[id]).body == b"z"


def test_what_is_wrong_with_the_store_is_said_once(broker: Fussy, courier: Courier, said: list[str]) -> None:
    for _ in range(2):
        put(broker)
        wait_for(lambda: courier.inbox)
        courier.inbox.clear()

    wait_for(lambda: broker.warning in said)
    assert said.count(broker.warning) == 1


def test_who_claims_again_what_it_has_lost_keeps_the_new_claim_when_the_old_one_ends(
    broker: Fussy, courier: Courier
) -> None:
    id, _ = put(broker, LIMITED), put(broker)
    wait_for(lambda: len(courier.inbox) == 2)
    old, other = courier.inbox.popleft(), courier.inbox.popleft()
    broker.deaf = True
    broker.wake(["q"])  # from the wait that is under way
    assert broker.waits.wait(10.0)
    broker.settle("w", [Settlement(old.claim.ref, "back")])  # as a sweep does
    courier.settle((old, Settlement(old.claim.ref, "done")))
    broker.heard.set()
    wait_for(lambda: courier.inbox)
    new = courier.inbox.popleft()
    assert (new.claim.id, new.claim.delivery) == (id, old.claim.delivery + 1)
    wait_for(lambda: courier.held == 2)

    at = courier.renewed
    courier.renew_now()
    wait_for(lambda: courier.renewed > at)
    courier.settle((other, Settlement(other.claim.ref, "done")))
    wait_for(lambda: courier.held == 1)

    assert not courier.inbox, "the new claim was given back, and made once more"
    second, plain = put(broker, LIMITED), put(broker)
    wait_for(lambda: courier.inbox)
    assert [held.claim.id for held in courier.inbox] == [plain], "the new claim is inside its limit"
    courier.settle((new, Settlement(new.claim.ref, "done")))
    wait_for(lambda: len(courier.inbox) == 2)
    assert courier.inbox[1].claim.id == second


@pytest.mark.parametrize("courier", [None], indirect=True)
def test_a_sweep_that_has_found_something_is_followed_by_the_next_at_once(broker: Fussy, courier: Courier) -> None:
    broker.lost = 50

    wait_for(lambda: not broker.lost, 10.0)


@pytest.mark.parametrize("courier", [12.0], indirect=True)
def test_sweeps_that_take_long_leave_time_for_the_rest(broker: Fussy, courier: Courier) -> None:
    broker.slow = 1.0
    known = len(broker.sweeps)

    wait_for(lambda: len(broker.sweeps) >= known + 2)

    (before, _), (after, _) = broker.sweeps[known : known + 2]
    assert after - before > 4.1, "a second of sweeping, and more than the usual pause"


@pytest.mark.parametrize("courier", [15.0], indirect=True)
def test_sweeps_are_as_far_apart_as_the_store_asks(
    broker: Fussy, monkeypatch: pytest.MonkeyPatch, courier: Courier
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: (low + high) / 2)
    broker.sweep_interval = 0.5  # type: ignore[misc]  # a store has one for good
    wait_for(lambda: len(broker.sweeps) > 10)

    times = [at for at, _ in broker.sweeps]
    assert 3.0 < times[9] - times[2] < 4.2, "seven pauses"


@pytest.mark.parametrize("courier", [15.0], indirect=True)
def test_sweeps_are_further_apart_while_nobody_has_claimed_anything(
    broker: Fussy, monkeypatch: pytest.MonkeyPatch, courier: Courier
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: (low + high) / 2)
    broker.sweep_interval = 0.4  # type: ignore[misc]  # a store has one for good
    broker.quiet = True
    known = len(broker.sweeps)
    wait_for(lambda: len(broker.sweeps) >= known + 5)
    assert min(broker.gaps(known + 1)) > 0.9

    put(broker)
    wait_for(lambda: courier.inbox)
    known = len(broker.sweeps)
    wait_for(lambda: len(broker.sweeps) >= known + 6)
    assert median(broker.gaps(known + 1)) < 0.7, "one is claimed"


def amid_sweeps(broker: Fussy) -> int:
    """Let the worker rest, which sweeps every two seconds then, and wait until one is a second ago; how many there
    were.
    """
    broker.sweep_interval = 0.8  # type: ignore[misc]  # a store has one for good
    broker.quiet = True
    known = len(broker.sweeps)
    wait_for(lambda: len(broker.sweeps) > known and time.monotonic() > broker.sweeps[-1][0] + 1.0)
    return len(broker.sweeps)


@pytest.mark.parametrize("courier", [15.0], indirect=True)
def test_who_rests_announces_itself_when_it_sweeps(
    broker: Fussy, monkeypatch: pytest.MonkeyPatch, courier: Courier
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: (low + high) / 2)
    known = amid_sweeps(broker)
    courier.reply("order", "done", done=True)  # is announced at once, and the next one then when it is swept
    wait_for(lambda: len(broker.sweeps) >= known + 3, 10.0)

    sweeps = [at for at, _ in broker.sweeps[known : known + 3]]
    told = next(at for at in broker.announced if at > sweeps[0] + 0.5)
    assert 0 <= told - sweeps[1] < 0.5, "with the next sweep, and not as long after it as it was before"


@pytest.mark.parametrize("courier", [15.0], indirect=True)
def test_a_reply_waits_for_no_sweep(broker: Fussy, courier: Courier) -> None:
    known = amid_sweeps(broker)
    courier.reply("one", "done", done=True)
    broker.meanwhile = lambda: courier.reply("another", "done", done=True)
    wait_for(lambda: len(broker.sweeps) > known, 10.0)

    swept, _ = broker.sweeps[known]
    wait_for(lambda: any(swept < at for at in broker.announced))
    assert min(at for at in broker.announced if swept < at) < swept + 0.5


@pytest.mark.parametrize("broker", [(40, 0.02, "")], indirect=True)
@pytest.mark.parametrize("courier", [6.0], indirect=True)
def test_many_queues_are_each_swept_within_half_a_lease(broker: Fussy, courier: Courier) -> None:
    wait_for(lambda: len(broker.sweeps) > 3 * 40)

    assert len({queue for _, queue in broker.sweeps}) == 40
    assert max(broker.gaps()) < 3.0, "else the broker takes it for an outage"


@pytest.mark.parametrize("broker", [(40, 0.02, "")], indirect=True)
@pytest.mark.parametrize("courier", [6.0], indirect=True)
def test_tasks_come_through_while_many_queues_are_swept(broker: Fussy, courier: Courier) -> None:
    wait_for(lambda: broker.sweeps)
    swept = len(broker.sweeps)
    put(broker)

    wait_for(lambda: courier.inbox)
    assert len(broker.sweeps) - swept < 20, "half of a round"


@pytest.mark.parametrize("broker", [(1, 1.0, "")], indirect=True)
@pytest.mark.parametrize("courier", [2.0], indirect=True)
def test_tasks_come_through_while_sweeps_take_longer_than_the_time_between_them(
    broker: Fussy, courier: Courier
) -> None:
    wait_for(lambda: len(broker.sweeps) >= 3)
    swept = len(broker.sweeps)
    put(broker)

    wait_for(lambda: courier.inbox or len(broker.sweeps) > swept + 4)
    assert len(broker.sweeps) <= swept + 1, "one may have begun while it was put there"


@pytest.mark.parametrize("broker", [(1, 1.0, "")], indirect=True)
@pytest.mark.parametrize("courier", [2.0], indirect=True)
def test_a_burst_ends_while_sweeps_take_longer_than_the_time_between_them(broker: Fussy, courier: Courier) -> None:
    wait_for(lambda: len(broker.sweeps) >= 2)
    courier.burst = True

    wait_for(lambda: courier.empty, 5.0)


def test_a_burst_does_not_end_before_it_knows_what_its_last_claim_has_got(broker: Fussy, courier: Courier) -> None:
    def cut() -> None:
        courier.burst = True
        put(broker)

    broker.cut = cut
    broker.wake(["q"])

    wait_for(lambda: courier.inbox)
    assert not courier.empty


def test_a_burst_does_not_end_before_it_has_swept_all_queues(broker: Fussy, said: list[str]) -> None:
    broker.count, broker.slow = 3, 0.06
    id = broker.reserve_ids("q2", 1)
    broker.enqueue("q2", [Message(id, "m:f", b"")], secrets.token_hex(16), 1)
    assert broker.claim(["q2"], "dead", 1, 1, 10, 0.01)
    courier = made(broker, 5.0, sweep=True, burst=True)
    courier.start()

    wait_for(lambda: courier.inbox or courier.empty)
    left(courier)
    assert any("lost their worker" in warning for warning in said)


@pytest.mark.parametrize("broker", [(8, 0.15, "")], indirect=True)
@pytest.mark.parametrize("courier", [6.0], indirect=True)
def test_many_quiet_queues_are_each_swept_within_half_a_lease_on_a_store_that_is_far_away(
    broker: Fussy, courier: Courier
) -> None:
    broker.quiet, broker.away = True, 0.1
    wait_for(lambda: len(broker.sweeps) > 5 * 8)

    assert max(broker.gaps()) < 3.0, "else the broker takes it for an outage"


@pytest.mark.parametrize("broker", [(3, 0.0, "q1")], indirect=True)
@pytest.mark.parametrize("courier", [3.0], indirect=True)
def test_a_queue_that_cannot_be_swept_keeps_no_other_from_it(
    broker: Fussy, complaints: list[str], courier: Courier
) -> None:
    wait_for(lambda: len(broker.sweeps) >= 9)

    assert Counter(queue for _, queue in broker.sweeps[:9]) == {"q": 3, "q1": 3, "q2": 3}
    assert complaints == ["queue q1 can't be swept: no"]
