"""Unique tasks in MongoDB: a command that is cut short after any of its steps."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pymongo
import pytest
from pymongo.collection import Collection

from delayed.brokers import Broker, broker_for
from delayed.brokers import mongo_once as onces
from delayed.errors import BrokerUnavailable
from delayed.message import Message, Once

KEY = Once("0123456789abcdef" * 2)
STEPS, COMMITTED = 6, 3  # steps of a command that replaces nothing, and after how many of them its task is enqueued


@pytest.fixture
def broker(mongo_database: str) -> Iterator[Broker]:
    broker = broker_for(mongo_database)
    broker.reserve_ids("q", 1)
    yield broker
    broker.close()


def message(broker: Broker) -> Message:
    return Message(broker.reserve_ids("q", 1), "module:func", b"")


def cut(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the next command of that many steps end after some of them, and its answer be lost."""
    whole = Collection.bulk_write
    done: list[int] = []

    def write(self: Collection[Any], steps: Any, **options: Any) -> Any:
        if len(steps) < STEPS or done:
            return whole(self, steps, **options)
        done.append(after)
        if after:
            whole(self, steps[:after], **options)
        raise pymongo.errors.AutoReconnect("cut off")

    monkeypatch.setattr(Collection, "bulk_write", write)


def waiting(broker: Broker) -> list[int]:
    return [entry.message.id for state in ("ready", "scheduled") for entry in broker.peek("q", state)]  # type: ignore[arg-type]


@pytest.mark.parametrize("after", range(STEPS + 1))
@pytest.mark.parametrize("who", ["resend", "another", "sweep"])
def test_what_was_cut_short_is_enqueued_or_not_and_once(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, after: int, who: str
) -> None:
    first, second = message(broker), message(broker)
    session = secrets.token_hex(16)
    cut(monkeypatch, after)
    with pytest.raises(BrokerUnavailable) as error:
        broker.enqueue_once("q", first, KEY, session, 1)
    assert error.value.sent

    if who == "sweep":
        broker.sweep("q")
        assert waiting(broker) == ([first.id] if after >= COMMITTED else [])
    if who == "another":
        holder = broker.enqueue_once("q", second, KEY, secrets.token_hex(16), 1)
        assert holder == (first.id if after >= COMMITTED else second.id)
        assert waiting(broker) == [holder]
    there = after >= COMMITTED or who != "another"

    assert broker.enqueue_once("q", first, KEY, session, 1) == (first.id if there else second.id)
    assert waiting(broker) == [first.id if there else second.id]
    (claim,) = broker.claim(["q"], "w", 1, 1, 10, 15.0)
    broker.remove("q", claim.id)
    broker.sweep("q")
    assert broker.counts("q") == (0, 0, 1, 0)


@pytest.mark.parametrize("after", range(STEPS + 2))
def test_a_replacement_that_was_cut_short_leaves_one(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    first, second = message(broker), message(broker)
    broker.enqueue_once("q", first, KEY, secrets.token_hex(16), 1)
    cut(monkeypatch, after)
    with pytest.raises(BrokerUnavailable):
        broker.enqueue_once("q", second, KEY._replace(replace=True), secrets.token_hex(16), 1)

    broker.sweep("q")

    assert waiting(broker) == [second.id if after >= COMMITTED else first.id]


def test_who_read_before_another_took_the_key_fails_and_looks_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = message(broker), message(broker)
    whole = onces._store

    def store(*args: Any) -> bool:
        monkeypatch.setattr(onces, "_store", whole)
        assert broker.enqueue_once("q", first, KEY, secrets.token_hex(16), 1) == first.id
        return whole(*args)

    monkeypatch.setattr(onces, "_store", store)

    assert broker.enqueue_once("q", second, KEY, secrets.token_hex(16), 1) == first.id
    assert waiting(broker) == [first.id]


def test_a_first_attempt_that_comes_after_its_resend_does_nothing(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = message(broker)
    session = secrets.token_hex(16)
    whole = onces._store

    def store(*args: Any) -> bool:
        monkeypatch.setattr(onces, "_store", whole)
        assert broker.enqueue_once("q", first, KEY, session, 1) == first.id
        assert broker.remove("q", first.id)
        onces.forget(args[0], "u/", "u0", 10)  # so that the key is as it was when this attempt has read it
        return whole(*args)

    monkeypatch.setattr(onces, "_store", store)

    assert broker.enqueue_once("q", first, KEY, session, 1) == first.id
    assert waiting(broker) == []


def test_who_is_always_too_late_pauses_gives_up_in_time_and_leaves_nothing(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = message(broker), message(broker)
    whole = onces._store
    tries: list[bool] = []

    def store(tasks: Any, row: Any, document: Any, held: Any) -> bool:
        tasks.update_one({"_id": document["_id"]}, {"$set": {"batch": secrets.token_hex(12)}})  # another was quicker
        tries.append(whole(tasks, row, document, held))
        return tries[-1]

    broker.enqueue_once("q", first, KEY, secrets.token_hex(16), 1)
    monkeypatch.setattr(onces, "_store", store)
    monkeypatch.setattr(onces, "PATIENCE", 0.2)

    with pytest.raises(BrokerUnavailable, match="too many want the key") as error:
        broker.enqueue_once("q", second, KEY._replace(replace=True), secrets.token_hex(16), 1)

    assert not error.value.sent and not any(tries) and 1 < len(tries) < 20
    monkeypatch.undo()
    assert waiting(broker) == [first.id]
    assert broker.get("q", second.id) is None
    assert broker.enqueue_once("q", second, KEY, secrets.token_hex(16), 1) == first.id
