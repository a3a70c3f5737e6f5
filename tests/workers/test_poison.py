"""Bad messages: each is kept, with the reason, and told of once; nothing else comes of it."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from delayed import PreforkedWorker, Queue
from delayed.message import Message
from tests.workers import poisons, tasks
from tests.workers.conftest import URLS, Bench, Ledger, alive, fork_server_of, wait_for
from tests.workers.poisons import POISONS, QUEUES, Poison, Raw

BOUND = 50.0  # seconds for some hundred of them


class Kitchen:
    """Queues of each kind with a worker on all of them, and good tasks before and behind each bad one."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.broker = bench.queue.broker
        self.ledger = str(bench.ledger.path)
        self.mark = str(bench.folder / "mark")
        self.queues = {
            kind: Queue(f"{bench.queue.name}-{kind}", self.broker, **settings) for kind, settings in QUEUES.items()
        }
        self.poisons: dict[tuple[str, int], Poison] = {}
        self.words: list[str] = []
        self.session = os.urandom(16).hex()
        self.seq = 0

    def start(self, mode: str) -> subprocess.Popen[str]:
        names = {queue.name: QUEUES[kind] for kind, queue in self.queues.items()}
        return self.bench.start(mode, queues=names, processes=1, lease=15.0, preload=["tests.workers.poisons"])

    def put(self, found: list[Poison]) -> None:
        for kind, queue in self.queues.items():
            bad = [poison for poison in found if poison.queue == kind]
            ids = iter(range(self.broker.reserve_ids(queue.name, 2 * len(bad) + 1), 2**53))
            messages: list[Message] = []
            for poison in bad:
                messages.append(self.good(queue, next(ids)))
                id = next(ids)
                self.poisons[queue.name, id] = poison
                messages.append(poison.make(poisons.good(queue, self.ledger, "bad", id), queue, self.mark))
            messages.append(self.good(queue, next(ids)))
            for at in range(0, len(messages), 20):  # some are large
                self.seq += 1
                self.broker.enqueue(queue.name, messages[at : at + 20], self.session, self.seq)

    def good(self, queue: Queue, id: int) -> Message:
        self.words.append(f"good {queue.name} {id}")
        return poisons.good(queue, self.ledger, self.words[-1], id)

    def settled(self) -> bool:
        counts = [self.broker.counts(queue.name) for queue in self.queues.values()]
        return all(count.ready == count.scheduled == count.running == 0 for count in counts)

    def check(self) -> None:
        """Each bad one is a dead letter that says why, after one delivery; each neighbour has run, once."""
        dead = {}
        for queue in self.queues.values():
            for entry in self.broker.peek(queue.name, "dead", 1000):
                dead[queue.name, entry.message.id] = entry
        assert not [poison.name for key, poison in self.poisons.items() if key not in dead]
        for key, entry in dead.items():
            poison = self.poisons[key]
            assert re.search(poison.reason, entry.reason), (poison.name, entry.reason)
            assert entry.reason.isprintable() and len(entry.reason) < 1000, (poison.name, entry.reason)
            assert entry.delivery == 1 or (entry.delivery <= 3 and entry.attempt == 1), (poison.name, entry)
        assert sorted(line for line in self.bench.ledger.lines if line.startswith("good")) == sorted(self.words)
        assert "bad" not in self.bench.ledger.lines
        assert not os.path.exists(self.mark)

    def check_log(self, log: str) -> None:
        """One line for each, and nothing else that is worth a warning."""
        lines = log.splitlines()
        told = [line for line in lines if " ERROR " in line or " WARNING " in line]
        settings = self.broker.check()  # what it is told of the store
        told = [line for line in told if not any(warning in line for warning in settings)]
        ids = sorted(int(match[1]) for line in told if (match := re.search(r" ERROR .* task (\d+) \S+ \(", line)))
        assert ids == sorted(id for _, id in self.poisons)
        assert len(told) == len(ids), "\n".join(told[-5:])
        assert all("it is kept as a dead letter" in line for line in told)
        assert "Traceback" not in log

    def pid(self, kind: str) -> str:
        """The pid of a child, as a task notes it."""
        before = len(self.bench.ledger.find("pid"))
        task = self.queues[kind].task(tasks.mark_pid, self.ledger)
        self.queues[kind].enqueue(task)
        wait_for(lambda: len(self.bench.ledger.find("pid")) > before)
        return self.bench.ledger.find("pid")[-1]

    def close(self) -> None:
        for queue in self.queues.values():
            self.broker.purge(queue.name)
        self.bench.close()


# What is read, and refused, in the child and in the monitor is the same for all stores; how it gets there is not.
PLACES = [(mode, "sqlite") for mode in ("forked", "preforked", "threaded", "async")]
PLACES += [("preforked", store) for store in URLS]


@pytest.fixture(params=PLACES, ids=lambda place: f"{place[0]}-{place[1]}")
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Kitchen]]:
    mode, store = request.param
    url = f"sqlite:///{tmp_path}/tasks.db" if store == "sqlite" else request.getfixturevalue(URLS[store])
    kitchen = Kitchen(Bench(url, tmp_path))
    yield mode, kitchen
    kitchen.close()


def test_bad_messages_are_kept_with_the_reason_and_harm_nobody(place: tuple[str, Kitchen]) -> None:
    mode, kitchen = place
    worker = kitchen.start(mode)
    child = kitchen.pid("json")
    server = fork_server_of(worker)

    kitchen.put(POISONS)
    wait_for(kitchen.settled, BOUND)

    assert worker.poll() is None
    assert fork_server_of(worker) == server and alive(server)
    after = kitchen.pid("json")
    assert mode == "forked" or after == child
    kitchen.check()
    worker.terminate()
    assert worker.wait(10) == 0
    kitchen.check_log(kitchen.bench.log())


HARSH = b'{"max":-1,"delay":3153600000,"factor":1.5e308,"step":1e308,"max_delay":3153600000,"jitter":false}'
ODD = {
    "a long timeout": b'{"v":1,"f":"%s","t":1.7e308}',
    "no timeout": b'{"v":1,"f":"%s","t":0}',
    "nulls": b'{"v":1,"f":"%s","t":null,"k":null,"x":null,"r":null,"l":null,"a":null}',
    "long before": b'{"v":1,"f":"%s","e":-1e300}',
    "many deliveries": b'{"v":1,"f":"%s","m":2147483647,"p":-32768}',
    "keys that come twice": b'{"v":9,"f":"os:abort","t":[],"v":1,"f":"%s","t":5}',
    "a key that is no text for stores": b'{"v":1,"f":"%s","k":"\\u0000\\ud800"}',
    "what later versions add": b'{"v":1,"f":"%s","new":{"deep":' + b"[" * 50 + b"]" * 50 + b"}}",
    "as long as may be": b'{"v":1,"f":"%s","k":"' + b"x" * 65_487 + b'"}',
    "spaces": b'{ "v" : 1,\n "f" : "%s" }\n',
    "a harsh retry": b'{"v":1,"f":"%s","r":' + HARSH + b"}",
}


def test_headers_that_are_odd_and_right_are_obeyed(place: tuple[str, Kitchen]) -> None:
    mode, kitchen = place
    queue = kitchen.queues["pickle"]
    ids = iter(range(kitchen.broker.reserve_ids(queue.name, len(ODD) + 1), 2**53))
    messages = []
    for word, header in ODD.items():
        raw = Raw(*poisons.good(queue, kitchen.ledger, word, next(ids)))
        raw.raw = header.replace(b"%s", b"tests.workers.tasks:mark")
        messages.append(raw)
    raw = Raw(*poisons.good(queue, kitchen.ledger, "fails", next(ids)))
    raw.raw = b'{"v":1,"f":"tests.workers.tasks:fail","r":' + HARSH + b"}"
    kitchen.broker.enqueue(queue.name, [*messages, raw], kitchen.session, 1)
    worker = kitchen.start(mode)

    wait_for(lambda: kitchen.broker.counts(queue.name) == (1, 0, 0, 0))

    assert worker.poll() is None
    assert sorted(line for line in kitchen.bench.ledger.lines if line != "failing") == sorted(ODD)
    (entry,) = kitchen.broker.peek(queue.name, "scheduled")
    assert entry.message.id == raw.id and entry.due > 50 * 365 * 86400, "as late as stores can count"
    assert entry.attempt == entry.delivery == 1


def test_bad_messages_in_memory(tmp_path: Path) -> None:
    queue = Queue("q", f"memory://{secrets.token_hex(8)}", max_size=poisons.LIMIT)
    ledger = Ledger(tmp_path / "ledger")
    found = [poison for poison in POISONS if poison.queue == "pickle"]
    ids = iter(range(queue.broker.reserve_ids("q", len(found) + 2), 2**53))
    bad = [poison.make(poisons.good(queue, "", "", next(ids)), queue, "") for poison in found]
    good = [poisons.good(queue, str(ledger.path), word, next(ids)) for word in ("first", "last")]
    queue.broker.enqueue("q", [good[0], *bad, good[1]], os.urandom(16).hex(), 1)

    PreforkedWorker(queue, burst=True).run()

    assert ledger.lines == ["first", "last"]
    reasons = {entry.message.id: entry.reason for entry in queue.broker.peek("q", "dead", 1000)}
    assert reasons.keys() == {message.id for message in bad}
    for poison, message in zip(found, bad, strict=True):
        assert re.search(poison.reason, reasons[message.id]), poison.name


def test_taking_by_hand_passes_bad_messages_by(tmp_path: Path) -> None:
    queue = Queue("q", f"memory://{secrets.token_hex(8)}", max_size=poisons.LIMIT)
    found = [poison for poison in POISONS if poison.queue == "pickle"]
    ids = iter(range(queue.broker.reserve_ids("q", len(found) + 1), 2**53))
    bad = [poison.make(poisons.good(queue, "", "", next(ids)), queue, "") for poison in found]
    raw = Raw(*poisons.good(queue, "", "last", next(ids)))
    raw.raw = b'{"v":1,"f":"tests.workers.tasks:mark","t":1.7e308}'
    queue.broker.enqueue("q", [*bad, raw], os.urandom(16).hex(), 1)

    taken = queue.dequeue()

    assert taken is not None and taken.args == ("", "last")
    assert queue.broker.counts("q").dead == len(found)
    assert queue.release(taken)


def test_what_a_later_version_made_waits_for_a_worker_of_it(place: tuple[str, Kitchen]) -> None:
    mode, kitchen = place
    queue = kitchen.queues["pickle"]
    first = kitchen.broker.reserve_ids(queue.name, 2)
    raw = Raw(*poisons.good(queue, kitchen.ledger, "bad", first))
    raw.raw = b'{"v":2,"f":"tests.workers.tasks:mark"}'
    good = poisons.good(queue, kitchen.ledger, "bad", first + 1)
    newer = good._replace(payload=b"\x02" + good.payload[1:])
    kitchen.broker.enqueue(queue.name, [raw, newer], kitchen.session, 1)
    worker = kitchen.start(mode)

    wait_for(lambda: kitchen.broker.counts(queue.name) == (2, 0, 0, 0))

    for entry in kitchen.broker.peek(queue.name, "scheduled"):
        assert (entry.attempt, entry.delivery) == (0, 1)
        assert 20 < entry.due <= 30
    assert worker.poll() is None
    assert kitchen.bench.ledger.lines == []
    wait_for(lambda: kitchen.bench.log().count("this worker reads 1: upgrade delayed on this host") == 2)


def test_what_a_later_version_made_is_not_taken_by_hand() -> None:
    queue = Queue("q", f"memory://{secrets.token_hex(8)}")
    raw = Raw(*poisons.good(queue, "", "", queue.broker.reserve_ids("q", 1)))
    raw.raw = b'{"v":2,"f":"tests.workers.tasks:mark"}'
    queue.broker.enqueue("q", [raw], os.urandom(16).hex(), 1)

    assert queue.dequeue() is None
    assert queue.broker.counts("q") == (1, 0, 0, 0)
