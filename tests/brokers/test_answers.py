"""What every broker does with the answers of tasks; see `delayed/brokers/base.py`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing

import pytest

from delayed.brokers import Broker
from delayed.errors import TaskLost, Unsupported
from delayed.message import Answer, Claim, Counts, Settlement
from tests.brokers.patience import eventually
from tests.brokers.test_conformance import BOUND, Bench

DAY = 86400.0


@pytest.fixture
def bench(broker: Broker, queue: str) -> Bench:
    return Bench(broker, queue)


def settle(bench: Bench, claim: Claim, answer: Answer | None, action: str = "done", reason: str = "") -> bool:
    settlement = Settlement(claim.ref, action, 0.0, reason, answer)  # type: ignore[arg-type]
    return bench.broker.settle("w", [settlement])[0]


def answers(bench: Bench, *ids: int) -> dict[int, bytes]:
    return bench.broker.get_results(bench.queue, ids)


def test_an_answer_is_stored_with_the_end_of_its_claim(bench: Bench) -> None:
    (id,) = bench.put()
    (claim,) = bench.claim()
    assert answers(bench, id) == {}

    assert settle(bench, claim, Answer(bytes(range(256)), DAY))

    assert answers(bench, id) == {id: bytes(range(256))}
    assert bench.counts() == Counts(0, 0, 0, 0), "an answer is no task"
    assert bench.broker.get(bench.queue, id) is None


def test_an_empty_answer_is_one(bench: Bench) -> None:
    (id,) = bench.put()
    (claim,) = bench.claim()

    settle(bench, claim, Answer(b"", DAY))

    assert answers(bench, id) == {id: b""}


def test_a_large_answer_comes_out_as_it_went_in(bench: Bench) -> None:
    (id,) = bench.put()
    (claim,) = bench.claim()
    data = b"\0\xff" * 5_000_000

    settle(bench, claim, Answer(data, DAY))

    assert answers(bench, id) == {id: data}


def test_a_batch_has_settlements_with_and_without_answers(bench: Bench) -> None:
    ids = bench.put(9)
    claims = {claim.id: claim for claim in bench.claim()}
    settlements = [
        Settlement(claims[id].ref, "done", answer=Answer(b"%d" % id, DAY) if number % 2 else None)
        for number, id in enumerate(ids[:6])
    ]
    settlements.append(Settlement(claims[ids[6]].ref, "dead", reason="why", answer=Answer(b"dead", DAY)))
    settlements.append(Settlement(claims[ids[7]].ref, "retry", answer=Answer(b"not yet", DAY)))
    settlements.append(Settlement(claims[ids[8]].ref, "back", answer=Answer(b"not yet", DAY)))

    accepted, taken = bench.broker.settle_and_claim("w", settlements, [bench.queue], 99, 7, 10, 15.0)

    assert accepted == [True] * 9
    assert [claim.id for claim in taken] == [ids[8], ids[7]], "what goes on has no answer yet"
    assert answers(bench, *ids) == {**{id: b"%d" % id for id in ids[1:6:2]}, ids[6]: b"dead"}


def test_a_refused_settlement_stores_no_answer(bench: Bench) -> None:
    (id,) = bench.put()
    (stale,) = bench.claim(lease=0.3)
    bench.sweep_until_returned(1, 0.3)
    (fresh,) = bench.claim()

    assert not settle(bench, stale, Answer(b"stale", DAY))
    assert answers(bench, id) == {}

    assert settle(bench, fresh, Answer(b"fresh", DAY))
    assert not settle(bench, stale, Answer(b"stale", DAY))
    assert not settle(bench, fresh, Answer(b"again", DAY)), "a claim ends once"
    assert answers(bench, id) == {id: b"fresh"}


def test_of_two_claims_of_one_task_in_a_batch_the_one_that_holds_has_the_answer(bench: Bench) -> None:
    (id,) = bench.put()
    (stale,) = bench.claim(lease=0.3)
    bench.sweep_until_returned(1, 0.3)
    (fresh,) = bench.claim()
    ends = [Settlement(claim.ref, "done", answer=Answer(name, DAY)) for claim, name in ((fresh, b"f"), (stale, b"s"))]

    assert bench.broker.settle("w", ends) == [True, False]
    assert answers(bench, id) == {id: b"f"}


def test_many_answers_are_settled_in_one_call(bench: Bench) -> None:
    ids = bench.put(1200)
    claims = bench.claim(1200)

    accepted = bench.broker.settle(
        "w", [Settlement(claim.ref, "done", answer=Answer(b"%d" % claim.id, DAY)) for claim in claims]
    )

    assert accepted == [True] * 1200
    assert answers(bench, *ids) == {id: b"%d" % id for id in ids}


def test_answers_are_forgotten_by_the_clock_of_the_store(bench: Bench) -> None:
    short, long, dead = bench.put(3)
    claims = {claim.id: claim for claim in bench.claim()}
    settle(bench, claims[long], Answer(b"long", DAY))
    settle(bench, claims[dead], Answer(b"dead", 0.2), "dead", "why")

    settle(bench, claims[short], Answer(b"short", 0.2))

    eventually(lambda: short not in answers(bench, short))
    eventually(lambda: dead not in answers(bench, dead))
    assert answers(bench, short, long) == {long: b"long"}
    bench.broker.sweep(bench.queue)
    assert answers(bench, short, long) == {long: b"long"}
    assert bench.counts().dead == 1, "a dead letter outlives its answer"


def test_an_answer_belongs_to_one_queue(bench: Bench) -> None:
    (id,) = bench.put()
    (claim,) = bench.claim()

    settle(bench, claim, Answer(b"mine", DAY))

    assert bench.broker.get_results(bench.queue + "-other", [id]) == {}
    assert answers(bench) == {}


def test_a_dead_letter_may_have_an_answer(bench: Bench) -> None:
    (id,) = bench.put()
    (claim,) = bench.claim()

    settle(bench, claim, Answer(b"verdict", DAY), "dead", "it is broken")

    entry = bench.broker.get(bench.queue, id)
    assert entry is not None and (entry.state, entry.reason) == ("dead", "it is broken")
    assert answers(bench, id) == {id: b"verdict"}


@pytest.mark.parametrize("delay", [0.0, 100.0])
def test_what_is_removed_may_leave_an_answer(bench: Bench, delay: float) -> None:
    (id,) = bench.put(delay=delay)

    assert bench.broker.remove(bench.queue, id, Answer(b"cancelled", DAY))

    assert answers(bench, id) == {id: b"cancelled"}
    assert bench.counts() == Counts(0, 0, 0, 0)
    assert bench.broker.get(bench.queue, id) is None
    assert not bench.broker.remove(bench.queue, id, Answer(b"again", DAY))
    assert answers(bench, id) == {id: b"cancelled"}


def test_what_runs_is_not_removed_and_gets_no_answer(bench: Bench) -> None:
    (id,) = bench.put()
    bench.claim()

    assert not bench.broker.remove(bench.queue, id, Answer(b"cancelled", DAY))

    assert answers(bench, id) == {}


def test_a_result_that_is_put_takes_the_place_of_what_is_there(bench: Bench) -> None:
    (id,) = bench.put()
    (claim,) = bench.claim()
    settle(bench, claim, Answer(b"first", 0.2))

    bench.broker.put_result(bench.queue, id, Answer(b"second", DAY))

    assert answers(bench, id) == {id: b"second"}
    bench.broker.put_result(bench.queue + "-new", 5, Answer(b"third", DAY))
    assert bench.broker.get_results(bench.queue + "-new", [5, 6]) == {5: b"third"}


def test_a_transaction_stores_its_answer_with_its_commit(bench: Bench) -> None:
    first, second = bench.put(2)
    claims = {claim.id: claim for claim in bench.claim()}
    try:
        with bench.broker.transaction(claims[first].ref._replace(nonce=1), Answer(b"stale", DAY)):
            pass
    except Unsupported:
        return  # of this store
    except TaskLost:
        assert answers(bench, first) == {}

    with bench.broker.transaction(claims[first].ref, Answer(b"committed", DAY)):
        assert answers(bench, first) == {}
    with pytest.raises(ZeroDivisionError), bench.broker.transaction(claims[second].ref, Answer(b"rolled back", DAY)):
        raise ZeroDivisionError

    assert answers(bench, first, second) == {first: b"committed"}
    assert bench.counts().running == 1


# -- waiting -------------------------------------------------------------------------------------------------------


def heard(bench: Bench, store: Callable[[], object], data: dict[int, bytes]) -> bool:
    """Whether one who sleeps is told of an answer that is stored elsewhere."""
    told: list[bool] = []
    ready = threading.Event()

    def wait() -> None:
        with closing(bench.broker.listen(bench.queue)) as listener:
            while listener.wait(0.2):  # the first ones may say that it is time to look
                pass
            ready.set()
            told.append(listener.wait(BOUND))

    thread = threading.Thread(target=wait)
    thread.start()
    assert ready.wait(BOUND)
    store()
    thread.join(BOUND * 2)
    assert answers(bench, *data) == data
    return told == [True]


def test_an_answer_wakes_who_listens_elsewhere(bench: Bench, open_broker: Callable[[], Broker]) -> None:
    worker = open_broker()
    (id,) = bench.put()
    (claim,) = bench.claim()

    settlement = Settlement(claim.ref, "done", answer=Answer(b"a", DAY))
    assert heard(bench, lambda: worker.settle("w", [settlement]), {id: b"a"})


def test_a_removal_and_a_dead_letter_wake_who_listens(bench: Bench, open_broker: Callable[[], Broker]) -> None:
    worker = open_broker()
    (dead,) = bench.put()
    (claim,) = bench.claim()
    (removed,) = bench.put()

    assert heard(bench, lambda: worker.remove(bench.queue, removed, Answer(b"r", DAY)), {removed: b"r"})
    ends = [Settlement(claim.ref, "dead", reason="why", answer=Answer(b"d", DAY))]
    assert heard(bench, lambda: worker.settle("w", ends), {removed: b"r", dead: b"d"})
    assert heard(bench, lambda: worker.put_result(bench.queue, 5, Answer(b"p", DAY)), {5: b"p"})


def test_all_who_listen_hear_of_an_answer(bench: Bench, open_broker: Callable[[], Broker]) -> None:
    (id,) = bench.put()
    (claim,) = bench.claim()
    brokers = [bench.broker, bench.broker, open_broker(), open_broker()]
    listeners = [broker.listen(bench.queue) for broker in brokers]
    for listener in listeners:
        while listener.wait(0.1):
            pass

    settle(bench, claim, Answer(b"answer", DAY))

    for listener in listeners:
        assert listener.wait(BOUND), "it was told, whoever else was"
        listener.close()
    assert answers(bench, id) == {id: b"answer"}


def test_what_was_stored_between_two_waits_ends_the_next(bench: Bench) -> None:
    (id,) = bench.put()
    (claim,) = bench.claim()
    listener = bench.broker.listen(bench.queue)
    while listener.wait(0.1):
        pass

    settle(bench, claim, Answer(b"answer", DAY))
    eventually(lambda: answers(bench, id))

    assert listener.wait(BOUND)
    listener.close()


def test_a_wait_for_answers_ends_at_its_timeout_and_when_it_is_closed(bench: Bench) -> None:
    listener = bench.broker.listen(bench.queue)
    listener.wait(0.1)
    assert not listener.wait(0.1)

    def wait() -> None:
        while not closed.is_set():
            listener.wait(BOUND)

    closed = threading.Event()
    thread = threading.Thread(target=wait)
    thread.start()
    closed.set()
    listener.close()
    thread.join(BOUND)
    assert not thread.is_alive()
