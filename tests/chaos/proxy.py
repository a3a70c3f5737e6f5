"""A way to the store on which things go wrong: ``python -m tests.chaos.proxy '{"port": 6379, ...}'``.

It says its port on the standard output, takes orders as lines of JSON on the standard input, and leaves at its end. An
order is ``{"rules": [...]}``, see :class:`Rule`, or a ``state``: ``open``; ``refuse``, which resets every connection,
also new ones; ``swallow``, which lets them stand, but nothing comes through, as behind a cable that was pulled;
``deaf``, which lets requests through, and no replies. ``reset`` ends those that there are. ``slow`` is a :class:`Slow`.
The answer to an order is how many connections there have been.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import urlsplit, urlunsplit

from tests.chaos.processes import send
from tests.chaos.records import NEMESIS, Record, note, now, read
from tests.chaos.wire import WIRES, Request

LOG = "proxy"  # the name of its log
CHUNK = 1 << 20
READ_PATIENCE = 0.5  # seconds that a reply may lie there before it counts as read


@dataclass(frozen=True)
class Rule:
    """What goes wrong.

    Attributes:
        op: for which operation (see :mod:`tests.chaos.wire`); "" for any request.
        toxic: ``drop_request``: it never arrives; ``drop_reply``: it takes effect, nobody hears of it; ``hold_reply``:
            its reply comes `seconds` later; ``delay``: it arrives `seconds` later. The first two end the connection.
            The others kill who has sent it: ``kill_before``: it never arrives; ``kill_between``: it takes effect, and
            its reply is not delivered; ``kill_after``: when the reply has been read.
        chance: how often, 0 to 1.
        most: how often at most; 0 for any number.
        seconds: see `toxic`.
        of: whose requests, by pid; none: anybody's.
        nth: the first one that this happens to, of those that match.
        role: what the log says of whom it kills.
    """

    op: str
    toxic: str
    chance: float = 1.0
    most: int = 0
    seconds: float = 0.0
    of: Sequence[int] = ()
    nth: int = 1
    role: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "of", tuple(self.of))  # JSON knows lists only


@dataclass(frozen=True)
class Slow:
    """How slowly everything comes through, in each direction.

    Attributes:
        least, most: seconds by which it is late.
        piece: bytes that arrive at a time; 0 for all.
    """

    least: float = 0.0
    most: float = 0.0
    piece: int = 0


# -- the process ---------------------------------------------------------------------------------------------------


class Server:
    """Accepts connections and passes on what goes over them."""

    def __init__(self, scheme: str, port: int, log: str, seed: int) -> None:
        self.wire = WIRES[scheme]
        self.port = port
        self.log = log
        self.dice = random.Random(seed)
        self.rules: list[Rule] = []
        self.hits: dict[Rule, int] = {}
        self.passed: dict[Rule, int] = {}  # requests that match, and are not the nth yet
        self.state = "open"
        self.slow = Slow()
        self.accepted = 0  # connections so far
        self.lines: set[Line] = set()

    def obey(self, order: dict[str, Any]) -> None:
        self.rules = [Rule(**rule) for rule in order.get("rules", [asdict(rule) for rule in self.rules])]
        state = order.get("state", self.state)
        self.slow = Slow(**order["slow"]) if "slow" in order else self.slow
        # What was swallowed is missing: such a connection is of no use any more.
        if state == "refuse" or (self.state in ("swallow", "deaf") and state == "open") or "reset" in order:
            for line in list(self.lines):
                line.abort()
        self.state = state

    def pick(self, request: Request, line: Line) -> Rule | None:
        """What goes wrong with this request; None for nothing."""
        for rule in self.rules:
            owner = None
            hits = self.hits.get(rule, 0)
            if (rule.op and rule.op not in request.ops) or (rule.most and hits >= rule.most):
                continue
            if rule.of and (owner := line.peer(rule.of)) is None:
                continue
            passed = self.passed[rule] = self.passed.get(rule, 0) + 1
            if passed < rule.nth:
                continue
            if self.dice.random() < rule.chance:
                line.owner = owner
                self.hits[rule] = hits + 1
                note(self.log, rule.toxic, op=rule.op)
                return rule
        return None

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(self, reader, writer)
        self.accepted += 1
        self.lines.add(line)
        try:
            await line.serve()
        finally:
            self.lines.discard(line)
            line.abort()


class Line:
    """One connection."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.wire = server.wire()
        self.reader, self.writer = reader, writer
        self.far_writer: asyncio.StreamWriter | None = None
        self.due = 0  # replies that are still to come
        self.drop = False  # whether the last of them is to be lost
        self.hold = 0.0  # seconds by which the next is late
        self.fatal: Rule | None = None  # whom the last of them kills, and when
        self.owner: int | None = None  # who that is
        self.last = False  # whether nothing is passed on any more: who is to be killed did not do that

    async def serve(self) -> None:
        if self.server.state == "refuse":
            return
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            far_reader, self.far_writer = await asyncio.open_connection("127.0.0.1", self.server.port)
            ways = [asyncio.ensure_future(self.there(self.far_writer)), asyncio.ensure_future(self.back(far_reader))]
            _, left = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in left:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def there(self, far: asyncio.StreamWriter) -> None:
        while data := await self.reader.read(CHUNK):
            if self.last or self.server.state == "swallow":
                continue
            for request in self.wire.requests(data):
                rule = self.server.pick(request, self)
                toxic = rule.toxic if rule else ""
                if rule and toxic == "kill_before":
                    self.kill(rule)
                if toxic in ("drop_request", "kill_before"):
                    return
                if rule and toxic == "delay":
                    await asyncio.sleep(rule.seconds)
                self.due += request.replies
                self.drop = self.drop or toxic in ("drop_reply", "kill_between")
                self.fatal = rule if toxic in ("kill_between", "kill_after") else self.fatal
                self.hold = rule.seconds if rule and toxic == "hold_reply" else self.hold
                await self.carry(request.data, far)
        if self.fatal:
            await asyncio.sleep(READ_PATIENCE)  # it may have closed this when it was done; its end is due all the same

    async def back(self, far: asyncio.StreamReader) -> None:
        while data := await far.read(CHUNK):
            if self.server.state in ("swallow", "deaf"):
                continue
            self.due -= self.wire.replies(data)
            if self.drop:
                if self.due <= 0:
                    if self.fatal:
                        self.kill(self.fatal)
                    return
                continue
            if self.hold:
                seconds, self.hold = self.hold, 0.0
                await asyncio.sleep(seconds)
            self.last = self.fatal is not None and self.due <= 0
            await self.carry(data, self.writer)
            if self.fatal and self.last:
                await self.until_read()
                self.kill(self.fatal)
                return

    async def carry(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        slow = self.server.slow
        if slow.most:
            await asyncio.sleep(self.server.dice.uniform(slow.least, slow.most))
        size = slow.piece or len(data)
        for at in range(0, len(data), size):
            writer.write(data[at : at + size])
            await writer.drain()

    def peer(self, pids: Sequence[int]) -> int | None:
        """Which of these processes has the other end; None if none."""
        row = self._far_end()
        name = f"socket:[{row[9]}]" if row else ""
        for pid in pids:
            with contextlib.suppress(OSError):
                folder = f"/proc/{pid}/fd"
                if any(os.readlink(f"{folder}/{fd}") == name for fd in os.listdir(folder)):
                    return pid
        return None

    def kill(self, rule: Rule) -> None:
        """Kill who has the other end, and note it as the harm that it is."""
        sent = now()
        if self.owner is not None and send(self.owner, signal.SIGKILL):
            note(Path(self.server.log).with_name(NEMESIS), "kill", role=rule.role, pid=self.owner, sent=sent)

    async def until_read(self) -> None:
        """Wait until whoever has the other end has read all that was written."""
        deadline = now() + READ_PATIENCE
        while now() < deadline and (row := self._far_end()) and int(row[4].partition(":")[2], 16):
            await asyncio.sleep(0)

    def _far_end(self) -> list[str]:
        """What the kernel says of the other end (proc(5), /proc/net/tcp); nothing if it is gone."""
        near, far = (
            b"%02X%02X%02X%02X:%04X" % (*reversed(socket.inet_aton(host)), port)
            for host, port in (self.writer.get_extra_info("sockname"), self.writer.get_extra_info("peername"))
        )
        for line in Path("/proc/net/tcp").read_bytes().splitlines():
            words = line.split()
            if words[1:3] == [far, near]:
                return [word.decode() for word in words]
        return []

    def abort(self) -> None:
        """End both halves with a reset, as a machine does that knows nothing of the connection."""
        for writer in (self.writer, self.far_writer):
            if writer is not None:
                with contextlib.suppress(OSError):
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()


async def main(scheme: str, port: int, log: str, seed: int, at: int) -> None:
    server = Server(scheme, port, log, seed)
    listening = await asyncio.start_server(server.accept, "127.0.0.1", at, backlog=512)
    print(listening.sockets[0].getsockname()[1], flush=True)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while order := await orders.readline():
        server.obey(json.loads(order))
        print(server.accepted, flush=True)


# Of the URL: that nothing is encrypted, and nobody looks for another way.
_STRAIGHT = {"postgresql": ("sslmode=disable", "gssencmode=disable"), "mongodb": ("directConnection=true",)}

# -- who starts it -------------------------------------------------------------------------------------------------


class Proxy:
    """A proxy in a process of its own. A context.

    Args:
        url: of the store, which is a server on this host.
        folder: where its log is.
        seed: decides what goes wrong where chance does.
        at: the port where it listens; 0 for any.
    """

    def __init__(self, url: str, folder: Path, seed: int = 0, at: int = 0) -> None:
        parts = urlsplit(url)
        assert parts.port
        self.log = folder / LOG
        order = {"scheme": parts.scheme, "port": parts.port, "log": str(self.log), "seed": seed, "at": at}
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.proxy", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent.parent,
        )
        place = f"{parts.username}@" if parts.username else ""
        query = "&".join([*filter(None, [parts.query]), *_STRAIGHT.get(parts.scheme, ())])
        self.url = urlunsplit((parts.scheme, f"{place}127.0.0.1:{int(self._answer())}", parts.path, query, ""))

    def set(self, *rules: Rule) -> None:
        """From now on these rules hold, and no others."""
        self._order({"rules": [asdict(rule) for rule in rules]})

    def state(self, state: str) -> None:
        """open, refuse, swallow or deaf."""
        self._order({"state": state})

    def slow(self, slow: Slow) -> None:
        """From now on all is as slow as that."""
        self._order({"slow": asdict(slow)})

    def accepted(self) -> int:
        """How many connections there have been."""
        return self._order({})

    def reset(self) -> None:
        """End every connection that there is."""
        self._order({"reset": True})

    def hits(self) -> Sequence[Record]:
        """What has gone wrong so far."""
        return read(self.log)

    def _order(self, order: dict[str, Any]) -> int:
        with self._lock:
            _pipe(self._process.stdin).write(json.dumps(order).encode() + b"\n")
            _pipe(self._process.stdin).flush()
            return int(self._answer())

    def _answer(self) -> bytes:
        answer = _pipe(self._process.stdout).readline()
        assert answer, "the proxy has ended"
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


if __name__ == "__main__":
    asyncio.run(main(**json.loads(sys.argv[1])))
