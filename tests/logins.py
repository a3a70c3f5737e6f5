"""Tasks that take what must not be shown."""

from __future__ import annotations

import functools
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NewType, TypedDict

from pydantic import BaseModel

from delayed import Hidden

if TYPE_CHECKING:
    from nowhere import Nothing  # type: ignore[import-not-found]

Token = NewType("Token", Hidden[str])
Secret = Hidden[str]


@dataclass
class Login:
    user: str
    password: Hidden[str]
    old: list[Hidden[str]] = field(default_factory=list)
    again: Login | None = None


class Account(BaseModel):
    name: str
    pin: Hidden[int] = 0
    login: Login | None = None


class Pair(NamedTuple):
    name: str
    key: Hidden[str]


class Keys(TypedDict):
    key: Hidden[str]


@dataclass
class Tree:
    name: str
    below: list[Tree] = field(default_factory=list)


Plain = namedtuple("Plain", "a b")


def log_in(user: str, password: Hidden[str]) -> str:
    return f"{user} {password}"


def many(*words: Hidden[str], **others: Secret) -> None: ...


def mixed(a: int, /, b: Hidden[list[str]] | None = None, *, c: Annotated[Token, "a note"], d: Any = 0) -> None: ...


def inside(words: dict[str, Hidden[str]], keys: Keys | None = None) -> None: ...


def unknown(secret: Hidden[Nothing], other: Nothing = 1) -> None: ...


def of_login(login: Login, others: list[Login] | None = None) -> Login:
    return login


def of_account(account: Account) -> Account:
    return account


def of_anything(value: Any, *rest: Any) -> Any:
    return value


def of_pair(pair: Pair) -> None: ...


def wrapped(func: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    return wrapper


@wrapped
def decorated(user: str, password: Hidden[str]) -> None: ...


class Shop:
    @classmethod
    def of_class(cls, user: str, password: Hidden[str]) -> None: ...

    @staticmethod
    def static(user: str, password: Hidden[str]) -> None: ...

    def of_object(self, password: Hidden[str]) -> None: ...


@dataclass
class Chatty:
    """One whose own words have what is hidden."""

    pin: Hidden[str]

    def __post_init__(self) -> None:
        if not self.pin.isdigit():
            raise ValueError(f"{self.pin} is no number")


def of_chatty(chatty: Chatty) -> None: ...
