"""A rehearsal: what a forked child does before the first line of its task, with one that does nothing.

A fork shares the memory of its fork server. Each page is copied when it is first written to, if only to count a
reference, and all code is new to its core: until a task begins that takes half a millisecond. A child that has to wait
for its task does it meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from delayed.errors import DelayedError
from delayed.message import Message
from delayed.worker import channel, process
from delayed.worker.lane import Start

if TYPE_CHECKING:
    from delayed.codec import Codec
    from delayed.worker.child import Child


class Rehearsal:
    """The task; made before the fork, for there it costs nothing.

    Args:
        codec: of a queue. One with plugs of the user's is left alone: his code has no business in a fork server.
    """

    def __init__(self, codec: Codec) -> None:
        self._parts: Sequence[bytes] = ()
        if codec.is_ours:
            with contextlib.suppress(DelayedError):  # not even that may be small enough
                message = Message(0, f"{__name__}:nothing", codec.encode((), {}))
                payload = codec.seal(message).payload
                self._parts = channel.pack_task(channel.RUN, 0, 0, 0, 0, 1, 1, 0, message.header(), payload)

    def play(self, child: Child) -> None:
        """Do all that comes before a task but what others would see. It may be refused, by a list of functions for
        example; most is done then.
        """
        if not self._parts:
            return
        lane = child.lane
        with contextlib.suppress(Exception):
            near, far = channel.pair()
            with near, far:
                channel.send_tasks(near, self._parts)
                (frame,) = channel.receive_tasks(far, child.buffer)
            seen = lane.parse(frame.id, frame.header, frame.payload)
            message = child.codecs[frame.queue].open(seen, frame.header)
            start = Start(message, seen, None, process.now(), lane.cpu)
            run = lane.run_of(frame, start)
            lane.enter(run)
            try:
                lane.load(frame, start).run()
            finally:
                lane.enter(None)


def nothing() -> None:
    """The task of a rehearsal."""
