"""URLs of Redis: from a URL to a client of our own, and from a client of the user's to the URL of the same store."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from delayed.brokers import deadline
from delayed.brokers.masked import masked, split
from delayed.errors import ConfigError, UnknownOption

SOCKET_TIMEOUT = 5.0  # seconds

# Without types in redis-py.
_parse_url: Any = redis.connection.parse_url
_node: Any = ClusterNode
_sentinel: Any = Sentinel

# The options of TLS that a URL can say: texts, and what redis-py reads from a text.
_TLS_PATHS = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_TLS = {
    *_TLS_PATHS, "ssl_ca_data", "ssl_cert_reqs", "ssl_ciphers", "ssl_password",
    *[name for name in redis.connection.URL_QUERY_ARGUMENT_PARSERS if name.startswith("ssl_")],
}  # fmt: skip
# Whether names are checked where nobody says; no before version 6.
_CHECKS_NAMES = bool(inspect.signature(redis.SSLConnection.__init__).parameters["ssl_check_hostname"].default)


def opener(url: str) -> Callable[[], Any]:
    """What makes the client of a URL.

    Raises:
        ConfigError: When the URL is wrong.
    """
    if not _is_clear(url):
        raise ConfigError(
            f"{masked(url)} is not a Redis URL: write redis://user:password@host:6379/0, with what is no letter and "
            "no digit in the user and the password escaped (urllib.parse.quote)"
        )
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    try:
        _parse_url(_join(parts.scheme, parts.netloc.split(",")[0], parts.path, options))
    except ValueError as error:
        raise ConfigError(f"{masked(url)} is not a Redis URL: {error}") from error
    _check_tls(parts.scheme, options)
    return lambda: _open(url)


def _is_clear(url: str) -> bool:
    """Whether redis-py takes no part of a password for a host, a port, a database or an option."""
    found = split(url)
    try:
        parts = urlsplit(url)
        for place in parts.netloc.rpartition("@")[2].split(","):
            _host_port(place, 0)
    except ValueError:  # whose words may have the password
        return False
    rest = (parts.path if parts.netloc else "") + parts.fragment
    return found is not None and "?" not in found[0] and "@" not in rest


def _check_tls(scheme: str, options: Mapping[str, str]) -> None:
    """Raise ConfigError where redis-py would complain, less clearly, when it connects."""
    for name in filter(lambda name: name.startswith("ssl_"), options):
        if scheme != "rediss":
            raise UnknownOption(f"{scheme}:// has no option {name!r}: for TLS, write rediss://")
        if name not in _TLS:
            near = difflib.get_close_matches(name, _TLS, 1)
            hint = f"did you mean {near[0]}?" if near else "give it to a redis.Redis of your own"
            raise UnknownOption(f"rediss:// has no option {name!r}; {hint}")
        if name in _TLS_PATHS and not os.access(options[name], os.R_OK):
            raise ConfigError(f"rediss:// names with {name}= a file that can't be read: {options[name]}")
    if (verify := options.get("ssl_cert_reqs", "required")) not in ("required", "optional", "none"):
        raise ConfigError(f"ssl_cert_reqs={verify}: it can be 'required' (the default), 'optional' or 'none'")
    if (watch := options.get("sentinel_ssl", "yes")) not in ("yes", "no"):
        raise ConfigError(f"sentinel_ssl={watch}: it can be 'yes' (the default with rediss://) or 'no'")


def _open(url: str) -> Any:
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    cluster, service = options.pop("cluster", ""), options.pop("sentinel", "")
    plain_watch = options.pop("sentinel_ssl", "yes") == "no"
    settings: dict[str, Any] = {
        "socket_timeout": SOCKET_TIMEOUT,
        "socket_keepalive": True,
        "health_check_interval": 0,
        "retry": Retry(NoBackoff(), 0),
    }
    if parts.scheme != "unix":
        settings["socket_connect_timeout"] = SOCKET_TIMEOUT
    else:
        del settings["socket_keepalive"]
    if parts.scheme == "rediss":  # before version 6, redis-py looks at the name only when told to
        settings["ssl_check_hostname"] = options.get("ssl_cert_reqs") != "none"
    if not cluster and not service:
        return _limit(redis.Redis.from_url(url, **{"protocol": 2, **settings}))

    login, _, places = parts.netloc.rpartition("@")
    hosts = [_host_port(place, 26379 if service else 6379) for place in places.split(",")]
    first = f"{login}@{places.split(',')[0]}" if login else places.split(",")[0]
    logins = [name for name in ("username", "password") if f"sentinel_{name}" in options]
    watch = {name: options.pop(f"sentinel_{name}") for name in logins}
    given = {**settings, "protocol": 2, **_parse_url(_join(parts.scheme, first, parts.path, options))}
    for name in ("host", "port", "connection_class"):  # of the first host; the others come from the servers
        given.pop(name, None)
    if parts.scheme == "rediss":
        given["ssl"] = True
    if cluster:  # not from_url(), whose connections close() forgets
        given.pop("db", None)
        return RedisCluster(startup_nodes=[_node(host, port) for host, port in hosts], **given)
    tls = {name: value for name, value in given.items() if name.startswith("ssl")}
    watch |= {name: value for name, value in settings.items() if name not in tls} | ({} if plain_watch else tls)
    sentinel = _sentinel(hosts, sentinel_kwargs=watch, **given)
    for watcher in sentinel.sentinels:
        _limit(watcher)
    return _limit(sentinel.master_for(service))


def limited(seconds: float | None) -> float | None:
    """A limit of a socket, or what a caller still waits if that is clearly less."""
    if not deadline.is_set():
        return seconds
    left = deadline.left(math.inf if seconds is None else seconds)
    return seconds if seconds is not None and left > seconds - deadline.SLACK else left


def _limit(client: Any) -> Any:
    """The same client; new connections are made in no more time than their caller has, and whole or not at all."""
    client.connection_pool.connection_class = _limited_kind(client.connection_pool.connection_class)
    return client


@functools.cache
def _limited_kind(kind: type[Any]) -> type[Any]:
    def connect(connection: Any) -> None:
        # redis-py keeps what a Ctrl-C has left: one that has not said the password, or which database it means.
        try:
            kind.connect(connection)
        except BaseException:
            connection.disconnect()
            raise

    names = ("socket_timeout", "socket_connect_timeout")
    members: dict[str, Any] = {name: _limited_attribute(kind, name) for name in names}
    return type(kind.__name__, (kind,), {**members, "connect": connect})


def _limited_attribute(kind: type[Any], name: str) -> property:
    inherited = getattr(kind, name, None)  # a property since redis-py 8, before that nothing

    def get(connection: Any) -> float | None:
        return limited(inherited.__get__(connection) if inherited else vars(connection).get(name))

    def set(connection: Any, seconds: float | None) -> None:
        if inherited:
            inherited.__set__(connection, seconds)
        else:
            vars(connection)[name] = seconds

    return property(get, set)


def _host_port(place: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{place}")
    return parts.hostname or "localhost", parts.port or default


def _join(scheme: str, netloc: str, path: str, options: Mapping[str, str]) -> str:
    return f"{scheme}://{netloc}{path}" + (f"?{urlencode(options)}" if options else "")


def _url(kwargs: Mapping[str, Any], places: str, path: str, options: Mapping[str, str], secure: bool) -> str | None:
    """The URL of a client's settings; None if one of them can't be said in a URL."""
    tls = _tls(kwargs) if secure else {}
    if kwargs.get("credential_provider") or tls is None:
        return None
    user, password = (quote(str(kwargs.get(name) or ""), safe="") for name in ("username", "password"))
    login = f"{user}:{password}@" if password else f"{user}@" if user else ""
    query = {"client_name": str(kwargs["client_name"])} if kwargs.get("client_name") is not None else {}
    scheme = "unix" if not places else "rediss" if secure else "redis"
    return _join(scheme, login + places, path, {**query, **tls, **options})


def _tls(kwargs: Mapping[str, Any]) -> dict[str, str] | None:
    """The options of a URL for a client's settings of TLS; None if one of them is lost in a URL: another process must
    not trust whom this one does not.
    """
    said = {"ssl_cert_reqs": "required", "ssl_check_hostname": str(_CHECKS_NAMES)}
    for name, value in kwargs.items():
        if name == "ssl_cert_reqs":
            said[name] = "none" if value is None else str(getattr(value, "name", value)).removeprefix("CERT_").lower()
        elif name == "ssl_check_hostname":
            said[name] = str(bool(value))
        elif name.startswith("ssl_") and value:
            if name not in _TLS or not isinstance(value, (str, int, os.PathLike)):
                return None
            said[name] = str(int(value) if isinstance(value, int) else value)
    return said


def of_pool(pool: Any) -> str | None:
    """The URL of the store that a pool connects to; None if no URL says it."""
    kwargs = pool.connection_kwargs
    db = int(kwargs.get("db") or 0)
    secure = _is_secure(pool)
    if isinstance(pool, SentinelConnectionPool):
        sentinels = [client.connection_pool for client in pool.sentinel_manager.sentinels]
        watch = [sentinel.connection_kwargs for sentinel in sentinels]
        places = ",".join(_place(place, 26379) for place in watch)
        options = {"sentinel": str(pool.service_name)}
        for name in ("username", "password"):
            if watch[0].get(name):
                options[f"sentinel_{name}"] = str(watch[0][name])
        if secure and not _is_secure(sentinels[0]):
            options["sentinel_ssl"] = "no"
        elif _is_secure(sentinels[0]) and not (secure and _tls(watch[0]) == _tls(kwargs)):
            return None
        return _url(kwargs, places, f"/{db}", options, secure)
    if kwargs.get("path"):
        return _url(kwargs, "", str(kwargs["path"]), {"db": str(db)}, secure)
    return _url(kwargs, _place(kwargs, 6379), f"/{db}", {}, secure)


def of_cluster(client: Any) -> str | None:
    """The URL of the cluster that a client is for; None if no URL says it."""
    kwargs = client.get_connection_kwargs()
    places = ",".join(_place({"host": node.host, "port": node.port}, 6379) for node in client.get_nodes()[:3])
    return _url(kwargs, places, "/", {"cluster": "1"}, bool(kwargs.get("ssl")))


def _is_secure(pool: Any) -> bool:
    return issubclass(pool.connection_class, redis.SSLConnection)


def _place(kwargs: Mapping[str, Any], port: int) -> str:
    host = str(kwargs.get("host") or "localhost")
    return f"{f'[{host}]' if ':' in host else host}:{kwargs.get('port') or port}"
