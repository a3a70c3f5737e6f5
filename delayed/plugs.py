"""Plugs: small classes of one sort, such as serializers, each with a name and a one-byte tag for the wire.

Those of the library are known by name. A user's own is given as its class, or as the path of that,
``package.module:Class``, by which every worker finds it; once registered, by its name too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from delayed.errors import ConfigError, MissingDependency
from delayed.functions import path_of, resolve

OWN_TAGS = range(128, 256)  # those of users; below that are the library's


class Plug(Protocol):
    """What all plugs have."""

    name: str
    tag: int


T = TypeVar("T", bound=Plug)


class Plugs(Generic[T]):
    """All plugs of one sort.

    Args:
        sort: what they are, for messages: "serializer".
        methods: what each must have.
        kinds: those of the library.
    """

    def __init__(self, sort: str, methods: Sequence[str], kinds: Sequence[type[Any]]) -> None:
        self.sort = sort
        self._methods = methods
        self._library = {kind.name: kind for kind in kinds}
        self._named = dict(self._library)

    def __iter__(self) -> Iterator[type[Any]]:
        return iter(self._named.values())

    def register(self, kind: type[Any]) -> type[Any]:
        """Make a plug known by its name, in this process. Can be used as a decorator.

        Raises:
            ConfigError: When it is none, or when another one has its name or tag.
        """
        self._check(kind)
        for other in self._named.values():
            if other is not kind and kind.name == other.name:
                raise ConfigError(f"there is a {self.sort} {kind.name!r} already; give {kind!r} another name")
            if kind.tag == other.tag and not issubclass(kind, other):
                raise ConfigError(f"{kind!r} has the tag {kind.tag} of {other!r}; give it another one")
        self._named[kind.name] = kind
        return kind

    def make(self, which: str | type[Any]) -> T:
        """The plug of a name, class or path.

        Raises:
            ConfigError: When there is none, or when it is no plug of this sort.
            MissingDependency: When its package is not installed.
        """
        kind = which if isinstance(which, type) else self._find(which)
        if kind not in self._named.values():
            self._check(kind)
        plug: T = kind()
        return plug

    def spec(self, which: str | type[Any]) -> str:
        """By what another process finds it: the name of one of the library's, the path of any other.

        Raises:
            ConfigError: When it has no such path.
        """
        if isinstance(which, str) and ":" in which:
            return which
        kind = which if isinstance(which, type) else self._find(which)
        if self._library.get(getattr(kind, "name", "")) is kind:
            return str(kind.name)
        try:
            return path_of(kind)
        except TypeError as error:  # NotEnqueueable, whose advice is for functions
            raise ConfigError(f"workers can't import the {self.sort} {kind!r}: move it into a module") from error

    def name_of_tag(self, tag: int) -> str:
        """The name of a tag, for messages to people."""
        return next((kind.name for kind in self if kind.tag == tag), f"unknown {self.sort} {tag}")

    def _find(self, name: str) -> type[Any]:
        if not isinstance(name, str):
            raise ConfigError(f"a {self.sort} is given as its name, its class or its path, not as {name!r}")
        kind: type[Any] | None = self._named.get(name)
        if ":" in name:
            found: Any = resolve(name)
            if not isinstance(found, type):
                raise ConfigError(f"{name} is no class, so it is no {self.sort}")
            kind = found
        if kind is None:
            raise ConfigError(f"no {self.sort} {name!r}; there are {', '.join(self._named)}")
        return kind

    def _check(self, kind: type[Any]) -> None:
        missing = [name for name in ("name", "tag", *self._methods) if not hasattr(kind, name)]
        if missing:
            raise ConfigError(f"{kind!r} is no {self.sort}: it has no {', '.join(missing)}")
        library = [each for each in self._library.values() if issubclass(kind, each)]
        if kind.tag not in OWN_TAGS and not any(kind.tag == each.tag for each in library):
            raise ConfigError(
                f"{kind!r} has the tag {kind.tag!r}; those of your own are whole numbers from {OWN_TAGS[0]} to "
                f"{OWN_TAGS[-1]}, unless it writes what one of the library's reads: then make it a subclass of that"
            )


def missing(package: str, extra: str, use: str) -> MissingDependency:
    """The error for a package that is not installed."""
    return MissingDependency(
        f"the package {package!r} is needed for {use} and not installed; run: pip install 'delayed[{extra}]'"
    )
