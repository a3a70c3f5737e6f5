"""Real servers for the tests: started on a free loopback port, with their data in a temporary folder.

A test that needs a server takes, in this order: the one whose URL is in ``DELAYED_TEST_REDIS_URL`` (and so on for each
store), one that is on the PATH, the one of a wheel. Where there is none the test is skipped with the reason; in CI,
where a test that does not run is worth nothing, it fails.

What nobody may do to the server of an environment variable (kill it, configure it), tests do to one of their own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self, TypeVar

import pytest

START_TIMEOUT = 30.0  # seconds a server gets to answer


class ServerError(Exception):
    """Raised when no server can be found, or the one that was found does not start."""


def unavailable(reason: str) -> NoReturn:
    """Skip the test that needs a server, or fail it in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server(ABC):
    """A server of our own: start it, kill it, start it again on the same port and data.

    Attributes:
        folder: its data and its log, `server.log`.
        port: where it listens on the loopback address, once it has been started.
        process_options: more options for :class:`subprocess.Popen`.
    """

    name: ClassVar[str]

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.port = 0
        self.process_options: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """What starts it on `port`."""

    @abstractmethod
    def try_to_reach(self) -> bool:
        """Whether it can be used now; may raise OSError if not. Called again and again."""

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> None:
        """Start the server and return when it can be used.

        Raises:
            ServerError: When it can't, with the end of its log.
        """
        first = not self.port
        for _ in range(5):  # somebody may take the free port before the server does
            if first:
                self.port = free_port()
            with open(self.folder / "server.log", "ab") as log:
                self._process = subprocess.Popen(
                    self.command(),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C at the terminal is for pytest, which then stops the server
                    **self.process_options,
                )
            deadline = time.monotonic() + START_TIMEOUT
            while time.monotonic() < deadline and self._process.poll() is None:
                with contextlib.suppress(OSError):
                    if self.try_to_reach() and self._process.poll() is None:
                        return
                time.sleep(0.01)
            self.kill()
            if not first:
                break
        raise ServerError(f"{self.name} does not start on port {self.port}; its log ends with:\n{self.log()[-2000:]}")

    def log(self) -> str:
        path = self.folder / "server.log"
        return path.read_text(errors="replace") if path.exists() else "(no log)"

    def stop(self) -> None:
        """Ask the server to stop, and wait until it has. Nothing happens if it is not running."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server with SIGKILL, and wait until it is gone. Nothing happens if it is not running."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


S = TypeVar("S", bound=Server)


@contextlib.contextmanager
def running(make: Callable[[str], S]) -> Iterator[S]:
    """A server in a folder of its own, gone with its data when the block ends. Skips the test where it can't start."""
    folder = tempfile.mkdtemp(prefix="delayed-server-")
    try:
        server = make(folder)
        try:
            server.start()
        except ServerError as error:
            unavailable(str(error))
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
