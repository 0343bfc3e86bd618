"""The file of a saved cache.

    size
       8   ACGSWARM
       2   version: 1
           blocks: 8 bytes of length, then MessagePack
      16   xxh3-128 of everything before

The first block is the header. The others have some hundred rows each, so that neither the encoder nor the decoder keeps
other threads from running for long. All numbers are little-endian.
"""

import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final, Protocol, TypeVar

from msgspec import Meta, MsgspecError, Struct, ValidationError
from msgspec.msgpack import Decoder, Encoder
from xxhash import xxh3_128

from acgsperf._native.stats import LoadResult, SaveResult
from acgsperf._native.types import SETTING_NAMES
from acgsperf.errors import SnapshotError

VERSION: Final = 1
_MAGIC: Final = b"ACGSWARM"
_START: Final = struct.Struct("<8sH")
_LENGTH: Final = struct.Struct("<Q")
_DIGEST_BYTES: Final = 16
# The rows of a block: so many, or fewer if they are large.
_MOST_ROWS: Final = 500
_BLOCK_BYTES: Final = 1 << 18

_LRU: Final = SETTING_NAMES.index("lru")
_SCALARS: Final = frozenset({str, int, float, bytes, bool, type(None)})
# The bits of a row's last number that count hits.
_HITS: Final = 7

_Row = TypeVar("_Row", bound=tuple[Any, ...])
Remaining = Annotated[int, Meta(ge=1)] | None
Hits = Annotated[int, Meta(ge=0, le=15)]
Setting = Annotated[int, Meta(ge=0, le=5)] | None


class Header(Struct):
    """What a file says about itself.

    Attributes:
        kind: the kind of cache that has saved it.
        namespace: its namespace.
        saved_at: when, in seconds since the epoch.
        setting: the setting of the policy.
        learned: what the predictor has learned.
    """

    kind: str
    namespace: str
    saved_at: float
    setting: Setting = None
    learned: bytes = b""

    def elapsed_ns(self) -> int:
        """Return the time since the file was saved; 0 if the clock has gone back."""
        return max(0, int((time.time() - self.saved_at) * 1e9))


class Cache(Protocol):
    """What saving and loading need of a cache."""

    @property
    def maxsize(self) -> int: ...
    def __len__(self) -> int: ...
    def _kind(self) -> str: ...
    def _dump(self) -> tuple[int | None, list[Any], list[Any], list[int | None], list[int]]: ...
    def _restore(self, key: Any, value: Any, ttl_ns: int | None, meta: int, /) -> bool: ...
    def _resume(self, setting: int, /) -> None: ...


class Rows:
    """Encodes rows in blocks, and leaves out those that would not be equal after decoding.

    Args:
        row_type: the type of a row. The first item is the key.

    Attributes:
        left_out: how many rows were left out so far.
        entries: how many were encoded.
    """

    def __init__(self, row_type: Any) -> None:
        self._encoder = Encoder()
        self._decoder: Decoder[list[Any]] = Decoder(list[row_type])
        self.entries = 0
        self.left_out = 0

    def blocks(self, length: int, rows: Callable[[int, int], list[tuple[Any, ...]]]) -> Iterator[bytes]:
        """Yield blocks.

        Args:
            length: how many rows there are.
            rows: returns those from a start to before an end. Few rows exist at a time, so that the garbage collector
                has little to do.
        """
        start, count = 0, 1
        while start < length:
            some = rows(start, start + count)
            start += count
            block = self._block(some)
            if block is None:
                some, block = self._one_by_one(some)
            self.entries += len(some)
            yield block
            count = max(1, min(_MOST_ROWS, 2 * count, count * _BLOCK_BYTES // len(block)))

    def _block(self, rows: list[tuple[Any, ...]]) -> bytes | None:
        """Return the encoded rows; None if one of them would not be equal."""
        # A value may be of any class. What its methods raise says that it cannot be saved.
        try:
            block = self._encoder.encode(rows)
            return block if self.decoded(block) == rows else None
        except Exception:
            return None

    def _one_by_one(self, rows: list[tuple[Any, ...]]) -> tuple[list[tuple[Any, ...]], bytes]:
        kept = [row for row in rows if self._block([row]) is not None]
        self.left_out += len(rows) - len(kept)
        return kept, self._encoder.encode(kept)

    def decoded(self, block: bytes | memoryview) -> list[tuple[Any, ...]]:
        """Return the rows of a block."""
        rows = self._decoder.decode(block)
        if not _SCALARS.issuperset(type(row[0]) for row in rows):
            rows = [(_hashable(row[0]), *row[1:]) for row in rows]
        return rows


def _hashable(key: Any) -> Any:
    """Return a key as it was before it was encoded: a key contains no lists, so each list was a tuple.

    Raises:
        ValidationError: if it cannot have been a key.
    """
    if type(key) is list:
        return tuple(map(_hashable, key))
    try:
        hash(key)
    except TypeError:
        raise ValidationError(f"expected a hashable key, got {key!r:.100}") from None
    return key


def write(path: str | os.PathLike[str], header: Header, blocks: Iterable[bytes]) -> None:
    """Write a file, or leave the former one as it was."""
    target = Path(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            digest = xxh3_128()

            def put(data: bytes) -> None:
                digest.update(data)
                file.write(data)

            put(_START.pack(_MAGIC, VERSION))
            for block in chain((Encoder().encode(header),), blocks):
                put(_LENGTH.pack(len(block)))
                put(block)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def read(path: str | os.PathLike[str], kind: str, namespace: str) -> tuple[Header, list[memoryview]]:
    """Return the header and the blocks of a file.

    Raises:
        SnapshotError: if it is damaged, or of another version, kind or namespace.
    """
    name = os.fspath(path)
    data = memoryview(Path(path).read_bytes())
    if len(data) < _START.size + _DIGEST_BYTES or bytes(data[: len(_MAGIC)]) != _MAGIC:
        raise SnapshotError(name, "the file of a saved cache", "another file")
    version = _START.unpack_from(data)[1]
    if version != VERSION:
        raise SnapshotError(name, f"version {VERSION}", f"version {version}")
    content, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if xxh3_128(content).digest() != digest:
        raise SnapshotError(name, "the checksum of its content", "another one: the file is damaged")
    try:
        blocks = _blocks(content)
        header = Decoder(Header).decode(blocks[0])
    except (IndexError, struct.error, MsgspecError) as error:
        raise SnapshotError(name, "a header and blocks", f"other data: {error}") from error
    if header.kind != kind:
        raise SnapshotError(name, f"the entries of {kind}", header.kind)
    if header.namespace != namespace:
        raise SnapshotError(name, f"namespace {namespace!r}", repr(header.namespace))
    return header, blocks[1:]


def _blocks(content: memoryview) -> list[memoryview]:
    blocks, start = [], _START.size
    while start < len(content):
        (length,) = _LENGTH.unpack_from(content, start)
        start += _LENGTH.size
        blocks.append(content[start : start + length])
        start += length
    return blocks


def decoded(path: str | os.PathLike[str], blocks: Iterable[memoryview], row_type: Any, values: str) -> list[Any]:
    """Return the rows of blocks.

    Raises:
        SnapshotError: if they are of another type.
    """
    decode = Rows(row_type).decoded
    try:
        return [row for block in blocks for row in decode(block)]
    except MsgspecError as error:
        raise SnapshotError(os.fspath(path), values, f"others: {error}") from error


def fitting(rows: list[_Row], cache: Cache, setting: int | None) -> list[_Row]:
    """Return the rows for which a cache has room: the most used ones if hits were counted, else the newest."""
    surplus = len(rows) - (cache.maxsize - len(cache))
    if surplus <= 0:
        return rows
    if setting is None or setting == _LRU:
        return rows[surplus:]
    # The order is stable: of entries with as many hits, the oldest are left out.
    order = sorted(range(len(rows)), key=lambda place: rows[place][3] & _HITS)
    return [rows[place] for place in sorted(order[surplus:])]


def _row_type(value_type: Any) -> Any:
    values = Any if value_type is None else value_type
    return tuple[Any, values, Remaining, Hits]  # type: ignore[valid-type]


def save(cache: Cache, path: str | os.PathLike[str], namespace: str, value_type: Any) -> SaveResult:
    """Do the work of `BoundedCache.save`."""
    rows = Rows(_row_type(value_type))
    saved_at = time.time()
    setting, *columns = cache._dump()
    header = Header(cache._kind(), namespace, saved_at, setting)

    def some(start: int, end: int) -> list[tuple[Any, ...]]:
        return list(zip(*(column[start:end] for column in columns), strict=True))

    write(path, header, rows.blocks(len(columns[0]), some))
    return SaveResult(rows.entries, rows.left_out)


def load(cache: Cache, path: str | os.PathLike[str], namespace: str, value_type: Any) -> LoadResult:
    """Do the work of `BoundedCache.load`."""
    header, blocks = read(path, cache._kind(), namespace)
    rows = decoded(path, blocks, _row_type(value_type), f"values of the type {value_type}")
    elapsed_ns = header.elapsed_ns()
    fresh = [row for row in rows if row[2] is None or row[2] > elapsed_ns]
    if header.setting is not None and not len(cache):
        cache._resume(header.setting)
    entries = 0
    # Each becomes the oldest of its queue, so that the entries of the file are older than those of the cache.
    for key, value, remaining, meta in reversed(fitting(fresh, cache, header.setting)):
        entries += cache._restore(key, value, None if remaining is None else remaining - elapsed_ns, meta)
    return LoadResult(entries, len(rows) - len(fresh), len(fresh) - entries)
