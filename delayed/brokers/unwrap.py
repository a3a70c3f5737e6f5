"""From a connection of SQLAlchemy or Django to the driver's own, by its shape: neither has to be installed."""

from __future__ import annotations

from typing import Any


def driver_connection(conn: Any) -> Any:
    """The connection of the driver that `conn` works on; `conn` itself where it is one already.

    Takes a Session, a scoped_session or a Connection of SQLAlchemy (which begins its transaction, if it is in none, as
    it does before any statement), and ``django.db.connection`` (or one of ``connections``).
    """
    kind = type(conn)
    package = kind.__module__.partition(".")[0]
    if package == "sqlalchemy":
        if hasattr(conn, "get_bind"):  # Session: its connection of now, in its transaction
            conn = conn.connection()
        if hasattr(conn, "driver_connection"):  # what an engine's raw_connection() gives
            return conn.driver_connection
        if not hasattr(conn, "in_transaction"):  # an Engine, a sessionmaker: no connection
            return conn
        if not conn.in_transaction():
            conn.begin()
        return conn.connection.driver_connection
    if package == "django" or hasattr(conn, "ensure_connection"):  # a DatabaseWrapper, or the proxy for the default one
        conn.ensure_connection()
        return conn.connection
    return conn
