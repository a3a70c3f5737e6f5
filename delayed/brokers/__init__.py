"""Brokers: one plug per kind of store, made from a URL or from a client that the user already has."""

from __future__ import annotations

import importlib
import os
from typing import Any
from urllib.parse import urlsplit

from delayed.brokers.base import Broker
from delayed.brokers.masked import masked
from delayed.errors import ConfigError, MissingDependency

__all__ = ["DEFAULT_URL", "Broker", "broker_for"]

DEFAULT_URL = "sqlite:///delayed.db"  # in the working folder; DELAYED_URL takes its place

# scheme -> (module, class, package to import, extra that installs it)
_BY_SCHEME = {
    "memory": ("delayed.brokers.memory", "MemoryBroker", "", ""),
    "sqlite": ("delayed.brokers.sqlite", "SQLiteBroker", "sqlite3", ""),
    "redis": ("delayed.brokers.redis", "RedisBroker", "redis", "redis"),
    "rediss": ("delayed.brokers.redis", "RedisBroker", "redis", "redis"),
    "unix": ("delayed.brokers.redis", "RedisBroker", "redis", "redis"),
    "postgresql": ("delayed.brokers.postgres", "PostgresBroker", "psycopg", "postgres"),
    "postgres": ("delayed.brokers.postgres", "PostgresBroker", "psycopg", "postgres"),
    "mongodb": ("delayed.brokers.mongo", "MongoBroker", "pymongo", "mongo"),
    "mongodb+srv": ("delayed.brokers.mongo", "MongoBroker", "pymongo", "mongo"),
}

# The top-level package of a client's class -> scheme of the broker that takes such a client.
_BY_CLIENT = {
    "redis": "redis",
    "sqlite3": "sqlite",
    "psycopg": "postgresql",
    "psycopg_pool": "postgresql",
    "pymongo": "mongodb",
}


def broker_for(conn: Any = None) -> Broker:
    """The broker for `conn`.

    Args:
        conn: a URL (``redis://host:6379/0``, ``postgresql://user@host/database``, ``sqlite:///file.db``,
            ``memory://``), a client of one of the stores, a :class:`Broker`, or None for the URL in ``DELAYED_URL``,
            and where that is not set, the file ``delayed.db`` in the working folder.

    Raises:
        ConfigError: When no broker takes `conn`.
        MissingDependency: When the store's driver is not installed.
    """
    if conn is None:
        conn = os.environ.get("DELAYED_URL") or DEFAULT_URL
    if isinstance(conn, Broker):
        return conn
    if isinstance(conn, (str, os.PathLike)):
        url = os.fspath(conn)
        return _load(_scheme_of(url), url)
    for parent in type(conn).__mro__:
        scheme = _BY_CLIENT.get(parent.__module__.partition(".")[0])
        if scheme:
            return _load(scheme, conn)
    raise ConfigError(
        f"no broker takes a {type(conn).__module__}.{type(conn).__qualname__}; "
        "give a URL (redis://localhost:6379, sqlite:///tasks.db), a redis.Redis client, or nothing"
    )


def _scheme_of(url: str) -> str:
    try:
        scheme = urlsplit(url).scheme
    except ValueError:  # of what follows it: that is for the broker to tell, which knows what is a password
        scheme = url.partition(":")[0].lower()
    if not scheme:
        raise ConfigError(f"{masked(url)!r} is not a URL; for a SQLite file write 'sqlite:///{masked(url)}'")
    if scheme not in _BY_SCHEME:
        import difflib

        near = difflib.get_close_matches(scheme, _BY_SCHEME, 1)
        hint = f"; did you mean {near[0]}://?" if near else ""
        raise ConfigError(f"no broker for {scheme}://{hint} Known: {', '.join(s + '://' for s in _BY_SCHEME)}")
    return scheme


def _load(scheme: str, conn: Any) -> Broker:
    module, name, package, extra = _BY_SCHEME[scheme]
    try:
        kind = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if not package or (error.name or "").partition(".")[0] != package:
            raise
        raise MissingDependency(
            f"the package {package!r} is needed for {scheme}:// and not installed; "
            + (f"run: pip install 'delayed[{extra}]'" if extra else f"this Python was built without {package}")
        ) from error
    broker: Broker = kind(conn)
    return broker
