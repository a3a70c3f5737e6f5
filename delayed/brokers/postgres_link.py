"""The connections of the PostgreSQL broker: from a URL or a client to statements that run and errors that are ours.

Usage::

    Link("postgresql://user@host:5432/db?schema=tasks&listen=no")   own connections
    Link(psycopg.connect(...))                                      own connections to the same database
    Link(psycopg_pool.ConnectionPool(...))                          the pool's connections

The other options of a URL are libpq's. Every call is one statement in a transaction of its own, and nothing is kept in
a session (no SET, no prepared statement), so it all works behind a proxy that pools transactions.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import re
import select
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlencode

import psycopg
from psycopg import conninfo, pq
from psycopg.rows import tuple_row

from delayed.brokers import deadline as deadlines
from delayed.brokers._forks import afresh_after_fork
from delayed.brokers.masked import masked, split
from delayed.brokers.postgres_schema import MIN_SERVER, Schema
from delayed.errors import BrokerError, BrokerFull, BrokerUnavailable, ConfigError, UnknownOption

ANSWER_TIMEOUT = 10.0  # seconds of silence after which a connection is given up; locks are waited for 5
CONNECT_TIMEOUT = 5  # seconds
IDLE_MAX = 4  # connections kept for the next call
DEFAULT_SCHEMA = "delayed"
OWN_OPTIONS = ("schema", "listen")

T = TypeVar("T")

# What libpq shall do about networks that vanish; a URL may say otherwise.
_DEFAULTS = {
    "application_name": "delayed",
    "client_encoding": "utf8",
    "connect_timeout": str(CONNECT_TIMEOUT),
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
# Connecting gives no codes, only words.
_REFUSED = re.compile(
    r"authentication failed|no password supplied|does not exist|pg_hba\.conf|not permitted to log in|"
    r"permission denied for database|server does not support SSL|"
    r"invalid \w+ value|invalid port number|invalid integer value"
)
# What the way out is of that is not in libpq's own words.
_UNTRUSTED = re.compile(r"certificate verify failed|does not match host name")
_UNKNOWN = re.compile(r"requires a valid client certificate|alert (certificate required|unknown ca|bad certificate)")
_FULL = "53100"  # the disk
# Connection, resources, the operator, transactions that met, timeouts, read-only: later, with the same arguments.
_LATER = ("08", "53", "57", "58", "40", "25006", "25P03", "55P03", "55006")
_MISSING = ("42P01", "42883", "3F000")  # a table, a function, the schema


class Line(psycopg.Connection[Any]):
    """A connection that does not wait for ever: no FIN comes from a server that hangs.

    Attributes:
        bounded: False while the statements are somebody else's, which may take their time.
        altered: whether somebody has set what a later user of the connection would notice.
    """

    bounded = True
    altered = False

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        return super().wait(_bounded(gen) if self.bounded else gen, *args, **kwargs)

    def add_notice_handler(self, callback: Any) -> None:
        self.altered = True
        super().add_notice_handler(callback)

    def add_notify_handler(self, callback: Any) -> None:
        self.altered = True
        super().add_notify_handler(callback)


def _bounded(gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
    patience = deadlines.left(ANSWER_TIMEOUT)
    deadline = time.monotonic() + patience
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready:  # what is large may take its time, as long as it goes on
                patience = max(deadlines.left(ANSWER_TIMEOUT), deadlines.LEAST)
                deadline = time.monotonic() + patience
            elif time.monotonic() > deadline:  # psycopg asks ten times a second
                raise psycopg.OperationalError(f"no answer for {patience:.2g} seconds")
            wanted = gen.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result


class Link:
    """See the module.

    Attributes:
        url: what opens the same store elsewhere, with its password.
        shown: where it is, without its password.
        schema: where its tables are.
        listens: False if the URL forbids to listen for notifications.
    """

    def __init__(self, conn: Any) -> None:
        self._pool: Any = None
        if isinstance(conn, str):
            url, options = _split(conn)
        elif isinstance(conn, psycopg.Connection):
            parameters = conn.info.get_parameters()
            if conn.info.password:
                parameters["password"] = conn.info.password
            url, options = _url_of(parameters), {}
        elif _is_pool(conn):
            self._pool = conn
            url, options = _url_of(_parameters_of(conn)), {}
        else:
            raise ConfigError(
                f"a {type(conn).__module__}.{type(conn).__qualname__} can't be used here; give a URL, a "
                "psycopg.Connection or a psycopg_pool.ConnectionPool (asyncio's are not needed: .adelay() has a thread)"
            )
        self._conninfo = _checked(url)
        self.schema = Schema(options.get("schema", DEFAULT_SCHEMA))
        self.listens = options.get("listen", "yes") == "yes"
        self.url = _with(url, [*options.items()])
        self.shown = masked(self.url)
        self._lock = threading.Lock()
        self._idle: list[Line] = []
        self._lent: list[Line] = []  # idle ones that are for others than us
        self._generation = 0  # one higher after each close
        self._known = False  # whether the schema has been seen to be there
        afresh_after_fork(self)

    def start_afresh(self) -> None:
        """See :func:`afresh_after_fork`."""
        _parents.append((self._idle, self._lent, self._pool))
        self._lock = threading.Lock()
        self._idle, self._lent = [], []
        self._pool = None

    # -- statements --------------------------------------------------------------------------------------------

    def run(self, statement: bytes, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement; its rows."""
        return self.change(statement, values)[0]

    def change(
        self, statement: bytes, values: Sequence[Any] | Mapping[str, Any] = ()
    ) -> tuple[list[tuple[Any, ...]], int]:
        """Run one statement; its rows, and how many it has changed or found."""
        with self.connection() as conn, self.errors():
            cursor = psycopg.Cursor(conn, row_factory=tuple_row)
            cursor.execute(statement, values, prepare=False, binary=True)
            return cursor.fetchall() if cursor.description else [], cursor.rowcount

    @contextlib.contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection for one statement, to a database with the schema."""
        if self._pool is not None:
            with self._pooled() as conn:
                yield conn
            return
        generation = self._generation
        line = self._take_idle() or self.connect()
        kept = False
        try:
            if not self._known:
                self._prepare(line)
            yield line
            kept = True
        except BrokerError as error:
            # What the server has answered leaves the connection as it was; behind the name of one that can't serve now
            # there may soon be another.
            kept = not isinstance(error, BrokerUnavailable) or isinstance(error, BrokerFull)
            raise
        finally:
            with self._lock:
                kept = kept and self._generation == generation and len(self._idle) < IDLE_MAX
                if kept and not line.closed:
                    self._idle.append(line)
            if not kept:
                _close(line)

    def _take_idle(self) -> Line | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                line = self._idle.pop()
            if _is_quiet(line):
                return line
            _close(line)

    @contextlib.contextmanager
    def _pooled(self) -> Iterator[psycopg.Connection[Any]]:
        with contextlib.ExitStack() as stack:
            try:
                conn = stack.enter_context(self._pool.connection(timeout=deadlines.left(CONNECT_TIMEOUT)))
            except psycopg.Error as error:  # a PoolTimeout, a PoolClosed
                raise BrokerUnavailable(f"{self.shown}: {error}", sent=False) from error
            if not self._known:
                with contextlib.closing(self.connect()) as line:
                    self._prepare(line)
            level, conn.isolation_level = conn.isolation_level, psycopg.IsolationLevel.READ_COMMITTED
            stack.callback(_set_back, conn, level)
            with self.errors():  # of the commit
                yield conn
                conn.commit()

    @contextlib.contextmanager
    def lend(self) -> Iterator[Line]:
        """A connection for somebody else's transaction; it is kept for the next one if the block ends well."""
        with self._lock:
            generation = self._generation
            line = self._lent.pop() if self._lent else None
        if line is not None and not _is_quiet(line):
            _close(line)
            line = None
        line = line or self.connect()
        kept = False
        try:
            yield line
            if not line.closed and line.info.transaction_status == pq.TransactionStatus.IDLE and not line.altered:
                with contextlib.suppress(psycopg.Error):
                    line.execute("DISCARD ALL", prepare=False)  # settings, locks, temporary tables
                    line.row_factory, line.cursor_factory = tuple_row, psycopg.Cursor
                    line.prepare_threshold = None
                    kept = True
        finally:
            with self._lock:
                kept = kept and self._generation == generation and not self._lent
                if kept:
                    self._lent.append(line)
            if not kept:
                _close(line)

    def connect(self) -> Line:
        """A new connection of our own, with autocommit, to a server that can be used."""
        # libpq looks up names for as long as that takes, and gives two seconds at least to each address.
        try:
            return deadlines.aside(self._connect, _close, math.inf)
        except TimeoutError as error:
            raise BrokerUnavailable(f"{self.shown}: no connection in time", sent=False) from error

    def _connect(self) -> Line:
        try:
            conn = Line.connect(self._conninfo, autocommit=True, prepare_threshold=None, row_factory=tuple_row)
        except psycopg.Error as error:
            text = f"{self.shown}: {_words(error)}"
            if _UNTRUSTED.search(text):
                raise BrokerError(
                    f"{text}; the certificate must be for this host, and signed by an authority in sslrootcert="
                ) from error
            if _UNKNOWN.search(text):
                raise BrokerError(
                    f"{text}; the server wants a certificate of yours: give it with sslcert= and sslkey="
                ) from error
            if _REFUSED.search(str(error)):
                raise BrokerError(text) from error
            raise BrokerUnavailable(text, sent=False) from error
        try:
            with self.errors(sent=False):
                if conn.info.server_version < MIN_SERVER:
                    raise BrokerError(
                        f"{self.shown} is PostgreSQL {conn.info.server_version // 10000}; "
                        f"{MIN_SERVER // 10000} or later is needed: upgrade the server"
                    )
                ((replica, isolation),) = conn.execute(
                    "SELECT pg_is_in_recovery(), current_setting('default_transaction_isolation')", prepare=False
                ).fetchall()
                conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # of transactions that psycopg begins
                if isolation != "read committed":  # with which claims that meet would fail
                    conn.execute("SET default_transaction_isolation = 'read committed'", prepare=False)
                if replica:
                    raise BrokerUnavailable(
                        f"{self.shown} is a replica, which can only be read: connect to the primary (with several "
                        "hosts in the URL, target_session_attrs=read-write finds it)",
                        sent=False,
                    )
        except BaseException:
            _close(conn)
            raise
        return conn

    def _prepare(self, line: psycopg.Connection[Any]) -> None:
        with self.errors(sent=False):
            self.schema.migrate(line)
        self._known = True

    @contextlib.contextmanager
    def errors(self, sent: bool = True) -> Iterator[None]:
        """Turn psycopg's errors into ours, the cause kept.

        Args:
            sent: False if a lost connection can't have changed anything.
        """
        try:
            yield
        except UnicodeError as error:
            raise BrokerError(f"{self.shown}: {error}: it can't be stored as text") from error
        except psycopg.Error as error:
            text = f"{self.shown}: {_words(error)}"
            code = error.sqlstate or ""
            if code.startswith(_FULL):
                raise BrokerFull(text) from error
            if code.startswith(_MISSING):  # somebody has dropped it; the next call makes it anew
                self._known = False
                raise BrokerUnavailable(f"{text}; the schema {self.schema.name!r} is not whole", sent=False) from error
            if code.startswith(_LATER):  # the server has rolled back; only of a broken connection one can't know
                raise BrokerUnavailable(text, sent=sent and code.startswith(("08", "57"))) from error
            if not code and isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
                raise BrokerUnavailable(text, sent=sent) from error
            if code == "42501":
                text += (
                    f"; grant this user USAGE on the schema {self.schema.name!r}, and SELECT, INSERT, UPDATE and "
                    "DELETE on its tables, USAGE on its sequences"
                )
            raise BrokerError(text) from error

    def close(self) -> None:
        """Close what is idle now, and what is in use once it is not."""
        with self._lock:
            lines = [*self._idle, *self._lent]
            self._idle, self._lent = [], []
            self._generation += 1
        for line in lines:
            _close(line)

    def __del__(self) -> None:  # of a broker that nobody closed
        for line in (*getattr(self, "_idle", ()), *getattr(self, "_lent", ())):
            _close(line)


_parents: list[Any] = []  # what the parent connects with, kept because its end would say goodbye to the server


def _set_back(conn: psycopg.Connection[Any], level: psycopg.IsolationLevel | None) -> None:
    """Give a connection of a pool its own level again, which it takes amid no transaction."""
    with contextlib.suppress(psycopg.Error):  # it is gone, and the pool makes another one
        conn.rollback()
        conn.isolation_level = level


def _is_quiet(line: Line) -> bool:
    """Whether the server has said nothing unasked, which would be goodbye."""
    if line.closed:
        return False
    poll = select.poll()
    poll.register(line.fileno(), select.POLLIN)
    return not poll.poll(0)


def _close(conn: psycopg.Connection[Any]) -> None:
    with contextlib.suppress(psycopg.Error):
        conn.close()


def _words(error: psycopg.Error) -> str:
    """What the server or libpq says, on one line."""
    text = (error.diag.message_primary or str(error)) or type(error).__name__
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


# -- URLs ------------------------------------------------------------------------------------------------------


def _split(url: str) -> tuple[str, dict[str, str]]:
    """The URL that libpq gets, and the options that are ours."""
    if "://" not in url:
        raise ConfigError("that is no URL; write postgresql://user:password@host:5432/database")
    base, pairs = _parts(url)
    options = {unquote(name): unquote(value) for name, value in pairs if name in OWN_OPTIONS}
    if options.get("listen", "yes") not in ("yes", "no"):
        raise ConfigError(f"listen={options['listen']}: it can be 'yes' (the default) or 'no', which is to poll")
    rest = "&".join(f"{name}={value}" for name, value in pairs if name not in OWN_OPTIONS)
    return base + (f"?{rest}" if rest else ""), options


def _parts(url: str) -> tuple[str, list[tuple[str, str]]]:
    """What stands before the question mark, and the options behind it, as they are written."""
    found = split(url)
    if found is None:
        raise _unreadable(url)
    base, query = found
    return base, [(name, value) for name, _, value in (part.partition("=") for part in query.split("&") if part)]


def _checked(url: str) -> str:
    """The connection string of libpq for a URL.

    Raises:
        ConfigError: When the URL is wrong.
    """
    known = _known_options()
    base, pairs = _parts(url)
    for name, _ in pairs:
        if name not in known:
            near = difflib.get_close_matches(name, [*OWN_OPTIONS, *known], 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UnknownOption(f"postgresql:// has no option {name!r}{hint}")
    try:
        given = conninfo.conninfo_to_dict(url)
    except psycopg.Error:  # whose words may have the password
        raise _unreadable(url) from None
    # libpq would take a part of the password for a host, a port or a database.
    ends_early = base.count("@") > base.partition("://")[2].partition("/")[0].count("@") or base.count("@") > 1
    ports = str(given.get("port") or "").split(",")
    if ends_early or not all(not port or (port.isascii() and port.isdigit()) for port in ports):
        raise _unreadable(url)
    return conninfo.make_conninfo("", **{**_DEFAULTS, **given})


def _unreadable(url: str) -> ConfigError:
    return ConfigError(
        f"{masked(url)} is not a URL that PostgreSQL can use; in a user or password, write %25 for %, %3A for :, "
        "%2F for /, %3F for ? and %40 for @"
    )


def _known_options() -> set[str]:
    return {option.keyword.decode() for option in pq.Conninfo.get_defaults()}


def _is_pool(conn: Any) -> bool:
    try:
        import psycopg_pool
    except ImportError:
        return False
    return isinstance(conn, psycopg_pool.ConnectionPool)


def _parameters_of(pool: Any) -> dict[str, Any]:
    """How a pool connects."""
    given, known = pool.conninfo, _known_options()
    given = given() if callable(given) else given
    return conninfo.conninfo_to_dict(given) | {
        name: value for name, value in (pool.kwargs or {}).items() if name in known
    }


def _url_of(parameters: Mapping[str, Any]) -> str:
    rest = [(name, str(value)) for name, value in parameters.items() if name != "dbname" and value is not None]
    return _with(f"postgresql:///{quote(str(parameters.get('dbname', '')), safe='')}", rest)


def _with(url: str, pairs: Sequence[tuple[str, str]]) -> str:
    if not pairs:
        return url
    return f"{url}{'&' if '?' in url else '?'}{urlencode(pairs, quote_via=quote)}"
