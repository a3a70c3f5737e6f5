"""What every broker does with small values under names; see `delayed/brokers/base.py`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from delayed.brokers import Broker
from delayed.errors import BrokerError, ConfigError
from delayed.message import Counts
from tests.brokers.patience import eventually
from tests.brokers.test_conformance import Bench, in_threads

DAY = 86400.0


class Shelf:
    """The small values of one queue."""

    def __init__(self, broker: Broker, queue: str) -> None:
        self.broker = broker
        self.queue = queue

    def get(self, name: str) -> bytes | None:
        found = self.broker.get_keys(self.queue, [name])
        return found[name].value if found else None

    def version(self, name: str) -> int:
        return self.broker.get_keys(self.queue, [name])[name].version

    def left(self, name: str) -> float | None:
        return self.broker.get_keys(self.queue, [name])[name].left

    def put(self, name: str, value: bytes | None, **options: object) -> int:
        return self.broker.put_key(self.queue, name, value, **options)  # type: ignore[arg-type]

    def add(self, name: str, by: int, ttl: float | None = None) -> int:
        return self.broker.add_key(self.queue, name, by, ttl)

    def list(self, prefix: str, limit: int = 1000) -> list[str]:
        return self.broker.list_keys(self.queue, prefix, limit)


@pytest.fixture
def shelf(broker: Broker, queue: str) -> Shelf:
    return Shelf(broker, queue)


def test_a_value_comes_out_as_it_went_in(shelf: Shelf, open_broker: Callable[[], Broker]) -> None:
    values = {
        "every byte": bytes(range(256)),
        "nothing": b"",
        "a number": b"-7",
        "no number": b"007",
        "ä 漢 🐘": b"x|y",
    }

    versions = {name: shelf.put(name, value) for name, value in values.items()}

    found = open_broker().get_keys(shelf.queue, [*values, "another"])
    assert {name: stored.value for name, stored in found.items()} == values
    assert {name: stored.version for name, stored in found.items()} == versions
    assert {stored.left for stored in found.values()} == {None}
    assert shelf.broker.get_keys(shelf.queue, []) == {}


def test_values_belong_to_one_queue_and_are_no_tasks(shelf: Shelf) -> None:
    shelf.put("name", b"mine")

    assert shelf.broker.get_keys(shelf.queue + "-other", ["name"]) == {}
    assert shelf.broker.list_keys(shelf.queue + "-other", "") == []
    assert shelf.broker.counts(shelf.queue) == Counts(0, 0, 0, 0)
    shelf.broker.purge(shelf.queue)
    assert shelf.get("name") == b"mine"


def test_a_value_is_replaced_and_removed(shelf: Shelf) -> None:
    first = shelf.put("name", b"1")
    second = shelf.put("name", b"2", ttl=DAY)
    third = shelf.put("name", b"3")

    assert 0 < first < second < third < 2**53
    assert shelf.left("name") is None, "it has no end any more"
    assert shelf.put("name", None) == third
    assert shelf.get("name") is None
    assert shelf.put("name", None) == 0, "there is nothing to remove"


def test_a_version_that_is_not_there_refuses(shelf: Shelf) -> None:
    assert shelf.put("name", b"first", version=1) == 0
    assert shelf.put("name", None, version=0) == 0
    made = shelf.put("name", b"first", version=0)
    assert made > 0

    assert shelf.put("name", b"second", version=0) == 0
    assert shelf.put("name", b"second", version=made + 1) == 0
    assert shelf.put("name", None, version=made + 1) == 0
    assert shelf.put("name", None, version=0) == 0
    assert shelf.get("name") == b"first"

    changed = shelf.put("name", b"second", version=made)
    assert changed > made
    assert shelf.put("name", b"second", version=made) == 0, "as a resend is"
    assert shelf.put("name", None, version=changed) == changed
    assert shelf.put("name", None, version=changed) == 0
    assert shelf.get("name") is None


def test_a_version_may_be_kept(shelf: Shelf) -> None:
    made = shelf.put("name", b"1", ttl=5, version=0, keep_version=True)

    for _ in range(2):  # a resend too
        assert shelf.put("name", b"2", ttl=DAY, version=made, keep_version=True) == made
    assert shelf.get("name") == b"2"
    assert DAY - 60 < (shelf.left("name") or 0) <= DAY
    shelf.put("name", None)
    assert shelf.put("name", b"3", version=made, keep_version=True) == 0
    assert shelf.put("name", b"3", keep_version=True) > made


def test_versions_never_go_back_whatever_becomes_of_the_value(shelf: Shelf) -> None:
    versions = [shelf.put("name", b"1", ttl=0.03)]
    eventually(lambda: shelf.get("name") is None)
    versions.append(shelf.put("name", b"2", version=0, ttl=0.03))
    eventually(lambda: shelf.get("name") is None)
    shelf.broker.sweep(shelf.queue)
    for _ in range(20):
        versions.append(shelf.put("name", b"3"))
        shelf.add("number", 1)
        versions.append(shelf.version("number"))
        shelf.put("name", None)
        shelf.put("number", None)
        versions.append(shelf.put("name", b"4", version=0))
        shelf.put("name", None, version=versions[-1])

    of_name = [version for place, version in enumerate(versions) if place < 2 or place % 3 != 0]
    of_number = versions[3::3]
    assert of_name == sorted(set(of_name)) and of_number == sorted(set(of_number))


def test_values_run_out_by_the_clock_of_the_store(shelf: Shelf) -> None:
    shelf.put("long", b"1", ttl=DAY)
    shelf.put("ever", b"1")
    made = shelf.put("short", b"1", ttl=0.2)
    assert 0 < (shelf.left("short") or 0) <= 0.2

    eventually(lambda: shelf.get("short") is None)

    assert shelf.list("") == ["ever", "long"]
    assert shelf.put("short", b"2", version=made) == 0
    assert shelf.put("short", None) == 0
    shelf.broker.sweep(shelf.queue)
    assert shelf.list("") == ["ever", "long"]
    assert shelf.put("short", b"2", version=0) > made
    assert shelf.get("short") == b"2"


def test_names_are_listed_in_order_from_a_prefix(shelf: Shelf) -> None:
    names = ["a", "a:", "a:1", "a:10", "a:2", "a:\U0010ffff", "a:é", "a:漢", "a:퟿", "a:🐘", "a;", "b", "퟿x", "\ue000"]
    for name in names:
        shelf.put(name, b"")
    shelf.put("a:gone", b"")
    shelf.put("a:gone", None)
    shelf.put("a:ended", b"", ttl=0.03)
    eventually(lambda: shelf.get("a:ended") is None)
    below = sorted(name for name in names if name.startswith("a:"))

    assert shelf.list("a:") == below
    assert shelf.list("a:", 3) == below[:3]
    assert shelf.list("a:", 1) == below[:1]
    assert shelf.list("a:\U0010ffff") == ["a:\U0010ffff"]
    assert shelf.list("퟿") == ["퟿x"]
    assert shelf.list("a:1") == ["a:1", "a:10"]
    assert shelf.list("") == sorted(names)
    assert shelf.list("c") == []


def test_a_number_is_counted_with(shelf: Shelf) -> None:
    assert shelf.add("n", 5) == 5
    before = shelf.version("n")
    assert shelf.add("n", -7) == -2
    assert shelf.version("n") > before
    assert shelf.add("n", 0) == -2
    assert shelf.add("n", 2) == 0
    assert shelf.get("n") == b"0"

    shelf.put("m", b"41", ttl=DAY)
    assert shelf.add("m", 1, ttl=1) == 42
    assert (shelf.left("m") or 0) > DAY - 60, "what is there keeps its end"
    shelf.put("m", None)
    assert shelf.add("m", 1, ttl=0.05) == 1
    eventually(lambda: shelf.get("m") is None)
    assert shelf.add("m", 1) == 1 and shelf.left("m") is None


@pytest.mark.parametrize(
    "value", [b"x", b"", b"1.5", b"+1", b" 1", b"01", b"-0", b"1\n", b"\xff\0", b"9007199254740992"]
)
def test_what_is_no_number_is_not_counted_with(shelf: Shelf, value: bytes) -> None:
    shelf.put("name", value)

    for by in (1, -1):
        with pytest.raises(BrokerError, match="'name' is no whole number"):
            shelf.add("name", by)

    assert shelf.get("name") == value


def test_a_counter_that_would_be_too_large_stays_as_it_is(shelf: Shelf) -> None:
    largest = 2**53 - 1
    assert shelf.add("n", largest) == largest

    with pytest.raises(BrokerError, match=r"'n' would be 9007199254740992, .* begin anew"):
        shelf.add("n", 1)
    with pytest.raises(BrokerError, match="'m' would be -9007199254740992"):
        shelf.add("m", -(2**53))

    assert shelf.add("n", -largest) == 0
    assert shelf.get("m") is None


def test_of_many_who_make_a_value_one_does(shelf: Shelf, open_broker: Callable[[], Broker]) -> None:
    others = [open_broker(), open_broker()]
    made: list[tuple[str, int]] = []

    def make(number: int) -> None:
        for name in map(str, range(10)):
            version = others[number % 2].put_key(shelf.queue, name, b"%d" % number, version=0, ttl=DAY)
            if version:
                made.append((name, version))

    in_threads(6, make)

    assert sorted(name for name, _ in made) == [str(number) for number in range(10)]
    assert {name: shelf.version(name) for name, _ in made} == dict(made)


def test_many_count_together(shelf: Shelf, open_broker: Callable[[], Broker]) -> None:
    others = [open_broker(), open_broker()]
    totals: list[int] = []

    def count(number: int) -> None:
        for _ in range(10):
            totals.append(others[number % 2].add_key(shelf.queue, "n", 1, DAY))

    in_threads(4, count)

    assert sorted(totals) == list(range(1, 41))


def test_compared_changes_of_many_lose_none(shelf: Shelf, open_broker: Callable[[], Broker]) -> None:
    others = [open_broker(), open_broker()]
    shelf.put("log", b"")

    def note(number: int) -> None:
        broker = others[number % 2]
        for _ in range(5):
            while True:
                found = broker.get_keys(shelf.queue, ["log"])["log"]
                if broker.put_key(shelf.queue, "log", found.value + b"%d" % number, version=found.version):
                    break

    in_threads(3, note)

    assert sorted(shelf.get("log") or b"") == sorted(b"012" * 5)


def test_who_looks_while_values_come_and_go_sees_whole_ones_or_none(
    shelf: Shelf, open_broker: Callable[[], Broker]
) -> None:
    others = [open_broker() for _ in range(4)]

    def change(number: int) -> None:
        for turn in range(200):
            if number == 0:
                assert shelf.put("k", b"1" if turn % 4 else b"x", ttl=DAY)
                assert shelf.put("k", None)
                continue
            for found in others[number].get_keys(shelf.queue, ["k"]).values():
                assert found.value in (b"1", b"x")
            assert others[number].list_keys(shelf.queue, "k", 10) in (["k"], [])

    in_threads(4, change)

    assert shelf.list("k") == []


def test_what_is_too_long_is_refused_and_the_longest_is_not(shelf: Shelf) -> None:
    longest = "\U0001f418" * 500
    shelf.put(longest, b"x" * 65536)
    assert shelf.get(longest) == b"x" * 65536
    assert shelf.list(longest[:499]) == [longest]

    with pytest.raises(ConfigError, match="'name' has 65537 bytes, and may have 65536"):
        shelf.put("name", b"x" * 65537)
    for name in ("x" * 501, "", "a\0b", "half \ud800"):
        with pytest.raises(ConfigError, match="can't name a value: a name has 1 to 500 characters"):
            shelf.put(name, b"")
        with pytest.raises(ConfigError, match="can't name a value"):
            shelf.add(name, 1)


def test_a_value_needs_no_task_and_a_task_no_value(shelf: Shelf) -> None:
    bench = Bench(shelf.broker, shelf.queue)
    version = shelf.put("name", b"x")
    (id,) = bench.put()

    assert [claim.id for claim in bench.claim()] == [id]
    assert shelf.version("name") == version
