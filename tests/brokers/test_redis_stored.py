"""How messages are stored in Redis: who claims them reads what is there, whatever it says of itself."""

from __future__ import annotations

import random
from typing import Any

import pytest

from delayed.brokers._redis_stored import READY_MAX, Claims, Ready, split, stored
from delayed.message import Claim, Message, Series

HEADERS = [b"", b"{}", b'{"v":1,"f":"m:f"}', b'{"v":1,"f":"m:f","e":1.5}']


def answer(ids: list[int], messages: list[bytes], deliveries: str = "", attempts: str = "") -> list[Any]:
    """What the script says of these claims."""
    sizes = " ".join(str(len(message)) for message in messages)
    texts = " ".join(map(str, ids)), deliveries, attempts, sizes
    return [b"", -1, *(text.encode() for text in texts), b"".join(messages)]


def odd(chance: random.Random) -> bytes:
    """A message that may say something wrong of itself."""
    header, payload = chance.choice(HEADERS), chance.randbytes(chance.randrange(4))
    length = len(header) + chance.choice([0, 0, 0, 0, 1, 5, 1 << 30, -1 if header else 0])
    whole = (length | chance.choice([0, 1 << 31])).to_bytes(4, "big") + header + payload
    return whole[: chance.choice([len(whole)] * 4 + [0, 1, 3, 4, 5])]


def test_claims_are_read_as_the_messages_of_each_are() -> None:
    chance = random.Random(7)
    for _ in range(3000):
        messages = [odd(chance) for _ in range(chance.randrange(1, 8))]
        claims = Claims()
        claims.add("q", 7, answer(list(range(1, len(messages) + 1)), messages))

        assert len(claims) == len(messages)
        assert [(claim.header, claim.payload) for claim in claims] == [split(message) for message in messages]


def test_what_was_stored_is_what_is_claimed() -> None:
    messages = [Message(1 << 52 | n, "m:f", bytes([n]) * n, enqueued_at=1.0 + n // 3) for n in range(9)]
    args = stored(messages)
    claims = Claims()
    claims.add("q", 7, answer([message.id for message in messages], [each for each in args if isinstance(each, bytes)]))

    assert [(claim.id, claim.header, claim.payload) for claim in claims] == [
        (message.id, message.header(), message.payload) for message in messages
    ]
    assert claims[0].header is claims[1].header, "what is the same is kept once"


@pytest.mark.parametrize("size", [READY_MAX // 2 - len(HEADERS[2]), READY_MAX // 2 - len(HEADERS[2]) + 1])
def test_what_takes_much_memory_is_not_kept_twice(size: int) -> None:
    payloads = [b"x" * size] * 2
    series = Series(Message(0, "m:f", b""), HEADERS[2], range(7, 9), payloads)
    for messages in (series, list(series)):
        ready = Ready.of(messages)
        assert isinstance(ready, Ready) == (2 * (size + len(HEADERS[2])) <= READY_MAX)
        assert [message.payload for message in ready[:]] == payloads
        assert ready[-1] == messages[-1]


def test_claims_of_several_queues_are_one_after_the_other() -> None:
    claims = Claims()
    assert (len(claims), list(claims)) == (0, [])
    claims.add("a", 7, answer([], []))
    claims.add("a", 7, answer([1, 2], [b"\0\0\0\2{}x"] * 2))
    assert [claim.id for claim in claims] == [1, 2]
    claims.add("b", 7, answer([3], [b"\0\0\0\2{}yz"], "2", "1"))

    assert len(claims) == 3
    assert claims == [
        Claim("a", 1, 1, 7, 1, b"{}", b"x"),
        Claim("a", 2, 1, 7, 1, b"{}", b"x"),
        Claim("b", 3, 2, 7, 1, b"{}", b"yz"),
    ]
    assert claims[-1:] == [claims[2]]
    assert claims != [claims[0]]
