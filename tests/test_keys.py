"""Small values that programs share; what each store does with them is in `tests/brokers/test_keys.py`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from delayed import BrokerError, BrokerFull, BrokerUnavailable, ConfigError, Queue
from tests.flaky import FlakyKeys


def test_values_are_set_and_looked_up(queue: Queue) -> None:
    keys = queue.keys
    assert keys.get("cursor") is None and keys.entry("cursor") is None

    version = keys.set("cursor", "käse", ttl="1h")

    assert keys.get("cursor") == "käse".encode()
    entry = keys.entry("cursor")
    assert entry is not None and entry.version == version and 3500 < (entry.left or 0) <= 3600
    keys.set("cursor", bytearray(b"\0"), ttl=timedelta(days=1))
    assert queue.keys.get("cursor") == b"\0"
    assert keys.delete("cursor") and not keys.delete("cursor")


def test_a_value_is_set_if_nobody_was_quicker(queue: Queue) -> None:
    keys = queue.keys
    made = keys.set_if("flag", "a", 0)
    assert made

    assert keys.set_if("flag", "b", 0) is None
    changed = keys.set_if("flag", "b", made)
    assert changed and keys.set_if("flag", "c", made) is None
    assert keys.get("flag") == b"b"


def test_numbers_are_counted(queue: Queue) -> None:
    keys = queue.keys

    assert [keys.add("n"), keys.add("n", 4), keys.add("n", -7)] == [1, 5, -2]
    keys.set("text", "many")
    with pytest.raises(BrokerError, match=r"'text' is no whole number below 2\*\*53: b'many'; count under another"):
        keys.add("text")


def test_only_ones_own_names_are_listed(queue: Queue) -> None:
    for name in ("b:2", "a", "b:1", "key:x"):
        queue.keys.set(name, "")
    with queue.lock("b:lock"):
        assert queue.keys.list() == ["a", "b:1", "b:2", "key:x"]
        assert queue.keys.list("b:") == ["b:1", "b:2"]
        assert queue.keys.list("b:", 1) == ["b:1"]
        assert queue.keys.get("b:lock") is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda keys: keys.get(5), "a name is text, not 5"),
        (
            lambda keys: keys.set("x" * 497, ""),
            "'x{60}…' can't name a value: a name has 1 to 496 characters, and this one has 497",
        ),
        (lambda keys: keys.get("\ud800"), r"'\\ud800' can't name a value"),
        (lambda keys: keys.list("\ud800"), r"'\\ud800' can't name a value"),
        (lambda keys: keys.list(limit=0), "limit is how many names are listed at most, a whole number from 1, not 0"),
        (lambda keys: keys.set("x", "a\ud800"), "the value of 'x' has half of a surrogate pair as its character 1"),
        (lambda keys: keys.set("x", 5), "the value of 'x' is bytes or text, not a int: encode it"),
        (lambda keys: keys.set("x", b"x" * 65537), "'x' has 65537 bytes, and may have 65536: keep it elsewhere"),
        (lambda keys: keys.set("x", "", ttl=0), "ttl must be a duration from 0.001 s"),
        (lambda keys: keys.set("x", "", ttl="soon"), "ttl must be a duration: write 30s"),
        (lambda keys: keys.set_if("x", "", -1), r"a version is what entry\(\) has said, or 0 for none, not -1"),
        (lambda keys: keys.add("x", 1.5), "a whole number is added, not 1.5"),
        (lambda keys: keys.add("x", True), "a whole number is added, not True"),
    ],
)
def test_what_makes_no_sense_is_refused(queue: Queue, call: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call(queue.keys)


def test_lost_requests_and_answers_are_sent_again() -> None:
    broker = FlakyKeys("refused", "lost")
    keys = Queue("q", broker).keys

    keys.set("x", "1")
    assert broker.requests == ["put"] * 3
    broker.script = ["refused", "lost"]
    assert keys.get("x") == b"1"
    broker.script = ["lost"]
    assert not keys.delete("x"), "this call has removed it, and can't tell"
    assert keys.get("x") is None


def test_a_count_is_not_sent_again_when_it_may_have_been_done() -> None:
    broker = FlakyKeys("refused", "lost")
    keys = Queue("q", broker).keys

    with pytest.raises(BrokerUnavailable) as caught:
        keys.add("n")

    assert caught.value.sent and keys.get("n") == b"1"
    broker.script = ["refused"]
    assert keys.add("n") == 2


def test_who_set_a_value_is_known_unless_two_set_the_same() -> None:
    broker = FlakyKeys("lost")
    keys = Queue("q", broker).keys
    with pytest.raises(BrokerUnavailable, match="'x' has the value that it was to have: put by this call, or by someb"):
        keys.set_if("x", "1", 0)
    assert keys.get("x") == b"1"

    broker.script = ["lost"]
    assert keys.set_if("x", "2", 0) is None, "whatever came of the first sending, nothing was put"


def test_a_store_that_stays_away_is_told() -> None:
    broker = FlakyKeys(*["lost"], *["refused"] * 50)
    keys = Queue("q", broker, enqueue_timeout=0.2).keys

    with pytest.raises(BrokerUnavailable) as caught:
        keys.set("x", "1")

    assert caught.value.sent, "the first one may have been done"
    broker.script = ["full"]
    with pytest.raises(BrokerFull):
        keys.set("x", "2")
    assert keys.get("x") == b"1"
