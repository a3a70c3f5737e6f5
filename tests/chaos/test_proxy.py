"""The proxy does to requests what its rules say, and knows what they are."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from delayed.brokers import Broker, broker_for
from delayed.errors import BrokerUnavailable
from delayed.message import Message, Settlement
from tests.chaos.proxy import Proxy, Rule
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
    enqueue(near, queue, session=secrets.token_hex(16))
    proxy.set(*[Rule(op, "delay") for op in ("claim", "settle", "renew", "sweep")])

    (claim,) = near.claim([queue], WORKER, 1, 7, 10, 10.0)
    near.renew(WORKER, [queue], [claim.ref], 10.0)
    near.sweep(queue)
    near.settle_and_claim(WORKER, [], [queue], 2, 8, 1, 10.0)
    near.settle(WORKER, [Settlement(claim.ref, "done")])

    # Redis is sent a script a second time when it does not know it yet.
    assert list(dict.fromkeys(ops(proxy))) == ["delay claim", "delay renew", "delay sweep", "delay settle"]


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
