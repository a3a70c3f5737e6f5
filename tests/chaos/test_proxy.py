"""The proxy does to requests what its rules say, and knows what they are."""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from delayed.brokers import Broker, broker_for
from delayed.errors import BrokerUnavailable
from delayed.message import Action, Answer, Message, Settlement
from tests.chaos import tasks
from tests.chaos.arena import Arena
from tests.chaos.processes import send, state_of
from tests.chaos.proxy import Proxy, Rule, Slow
from tests.chaos.wire import RedisWire

QUEUE = "q"
WORKER = "w"


@pytest.fixture(params=["redis_url", "postgres_schema"])
def direct(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def proxy(direct: str, tmp_path: Path) -> Iterator[Proxy]:
    with Proxy(direct, tmp_path) as proxy:
        yield proxy


@pytest.fixture
def near(proxy: Proxy) -> Iterator[Broker]:
    """The store behind the proxy."""
    broker = broker_for(proxy.url)
    yield broker
    broker.close()


@pytest.fixture
def far(direct: str) -> Iterator[Broker]:
    broker = broker_for(direct)
    yield broker
    broker.close()


@pytest.fixture
def queue() -> str:
    return f"q-{secrets.token_hex(6)}"


def enqueue(broker: Broker, queue: str, seq: int = 1, session: str = "a" * 32) -> None:
    broker.enqueue(queue, [Message(broker.reserve_ids(queue, 1), "m:f", b"")], session, seq)


def ops(proxy: Proxy) -> list[str]:
    return [f"{hit['what']} {hit['op']}" for hit in proxy.hits()]


@pytest.mark.parametrize(("toxic", "stored"), [("drop_reply", 1), ("drop_request", 0)])
def test_a_dropped_reply_has_taken_effect_and_a_dropped_request_has_not(
    proxy: Proxy, near: Broker, far: Broker, queue: str, toxic: str, stored: int
) -> None:
    session = secrets.token_hex(16)
    enqueue(far, queue, 1, session)  # so that there are tables, and connections need nothing first
    near.counts(queue)
    proxy.set(Rule("enqueue", toxic, most=1))

    with pytest.raises(BrokerUnavailable):
        enqueue(near, queue, 2, session)

    assert far.counts(queue).ready == 1 + stored
    assert ops(proxy) == [f"{toxic} enqueue"]
    enqueue(near, queue, 3, session)  # the next one arrives
    assert far.counts(queue).ready == 2 + stored


def test_each_operation_is_known(proxy: Proxy, near: Broker, queue: str) -> None:
    near.counts(queue)

    def op(do: Callable[[], Any], *among: str) -> Any:
        before = len(proxy.hits())
        proxy.set(*[Rule(name, "delay") for name in among])
        found = do()
        # Redis is sent a script a second time when it does not know it yet.
        return found, {hit["op"] for hit in proxy.hits()[before:]}

    ends = ("done", "retry", "back", "dead", "answer")
    rest = ("claim", "settle", "renew", "held", "sweep", "remove")
    id, seen = op(lambda: near.reserve_ids(queue, 3), "enqueue", *rest, "reserve")
    assert seen == {"reserve"}
    messages = [Message(id + number, "m:f", b"") for number in range(3)]
    _, seen = op(lambda: near.enqueue(queue, messages, secrets.token_hex(16), 1), "reserve", *rest, "enqueue")
    assert seen == {"enqueue"}
    (first, second), seen = op(lambda: near.claim([queue], WORKER, 1, 7, 2, 10.0), "settle", *ends, "claim")
    assert seen == {"claim"}
    for do, name in (
        (lambda: near.renew(WORKER, [queue], [first.ref, second.ref], 10.0), "renew"),
        (lambda: near.held(WORKER, [queue]), "held"),
        (lambda: near.sweep(queue), "sweep"),
        (lambda: near.remove(queue, id + 2), "remove"),
    ):
        assert op(do, *ends, *rest)[1] == {name}
    _, seen = op(lambda: near.settle(WORKER, [Settlement(first.ref, "retry", 9.0)]), "claim", "done", "back", "retry")
    assert seen == {"retry"}
    done = Settlement(second.ref, "done", answer=Answer(b"42", 9.0))
    assert op(lambda: near.settle(WORKER, [done]), "retry", "back", "answer")[1] == {"answer"}


@pytest.mark.parametrize(("toxic", "runs"), [("kill_before", 1), ("kill_between", 2), ("kill_after", 2)])
def test_who_sends_a_request_is_killed_exactly_there(direct: str, tmp_path: Path, toxic: str, runs: int) -> None:
    with Proxy(direct, tmp_path) as proxy, Arena(tmp_path, proxy.url, direct=direct) as arena:
        client = arena.run("tests.chaos.client", url=proxy.url, queue=arena.name, does="enqueue", numbers=[1, 2, 3])
        while state_of(client.pid) != "T":
            time.sleep(0.01)
        proxy.set(Rule("enqueue", toxic, most=1, of=[client.pid], nth=2, role="producer"))
        for _ in range(3):
            arena.put(tasks.noop)  # by somebody else
        send(client.pid, signal.SIGCONT)
        client.wait()

        assert client.returncode == -signal.SIGKILL
        assert arena.counts().ready == 3 + runs
        while not (kills := arena.history().having("kill")):
            time.sleep(0.01)
        (kill,) = kills
        assert (kill["pid"], kill["role"]) == (client.pid, "producer")


def test_a_reply_is_held(proxy: Proxy, near: Broker, far: Broker, queue: str) -> None:
    near.counts(queue)
    proxy.set(Rule("enqueue", "hold_reply", seconds=0.5))
    begun = time.monotonic()

    enqueue(near, queue, session=secrets.token_hex(16))

    assert time.monotonic() - begun >= 0.5
    assert far.counts(queue).ready == 1
    assert set(ops(proxy)) == {"hold_reply enqueue"}


def test_a_refused_way_is_open_again(proxy: Proxy, near: Broker, queue: str) -> None:
    near.counts(queue)
    proxy.state("refuse")
    with pytest.raises(BrokerUnavailable):
        near.counts(queue)

    proxy.state("open")

    assert near.counts(queue).ready == 0


def test_a_deaf_way_takes_requests_and_brings_no_replies(proxy: Proxy, near: Broker, far: Broker, queue: str) -> None:
    enqueue(near, queue, 1, "b" * 32)  # so that Redis knows the script
    proxy.state("deaf")

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(near.enqueue, queue, [Message(1, "m:f", b"")], "b" * 32, 2)
        while far.counts(queue).ready < 2:
            time.sleep(0.01)
        assert not sent.done()
        proxy.state("open")

        with pytest.raises(BrokerUnavailable):
            sent.result()


def test_a_slow_way_is_late_in_both_directions(proxy: Proxy, near: Broker, queue: str) -> None:
    near.counts(queue)
    proxy.slow(Slow(0.1, 0.1, piece=1))
    begun = time.monotonic()

    assert near.counts(queue).ready == 0

    assert time.monotonic() - begun >= 0.2


def test_the_commands_of_mongodb_are_known(mongo_database: str, tmp_path: Path, queue: str) -> None:
    with Proxy(mongo_database, tmp_path) as proxy, closing(broker_for(proxy.url)) as near:
        near.counts(queue)
        proxy.set(Rule("update", "drop_reply", most=1))

        enqueue(near, queue)  # the driver sends it again by itself

        assert near.counts(queue).ready == 1
        assert ops(proxy) == ["drop_reply update"]


def test_the_operations_on_mongodb_are_known(mongo_database: str, tmp_path: Path, queue: str) -> None:
    names = ("reserve", "enqueue", "claim", "settle", "renew", "sweep")
    with Proxy(mongo_database, tmp_path) as proxy, closing(broker_for(proxy.url)) as near:
        near.counts(queue)

        def op(do: Callable[[], Any]) -> set[str]:
            before = len(proxy.hits())
            seen = set()
            for name in names:  # one after the other: a request has the first rule that fits
                proxy.set(Rule(name, "delay"))
                do()
                seen |= {hit["op"] for hit in proxy.hits()[before:]}
            return seen

        seqs = iter(range(1, 100))
        session = secrets.token_hex(16)
        message = Message(1, "m:f", b"")

        assert op(lambda: near.reserve_ids(queue, 1)) == {"reserve"}
        assert op(lambda: near.enqueue(queue, [message], session, next(seqs))) == {"enqueue"}
        assert op(lambda: near.claim([queue], WORKER, next(seqs), 7, 1, 10.0)) == {"claim"}
        refs = [claim.ref for claim in near.held(WORKER, [queue])]
        assert op(lambda: near.renew(WORKER, [queue], refs, 10.0)) == {"renew"}
        assert op(lambda: near.sweep(queue)) == {"sweep"}
        ends = iter(refs)
        assert op(lambda: near.settle(WORKER, [Settlement(next(ends), "done")])) == {"settle"}
        proxy.set(Rule("settle", "delay"))
        before = len(proxy.hits())
        near.enqueue(queue, [message], session, next(seqs))
        (last,) = near.claim([queue], WORKER, next(seqs), 7, 1, 10.0)
        near.settle(WORKER, [Settlement(last.ref, "retry")])
        assert len(proxy.hits()) == before + 1


def test_the_ends_of_tasks_on_mongodb_are_known(mongo_database: str, tmp_path: Path, queue: str) -> None:
    answer = Answer(b"x", 60.0)
    ends: list[tuple[str, Action, dict[str, Any]]] = [
        ("done", "done", {}),
        ("answer", "done", {"answer": answer}),
        ("retry", "retry", {}),
        ("retry", "retry", {"delay": 1.0}),
        ("back", "back", {}),
        ("back", "back", {"delay": 1.0}),
        ("dead", "dead", {"reason": "why"}),
    ]
    with Proxy(mongo_database, tmp_path) as proxy, closing(broker_for(proxy.url)) as near:
        for seq, (end, action, more) in enumerate(ends, 1):
            near.enqueue(queue, [Message(seq, "m:f", b"")], secrets.token_hex(16), 1)
            (claim,) = near.claim([queue], WORKER, seq, 7, 1, 10.0)
            proxy.set(*[Rule(name, "delay") for name in dict.fromkeys(name for name, *_ in ends)])
            near.settle(WORKER, [Settlement(claim.ref, action, **more)])
            proxy.set(Rule("remove", "delay"))
            near.remove(queue, seq)
            assert [hit["op"] for hit in proxy.hits()][-2:] == [end, "remove"]


def test_a_command_is_whole_wherever_it_is_cut() -> None:
    command = b"*2\r\n$4\r\nLLEN\r\n$1\r\nq\r\n"
    for cut in range(len(command)):
        wire = RedisWire()
        assert wire.requests(command[:cut]) == []
        (request,) = wire.requests(command[cut:])
        assert (request.data, request.replies, request.ops) == (command, 1, frozenset())


def test_a_script_behind_a_wait_is_one_request_of_two_replies() -> None:
    wire = RedisWire()
    wait = b"*3\r\n$5\r\nBLPOP\r\n$1\r\nq\r\n$1\r\n1\r\n"

    (request,) = wire.requests(wait + b"*2\r\n$4\r\nLLEN\r\n$1\r\nq\r\n")

    assert request.replies == 2
    assert wire.replies(b"*-1\r\n") == 1
    assert wire.replies(b"*2\r\n$1\r\na\r\n*1\r\n:") == 0
    assert wire.replies(b"1\r\n") == 1
