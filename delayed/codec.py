"""The codec of a queue: from a task's arguments to the payload that brokers carry, and back.

A payload is four bytes and a body; docs/wire-format.md has all of it, byte by byte:

    0  version, 1
    1  tag of the serializer
    2  tag of the compressor, 0 for none
    3  flags: 1 signed, 2 encrypted
    4… the serialized list [args, kwargs], or [args, kwargs, function] where no path leads to the function
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NewType, TypeVar

from delayed.compressors import COMPRESSORS, Compressor, TooLarge
from delayed.errors import (
    ConfigError,
    DecodeError,
    MissingDependency,
    NewerFormat,
    NotAllowed,
    NotEnqueueable,
    NotReadable,
    NotSerializable,
)
from delayed.functions import is_decorated, resolve
from delayed.message import NEWER, Message
from delayed.seals import OVERHEAD, RESULT, SCHEDULE, TASK, Seals, about, secrets_of
from delayed.serializers import SERIALIZERS, Serializer

if TYPE_CHECKING:
    from delayed.allow import AllowList

VERSION = 1
MAX_SIZE = 64 * 2**20  # bytes of a payload
COMPRESS_ABOVE = 1024  # bytes
BY_VALUE = "cloudpickle:"  # how the "path" of a function begins that travels in the payload

Call = tuple[tuple[Any, ...], dict[str, Any], "Callable[..., Any] | None"]
P = TypeVar("P", Serializer, Compressor)
Opened = NewType("Opened", Message)  # a message whose seal is off, and whose function may be run

_known: dict[str, list[bytes]] = {}  # the secrets of the queues that this process was told of, by their names


class Codec:
    """Encodes with one serializer, and decodes nothing else unless told so.

    Args:
        serializer: pickle, cloudpickle, msgpack or json; or one of your own.
        max_size: bytes that a body may have, compressed or not, when it is made and when it is read.
        queue: the queue's name, which payloads are sealed for.
        accept: further serializers that are read, and compressors of your own.
        compressor: zlib, gzip, bzip2, lzma, zstd or lz4, or one of your own; None: none. All of these are read.
        compress_above: bytes of a body from which on it is compressed.
        secret: text or bytes of 16 bytes at least, or several, of which the first is used and all are accepted; None:
            what ``DELAYED_SECRET`` has, between commas; an empty list: none, whatever that has.
        encrypt: whether to encrypt with it, rather than to sign.
        accept_unsigned: whether what has no seal is read in spite of a secret.
        allow: patterns of the functions that may be run, such as ``app.tasks.*``; None: all if the payload is not of
            plain data, else all that are decorated.

    Raises:
        ConfigError: When an argument makes no sense.
        MissingDependency: When a package is not installed.
    """

    def __init__(
        self,
        serializer: str | type[Any] = "pickle",
        max_size: int = MAX_SIZE,
        *,
        queue: str = "",
        accept: Sequence[str | type[Any]] = (),
        compressor: str | type[Any] | None = None,
        compress_above: int = COMPRESS_ABOVE,
        secret: str | bytes | Sequence[str | bytes] | None = None,
        encrypt: bool = False,
        accept_unsigned: bool = False,
        allow: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(max_size, int) or isinstance(max_size, bool) or max_size < 1:
            raise ConfigError(f"max_size is a number of bytes above 0, not {max_size!r}")
        if not isinstance(compress_above, int) or isinstance(compress_above, bool) or compress_above < 0:
            raise ConfigError(f"compress_above is a number of bytes from 0, not {compress_above!r}")
        for name, flag in (("encrypt", encrypt), ("accept_unsigned", accept_unsigned)):
            if not isinstance(flag, bool):
                raise ConfigError(f"{name} is True or False, not {flag!r}")
        if isinstance(accept, (str, type)):
            raise ConfigError(f"accept is a list such as ['pickle'], not {accept!r}")
        self.max_size = max_size
        self.compress_above = compress_above
        self.queue = queue
        self._serializer = serializer
        self._compressor = compressor
        self._accept = tuple(accept)
        self._secrets = secrets_of(secret)
        if encrypt and not self._secrets:
            raise ConfigError("encrypt=True needs a secret: give secret=..., or set DELAYED_SECRET")
        if self._secrets:  # two queues of one name in different stores may have different ones: then none is known
            _known[queue] = self._secrets if _known.get(queue, self._secrets) == self._secrets else []
        self._encrypt = encrypt
        self.accept_unsigned = accept_unsigned
        self.allow: AllowList | None = None
        if allow is not None:
            from delayed.allow import AllowList

            self.allow = AllowList(allow)
        # What is given by a path is user code, which is not loaded before something is encoded or decoded: never in a
        # monitor. All else is, so that what is missing or mistyped is told where it was written.
        self.is_ours = not any(isinstance(each, str) and ":" in each for each in (serializer, compressor, *accept))
        if self.is_ours:
            self.readers  # noqa: B018
            self.compressor  # noqa: B018
        self.seals = Seals(self._secrets, encrypt) if self._secrets else None
        self._name = queue.encode()
        if self.is_ours:  # now, for a forked child that finds them copies less memory
            self._wary, self._trusted, self.prefix  # noqa: B018

    @cached_property
    def serializer(self) -> Serializer:
        """What encodes."""
        return SERIALIZERS.make(self._serializer)

    @cached_property
    def plain(self) -> bool:
        """Whether what is encoded is plain data."""
        return self.serializer.plain

    @cached_property
    def compressor(self) -> Compressor | None:
        """What compresses."""
        return None if self._compressor is None else COMPRESSORS.make(self._compressor)

    @cached_property
    def readers(self) -> dict[int, Serializer]:
        """What decodes, by tag."""
        return _by_tag([self.serializer, *(SERIALIZERS.make(kind) for kind in self._further(SERIALIZERS))])

    @cached_property
    def _inflaters(self) -> dict[int, Compressor]:
        """What decompresses, by tag: those of the library, as they are needed, and those that were given."""
        own = [COMPRESSORS.make(kind) for kind in self._further(COMPRESSORS)]
        if self.compressor is not None:
            own.append(self.compressor)
        return _by_tag(own)

    def _further(self, plugs: Any) -> list[str | type[Any]]:
        """Those of `accept` that are of one sort."""
        found = []
        for each in self._accept:
            if isinstance(each, str) and ":" not in each:
                sort: Any = SERIALIZERS  # all compressors with a name are read anyway
            else:
                kind = resolve(each) if isinstance(each, str) else each
                sort = SERIALIZERS if hasattr(kind, "loads") else COMPRESSORS
            if sort is plugs:
                found.append(each)
        return found

    @cached_property
    def _wary(self) -> bool:
        """Whether nothing else says where the functions may come from, and plain data suggests that it matters."""
        return self.allow is None and self.plain and (self.seals is None or self.accept_unsigned)

    @cached_property
    def _trusted(self) -> frozenset[int]:
        """The tags of serializers that run code anyway."""
        return frozenset(tag for tag, each in self.readers.items() if not each.plain)

    @cached_property
    def prefix(self) -> bytes:
        """What a payload of this codec begins with that is neither compressed nor sealed."""
        return bytes((VERSION, self.serializer.tag, 0, 0))

    # -- calls -----------------------------------------------------------------------------------------------------

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any], func: Callable[..., Any] | None = None) -> bytes:
        """The payload of a call, not sealed; `func` only where no path leads to the function.

        Raises:
            NotEnqueueable: When the arguments can't be serialized, or are too large.
        """
        return self._pack(self.body(args, kwargs, func))

    def encode_all(self, calls: Iterable[Sequence[Any]], func: Callable[..., Any] | None = None) -> list[bytes]:
        """As :meth:`encode`, of calls with positional arguments. Raises what that does."""
        dumped, prefix, none = self._dumped, self.prefix, dict[str, Any]()
        rest = [none] if func is None else [none, func]
        most = self.max_size if self.compressor is None else self.compress_above
        payloads = []
        for args in calls:
            body = dumped([list(args), *rest], args, none)
            payloads.append(prefix + body if len(body) <= most else self._pack(body))
        return payloads

    def body(self, args: Sequence[Any], kwargs: Mapping[str, Any], func: Callable[..., Any] | None = None) -> bytes:
        """What the payload of a call is before it is compressed. Raises what :meth:`encode` does."""
        call = [list(args), dict(kwargs)] if func is None else [list(args), dict(kwargs), func]
        return self._dumped(call, args, kwargs)

    def _dumped(self, call: list[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        try:
            body = self.serializer.dumps(call)
        except NotSerializable as error:
            raise NotEnqueueable(f"{_argument(error.steps)} {error.what}") from error
        except Exception as error:
            raise NotEnqueueable(
                f"the arguments can't be serialized with {self.serializer.name}: {type(error).__name__}: {error}; "
                + self._culprits(args, kwargs)
            ) from error
        if len(body) > self.max_size:
            raise NotEnqueueable(
                f"the arguments take {len(body)} bytes, more than the queue's limit of {self.max_size}; "
                "store large data elsewhere and pass its name"
            )
        return body

    def digest(self, data: bytes) -> str:
        """32 hex digits that stand for `data`. If the queue encrypts, it takes its secret to try what that may be."""
        import hashlib

        key = hashlib.sha256(self._secrets[0]).digest() if self._encrypt else b""
        return hashlib.blake2b(data, digest_size=16, key=key, person=b"delayed unique").hexdigest()

    def seal(self, message: Message) -> Message:
        """The message with a sealed payload, if the queue has a secret."""
        if self.seals is None:
            return message
        place = about(TASK, self._name, message.id, message.header())
        return message._replace(payload=self.seals.seal(place, message.payload))

    def open(self, message: Message, header: bytes) -> Opened:
        """The message without its seal, if it may be run. Nothing of the payload is decoded, nothing imported.

        Args:
            header: as it is stored.

        Raises:
            DecodeError: When it is too large, or when its seal is not right, or missing.
            NotAllowed: When the path of its function is not on the queue's list, or leads to an odd place.
        """
        if self.seals is not None:
            payload = message.payload
            self._check_size(payload, OVERHEAD)
            self._check_version(payload)
            if payload[3] or not self.accept_unsigned:
                place = about(TASK, self._name, message.id, header)
                message = message._replace(payload=self._unseal(place, payload))
        if self.allow is not None:
            self.allow.check_path(message.func)
        elif self._wary and (len(message.payload) < 2 or message.payload[1] not in self._trusted):
            from delayed.allow import check_place

            check_place(message.func)
        return Opened(message)

    def decode(self, payload: bytes) -> Call:
        """(args, kwargs, func) of an opened payload.

        Raises:
            DecodeError: When it can't be decoded, or is not of this codec's form.
        """
        serializer, call = self._load(payload)
        try:
            if len(call) == 2:
                args, kwargs = call
                func = None
            else:
                args, kwargs, func = call
                if serializer.plain:
                    raise TypeError("it is no call")
            if type(kwargs) is not dict or (type(args) is not list and type(args) is not tuple):
                raise TypeError("it is no call")
            return tuple(args), kwargs, func
        except Exception as error:
            raise _undecodable(serializer, error) from error

    def is_plain(self, payload: bytes) -> bool:
        """Whether a payload that was decoded is of plain data."""
        return payload[1] not in self._trusted

    def check_function(self, path: str, func: Callable[..., Any], plain: bool) -> None:
        """Refuse a function that this queue does not allow.

        Args:
            path: by which it was found.
            plain: whether its arguments came as plain data.

        Raises:
            NotAllowed: When it is not allowed.
        """
        if self.allow is not None:
            self.allow.check(path, func)
        elif plain and not is_decorated(func):
            raise NotAllowed(
                f"{path} is not decorated with @delayed, and no other functions are run for payloads of plain data; if "
                f"it is yours, decorate it, or put it on the queue's list: Queue({self.queue!r}, ..., allow=[...])"
            )

    # -- results ---------------------------------------------------------------------------------------------------

    def encode_result(self, id: int, value: Any) -> bytes:
        """The bytes of what the task `id` has to answer, compressed and sealed as its queue's tasks are.

        Raises:
            NotSerializable: When it can't be serialized, or is too large.
        """
        try:
            body = self.serializer.dumps(value)
        except NotSerializable:
            raise
        except Exception as error:
            raise NotSerializable(
                f"can't be serialized with {self.serializer.name}: {type(error).__name__}: {error}"
            ) from error
        if len(body) > self.max_size:
            raise NotSerializable(
                f"takes {len(body)} bytes, more than the queue's limit of {self.max_size}; "
                "store large data elsewhere and return its name"
            )
        payload = self._pack(body)
        return payload if self.seals is None else self.seals.seal(about(RESULT, self._name, id, b""), payload)

    def reads(self, other: Codec) -> bool:
        """Whether what `other` seals is read here."""
        if other.serializer.tag not in self.readers:
            return False
        if self.seals is None or other.seals is None:
            return other.seals is None and (self.seals is None or self.accept_unsigned)
        return other._secrets[0] in self._secrets

    def decode_result(self, id: int, payload: bytes, queue: str | None = None) -> Any:
        """What :meth:`encode_result` was given.

        Args:
            queue: of the task; None: this one.

        Raises:
            DecodeError: When it can't be decoded, or when its seal is not right, or missing.
        """
        name = self._name if queue is None else queue.encode()
        return self._load(self._opened(about(RESULT, name, id, b""), payload))[1]

    # -- schedules -------------------------------------------------------------------------------------------------

    def seal_schedule(self, head: bytes, payload: bytes) -> bytes:
        """The payload of a schedule that is to be stored, sealed with all that is stored before it."""
        return payload if self.seals is None else self.seals.seal(about(SCHEDULE, self._name, 0, head), payload)

    def open_schedule(self, head: bytes, payload: bytes) -> bytes:
        """The payload of a stored schedule without its seal. Who enqueues it seals it for each task: so what had no
        right seal before must not get one.

        Raises:
            DecodeError: When it is too large, or when its seal is not right, or missing.
        """
        self._check_size(payload, OVERHEAD)
        self._check_version(payload)
        if self.seals is None and payload[3]:
            raise DecodeError("the payload is sealed, and this queue has no secret: set DELAYED_SECRET")
        return self._opened(about(SCHEDULE, self._name, 0, head), payload)

    # -- bytes -----------------------------------------------------------------------------------------------------

    def _pack(self, body: bytes) -> bytes:
        compressor = self.compressor
        if compressor is not None and len(body) > self.compress_above:
            packed = compressor.compress(body)
            if len(packed) < len(body):
                return bytes((VERSION, self.serializer.tag, compressor.tag, 0)) + packed
        return self.prefix + body

    def _load(self, payload: bytes) -> tuple[Serializer, Any]:
        """The value of a payload that is not sealed, and what serialized it."""
        if len(payload) > self.max_size + 4:
            self._check_size(payload)
        if not self.is_ours:
            self._load_plugs()
        serializer = self.serializer
        if payload.startswith(self.prefix):
            body = payload[4:]
        else:
            self._check_version(payload)
            _, tag, compression, flags = payload[:4]
            if flags:
                how = {1: "signed", 2: "encrypted"}.get(flags, f"of an unknown kind (flags {flags})")
                raise DecodeError(f"the payload is {how}, and this queue has no secret: set DELAYED_SECRET")
            if tag not in self.readers:
                raise DecodeError(
                    f"the payload was made with {SERIALIZERS.name_of_tag(tag)}, but this queue takes only "
                    + ", ".join(each.name for each in self.readers.values())
                )
            serializer = self.readers[tag]
            body = self._inflate(compression, payload[4:]) if compression else payload[4:]
        try:
            return serializer, serializer.loads(body)
        except Exception as error:
            raise _undecodable(serializer, error) from error

    def _load_plugs(self) -> None:
        """Make the plugs that were given by a path.

        Raises:
            NotReadable: When one can't be.
        """
        try:
            self.readers  # noqa: B018
            self._inflaters  # noqa: B018
        except Exception as error:
            raise NotReadable(f"a serializer or compressor of queue {self.queue!r} can't be loaded: {error}") from error

    def _opened(self, place: bytes, payload: bytes) -> bytes:
        """The payload without its seal, if the queue has a secret."""
        if self.seals is not None:
            self._check_size(payload, OVERHEAD)
            self._check_version(payload)
            if payload[3] or not self.accept_unsigned:
                return self._unseal(place, payload)
        return payload

    def _unseal(self, place: bytes, payload: bytes) -> bytes:
        assert self.seals is not None
        try:
            return self.seals.open(place, payload)
        except MissingDependency as error:
            raise NotReadable(f"the payload is encrypted, and can't be read here: {error}") from error

    def _inflate(self, tag: int, data: bytes) -> bytes:
        inflater = self._inflaters.get(tag)
        if inflater is None:
            kind = next((each for each in COMPRESSORS if each.tag == tag), None)
            if kind is None:
                raise DecodeError(f"the payload was made with the compressor {tag}, which this queue does not know")
            try:
                inflater = self._inflaters[tag] = kind()
            except MissingDependency as error:
                raise NotReadable(f"the payload is compressed, and can't be read here: {error}") from error
        try:
            return inflater.decompress(data, self.max_size)
        except TooLarge as error:
            raise DecodeError(
                f"the payload inflates to more than the queue's limit of {self.max_size} bytes"
            ) from error
        except Exception as error:
            raise DecodeError(
                f"the payload can't be decompressed with {inflater.name}: {type(error).__name__}: {error}"
            ) from error

    def _check_size(self, payload: bytes, more: int = 0) -> None:
        if len(payload) > self.max_size + 4 + more:
            raise DecodeError(f"the payload has {len(payload)} bytes, more than the queue's limit of {self.max_size}")

    def _check_version(self, payload: bytes) -> None:
        if len(payload) < 4:
            raise DecodeError(f"the payload has {len(payload)} bytes, which is none")
        if payload[0] != VERSION:
            raise (NewerFormat if VERSION < payload[0] <= VERSION + NEWER else DecodeError)(
                f"the payload has version {payload[0]}; this worker reads {VERSION}: upgrade delayed on this host, or "
                "it was not made by it"
            )

    def _culprits(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        bad = []
        for name, value in [*((str(index), value) for index, value in enumerate(args)), *kwargs.items()]:
            try:
                self.serializer.dumps(value)
            except Exception:
                bad.append(f"argument {name} is a {type(value).__module__}.{type(value).__qualname__}")
        return "; ".join(bad) or "the function itself is what can't be serialized"

    # -- itself ----------------------------------------------------------------------------------------------------

    def spec(self, *, secret: bool = True) -> dict[str, Any]:
        """Plain data from which :meth:`from_spec` makes the same codec in another process.

        Args:
            secret: whether the secrets are in it. If not, it is for a process that knows the queue's secrets.

        Raises:
            ConfigError: When another process can't find a plug.
        """
        spec: dict[str, Any] = {
            "serializer": SERIALIZERS.spec(self._serializer),
            "max_size": self.max_size,
            "queue": self.queue,
            "accept": [each if isinstance(each, str) else SERIALIZERS.spec(each) for each in self._accept],
            "compressor": None if self._compressor is None else COMPRESSORS.spec(self._compressor),
            "compress_above": self.compress_above,
            "encrypt": self._encrypt,
            "accept_unsigned": self.accept_unsigned,
            "allow": None if self.allow is None else list(self.allow.patterns),
            "secret": [each.hex() for each in self._secrets],
        }
        if not secret:
            spec["secret"] = "known" if self._secrets else []
        return spec

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Codec:
        """The codec of :meth:`spec`.

        Raises:
            ConfigError: When that has no secrets, and this process does not know those of the queue.
        """
        return cls(**settings_of(spec))

    @property
    def trust(self) -> str:
        """What it takes from whom, in a few words."""
        if self.seals is None:
            return "unsigned" if self.allow is None else "unsigned, with an allow-list"
        how = "encrypted" if self._encrypt else "signed"
        return f"{how}, or unsigned for now" if self.accept_unsigned else how

    def __repr__(self) -> str:
        return f"<Codec {self._serializer} of queue {self.queue!r}>"  # and no secrets


def _by_tag(plugs: Sequence[P]) -> dict[int, P]:
    """Plugs by their tags.

    Raises:
        ConfigError: When two that are not of one kind have the same.
    """
    found: dict[int, P] = {}
    for plug in plugs:
        other = found.setdefault(plug.tag, plug)
        if not isinstance(plug, type(other)) and not isinstance(other, type(plug)):
            raise ConfigError(f"{plug.name!r} has the tag {plug.tag} of {other.name!r}; give it another one")
    return found


def settings_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`Codec` that a spec stands for.

    Raises:
        ConfigError: See :meth:`Codec.from_spec`.
    """
    secret = spec["secret"]
    if secret == "known":
        found = _known.get(spec["queue"]) or secrets_of(None)
        if not found:
            name = spec["queue"]
            raise ConfigError(f"queue {name!r} has a secret that this process does not know: set DELAYED_SECRET")
        return {**spec, "secret": found}
    return {**spec, "secret": [bytes.fromhex(each) for each in secret]}


def _argument(steps: Sequence[Any]) -> str:
    """How a user calls the place in a call that `steps` lead to."""
    if len(steps) < 2:
        return "the call"
    rest = "".join(f"[{step!r}]" for step in steps[2:])
    return f"argument {steps[1]}{rest}"


def _undecodable(serializer: Serializer, error: Exception) -> DecodeError:
    return DecodeError(f"the payload can't be decoded with {serializer.name}: {type(error).__name__}: {error}")
