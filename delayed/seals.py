"""Seals: what shows that a payload was made by somebody who has the queue's secret, and for this queue and task only.

A signed payload has an HMAC-SHA256 between its first four bytes and its body; an encrypted one has AES-256-GCM's salt,
nonce, text and tag in the place of its body. Both are made over all that the payload belongs to::

    b"delayed" version  kind  length(2) queue  id(8)  length(4) header  the payload's first four bytes  [body]

The kind is T for a task, R for a result, which has no header, and S for a stored schedule, which has no id (0); numbers
have the highest byte first. Byte by byte it is told in docs/wire-format.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from struct import Struct
from typing import Any

from delayed.errors import ConfigError, NotAuthentic
from delayed.plugs import missing

VERSION = 1
SIGNED, ENCRYPTED = 1, 2  # in the fourth byte of a payload
MAC_SIZE = 32
SALT_SIZE, NONCE_SIZE, TAG_SIZE = 12, 12, 16
OVERHEAD = SALT_SIZE + NONCE_SIZE + TAG_SIZE  # bytes that a seal adds, at most
SECRET_MIN = 16  # bytes
TASK, RESULT, SCHEDULE = b"T", b"R", b"S"

_START = b"delayed" + bytes((VERSION,))
_PLACE = Struct(">QI")


def about(kind: bytes, queue: bytes, id: int, header: bytes) -> bytes:
    """What a payload belongs to.

    Args:
        kind: TASK, RESULT or SCHEDULE.
        queue: the name of the queue.
        id: of the task.
        header: as it is stored.
    """
    return b"".join((_START, kind, len(queue).to_bytes(2, "big"), queue, _PLACE.pack(id, len(header)), header))


class Seals:
    """The seals of one queue.

    Args:
        secrets: the first makes seals, any of them opens one.
        encrypt: whether to encrypt, rather than to sign.

    Raises:
        MissingDependency: When what encrypts is not installed.
    """

    def __init__(self, secrets: Sequence[bytes], encrypt: bool = False) -> None:
        import hmac  # no queue without a secret needs it

        self._digest = hmac.digest
        self._same = hmac.compare_digest
        # A key for each use: what is done with one tells nothing of the other.
        self._signing = [hmac.digest(secret, b"delayed sign", "sha256") for secret in secrets]
        self._encrypting = [hmac.digest(secret, b"delayed encrypt", "sha256") for secret in secrets]
        self.encrypt = encrypt
        if encrypt:
            _aes()

    def seal(self, about: bytes, payload: bytes) -> bytes:
        """The payload, sealed."""
        if not self.encrypt:
            prefix = payload[:3] + bytes((SIGNED,))
            body = payload[4:]
            return prefix + self._digest(self._signing[0], about + prefix + body, "sha256") + body
        prefix = payload[:3] + bytes((ENCRYPTED,))
        salt = os.urandom(SALT_SIZE + NONCE_SIZE)
        cipher = self._cipher(self._encrypting[0], salt)
        text: bytes = cipher.encrypt(salt[SALT_SIZE:], payload[4:], about + prefix)
        return prefix + salt + text

    def open(self, about: bytes, payload: bytes) -> bytes:
        """The payload as it was before it was sealed.

        Raises:
            NotAuthentic: When it has no seal, or when none of the secrets fits it.
            MissingDependency: When it is encrypted and what decrypts is not installed.
        """
        prefix, flags = payload[:4], payload[3]
        if flags == SIGNED:
            mac, body = payload[4 : 4 + MAC_SIZE], payload[4 + MAC_SIZE :]
            for key in self._signing:
                if self._same(self._digest(key, about + prefix + body, "sha256"), mac):
                    return prefix[:3] + b"\0" + body
        elif flags == ENCRYPTED:
            salt, text = payload[4 : 4 + SALT_SIZE + NONCE_SIZE], payload[4 + SALT_SIZE + NONCE_SIZE :]
            if len(text) >= TAG_SIZE:
                for key in self._encrypting:
                    try:
                        opened: bytes = self._cipher(key, salt).decrypt(salt[SALT_SIZE:], text, about + prefix)
                    except _aes().InvalidTag:
                        continue
                    return prefix[:3] + b"\0" + opened
        elif flags == 0:
            raise NotAuthentic("the payload is unsigned, and this queue has a secret: anybody may have put it in")
        else:
            raise NotAuthentic(f"the payload has the flags {flags}, which this version does not know")
        raise NotAuthentic(
            f"the payload is {'signed' if flags == SIGNED else 'encrypted'}, but not with a secret of this queue, or "
            "it, its header, its task or its queue are not those that it was made for"
        )

    def _cipher(self, key: bytes, salt: bytes) -> Any:
        # A key for each payload: 12 bytes of nonce alone could come twice in some billions of them.
        return _aes().AESGCM(self._digest(key, salt[:SALT_SIZE], "sha256"))


class _Aes:
    """What of `cryptography` is needed here."""

    def __init__(self) -> None:
        try:
            from cryptography.exceptions import InvalidTag  # type: ignore[import-not-found, unused-ignore]
            from cryptography.hazmat.primitives.ciphers.aead import (  # type: ignore[import-not-found, unused-ignore]
                AESGCM,
            )
        except ModuleNotFoundError as error:
            raise missing("cryptography", "encrypt", "encrypt=True") from error
        self.AESGCM: Any = AESGCM
        self.InvalidTag: Any = InvalidTag


_loaded: list[_Aes] = []


def _aes() -> _Aes:
    if not _loaded:
        _loaded.append(_Aes())
    return _loaded[0]


def secrets_of(value: str | bytes | Sequence[str | bytes] | None) -> list[bytes]:
    """The secrets that a user's setting means.

    Args:
        value: one, or several; None: those in the environment variable ``DELAYED_SECRET``, between commas.

    Raises:
        ConfigError: When one is too short to be any.
    """
    if value is None:
        name = "DELAYED_SECRET"
        given = os.environ.get(name)
        value = [] if given is None else [part.strip() for part in given.split(",")]
    else:
        name = "secret"
        value = [value] if isinstance(value, (str, bytes)) else value
    found = []
    for number, each in enumerate(value, 1):
        if not isinstance(each, (str, bytes)):
            raise ConfigError(f"{name} is text or bytes, or a list of such, not a {type(each).__name__}")
        secret = each.encode() if isinstance(each, str) else each
        if len(secret) < SECRET_MIN:
            raise ConfigError(
                f"{name} number {number} has {len(secret)} bytes, and needs {SECRET_MIN} at least; make one with: "
                "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        found.append(secret)
    return found
