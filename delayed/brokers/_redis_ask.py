"""One command and its answer, on a connection that redis-py has opened and on which nothing is under way.

Where the connection is ours and speaks plain RESP2, the answer is read here: of the 48 us of CPU that a PING takes on
one machine, 13 are redis-py's. What comes is checked more, and the exceptions are redis-py's.
"""

from __future__ import annotations

from typing import Any

import redis

from delayed.brokers import deadline

PIECE = 65536  # bytes that are read at once
PIECE_MAX = 1 << 20  # ... of a text that is longer than that

_NO_SCRIPT = redis.exceptions.NoScriptError
_NUMBER, _TEXT, _LIST, _WORD, _ERROR = b":$*+-"


def ask(connection: Any, command: bytes) -> Any:
    """The answer to a packed command, in bytes, numbers and lists, by redis-py."""
    connection.send_packed_command([command])
    deadline.idle()
    return connection.read_response(disable_decoding=True)


def read(connection: Any, count: int) -> list[Any]:
    """The next answers, by redis-py; NoScriptError may be one of them, all other errors are raised."""
    answers: list[Any] = []
    while len(answers) < count:
        try:
            answers.append(connection.read_response(disable_decoding=True))
        except redis.exceptions.NoScriptError as error:
            answers.append(error)
    return answers


def ask_plainly(connection: Any, command: bytes) -> Any:
    """As :func:`ask`, without redis-py, of RESP2 on a socket. After any exception but a ResponseError the connection is
    of no use any more.
    """
    sock = connection._sock
    try:
        sock.sendall(command)
        deadline.idle()
        data = sock.recv(PIECE)
        if data[:1] == b":" and data[-2:] == b"\r\n" and data[1:-2].isdigit():  # as to most commands that are short
            return int(data[1:-2])
        (answer,) = _read(connection, data, 1)
    except OSError as error:
        raise _translated(error) from error
    if isinstance(answer, redis.exceptions.ResponseError):
        raise answer
    return answer


def read_plainly(connection: Any, count: int) -> list[Any]:
    """As :func:`read`, and as :func:`ask_plainly`."""
    try:
        answers = _read(connection, connection._sock.recv(PIECE), count)
    except OSError as error:
        raise _translated(error) from error
    for answer in answers:
        if isinstance(answer, redis.exceptions.ResponseError) and not isinstance(answer, _NO_SCRIPT):
            raise answer
    return answers


def _read(connection: Any, data: bytes, count: int) -> list[Any]:
    """The next answers, and no more; `data` has come of them."""
    reader = Reader(connection, data)
    answers = [reader.read() for _ in range(count)]
    if reader.rest:
        raise _no_answer(reader.rest)
    return answers


def _translated(error: OSError) -> Exception:
    if isinstance(error, TimeoutError):
        return redis.exceptions.TimeoutError("Timeout while a command was under way")
    return redis.exceptions.ConnectionError(f"Error while a command was under way: {error}")


class Reader:
    """Reads answers from a socket.

    Args:
        connection: to read from; its parser knows what errors mean.
        data: what has come already; empty if the server has closed.
    """

    def __init__(self, connection: Any, data: bytes) -> None:
        self._connection = connection
        self._data = data
        self._at = 0
        if not data:
            raise _closed()

    @property
    def rest(self) -> bytes:
        """What has come, and is not read."""
        return self._data[self._at :]

    def read(self) -> Any:
        """The next answer. An error is returned, but one that means that the connection is of no use is raised."""
        line = self._line()
        kind, rest = line[0] if line else 0, line[1:]
        try:
            if kind == _NUMBER:
                return int(rest)
            if kind == _TEXT:
                size = int(rest)
                return None if size < 0 else self._text(size)
            if kind == _LIST:
                count = int(rest)
                return None if count < 0 else [self.read() for _ in range(count)]
        except ValueError:
            raise _no_answer(line) from None
        if kind == _WORD:
            return rest
        if kind != _ERROR:
            raise _no_answer(line)
        error: Exception = self._connection._parser.parse_error(rest.decode("utf-8", "replace"))
        if isinstance(error, redis.exceptions.ConnectionError):
            raise error
        return error

    def _line(self) -> bytes:
        end = self._data.find(b"\r\n", self._at)
        while end < 0:
            self._data = self._data[self._at :] + self._more(PIECE)
            self._at = 0
            end = self._data.find(b"\r\n")
        line = self._data[self._at : end]
        self._at = end + 2
        return line

    def _text(self, size: int) -> bytes:
        end = self._at + size
        missing = end + 2 - len(self._data)
        if missing > 0:
            pieces = [self._data[self._at :]]
            while missing > 0:
                piece = self._more(min(max(missing, PIECE), PIECE_MAX))
                pieces.append(piece)
                missing -= len(piece)
            self._data, self._at, end = b"".join(pieces), 0, size
        text = self._data[self._at : end]
        if self._data[end : end + 2] != b"\r\n":
            raise _no_answer(self._data[end : end + 2])
        self._at = end + 2
        return text

    def _more(self, size: int) -> bytes:
        piece: bytes = self._connection._sock.recv(size)
        if not piece:
            raise _closed()
        return piece


def _closed() -> redis.exceptions.ConnectionError:
    return redis.exceptions.ConnectionError("Connection closed by server.")


def _no_answer(data: bytes) -> redis.exceptions.ConnectionError:
    # Not redis-py's InvalidResponse: what was asked for may have been done, so it is asked for again elsewhere.
    return redis.exceptions.ConnectionError(f"What came is no answer: {data[:100]!r}")
