"""A rehearsal: a task that does nothing is run as a child runs one, on a channel and a board of its own.

The fork server plays it before it forks the first child, so that Python has the code ready to run; a child that had to
do that itself would copy every page of memory that it touches for it, which takes longer than the rest. A forked child
that waits for its task plays it once more: even so it copies each page that it writes to, if only to count a reference,
and its core has seen none of the code. That half a millisecond passes while nobody waits for it.
"""

from __future__ import annotations

import os
import socket
import sys

from delayed.codec import Codec
from delayed.errors import MissingDependency
from delayed.message import Message
from delayed.worker import channel, process
from delayed.worker.board import Board
from delayed.worker.channel import TaskFrame
from delayed.worker.child import Child
from delayed.worker.config import Config


def nothing() -> None:
    """What is run in a rehearsal."""


def rehearse(config: Config, times: int = 1) -> None:
    """Run the task in this process.

    Raises:
        OSError: When no descriptor is left.
    """
    main_module = sys.modules["__main__"]
    mine, theirs = channel.pair()
    with mine, theirs:
        file = process.anonymous_file("delayed-rehearsal")
        try:
            _play(config, times, mine, theirs, file)
        finally:
            os.close(file)
            sys.modules["__main__"] = main_module


def _play(config: Config, times: int, mine: socket.socket, theirs: socket.socket, file: int) -> None:
    board = Board(file, 1)
    # Not the codecs of all queues, which may be many.
    plain = config._replace(codecs=[], success_handler=None, error_handler=None, hooks=None)
    child = Child(0, board, theirs, file, file, file, plain)
    child.pid = os.getpid()
    child.mark = process.Original()
    child.codecs = [codec := _rehearsed(config)]
    message = Message(id=1, func=f"{__name__}:nothing", payload=codec.encode((), {}), timeout=1.0)
    message = codec.seal(message)
    frame = TaskFrame(channel.RUN, 0, 0, 1, 1, 1, 1, 1, message.header(), message.payload)
    buffer = bytearray(channel.BUFFER_SIZE)
    for _ in range(times):
        channel.send_task(mine, frame)
        received = child.next_frame()
        assert received is not None
        child.lane.run(received)
        child.report(channel.OUTCOME, 0, 1)
        while channel.receive_report(mine, buffer):
            pass
    board.close()


def _rehearsed(config: Config) -> Codec:
    """A codec like that of the first queue, which brings no code of the user's with it."""
    spec = config.codecs[0]
    try:
        codec = Codec.from_spec({**spec, "allow": ["*"]})
    except MissingDependency:  # the tasks will say so
        return Codec(secret=[])
    return codec if codec.is_ours else Codec(secret=[])
