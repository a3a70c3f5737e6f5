"""A TCP proxy that delays what passes through it, as a network would: ``python -m benchmarks.proxy TO PORT SECONDS``.

Prints the port where it listens. A process of its own with one thread, which forwards what it has read as one piece,
`SECONDS` after it came; a round trip takes twice as long as that more. Order is kept, and nothing is bounded, as its
users wait for answers.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from urllib.parse import urlsplit

PIECE = 1 << 18  # bytes that are read at once


class Way:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        self.pieces: deque[tuple[float, bytes]] = deque()  # (when it is due, what; nothing for the end of it all)
        self.ended = False

    def read(self, delay: float) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                piece = self.source.recv(PIECE)
            except ConnectionError:
                piece = b""
            self.pieces.append((time.monotonic() + delay, piece))
            self.ended = not piece

    def forward(self, at: float) -> bool:
        """Forward what is due; True if the other end takes no more for now."""
        while self.pieces and self.pieces[0][0] <= at:
            due, piece = self.pieces[0]
            try:
                if not piece:
                    self.target.shutdown(socket.SHUT_WR)
                sent = self.target.send(piece) if piece else 0
            except BlockingIOError:
                return True
            except OSError:  # whoever it was for is gone
                sent = len(piece)
            self.pieces.popleft()
            if sent < len(piece):
                self.pieces.appendleft((due, piece[sent:]))
                return True
        return False


class Proxy:
    def __init__(self, target: tuple[str, int], delay: float) -> None:
        self.target, self.delay = target, delay
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.ways: list[Way] = []

    def run(self) -> None:
        """Forward until killed."""
        blocked: set[Way] = set()
        while True:
            readers = {way.source: way for way in self.ways if not way.ended}
            due = min((way.pieces[0][0] for way in self.ways if way.pieces and way not in blocked), default=None)
            timeout = None if due is None else max(0.0, due - time.monotonic())
            # select() has a timeout in microseconds; that of epoll and poll is one in milliseconds.
            ready, _, _ = select.select([self.listener, *readers], [way.target for way in blocked], [], timeout)
            for sock in ready:
                if sock is self.listener:
                    self.accept()
                else:
                    readers[sock].read(self.delay)
            at = time.monotonic()
            blocked = {way for way in self.ways if way.forward(at)}
            self.forget()

    def accept(self) -> None:
        client, _ = self.listener.accept()
        server = socket.create_connection(self.target)
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ways += Way(client, server), Way(server, client)

    def forget(self) -> None:
        """Close the connections of which both ways have ended."""
        over = {way.source for way in self.ways if way.ended and not way.pieces}
        gone = {way for way in self.ways if {way.source, way.target} <= over}
        for way in gone:
            way.source.close()
        if gone:
            self.ways = [way for way in self.ways if way not in gone]


@contextlib.contextmanager
def delaying(url: str, delay: float) -> Iterator[str]:
    """`url` by way of a proxy, which is gone when the block ends.

    Args:
        delay: seconds that are added to each way; a round trip takes twice as much more.
    """
    address = urlsplit(url)
    command = [sys.executable, "-m", "benchmarks.proxy", str(address.hostname), str(address.port), str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            port = int(process.stdout.readline())
            yield address._replace(netloc=f"127.0.0.1:{port}").geturl()
        finally:
            process.kill()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started it
    _, host, port, delay = sys.argv
    proxy = Proxy((host, int(port)), float(delay))
    print(proxy.listener.getsockname()[1], flush=True)
    proxy.run()
