"""What a courier does when the store refuses what gates need: all else goes on."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from delayed.brokers.memory import MemoryBroker
from delayed.errors import BrokerFull
from delayed.message import Message, Settlement
from delayed.worker.courier import Courier
from tests.workers.conftest import wait_for

LIMITED = {"limit": ["limit", 1, None], "runs": 11}


class Full(MemoryBroker):
    """A store that can be full for small values."""

    full = False

    def put_key(self, *args: Any, **options: Any) -> int:
        if self.full:
            raise BrokerFull("there is no room")
        return super().put_key(*args, **options)


@pytest.fixture
def broker() -> Full:
    return Full(f"memory://{secrets.token_hex(8)}")


@pytest.fixture
def courier(broker: Full) -> Iterator[Courier]:
    courier = Courier(
        broker,
        ["q"],
        "w",
        lease=15.0,
        sweep=False,
        burst=False,
        turns=None,
        bounds={},
        notify=lambda: None,
        freed=lambda held: None,
        info=dict,
    )
    courier.aim(10, 5)
    courier.start()
    yield courier
    courier.stop(5.0)
    courier.join(10.0)
    assert not courier.is_alive()


def put(broker: Full, gates: Any = None) -> int:
    id = broker.reserve_ids("q", 1)
    broker.enqueue("q", [Message(id, "m:f", b"", gates=gates)], secrets.token_hex(16), 1)
    return id


def test_a_full_store_keeps_no_task_from_being_settled(broker: Full, courier: Courier) -> None:
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
