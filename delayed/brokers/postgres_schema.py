"""The tables and functions of the PostgreSQL broker: made at the first use, in steps, by one process at a time."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from delayed.brokers.scripts import script
from delayed.errors import BrokerError, ConfigError

VERSION = 5  # the number of the last step
MIN_SERVER = 130000  # pg_current_xact_id(); joins by ctid
ADVISORY_LOCK = 0x64656C61796564  # "delayed": who makes or changes a schema holds it


class Schema:
    """One schema of a database.

    Attributes:
        name: the schema's.
        channel: what is listened to for its queues.
        answers: what is listened to for the answers of their tasks.
    """

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[\w-]+", name) or len(name.encode("utf-8", "replace")) > 63:
            raise ConfigError(f"schema={name!r}: use 1 to 63 letters, digits, - and _")
        self.name = name
        self.channel = f"delayed {name}"
        if len(self.channel.encode()) > 63:
            self.channel = "delayed " + hashlib.sha256(name.encode()).hexdigest()[:40]
        self.answers = "delayed answers " + hashlib.sha256(name.encode()).hexdigest()[:40]

    def sql(self, text: str) -> bytes:
        """A statement, in which ``@.`` stands for the schema."""
        text = text.replace("@channel", self.channel).replace("@answers", self.answers)
        return text.replace("@.", f"{quoted(self.name)}.").encode()

    def script(self, version: int = 0) -> str:
        """What brings a schema of `version` (0: none yet) up to date, in SQL that can be run by hand."""
        parts = [f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK});"]
        if not version:
            # CREATE SCHEMA IF NOT EXISTS asks first whether the user may make one, and then whether there is one.
            parts.append(
                f"DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = '{self.name}') THEN "
                f"CREATE SCHEMA {quoted(self.name)}; END IF; END $do$;"
            )
        parts += [self.sql(_step(number)).decode() for number in range(version + 1, VERSION + 1)]
        parts.append(self._note(version))
        return "\n\n".join(["BEGIN;", *parts, "COMMIT;"]) + "\n"

    def _note(self, version: int) -> str:
        if version:
            return self.sql(f"UPDATE @.delayed_meta SET version = {VERSION};").decode()
        return self.sql(f"INSERT INTO @.delayed_meta (version) VALUES ({VERSION});").decode()

    def version(self, conn: psycopg.Connection[Any]) -> int:
        """The schema's version in the database; 0 if there is none.

        Raises:
            ConfigError: When it is too new for what this library knows of it. It need not be: older processes go on
                while newer ones take over, unless a step says that they can't.
        """
        cursor = psycopg.Cursor(conn, row_factory=tuple_row)
        # From the table, because to_regclass() may say what was true before we waited for the lock.
        there = "SELECT FROM pg_tables WHERE schemaname = %s AND tablename = 'delayed_meta'"
        if not cursor.execute(there, [self.name], prepare=False).fetchall():
            return 0
        rows = cursor.execute(self.sql("SELECT version FROM @.delayed_meta"), prepare=False).fetchall()
        version = int(rows[0][0]) if rows else 0
        if version > VERSION and self._least(cursor) > VERSION:
            raise ConfigError(
                f"the schema {self.name!r} is of version {version}, and this delayed knows {VERSION}: "
                "upgrade delayed on this host, or name another schema with schema="
            )
        return version

    def _least(self, cursor: psycopg.Cursor[Any]) -> int:
        """The oldest version that may use the schema as it is."""
        ((least,),) = cursor.execute(self.sql("SELECT least FROM @.delayed_meta"), prepare=False).fetchall()
        return int(least)

    def migrate(self, conn: psycopg.Connection[Any]) -> int:
        """Bring the schema up to date, in one transaction; how many steps that took.

        Args:
            conn: in no transaction, with autocommit.

        Raises:
            BrokerError: When the user of `conn` may not.
        """
        version = self.version(conn)
        if version >= VERSION:
            return 0
        with conn.transaction():
            cursor = psycopg.Cursor(conn, row_factory=tuple_row)
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [ADVISORY_LOCK], prepare=False)
            version = self.version(conn)  # another process may have been quicker
            if version < VERSION:
                self._apply(cursor, version)
        return max(VERSION - version, 0)

    def _apply(self, cursor: psycopg.Cursor[Any], version: int) -> None:
        try:
            if not version:
                there = "SELECT FROM pg_namespace WHERE nspname = %s"
                if not cursor.execute(there, [self.name], prepare=False).fetchall():
                    cursor.execute(f"CREATE SCHEMA {quoted(self.name)}".encode(), prepare=False)
            for number in range(version + 1, VERSION + 1):
                cursor.execute(self.sql(_step(number)))
            cursor.execute(self._note(version).encode(), prepare=False)
        except psycopg.errors.InsufficientPrivilege as error:
            raise BrokerError(
                f"the tables of the queues can't be made: {error.diag.message_primary}. Have someone who may run what "
                "`delayed migrate --print` shows, or name a schema that this user may create in, with ?schema= in the "
                "URL"
            ) from error


def quoted(name: str) -> str:
    """A name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def _step(number: int) -> str:
    return script(f"sql/postgres_{number}.sql")
