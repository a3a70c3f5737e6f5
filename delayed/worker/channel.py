"""The frames that monitor, fork server and children exchange, each one packet of a SOCK_SEQPACKET pair.

A packet is read whole by exactly one reader, and the kernel decides which. That makes two things simple. A task that
lies in a child's channel has not begun, and whoever reads the packet owns the task: to take it back, the monitor
reads the child's end itself. And a sender that is killed never leaves half a frame.

A task has its child's end among its descriptors, and may write into it what it likes. So what comes from a child is
taken for what it says only where the board agrees, and what is no frame is a :class:`BadFrame`.

A task frame is a head, the message's header, the detail and the payload. Quick tasks travel several in a packet, in
which the same header is not repeated; whoever reads it owns them all, see :meth:`Board.recall` for how they are taken
back. What is larger than a packet should be travels in an anonymous file whose descriptor the packet carries.
"""

from __future__ import annotations

import errno
import mmap
import os
import select
import socket
from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

from delayed.worker.process import anonymous_file

PACKET_MAX = 65536  # bytes of header and payload that travel in the packet itself
DETAIL_MAX = 49152  # bytes of an outcome's detail
CHANNEL_LOST = 87  # exit code of a child that can't reach its monitor any more

# Kinds of task frames.
LEAVE, RUN, RUN_ERROR_HANDLER = range(3)
# Kinds of report frames, from a child: how a task ended; that a handler of a killed task has ended; that tasks have
# returned, as the board says (those in the slots named in the detail, else those up to now); that it takes no more;
# that a task wants the worker to stop.
OUTCOME, HANDLED, RETURNED, RETIRING, STOP = range(1, 6)
# Kinds of control frames: to the fork server ...
FORK, SIGNAL, BYE = range(1, 4)
# ... and from it.
READY, FORKED, EXITED, FAILED = range(11, 15)

_TASK = Struct("<BBHHHQQIIQIII")
_LARGE, _SAME = 1, 2  # how a task comes: in a file; with the header of the one before it
_REPORT = Struct("<BBHIQ")
_CONTROL = Struct("<Bxhiidd8xq")  # kind, seat (-1: none), pid, value; wall, cpu, rss
HEAD_SIZE = _TASK.size
BATCH_MAX = 32  # tasks in a packet
BUFFER_SIZE = PACKET_MAX + BATCH_MAX * HEAD_SIZE
_FD_SPACE = socket.CMSG_SPACE(4)
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)  # the enum takes longer to add up than the kernel to receive
NO_WAIT = int(socket.MSG_DONTWAIT)
SHUT = select.POLLHUP | getattr(select, "POLLRDHUP", 0)  # events of a channel that was shut down


class BadFrame(ValueError):
    """Raised when a packet is no frame of the kind that was to come; it has been read, and the next one can be."""


class TaskFrame(NamedTuple):
    """A task on its way to a child."""

    kind: int
    slot: int
    queue: int  # index in the worker's list of queues
    serial: int  # the number of this hand-over, unique in the worker
    id: int
    delivery: int
    attempt: int
    nonce: int
    header: bytes
    payload: bytes
    detail: bytes = b""  # for RUN: the results that it is given, see gifts.py; for RUN_ERROR_HANDLER: the verdict


LEAVE_NOW = TaskFrame(LEAVE, 0, 0, 0, 0, 0, 0, 0, b"", b"")


def pair() -> tuple[socket.socket, socket.socket]:
    """A channel: two connected ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def pack_task(
    kind: int, slot: int, queue: int, serial: int, id: int, delivery: int, attempt: int, nonce: int, header: bytes,
    payload: bytes, detail: bytes = b"", last: bytes | None = None,
) -> tuple[bytes, bytes, bytes, bytes]:  # fmt: skip
    """The parts of a task's frame, see :class:`TaskFrame`; some of them make a packet.

    Args:
        last: the header of the task before it in its packet, if any: one that is the same is not sent again.
    """
    flags = 0
    if header == last:
        flags, header = _SAME, b""
    sizes = len(header), len(detail), len(payload)
    head = _TASK.pack(kind, flags, slot, queue, 0, serial, id, delivery, attempt, nonce, *sizes)
    return head, header, detail, payload


def send_task(sock: socket.socket, frame: TaskFrame) -> None:
    """Send a task. Raises what :func:`send_tasks` does."""
    send_tasks(sock, pack_task(*frame))


def send_tasks(sock: socket.socket, parts: Sequence[bytes]) -> None:
    """Send a packet of tasks.

    Args:
        parts: of the frame of one task, or of those of several, which have :data:`PACKET_MAX` bytes of headers, details
            and payloads at most.

    Raises:
        BlockingIOError: When the channel is full (on a non-blocking socket).
        BrokenPipeError: When it was shut down.
    """
    if len(parts) > 4 or len(parts[1]) + len(parts[2]) + len(parts[3]) <= PACKET_MAX:
        try:
            sock.send(b"".join(parts), NO_WAIT)
            return
        except OSError as error:
            if error.errno != errno.EMSGSIZE:  # as on a system whose buffers are smaller (net.core.wmem_default)
                raise
    head = parts[0]
    fd = anonymous_file("delayed-payload")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.writelines(parts[1:])
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, "little"))
        sock.sendmsg((head[:1], b"\1", head[2:]), (rights,), NO_WAIT)
    finally:
        os.close(fd)


def receive_tasks(sock: socket.socket, buffer: bytearray | mmap.mmap, flags: int = 0) -> list[TaskFrame]:
    """Receive a packet of tasks; none at end of file.

    Args:
        buffer: room for a packet, at least ``BUFFER_SIZE`` bytes.

    Raises:
        BlockingIOError: When there is none (with MSG_DONTWAIT).
        BadFrame: When it is none.
        OSError: When a large task's descriptor can't be received, or the channel is of no use any more.
    """
    size, ancillary, _, _ = sock.recvmsg_into((buffer,), _FD_SPACE, flags | _CLOEXEC)
    frames: list[TaskFrame] = []
    if not size:
        return frames
    data = bytes(memoryview(buffer)[:size])
    at = 0
    header: bytes | None = None
    unpack, new = _TASK.unpack_from, tuple.__new__
    while at < size:
        if size - at < HEAD_SIZE:
            raise BadFrame(f"a packet has {size - at} bytes where a task should begin")
        kind, flags, slot, queue, _, serial, id, delivery, attempt, nonce, n, m, k = unpack(data, at)
        at += HEAD_SIZE
        if flags > _SAME:
            raise BadFrame(f"a task comes in the way {flags}, which this version does not know")
        if flags == _LARGE:
            if not ancillary:
                raise OSError(errno.EMFILE, "no descriptor was left for a large task, which is lost to this process")
            fd = int.from_bytes(ancillary[0][2][:4], "little")
            with open(fd, "rb") as file:
                file.seek(0)
                data = file.read()
            at, size, ancillary = 0, len(data), []
        payload_at = at + n + m
        end = payload_at + k
        if end > size:
            raise BadFrame(f"a task has {size - at} bytes, and says that it has {n + m + k}")
        if flags != _SAME:
            header = data[at : at + n]
        elif header is None:
            raise BadFrame("a task is to have the header of the one before it, and is the first")
        elif n:
            raise BadFrame("a task is to have the header of the one before it, and has one")
        detail = data[at + n : payload_at] if m else b""
        fields = (kind, slot, queue, serial, id, delivery, attempt, nonce, header, data[payload_at:end], detail)
        frames.append(new(TaskFrame, fields))
        at = end
    return frames


def drain(sock: socket.socket, buffer: bytearray) -> list[TaskFrame]:
    """Take every task out of a channel that its child has not read, by reading the child's end."""
    frames: list[TaskFrame] = []
    while True:
        try:
            packet = receive_tasks(sock, buffer, NO_WAIT)
        except BlockingIOError:
            return frames
        if not packet:
            return frames
        frames += packet


def send_report(sock: socket.socket, kind: int, slot: int, serial: int, code: int = 0, detail: bytes = b"") -> None:
    """Report to the monitor; blocks while the channel is full."""
    sock.send(_REPORT.pack(kind, code, slot, len(detail), serial) + detail)


def receive_report(sock: socket.socket, buffer: bytearray) -> tuple[int, int, int, int, bytes] | None:
    """(kind, code, slot, serial, detail) of the next report, None if there is none.

    Raises:
        BadFrame: When the next packet is none, or of another kind than this version knows.
    """
    try:
        size = sock.recv_into(buffer, 0, NO_WAIT)
    except BlockingIOError:
        return None
    if not size:
        return None
    if size < _REPORT.size or not OUTCOME <= buffer[0] <= STOP:
        raise BadFrame(f"a packet of {size} bytes is no report")
    kind, code, slot, length, serial = _REPORT.unpack_from(buffer)
    head = _REPORT.size
    if head + length != size:
        raise BadFrame(f"a report has {size} bytes, and says that it has {head + length}")
    return kind, code, slot, serial, bytes(memoryview(buffer)[head : head + length]) if length else b""


def pack_slots(slots: list[int]) -> bytes:
    """The detail of a RETURNED report."""
    return Struct(f"<{len(slots)}H").pack(*slots)


def unpack_slots(detail: bytes) -> tuple[int, ...]:
    """What :meth:`pack_slots` packed.

    Raises:
        BadFrame: When it can't be that.
    """
    if len(detail) % 2:
        raise BadFrame(f"{len(detail)} bytes are no list of slots")
    return Struct(f"<{len(detail) // 2}H").unpack(detail)


class Control(NamedTuple):
    """A control frame.

    Attributes:
        kind: FORK, SIGNAL, BYE; READY, FORKED, EXITED, FAILED.
        seat: which seat it is about.
        pid: of the child (SIGNAL: which must still be that seat's).
        value: SIGNAL: the signal's number; EXITED: the wait status.
        wall, cpu: EXITED: seconds the child lived, and of CPU it used with its own children.
        rss: EXITED: its peak memory in bytes.
        text: FAILED: what went wrong.
    """

    kind: int
    seat: int = 0
    pid: int = 0
    value: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    rss: int = 0
    text: str = ""


def send_control(sock: socket.socket, control: Control) -> None:
    """Send a control frame; blocks while the channel is full."""
    kind, seat, pid, value, wall, cpu, rss, text = control
    frame = _CONTROL.pack(kind, seat, pid, value, wall, cpu, rss)
    sock.send(frame + text.encode(errors="replace")[:DETAIL_MAX] if text else frame)


def receive_control(sock: socket.socket) -> Control | None:
    """The next control frame; None at end of file.

    Raises:
        BlockingIOError: When there is none (on a non-blocking socket).
        BadFrame: When it is none.
    """
    data = sock.recv(PACKET_MAX)
    if not data:
        return None
    if len(data) < _CONTROL.size:
        raise BadFrame(f"a packet of {len(data)} bytes is no control frame")
    kind, seat, pid, value, wall, cpu, rss = _CONTROL.unpack_from(data)
    return Control(kind, seat, pid, value, wall, cpu, rss, data[_CONTROL.size :].decode(errors="replace"))
