"""The bytes of a trace as a stream: decompressed, as UTF-8, from a file or a pipe, with bounded memory."""

import bz2
import codecs
import gzip
import importlib
import io
import lzma
import re
from collections.abc import Callable, Iterator
from typing import IO, Any, Final, cast

from acgsperf.errors import AcgsperfError

__all__ = ["ByteStream", "TraceError", "decompressed", "lines", "recoded"]

PIECE_BYTES: Final = 1 << 16
# A longer line is no request, and would have to be kept in memory.
LONGEST_LINE_BYTES: Final = 1 << 20


class TraceError(AcgsperfError, ValueError):
    """A trace cannot be read; the message says where and what was expected."""


class ByteStream(io.RawIOBase):
    """Reads another stream; `peek` looks ahead, and what `put_back` gets is read next."""

    def __init__(self, source: "IO[bytes] | io.RawIOBase", name: str, problem: str = "cannot be read") -> None:
        self.encoding = "utf-8"
        self._source = source
        self._ahead = b""
        self._zeros = 0
        self._problem = problem
        self.name = name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._zeros:
            count = min(self._zeros, len(buffer))
            self._zeros -= count
            buffer[:count] = bytes(count)
            return count
        # A recoded piece can be longer than the piece it was made from.
        ahead = self._ahead or self._read(len(buffer))
        piece, self._ahead = ahead[: len(buffer)], ahead[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)

    def peek(self, size: int) -> bytes:
        """Return the next bytes: `size` of them, or all that remain."""
        while len(self._ahead) < size and (piece := self._read(PIECE_BYTES)):
            self._ahead += piece
        return self._ahead[:size]

    def skip_nuls(self) -> int:
        """Skip NUL bytes, and return how many there were."""
        skipped = 0
        while (piece := self.peek(PIECE_BYTES)) and (nuls := len(piece) - len(piece.lstrip(b"\0"))):
            self._ahead = self._ahead[nuls:]
            skipped += nuls
        return skipped

    def put_back_nuls(self, count: int) -> None:
        """Undo `skip_nuls`."""
        self._zeros = count

    def put_back(self, data: bytes) -> None:
        """Undo the reading of `data`."""
        self._ahead = data + self._ahead

    def _read(self, size: int) -> bytes:
        try:
            return self._source.read(size) or b""
        except TraceError:
            raise
        except Exception as error:
            # Each codec has exceptions of its own.
            why = (error.strerror if isinstance(error, OSError) else None) or error
            raise TraceError(f"{self.name}: {self._problem}: {why}") from None


def _zstd() -> Any:
    for module in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    raise TraceError("zstd data needs Python 3.14 or later, or: pip install 'acgsperf[cli]'")


class _Unpacked(io.RawIOBase):
    """The content of xz or bzip2 data, perhaps of several parts.

    `LZMAFile` and `BZ2File` ignore garbage after the data, and `LZMAFile` rejects padding.
    """

    def __init__(self, source: ByteStream, magic: bytes, decompressor: Callable[[], Any], padding: int | None) -> None:
        self._source = source
        self._magic = magic
        self._new = decompressor
        self._padding = padding
        self._part = decompressor()

    def read(self, size: int = -1) -> bytes:
        while True:
            if self._part.eof and not self._next_part():
                return b""
            compressed = self._source.read(PIECE_BYTES) if self._part.needs_input else b""
            if self._part.needs_input and not compressed:
                raise EOFError("the data ended before its end mark")
            if data := self._part.decompress(compressed, size):
                return cast("bytes", data)

    def _next_part(self) -> bool:
        self._source.put_back(self._part.unused_data)
        if self._padding and (nuls := self._source.skip_nuls()) % self._padding:
            raise EOFError(f"{nuls} NUL bytes after the data, expected a multiple of {self._padding}")
        head = self._source.peek(len(self._magic))
        if not head:
            return False
        if head != self._magic:
            raise EOFError(f"the data is followed by {head!r}")
        self._part = self._new()
        return True


_Opener = Callable[[ByteStream], "IO[bytes] | io.RawIOBase"]
_XZ: Final = b"\xfd7zXZ\x00"
_BZIP2: Final = b"BZh"
_COMPRESSIONS: Final[tuple[tuple[re.Pattern[bytes], _Opener], ...]] = (
    (re.compile(rb"\x1f\x8b"), lambda source: cast("IO[bytes]", gzip.GzipFile(fileobj=io.BufferedReader(source)))),
    (re.compile(re.escape(_XZ)), lambda source: _Unpacked(source, _XZ, lzma.LZMADecompressor, 4)),
    (re.compile(_BZIP2), lambda source: _Unpacked(source, _BZIP2, bz2.BZ2Decompressor, None)),
    # A frame of zstd, or one to be skipped, which parallel compressors write first.
    (
        re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
        lambda source: cast("IO[bytes]", _zstd().ZstdFile(io.BufferedReader(source))),
    ),
)


def decompressed(source: IO[bytes], name: str) -> ByteStream:
    """Return the content of a stream that is compressed by gzip, xz, bzip2 or zstd, even repeatedly, or not at all.

    Raises:
        TraceError: here or while it is read, when the data is damaged or cut.
    """
    stream = ByteStream(source, name)
    for _ in range(4):
        head = stream.peek(6)
        opener = next((opener for magic, opener in _COMPRESSIONS if magic.match(head)), None)
        if opener is None:
            break
        stream = ByteStream(opener(stream), name, "expected whole compressed data")
    return stream


def _bad_bytes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", error.end


# `surrogateescape` then makes a byte of it that UTF-8 never has, so the line is not UTF-8 either, and is skipped.
_BAD_BYTES: Final = "acgsperf.bad_bytes"
codecs.register_error(_BAD_BYTES, _bad_bytes)


class _Recoded(io.RawIOBase):
    """UTF-8 of a text in another encoding; the byte FF, which is not UTF-8, replaces what is not text there."""

    def __init__(self, source: ByteStream, encoding: str) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder(encoding)(_BAD_BYTES)

    def read(self, size: int = -1) -> bytes:
        while piece := self._source.read(PIECE_BYTES):
            if text := self._decoder.decode(piece):
                return text.encode("utf-8", "surrogateescape")
        return self._decoder.decode(b"", True).encode("utf-8", "surrogateescape")


def recoded(stream: ByteStream, encoding: str) -> ByteStream:
    """Return a stream of UTF-8 from one in another encoding."""
    found = ByteStream(_Recoded(stream, encoding), stream.name)
    found.encoding = encoding.removesuffix("-sig")
    return found


def lines(stream: ByteStream) -> Iterator[tuple[int, bytes | None]]:
    """Yield the lines that are not blank, numbered from 1, without NUL bytes; None for one of more than 1 MiB.

    Log rotation by copying and truncating leaves NUL bytes in front of a line.
    """
    reader = io.BufferedReader(stream, PIECE_BYTES)
    number, line, overlong = 1, b"", False
    while piece := reader.readline(PIECE_BYTES):
        line += piece.replace(b"\0", b"")
        if len(line) > LONGEST_LINE_BYTES:
            line, overlong = b"", True
        if piece.endswith(b"\n"):
            if overlong or (line := line.strip()):
                yield number, None if overlong else line
            number, line, overlong = number + 1, b"", False
    if overlong or (line := line.strip()):
        yield number, None if overlong else line
