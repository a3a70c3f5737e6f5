"""Quick tasks travel to a child several in a packet: what is behind one that is not quick, or that kills the child."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from delayed import Queue
from delayed.message import Claim, Message
from delayed.task import Task
from delayed.worker import channel
from delayed.worker.board import Board
from delayed.worker.courier import Held
from delayed.worker.handing import Handing
from delayed.worker.process import anonymous_file
from delayed.worker.seat import Seat
from tests.workers import packets, tasks
from tests.workers.conftest import Bench, alive, children_of, fork_server_of, wait_for

BEHIND = 24
sqlite = pytest.mark.parametrize("bench", ["sqlite"], indirect=True)


def put_packet(bench: Bench, first: Callable[..., Any], *args: Any) -> None:
    """Let the worker learn that tasks are quick, then enqueue this one and others, which it claims together."""
    ledger = str(bench.ledger.path)
    bench.queue.enqueue_many([Task.create(tasks.mark, (ledger, "quick")) for _ in range(300)])
    wait_for(bench.settled)
    bench.queue.pause()
    behind = [Task.create(packets.behind, (ledger, number)) for number in range(BEHIND)]
    bench.queue.enqueue_many([Task.create(first, (ledger, *args)), *behind])
    bench.queue.resume()


def attempts(bench: Bench) -> list[str]:
    """Number and attempt of those behind that have run."""
    return sorted(bench.ledger.find("behind"), key=lambda line: int(line.split()[0]))


@pytest.mark.parametrize("sizes", [[60_000], [2_000] * 30])
def test_what_is_larger_than_the_buffers_of_this_system_arrives_all_the_same(sizes: list[int]) -> None:
    near, far = channel.pair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # as with a small net.core.wmem_default
    parts: list[bytes] = []
    for number, size in enumerate(sizes):
        parts += channel.pack_task(channel.RUN, number, 0, number, number, 1, 1, 7, b"header", b"x" * size)

    with near, far:
        channel.send_tasks(near, parts)
        frames = channel.receive_tasks(far, bytearray(channel.BUFFER_SIZE))

    assert [(frame.id, frame.header, len(frame.payload)) for frame in frames] == [
        (number, b"header", size) for number, size in enumerate(sizes)
    ]


DIFFERENT = [
    (b"a", b"1", b""),
    (b"a", b"2", b"detail"),
    (b"b", b"", b""),
    (b"", b"3", b""),
    (b"", b"4", b""),
    (b"a", b"5", b""),
]


@pytest.mark.parametrize("size", [0, 60_000])
def test_headers_that_are_the_same_are_sent_once(size: int) -> None:
    near, far = channel.pair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # what is large goes through a file
    sent = [(header, payload + b"x" * (size // 6), detail) for header, payload, detail in DIFFERENT]
    parts: list[bytes] = []
    last = None
    for number, (header, payload, detail) in enumerate(sent):
        parts += channel.pack_task(channel.RUN, number, 0, number, number, 1, 1, 7, header, payload, detail, last)
        last = header

    with near, far:
        channel.send_tasks(near, parts)
        frames = channel.receive_tasks(far, bytearray(channel.BUFFER_SIZE))

    assert [(frame.header, frame.payload, frame.detail) for frame in frames] == sent
    assert [frame.slot for frame in frames] == list(range(6))
    assert frames[0].header is frames[1].header
    assert sum(len(part) for part in parts) == 6 * channel.HEAD_SIZE + sum(
        len(part) for part in (b"a", b"b", b"a", *(part for _, *rest in sent for part in rest))
    )


def same(**changes: bytes) -> list[bytes]:
    """A task that is said to have the header of the one before it."""
    head, *rest = channel.pack_task(channel.RUN, 1, 0, 1, 1, 1, 1, 7, changes.get("header", b""), b"x")
    return [head[:1] + changes.get("flags", b"\2") + head[2:], *rest]


FIRST = [*channel.pack_task(channel.RUN, 1, 0, 1, 1, 1, 1, 7, b"header", b"x")]


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        (same(), "is the first"),
        ([*FIRST, *same(header=b"own")], "and has one"),
        ([*FIRST, *same(flags=b"\3")], "the way 3"),
    ],
)
def test_what_can_not_be_so_is_no_task(parts: list[bytes], why: str) -> None:
    near, far = channel.pair()
    with near, far:
        near.send(b"".join(parts))
        with pytest.raises(channel.BadFrame, match=why):
            channel.receive_tasks(far, bytearray(channel.BUFFER_SIZE))


def test_what_is_exclusive_is_so_among_others() -> None:
    handing = Handing.__new__(Handing)
    file = anonymous_file("board")
    seat = Seat(0, 8)
    handing.board = board = Board(file, 1)
    handing.serial = 0
    kinds = [False, False, True, True, False, True]
    batch = []
    for number, exclusive in enumerate(kinds):
        header = Message(number, "m:f", b"", exclusive=exclusive, timeout=float(number % 2)).header()
        batch.append(Held(Claim("q", number + 1, 1, 7, 1, header, b"%d" % number), 0.0, 0))
    try:
        assert handing.hand(seat, batch)
        frames = channel.receive_tasks(seat.theirs, bytearray(channel.BUFFER_SIZE))
        for frame in frames:
            board.begin(0, 0, frame.slot, frame.serial, 0.0, 1.0)

        assert [(frame.header, frame.payload) for frame in frames] == [held.claim[5:] for held in batch]
        assert sorted(board.exclusives(0)) == sorted(
            frame.slot for frame, exclusive in zip(frames, kinds, strict=True) if exclusive
        )
    finally:
        seat.close()
        board.close()
        os.close(file)


EACH_ONCE = [f"{number} 1" for number in range(BEHIND)]


@pytest.mark.parametrize(
    ("lanes", "held", "one_reader", "average", "size"),
    [
        (1, 0, True, 0.1, 1),
        (1, 0, True, 0.0002, 10),
        (1, 0, True, 0.00001, 32),
        (8, 0, True, 0.1, 8),
        (8, 5, True, 0.1, 3),
        (8, 8, True, 0.1, 1),
        (8, 8, True, 0.0002, 10),
        (100, 0, True, 0.1, 25),
        (100, 80, True, 0.0002, 20),
        (100, 95, True, 0.0002, 10),
        (8, 0, False, 0.1, 1),
        (8, 0, False, 0.00001, 6),
        (8, 0, False, 0.0002, 3),
        (100, 0, False, 0.00001, 1),
    ],
)
def test_as_many_come_together_as_can_begin_or_take_no_time(
    lanes: int, held: int, one_reader: bool, average: float, size: int
) -> None:
    handing = Handing.__new__(Handing)
    config = {"one_shot": False, "one_reader": one_reader}
    handing.__dict__.update(lanes=lanes, processes=2, average=average, config=SimpleNamespace(**config))
    handing.courier = SimpleNamespace(inbox=range(50))  # type: ignore[assignment]
    if average < 0.0001:
        handing.processes = 1
    handing.capacity = handing.processes * lanes
    seat = Seat(0, 200)
    seat.tasks.update(dict.fromkeys(range(held)))  # type: ignore[arg-type]
    try:
        assert handing.batch_size(seat, 192) == size
    finally:
        seat.close()


@sqlite
@pytest.mark.parametrize(
    ("mode", "options", "first"),
    [
        ("preforked", {"processes": 2}, packets.begin_and_wait),
        ("async", {"processes": 2}, packets.begin_and_block),
        ("threaded", {"threads": 2}, packets.begin_and_wait),
    ],
)
def test_what_is_behind_a_slow_task_is_run_elsewhere(
    bench: Bench, mode: str, options: dict[str, int], first: Callable[..., Any]
) -> None:
    bench.start(mode, **options)
    put_packet(bench, first)
    wait_for(lambda: len(attempts(bench)) == BEHIND)
    assert attempts(bench) == EACH_ONCE
    assert bench.ledger.find("end") == []

    packets.go(str(bench.ledger.path))
    wait_for(bench.settled)
    assert attempts(bench) == EACH_ONCE
    assert bench.ledger.find("end") == [""]


@sqlite
def test_what_is_behind_a_slow_task_is_given_back_by_a_worker_that_stops(bench: Bench) -> None:
    worker = bench.start(shutdown_timeout=60.0)
    put_packet(bench, packets.begin_and_wait)
    wait_for(lambda: bench.ledger.find("begin"))
    worker.send_signal(signal.SIGTERM)
    wait_for(lambda: bench.queue.broker.counts(bench.queue.name).ready == BEHIND)
    assert bench.ledger.find("behind") == []

    packets.go(str(bench.ledger.path))
    assert worker.wait(10) == 0
    bench.burst()
    assert attempts(bench) == EACH_ONCE
    assert bench.ledger.find("end") == [""]


@sqlite
@pytest.mark.parametrize(("mode", "first"), [("preforked", tasks.kill_self), ("async", packets.kill_self_at_once)])
def test_what_is_behind_a_task_that_kills_its_child_is_run_by_the_next_one(
    bench: Bench, mode: str, first: Callable[..., Any]
) -> None:
    bench.start(mode)
    put_packet(bench, first, signal.SIGKILL)
    wait_for(bench.settled)
    assert attempts(bench) == EACH_ONCE


@sqlite
def test_what_is_behind_a_slow_task_is_given_back_when_the_monitor_dies(bench: Bench) -> None:
    worker = bench.start()
    server = fork_server_of(worker)
    put_packet(bench, packets.begin_and_wait)
    wait_for(lambda: bench.ledger.find("begin"))
    (child,) = children_of(server)
    worker.kill()
    bench.start()
    wait_for(lambda: len(attempts(bench)) == BEHIND)
    assert attempts(bench) == EACH_ONCE
    assert alive(child)
    assert bench.ledger.find("end") == []

    packets.go(str(bench.ledger.path))
    wait_for(bench.settled)
    assert bench.ledger.find("begin") == [""]
    assert bench.ledger.find("end") == [""]
    assert attempts(bench) == EACH_ONCE


@sqlite
def test_a_child_that_was_frozen_begins_nothing_that_was_taken_back(bench: Bench) -> None:
    """It had read it, and goes on when another has run it."""
    bench.start(processes=2)
    put_packet(bench, packets.freeze)
    wait_for(lambda: len(attempts(bench)) == BEHIND)
    packets.thaw(str(bench.ledger.path))
    wait_for(bench.settled)
    assert bench.ledger.find("end") == [""]
    assert attempts(bench) == EACH_ONCE


@sqlite
def test_a_task_whose_seal_is_looked_at_while_what_is_behind_it_is_taken_back_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELAYED_SECRET", "what the worker knows too and is long enough")
    bench.queue = Queue(bench.queue.name, bench.url)
    bench.start(processes=2)
    put_packet(bench, packets.freeze_in_the_next_seal)
    wait_for(lambda: len(attempts(bench)) == BEHIND - 1)
    packets.thaw(str(bench.ledger.path))
    wait_for(bench.settled)
    assert attempts(bench) == EACH_ONCE
