"""Compressors: two-method plugs. What they make, none of them inflates beyond a limit that the caller sets.

One with another level is a subclass, whose output every worker reads without being told::

    class Small(compressors.Lzma):
        name = "small"
        level = 9

    queue = Queue("archive", compressor=Small)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

from delayed.plugs import Plugs, missing

LZMA_MEMORY = 128 * 2**20  # bytes that inflating may take; the highest level needs 65 MiB
ZSTD_WINDOW_LOG = 27  # ... as the power of two of the window, 128 MiB: what the command line tool takes too


class TooLarge(ValueError):
    """Raised when data inflates to more than the limit."""


class Compressor(Protocol):
    """What a compressor is.

    Attributes:
        name: unique.
        tag: 1 to 255, unique: what says on the wire that data is of this compressor. Your own are from 128.
    """

    name: str
    tag: int

    def compress(self, data: bytes) -> bytes:
        """The data, shorter."""

    def decompress(self, data: bytes, limit: int) -> bytes:
        """What :meth:`compress` was given, in about `limit` bytes of memory at most.

        Raises:
            TooLarge: When that has more than `limit` bytes.
            Exception: Any other, when the data is damaged, is cut off, or has more behind its end.
        """


class _Streaming(ABC):
    """For modules whose decompressor objects take a maximal length, and tell of their end."""

    name: str

    @abstractmethod
    def decompressor(self) -> Any:
        """A fresh object for one piece of data."""

    def decompress(self, data: bytes, limit: int) -> bytes:
        stream = self.decompressor()
        found: bytes = stream.decompress(data, limit + 1)
        if len(found) > limit:
            raise TooLarge(f"it inflates to more than {limit} bytes")
        if not stream.eof:
            raise ValueError("it is cut off")
        if stream.unused_data:
            raise ValueError("there is something behind its end")
        return found


class Zlib(_Streaming):
    """The zlib of the standard library: quick, fair, and everywhere."""

    name = "zlib"
    tag = 1
    level = 6
    form = 15  # window bits; 16 more: with gzip's header

    def __init__(self) -> None:
        import zlib

        self._zlib = zlib

    def compress(self, data: bytes) -> bytes:
        stream = self._zlib.compressobj(self.level, self._zlib.DEFLATED, self.form)
        return stream.compress(data) + stream.flush()

    def decompressor(self) -> Any:
        return self._zlib.decompressobj(self.form)


class Gzip(Zlib):
    """The same in the form of a gzip file, for what other programs are to read."""

    name = "gzip"
    tag = 2
    form = 31


class Bzip2(_Streaming):
    """The bz2 of the standard library: slow, and small for long text."""

    name = "bzip2"
    tag = 3
    level = 9

    def __init__(self) -> None:
        import bz2

        self._bz2 = bz2

    def compress(self, data: bytes) -> bytes:
        return self._bz2.compress(data, self.level)

    def decompressor(self) -> Any:
        return self._bz2.BZ2Decompressor()


class Lzma(_Streaming):
    """The lzma of the standard library, in the form xz: the slowest, and the smallest."""

    name = "lzma"
    tag = 4
    level = 6

    def __init__(self) -> None:
        import lzma

        self._lzma = lzma

    def compress(self, data: bytes) -> bytes:
        return self._lzma.compress(data, preset=self.level)

    def decompressor(self) -> Any:
        return self._lzma.LZMADecompressor(self._lzma.FORMAT_XZ, LZMA_MEMORY)


class Zstd(_Streaming):
    """Zstandard: quicker than zlib, and smaller. In the standard library from Python 3.14; else ``delayed[zstd]``."""

    name = "zstd"
    tag = 5
    level = 3

    def __init__(self) -> None:
        try:
            from compression import zstd  # type: ignore[import-not-found, unused-ignore]
        except ModuleNotFoundError:
            try:
                from backports import zstd  # type: ignore[import-not-found, no-redef, unused-ignore]
            except ModuleNotFoundError as error:
                raise missing("backports.zstd", "zstd", "compressor='zstd'") from error
        self._zstd: Any = zstd
        self._options = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}

    def compress(self, data: bytes) -> bytes:
        packed: bytes = self._zstd.compress(data, self.level)
        return packed

    def decompressor(self) -> Any:
        return self._zstd.ZstdDecompressor(options=self._options)


class Lz4(_Streaming):
    """LZ4 frames: the quickest, and the least small. Needs ``delayed[lz4]``."""

    name = "lz4"
    tag = 6
    level = 0

    def __init__(self) -> None:
        try:
            from lz4 import frame  # type: ignore[import-untyped, import-not-found, unused-ignore]
        except ModuleNotFoundError as error:
            raise missing("lz4", "lz4", "compressor='lz4'") from error
        self._frame: Any = frame

    def compress(self, data: bytes) -> bytes:
        packed: bytes = self._frame.compress(data, compression_level=self.level)
        return packed

    def decompressor(self) -> Any:
        return self._frame.LZ4FrameDecompressor()


COMPRESSORS: Plugs[Compressor] = Plugs("compressor", ("compress", "decompress"), (Zlib, Gzip, Bzip2, Lzma, Zstd, Lz4))
