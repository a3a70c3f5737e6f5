"""Tasks that do what no task should with the socket that their process has among its descriptors."""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from tests.workers.tasks import note

REPORT = struct.Struct("<BBHIQ")  # kind, code, slot, length, serial


def channels() -> Iterator[socket.socket]:
    """The sockets of this process that whole packets travel through."""
    for fd in os.listdir("/proc/self/fd"):
        try:
            sock = socket.socket(fileno=os.dup(int(fd)))
        except OSError:
            continue
        if sock.family == socket.AF_UNIX and sock.type & ~socket.SOCK_NONBLOCK == socket.SOCK_SEQPACKET:
            yield sock
        else:
            sock.close()


def garbage() -> Iterator[bytes]:
    draw = random.Random(1)
    yield b""
    for size in (1, 15, 16, 17, 1000, 60_000, 150_000):
        yield draw.randbytes(size)
    for kind in range(9):
        for slot, serial in ((0, 0), (0, 1), (511, 2), (512, 3), (65535, 2**64 - 1)):
            for detail in (b"", b"x", b'{"code": 2, "text": 5}', b"[" * 5000, struct.pack("<4H", 0, 0, 65535, 512)):
                if kind in (4, 5):  # asking to leave is no garbage
                    continue
                yield REPORT.pack(kind, 1, slot, len(detail), serial) + detail
                yield REPORT.pack(kind, 255, slot, len(detail) + 1, serial) + detail


def send_garbage(ledger: str) -> None:
    (sock,) = channels()
    with sock:
        for packet in garbage():
            sock.send(packet)
    note(ledger, "sent")


def shut(ledger: str, how: int) -> None:
    (sock,) = channels()
    sock.shutdown(how)
    note(ledger, "shut")


def flood(ledger: str, word: str) -> None:
    """Send until the ledger has a word."""
    note(ledger, "flooding")
    (sock,) = channels()
    with sock:
        while word not in Path(ledger).read_text():
            for _ in range(1000):
                sock.send(b"garbage")
    note(ledger, "flooded")


def sleep_until(ledger: str, word: str) -> None:
    while word not in Path(ledger).read_text():
        time.sleep(0.01)
    time.sleep(60)
