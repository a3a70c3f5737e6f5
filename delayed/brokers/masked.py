"""URLs of stores as they may be shown to anybody: with users, hosts and databases, without passwords.

====================================================  ====================================================
``redis://me:secret@host:6379/0``                     ``redis://me:***@host:6379/0``
``mongodb://me:secret@a:1,[::1]:2/db?tls=true``       ``mongodb://me:***@a:1,[::1]:2/db?tls=true``
``postgresql:///db?user=me&password=secret``          ``postgresql:///db?user=me&password=***``
``host=a user=me password='my secret'``               ``host=a user=me password=***``
====================================================  ====================================================

Where it can't be told what belongs to a password, more is hidden than need be. The brokers refuse such URLs: a driver
may take a part of the password for a host, and drivers repeat the names of hosts in their errors.
"""

from __future__ import annotations

import re

MASK = "***"

# Options that have nothing to hide. What drivers learn later is not shown before it is here.
_SHOWN = {
    # ours
    "cluster", "sentinel", "sentinel_ssl", "schema", "listen", "durability", "max_size",
    # redis-py's
    "client_name", "db", "health_check_interval", "lib_name", "lib_version", "max_connections", "protocol",
    "retry_on_timeout", "sentinel_username", "socket_connect_timeout", "socket_keepalive", "socket_read_size",
    "socket_timeout", "ssl_ca_certs", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname",
    "ssl_ciphers", "ssl_exclude_verify_flags", "ssl_include_verify_flags", "ssl_keyfile", "ssl_min_version",
    "timeout", "username",
    # libpq's
    "application_name", "channel_binding", "client_encoding", "connect_timeout", "dbname",
    "fallback_application_name", "gssdelegation", "gssencmode", "gsslib", "host", "hostaddr", "keepalives",
    "keepalives_count", "keepalives_idle", "keepalives_interval", "krbsrvname", "load_balance_hosts",
    "max_protocol_version", "min_protocol_version", "passfile", "port", "replication", "require_auth", "requirepeer",
    "requiressl", "service", "servicefile", "ssl_max_protocol_version", "ssl_min_protocol_version", "sslcert",
    "sslcertmode", "sslcompression", "sslcrl", "sslcrldir", "sslkey", "sslmode", "sslnegotiation", "sslrootcert",
    "sslsni", "target_session_attrs", "tcp_user_timeout", "user",
    # pymongo's, in lower case
    "appname", "authmechanism", "authsource", "compressors", "connecttimeoutms", "directconnection",
    "heartbeatfrequencyms", "journal", "loadbalanced", "localthresholdms", "maxconnecting", "maxidletimems",
    "maxpoolsize", "maxstalenessseconds", "minpoolsize", "readconcernlevel", "readpreference", "readpreferencetags",
    "replicaset", "retryreads", "retrywrites", "servermonitoringmode", "serverselectiontimeoutms", "sockettimeoutms",
    "srvmaxhosts", "srvservicename", "ssl", "timeoutms", "tls", "tlscafile", "tlsallowinvalidcertificates",
    "tlsallowinvalidhostnames", "tlscertificatekeyfile", "tlscrlfile", "tlsdisableocspendpointcheck", "tlsinsecure",
    "uuidrepresentation", "w", "waitqueuetimeoutms", "wtimeoutms", "zlibcompressionlevel",
}  # fmt: skip
_HIDDEN = {
    "password", "sentinel_password", "ssl_ca_data", "ssl_password", "sslpassword", "oauth_client_secret",
    "authmechanismproperties", "tlscertificatekeyfilepassword", "proxypassword",
}  # fmt: skip
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PAIR = r"(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*|(?=\s|$))"  # of libpq's other form
_PAIRS = re.compile(rf"\s*(?:{_PAIR}(?:\s+|$))+", re.DOTALL)


def masked(url: str) -> str:
    """A URL, or a connection string of libpq, with asterisks for whatever may be a password. Never raises."""
    scheme = _SCHEME.match(url)
    head = scheme[0] if scheme else ""
    if not head and _PAIRS.fullmatch(url):
        return re.sub(_PAIR, lambda pair: f"{pair[1]}={pair[2] if is_shown(pair[1]) else MASK}", url, flags=re.DOTALL)
    parts = split(url)
    if parts is None or (not head and "=" in parts[0]):
        return head + MASK
    place, query = parts
    place = _masked_place(place[len(head) :], is_path=bool(head) and place[len(head) :].startswith("/"))
    return f"{head}{place}{'?' if query else ''}{re.sub('[^&;]+', _masked_option, query)}"


def split(url: str) -> tuple[str, str] | None:
    """What stands before the options, and the options, as they are written; None if it can't be told.

    A question mark in a password begins no options.
    """
    mark = url.find("?")
    while mark >= 0:
        query = url[mark + 1 :]
        names = [option.partition("=")[0] for option in re.split("[&;]", query)]
        if "@" not in query or all(name.lower() in _SHOWN or name.lower() in _HIDDEN for name in names):
            return url[:mark], query
        if "@" not in names[0]:
            return None
        mark = url.find("?", mark + 1)
    return url, ""


def is_shown(option: str) -> bool:
    """Whether the value of an option may be shown."""
    return option.lower() in _SHOWN


def _masked_place(place: str, is_path: bool) -> str:
    if is_path:  # of a file or a socket
        return place
    login, at, place = place.rpartition("@")
    user, colon, _ = login.partition(":")
    hosts, slash, path = place.partition("/")
    shown = ",".join(map(_masked_host, hosts.split(",")))  # of a URL without an @ it may be the password
    return f"{user}{colon and ':' + MASK}{at}{shown}{slash}{path}"


def _masked_host(host: str) -> str:
    name, bracket, rest = host.rpartition("]")
    more, colon, port = rest.partition(":")
    is_port = port.isascii() and port.isdigit() and int(port[:6]) < 2**16
    return f"{name}{bracket}{more}{colon}{port if is_port or not port else MASK}"


def _masked_option(option: re.Match[str]) -> str:
    name, equal, _ = option[0].partition("=")
    if is_shown(name):
        return option[0]
    return f"{name}={MASK}" if equal else MASK
