"""What is read of the answers of Redis, however they come."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from delayed.brokers._redis_ask import PIECE, ask_plainly, read_plainly

COMMAND = b"*1\r\n$4\r\nPING\r\n"
LONG = bytes(range(256)) * (PIECE // 64)  # several pieces, with all that could be taken for an end

ANSWERS: dict[bytes, Any] = {
    b":1\r\n": 1,
    b":-12\r\n": -12,
    b"+OK\r\n": b"OK",
    b"$-1\r\n": None,
    b"*-1\r\n": None,
    b"$0\r\n\r\n": b"",
    b"*0\r\n": [],
    b"$6\r\na\r\n:1\n\r\n": b"a\r\n:1\n",
    b"*4\r\n$1\r\n1\r\n:7\r\n$-1\r\n*2\r\n+a\r\n*0\r\n": [b"1", 7, None, [b"a", []]],
    b"*2\r\n$%d\r\n%b\r\n:5\r\n" % (len(LONG), LONG): [LONG, 5],
}


class Peer:
    """A connection as redis-py has it, to somebody who answers in pieces."""

    _parser: Any = redis.Connection()._parser

    def __init__(self) -> None:
        self._sock, self.there = socket.socketpair()
        self._sock.settimeout(5.0)
        self.asked = b""

    def answer(self, *pieces: bytes) -> Any:
        """What is read, if that is sent once the command has come, each piece when the one before was taken."""

        def serve() -> None:
            self.asked = self.there.recv(len(COMMAND), socket.MSG_WAITALL)
            for piece in pieces:
                self.there.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            return ask_plainly(self, COMMAND)
        finally:
            thread.join()

    def close(self) -> None:
        self._sock.close()
        self.there.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


class Dribble:
    """A connection, and its socket, whose data come in pieces that end where somebody says."""

    _parser: Any = redis.Connection()._parser

    def __init__(self, *pieces: bytes) -> None:
        self._sock = self
        self.pieces = [piece for piece in pieces if piece]

    def sendall(self, data: bytes) -> None:
        assert data == COMMAND

    def recv(self, size: int) -> bytes:
        if not self.pieces:
            return b""
        piece = self.pieces.pop(0)
        if len(piece) > size:
            self.pieces.insert(0, piece[size:])
        return piece[:size]


@pytest.mark.parametrize("sent", ANSWERS, ids=lambda sent: repr(sent[:20]))
def test_an_answer_is_read_whole(peer: Peer, sent: bytes) -> None:
    assert peer.answer(sent) == ANSWERS[sent]
    assert peer.asked == COMMAND


@pytest.mark.parametrize("sent", [sent for sent in ANSWERS if len(sent) < 100], ids=repr)
def test_it_may_come_in_any_pieces(sent: bytes) -> None:
    for one in range(len(sent)):
        for two in range(one, len(sent)):
            dribble = Dribble(sent[:one], sent[one:two], sent[two:])
            assert ask_plainly(dribble, COMMAND) == ANSWERS[sent], (one, two)
    assert ask_plainly(Dribble(*[sent[at : at + 1] for at in range(len(sent))]), COMMAND) == ANSWERS[sent]


def test_a_long_text_may_come_in_any_pieces() -> None:
    sent = b"*2\r\n$%d\r\n%b\r\n:5\r\n" % (len(LONG), LONG)
    for size in (1000, PIECE - 1, PIECE, PIECE + 1, len(sent) - 5, len(sent) - 1):
        dribble = Dribble(*[sent[at : at + size] for at in range(0, len(sent), size)])
        assert ask_plainly(dribble, COMMAND) == [LONG, 5], size


@pytest.mark.parametrize(
    ("sent", "kind", "words"),
    [
        (b"-NOSCRIPT No matching script.\r\n", redis.exceptions.NoScriptError, "No matching script."),
        (b"-NOSCRIPTS are here\r\n", redis.exceptions.ResponseError, "NOSCRIPTS are here"),
        (b"-WRONGTYPE Operation against\r\n", redis.exceptions.ResponseError, "WRONGTYPE Operation against"),
        (b"-ERR caf\xc3\xa9 \xff\r\n", redis.exceptions.ResponseError, "caf\xe9 \ufffd"),
        (b"-NOAUTH Authentication required.\r\n", redis.exceptions.AuthenticationError, "Authentication required."),
        (b"*2\r\n:1\r\n-LOADING the data\r\n", redis.exceptions.BusyLoadingError, "the data"),
    ],
)
def test_an_error_is_raised(peer: Peer, sent: bytes, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        peer.answer(sent)

    assert type(caught.value) is kind
    assert str(caught.value) == words


@pytest.mark.parametrize(
    "sent",
    [b"\r\n", b"HTTP/1.1 400\r\n", b":x\r\n", b"$x\r\n", b"*x\r\n", b"$1\r\nabc", b":1\r\n:2\r\n", b"+a\r\n+b\r\n"],
)
def test_what_is_no_answer_is_refused(peer: Peer, sent: bytes) -> None:
    with pytest.raises(redis.exceptions.ConnectionError, match="no answer"):
        peer.answer(sent)


@pytest.mark.parametrize("sent", [b"", b":", b":1", b"$5\r\nab", b"$2\r\nab", b"*2\r\n:1\r\n"])
def test_a_server_that_goes_amid_an_answer_is_told(sent: bytes) -> None:
    with pytest.raises(redis.exceptions.ConnectionError, match="closed by server"):
        ask_plainly(Dribble(sent), COMMAND)


def test_a_silent_server_is_told(peer: Peer) -> None:
    peer._sock.settimeout(0.05)

    with pytest.raises(redis.exceptions.TimeoutError):
        peer.answer(b"$5\r\nab")


def test_a_connection_that_is_closed_is_told(peer: Peer) -> None:
    peer._sock.close()

    with pytest.raises(redis.exceptions.ConnectionError):
        ask_plainly(peer, COMMAND)


def test_two_answers_may_come_in_any_pieces() -> None:
    sent = b"*2\r\n$4\r\nnoti\r\n$1\r\n1\r\n*2\r\n:1\r\n$-1\r\n"
    for one in range(len(sent)):
        for two in range(one, len(sent)):
            assert read_plainly(Dribble(sent[:one], sent[one:two], sent[two:]), 2) == [[b"noti", b"1"], [1, None]]


def test_a_missing_script_is_no_error_of_the_answer_before() -> None:
    answer, error = read_plainly(Dribble(b"*-1\r\n-NOSCRIPT No matching script.\r\n"), 2)
    assert answer is None and isinstance(error, redis.exceptions.NoScriptError)
    with pytest.raises(redis.exceptions.ResponseError, match="UNBLOCKED"):
        read_plainly(Dribble(b"-UNBLOCKED by somebody\r\n:1\r\n"), 2)
    with pytest.raises(redis.exceptions.ConnectionError, match="no answer"):
        read_plainly(Dribble(b":1\r\n:2\r\n:3\r\n"), 2)
