"""Records: each tells other processes of a write.

A record is a MessagePack array: version, writer, time, kind, items. Keys, tags and ids are bytes, because a key may
have lone surrogates, which are not UTF-8.
"""

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final

from msgspec import MsgspecError, Struct, msgpack

from acgsperf._native import envelope_format as envelope

__all__ = ["MAX_KEY_BYTES", "MalformedRecordError", "Record", "RecordKind", "of_keys", "of_tag", "packed", "unpacked"]

# A record names a key of at most this size. For a longer one it says only that such a key has changed.
MAX_KEY_BYTES: Final = 1_024
_VERSION: Final = 1


class RecordKind(Enum):
    """What has happened. The items of a record are pairs of a key and an id, or tags, or none."""

    KEYS = "k"
    LONG_KEYS = "l"
    EXPIRED_KEYS = "x"
    TAG = "t"
    EXPIRED_TAG = "e"
    CLEAR = "c"
    UNLOCKED = "u"
    HELLO = "h"


class MalformedRecordError(ValueError):
    """Bytes that are not a record of this version."""


class Record(Struct, frozen=True):
    """What has happened, in one record.

    Attributes:
        kind: what has happened.
        items: for keys, pairs of key and id; for UNLOCKED, pairs of key and outcome; for tags, pairs of tag and b"".
        writer: 8 bytes that identify the cache that wrote it; empty for a trigger in the database.
        sent_us: the time of the write by the server's clock, in microseconds; 0 if unknown.
    """

    kind: RecordKind
    items: tuple[tuple[bytes, bytes], ...] = ()
    writer: bytes = b""
    sent_us: int = 0


class _Wire(Struct, array_like=True):
    version: int
    writer: bytes
    sent_us: int
    kind: str
    items: tuple[tuple[bytes, bytes], ...]


_decode = msgpack.Decoder(_Wire).decode
_encode = msgpack.Encoder().encode


def of_keys(kind: RecordKind, ids: Iterable[tuple[str, bytes]]) -> list[Record]:
    """Return the records for keys and their ids: one, and another one if there are keys too long to be named."""
    pairs = [(envelope.identity(key), identifier) for key, identifier in ids]
    short = tuple(pair for pair in pairs if len(pair[0]) <= MAX_KEY_BYTES)
    records = [Record(kind, short)] if short else []
    return records if len(short) == len(pairs) else [*records, Record(RecordKind.LONG_KEYS)]


def of_tag(kind: RecordKind, tag: str) -> Record:
    """Return the record for a tag."""
    return Record(kind, ((envelope.identity(tag), b""),))


def packed(record: Record, writer: bytes, sent_us: int) -> bytes:
    """Return a record as bytes, with its writer and time."""
    return _encode(_Wire(_VERSION, writer, sent_us, record.kind.value, record.items))


def unpacked(data: bytes) -> Record:
    """Return the record in these bytes.

    Raises:
        MalformedRecordError: if they are not a record of this version.
    """
    try:
        wire = _decode(data)
        if wire.version != _VERSION:
            raise MalformedRecordError(f"version of a record must be {_VERSION}, got {wire.version}")
        return Record(RecordKind(wire.kind), wire.items, wire.writer, wire.sent_us)
    except MalformedRecordError:
        raise
    except (MsgspecError, ValueError, RecursionError) as error:
        raise MalformedRecordError(f"not a record: {error}") from error


def texts(items: Sequence[tuple[bytes, bytes]]) -> list[tuple[str, bytes]]:
    """Return items with their keys or tags as str."""
    return [(name.decode(errors="surrogatepass"), detail) for name, detail in items]
