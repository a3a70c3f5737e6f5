"""Workers that run tasks whose arguments are made of plain data."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from delayed import AsyncWorker, ForkedWorker, PreforkedWorker, Queue, Retry, Task, ThreadedWorker
from delayed.delay import delay, delay_with_params
from tests import models, orders
from tests.workers import tasks
from tests.workers.conftest import Ledger

KINDS = [ForkedWorker, PreforkedWorker, ThreadedWorker, AsyncWorker]
HANDLER = "tests.workers.tasks:on_error"
ID = UUID(int=7)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    ledger = Ledger(tmp_path / "ledger")
    monkeypatch.setenv("LEDGER", str(ledger.path))
    return ledger


@pytest.fixture(params=["json", "msgpack"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Queue]:
    queue = Queue("q", f"sqlite:///{tmp_path}/tasks.db", serializer=request.param, allow=["tests.*"])
    yield queue
    queue.broker.close()


@pytest.fixture(params=["with pydantic", "without"])
def preload(request: pytest.FixtureRequest) -> list[str]:
    if request.param == "without":
        return ["tests.without_pydantic"]
    return []


@pytest.mark.parametrize("kind", KINDS)
def test_an_order_arrives_as_one(queue: Queue, ledger: Ledger, kind: Any, preload: list[str]) -> None:
    order = orders.Order(ID, tags=[orders.Tag("a")])
    for func in (orders.note_order, orders.note_order_later):
        delay(queue)(func)(str(ledger.path), order, datetime(2026, 1, 1))

    kind(queue, burst=True, preload=preload).run()

    assert ledger.lines == [f"Order 7 {order.tags} 2026-01-01 00:00:00"] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_arrives_as_one(queue: Queue, ledger: Ledger, kind: Any) -> None:
    lines = [models.Line(what="tea", count=2)]
    delay(queue)(models.note_invoice)(str(ledger.path), models.Invoice(number=ID, at=datetime.now(), lines=lines))

    kind(queue, burst=True).run()

    assert ledger.lines == [f"Invoice 7 {lines}"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_payload_fails_for_good_and_harms_nobody(
    queue: Queue, ledger: Ledger, kind: Any, preload: list[str]
) -> None:
    """As one that another program stored, or a version of this one whose orders had other fields."""
    wrong = Task(func_path="tests.orders:note_order", args=("ledger", {"id": 7}), retry=Retry(3, delay=0.01))
    broker = queue.broker
    (id,) = queue.producer.reserve_ids(1)
    message = Task.create(tasks.mark, retry=wrong.retry).to_message(queue.codec, id, 60)
    payload = queue.codec.encode(wrong.args, {})
    queue.producer.enqueue([message._replace(func=wrong.func_path, payload=payload)])
    delay_with_params(queue)(priority=-1)(tasks.mark)(str(ledger.path), "next")

    kind(queue, burst=True, preload=preload, error_handler=HANDLER).run()

    (error,) = ledger.find("error")
    assert "SignatureMismatch" in error
    assert "bad arguments: tests.orders:note_order: order.id: " in error
    assert "got <int>" in error
    assert "next" in ledger.lines
    assert broker.counts("q") == (0, 0, 0, 0)


@pytest.mark.parametrize("kind", KINDS[:2])  # asyncio has inspect loaded
def test_a_task_of_plain_data_loads_nothing_for_it(queue: Queue, ledger: Ledger, kind: Any) -> None:
    delay(queue)(tasks.note_loaded)(str(ledger.path), "loaded", [1])

    kind(queue, burst=True).run()

    assert ledger.lines == ["loaded"]
