"""URLs of MongoDB. The driver's own parser reads them: what is a password for it must be one here, too."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from pymongo.common import VALIDATORS
from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri, parse_userinfo, split_hosts, split_options

from delayed.brokers.masked import is_shown, masked
from delayed.errors import ConfigError, UnknownOption

DATABASE = "delayed"  # where the URL names none

_UNREADABLE = (
    "a wrong URL for MongoDB: its user, password, hosts or ports can't be read; write "
    "mongodb://user:password@host:port/database?option=value, with what is no letter and no digit in the user and the "
    "password escaped (urllib.parse.quote_plus)"
)


class Parsed(NamedTuple):
    """A URL that is right.

    Attributes:
        shown: it without its secrets.
        hosts: the names in it and their ports; without a port the one that the DNS is asked for.
        database: its name.
        options: the names of its options, in lower case.
    """

    shown: str
    hosts: frozenset[tuple[str, int | None]]
    database: str
    options: frozenset[str]


def parse(url: str) -> Parsed:
    """Read a URL, without the DNS.

    Raises:
        ConfigError: When it is wrong. Nothing of it is quoted that could belong to a password.
    """
    scheme, slashes, rest = url.partition("://")
    before, _, query = rest.partition("?")
    authority, _, path = before.partition("/")
    user, at, hosts = authority.rpartition("@")
    if not slashes or not hosts:
        raise ConfigError("a URL for MongoDB names no host; write mongodb://localhost:27017/delayed")
    srv = scheme.lower() == "mongodb+srv"
    try:
        if at:
            parse_userinfo(user)
        nodes = split_hosts(hosts, default_port=None if srv else 27017)
    except (PyMongoError, ValueError):  # its text may show a part of a password
        raise ConfigError(_UNREADABLE) from None
    if srv and (len(nodes) != 1 or nodes[0][1] is not None):
        raise ConfigError("a wrong URL for MongoDB: mongodb+srv:// takes one host, and no port")
    if "@" in path:
        raise ConfigError(_UNREADABLE)  # it was a password with a slash
    database = _database(path)
    pairs = [pair.partition("=") for pair in query.replace(";", "&").split("&")] if query else []
    if "@" in query and any(name.lower() not in VALIDATORS for name, _, _ in pairs):
        raise ConfigError(_UNREADABLE)  # it was a password with a question mark
    for name, _, value in pairs:
        _check_option(scheme, name, value)
    try:
        if srv:
            split_options(query) if query else None
        else:
            parse_uri(url, validate=True, warn=False)
    except (PyMongoError, ValueError) as error:  # options that contradict each other: each is right by itself
        raise ConfigError(f"a wrong URL for MongoDB: {_without_secrets(str(error), user, pairs)}") from None
    return Parsed(
        masked(url),
        frozenset(nodes),
        database,
        frozenset(name.lower() for name, _, _ in pairs),
    )


def _database(path: str) -> str:
    if not path:
        return DATABASE
    try:
        parts = parse_uri("mongodb://h/" + path)
        name = f"{parts['database']}{'.' if parts['collection'] else ''}{parts['collection'] or ''}"
    except (PyMongoError, ValueError):
        name = "/"
    if len(name.encode()) > 63 or any(letter in name for letter in '/\\. "$*<>:|?\0'):
        raise ConfigError(
            "what follows the hosts in the URL can't be the name of a MongoDB database; write mongodb://host:port/name"
        )
    return name


def _check_option(scheme: str, name: str, value: str) -> None:
    """The driver only warns of options that it does not know; a wrong one should not be found out in production."""
    if name.lower() not in VALIDATORS:
        near = difflib.get_close_matches(name.lower(), sorted(VALIDATORS), 1)
        hint = f"did you mean {near[0]}?" if near else "see the connection string options of MongoDB"
        raise UnknownOption(f"{scheme}:// has no option {name!r}; {hint}")
    try:
        split_options(f"{name}={value}")
    except OSError as error:  # only of a file that it names
        raise ConfigError(
            f"a wrong URL for MongoDB: {name} names a file that can't be read: {error.filename} ({error.strerror})"
        ) from error
    except (PyMongoError, ValueError):
        quoted = f" {value!r}" if is_shown(name) else ""
        raise ConfigError(f"a wrong URL for MongoDB: the option {name} can't have the value{quoted}") from None


def _without_secrets(text: str, user: str, pairs: list[tuple[str, str, str]]) -> str:
    secrets = [user.partition(":")[2], *[value for name, _, value in pairs if not is_shown(name)]]
    return "options contradict each other" if any(secret and secret in text for secret in secrets) else text
