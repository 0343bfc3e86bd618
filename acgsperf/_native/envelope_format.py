"""What is stored under a key: an entry in its envelope, a tombstone, or a marker.

An envelope (version 2):

    offset  size
     0       8   id
     8       8   stamp, big-endian: scripts compare stamps as bytes
    16       1   kind: E entry, T tombstone, M marker
    17       1   version: 2
    18       2   flags: bit 0 negative; bit 1 compressed, by zstd; bit 2 typed
    20       4   checksum: 0, which means that there is none
    24       8   created, IEEE 754, as the two that follow
    32       8   fresh: infinity for never stale
    40       8   kept: infinity for no end
    48       4   length of the key in bytes, as the one that follows
    52       4   length of the tags
    56       2   number of tokens
    58       2   reserved: 0
    60           tokens of 8 bytes, key, tags, payload

Times are those of the server's clock in seconds since the epoch. All numbers except the stamp are little-endian. The
tags are a MessagePack array of str. The first token is the namespace's, and one for each tag follows, in order; a tier
that compares tokens in another way stores none. Every hit compares the key, because an address is not an identity.

The first 17 bytes are the header, which is all that a tombstone or a marker needs, and all that a write compares. A
tombstone says that the key was deleted. A marker says that a caller loads it. A script must check the kind, and the
version if there are 18 bytes, before it compares stamps, because data of another version may have no stamp there.

Data with another version, or with a flag or a reserved field that this version does not know, is a miss: another
version of the package has stored it. Data that cannot be an envelope of this version is corrupt.

The format of values is MessagePack, by msgspec: it is the fastest well-maintained one, has bytes, distinguishes
integers and floats, and creates only plain values. A value is typed if it comes back as it was only if its reader knows
its type. It comes back as `Packed`, and the cache opens it. A compressed payload is one frame of zstd with its size.

`unseal_many`, in `envelope` (compiled) and `envelope_py`, opens a batch. The compiled one passes to `unseal` what it
does not open itself.
"""

import struct
from collections.abc import Sequence
from math import inf
from typing import Any, Final, NamedTuple

from msgspec import msgpack
from xxhash import xxh3_128_hexdigest

from acgsperf._native.entry import Entry, Packed
from acgsperf._native.zstd import ZstdMissingError, decompressed

MAX_KEY_BYTES: Final = 200
ID_BYTES: Final = 8
TOKEN_BYTES: Final = 8
# The number of tokens has 16 bits, and one of them is the namespace's.
MAX_TAGS: Final = 65_534

VERSION: Final = 2
ENTRY: Final = b"E"
TOMBSTONE: Final = b"T"
MARKER: Final = b"M"

# Kind, version and flags as one number: those of an entry without flags.
PLAIN: Final = int.from_bytes(b"E\x02\x00\x00", "little")
_NEGATIVE_FLAG: Final = 1
COMPRESSED_FLAG: Final = 2
TYPED_FLAG: Final = 4
TYPED: Final = PLAIN | TYPED_FLAG << 16
_KNOWN_FLAGS: Final = _NEGATIVE_FLAG | COMPRESSED_FLAG | TYPED_FLAG
_ENTRY_KIND: Final = ENTRY[0]
_WITHOUT_VALUE: Final = TOMBSTONE + MARKER

_SHORT_HEADER: Final = struct.Struct(">8sQc")
HEADER_BYTES: Final = _SHORT_HEADER.size
_ID_AND_STAMP: Final = struct.Struct(">8sQ")
# The checksum is reserved for the low 32 bits of the xxh3-64 of key, tags and payload. It is 0 and not compared. xxhash
# has no interface for other C code, and a call through Python takes 90 ns, a fifth of the time for opening an envelope.
# It would find only what a server itself has damaged: TCP and PostgreSQL's pages have checksums of their own.
_FIELDS: Final = struct.Struct("<BBHIdddIIHH")
_FIELDS_AT: Final = _ID_AND_STAMP.size
ENVELOPE_HEAD_BYTES: Final = _FIELDS_AT + _FIELDS.size
# What MessagePack adds to a text, and to an array, at most.
_FRAMING_BYTES: Final = 5

_encode = msgpack.Encoder().encode
decode = msgpack.Decoder().decode
_decode_tags = msgpack.Decoder(tuple[str, ...]).decode
_pack_id_and_stamp = _ID_AND_STAMP.pack
_unpack_id_and_stamp = _ID_AND_STAMP.unpack_from
_pack_fields = _FIELDS.pack
_unpack_fields = _FIELDS.unpack_from


class CorruptEnvelopeError(ValueError):
    """Stored bytes that are not the envelope of the key under which they were found."""


class Header(NamedTuple):
    """The header of what is stored under a key.

    Attributes:
        id: 8 bytes.
        stamp: in microseconds; 0 if unknown.
        kind: ENTRY, TOMBSTONE, MARKER, or b"" for something of another version.
    """

    id: bytes
    stamp: int
    kind: bytes


def identity(key: str) -> bytes:
    """Return the bytes of a key: UTF-8, which is extended to lone surrogates."""
    try:
        return key.encode()
    except UnicodeEncodeError:
        return key.encode(errors="surrogatepass")


def identities(keys: Sequence[str]) -> list[bytes]:
    """Return the bytes of keys."""
    try:
        return [key.encode() for key in keys]
    except UnicodeEncodeError:
        return [identity(key) for key in keys]


def address(key: bytes) -> bytes:
    """Return the address of a key: the key itself, or its xxh3-128 if it is long.

    No key contains the byte 0xff, so no short key has the address of a long one.
    """
    return key if len(key) <= MAX_KEY_BYTES else b"\xffxxh3:" + xxh3_128_hexdigest(key).encode()


def addresses(keys: list[bytes]) -> list[bytes]:
    """Return the addresses of keys; the same list if all of them are short."""
    return keys if max(map(len, keys), default=0) <= MAX_KEY_BYTES else [address(key) for key in keys]


def pack_value(value: Any) -> bytes:
    """Return a value as MessagePack.

    Raises:
        TypeError, ValueError, OverflowError, RecursionError: for a value that is not JSON-like: other types, lone
            surrogates, integers of more than 64 bits, endless nesting.
    """
    return _encode(value)


def size(key: bytes, payload: bytes, tags: Sequence[str]) -> int:
    """Return the largest size that an envelope can have.

    Raises:
        TypeError, ValueError: for a tag that is not a str or has lone surrogates, or for too many tags.
    """
    if len(tags) > MAX_TAGS:
        raise ValueError(f"an entry must have at most {MAX_TAGS:,} tags, got {len(tags):,}")
    overhead = ENVELOPE_HEAD_BYTES + TOKEN_BYTES + _FRAMING_BYTES
    of_tags = sum(len(str.encode(tag)) for tag in tags) + len(tags) * (TOKEN_BYTES + _FRAMING_BYTES)
    return overhead + of_tags + len(key) + len(payload)


def seal(
    entry: Entry, key: bytes, payload: bytes, clock_offset: float, *, with_tokens: bool = True, flags: int = 0
) -> tuple[bytes, bytes]:
    """Return the envelope of an entry whose value `pack_value` has packed, in two parts: `head + tokens + tail`.

    Args:
        entry: provides id, stamp, times, tags and flags. Without an id, 8 zero bytes are stored.
        key: its identity.
        payload: its value.
        clock_offset: seconds by which the server's clock is ahead of `time.monotonic`.
        with_tokens: whether the caller puts tokens between the parts: the namespace's and one for each tag, in order.
        flags: those of the payload.

    Raises:
        ValueError: if the id has another length.
    """
    if len(entry.id) not in (0, ID_BYTES):
        raise ValueError(f"id must be {ID_BYTES} bytes, got {entry.id!r:.100}")
    tags = _encode(entry.tags) if entry.tags else b""
    fields = _pack_fields(
        _ENTRY_KIND,
        VERSION,
        flags | _NEGATIVE_FLAG if entry.negative else flags,
        0,
        entry.created_at + clock_offset,
        inf if entry.fresh_until is None else entry.fresh_until + clock_offset,
        inf if entry.kept_until is None else entry.kept_until + clock_offset,
        len(key),
        len(tags),
        1 + len(entry.tags) if with_tokens else 0,
        0,
    )
    return _pack_id_and_stamp(entry.id, entry.stamp) + fields, b"".join((key, tags, payload))


def seal_header(identifier: bytes, stamp: int, kind: bytes) -> bytes:
    """Return a tombstone or a marker: its header alone."""
    return _SHORT_HEADER.pack(identifier, stamp, kind)


def unseal_header(blob: bytes) -> Header:
    """Return the header of what is stored.

    For data of another version, return the first 8 bytes as id, because a later store compares them. The stamp is 0,
    and the kind is empty.

    Args:
        blob: all that is stored, or its first 18 bytes. With only 17, this function notices an unknown kind, but not
            another version.
    """
    kind = blob[_FIELDS_AT:HEADER_BYTES]
    known = len(kind) == 1 and kind in b"ETM" and (len(blob) == HEADER_BYTES or blob[HEADER_BYTES] == VERSION)
    if not known:
        return Header(blob[:ID_BYTES], 0, b"")
    identifier, stamp = _unpack_id_and_stamp(blob)
    return Header(identifier, stamp, kind)


def is_of_another_key(blob: bytes | None, key: bytes) -> bool:
    """Return whether this is the envelope of another key, as if a server had answered another question."""
    if blob is None or len(blob) < ENVELOPE_HEAD_BYTES:
        return False
    kind, version, _, _, _, _, _, key_size, tags_size, tokens, _ = _unpack_fields(blob, _FIELDS_AT)
    key_at = ENVELOPE_HEAD_BYTES + TOKEN_BYTES * tokens
    complete = key_at + key_size + tags_size < len(blob)
    return complete and kind == _ENTRY_KIND and version == VERSION and blob[key_at : key_at + key_size] != key


def unseal(
    blob: bytes, key: bytes, limit: int, now: float, offset: float, token: bytes | None
) -> tuple[Entry | None, Sequence[bytes]]:
    """Return the entry in an envelope and the tokens of its tags; `unseal_many` describes the arguments.

    Returns:
        None and no tokens for a tombstone, a marker, another version, another token of the namespace, for an entry that
        is not kept until now, and for a compressed one without a module for zstd. No tokens if the envelope has none.

    Raises:
        CorruptEnvelopeError: for what `seal` cannot have created for this key, or more than `limit` bytes.
    """
    length = len(blob)
    if length > limit:
        raise CorruptEnvelopeError(f"an envelope must have at most {limit} bytes, got {length}")
    if length > HEADER_BYTES and blob[HEADER_BYTES] != VERSION:
        return None, ()
    if length >= HEADER_BYTES and blob[_FIELDS_AT] in _WITHOUT_VALUE:
        return None, ()
    try:
        kind, _, flags, _, created, fresh, kept, key_size, tags_size, n, reserved = _unpack_fields(blob, _FIELDS_AT)
        if kind == _ENTRY_KIND and (flags & ~_KNOWN_FLAGS or reserved):
            return None, ()
        key_at = ENVELOPE_HEAD_BYTES + TOKEN_BYTES * n
        tags_at = key_at + key_size
        payload_at = tags_at + tags_size
        # Lengths are compared with the size before anything of that length is read or created.
        if (
            kind != _ENTRY_KIND
            or payload_at > length
            or blob[key_at:tags_at] != key
            # Infinity means never, and nothing was created at such a time; NaN is not a time.
            or not -inf < created < inf
            or fresh != fresh
            or kept != kept
        ):
            raise CorruptEnvelopeError("not an envelope of this key")
        tags = _decode_tags(blob[tags_at:payload_at]) if tags_size else ()
        if n and n != 1 + len(tags):
            raise CorruptEnvelopeError(f"an envelope with {len(tags)} tags must have {1 + len(tags)} tokens, got {n}")
        tokens = [blob[at : at + TOKEN_BYTES] for at in range(ENVELOPE_HEAD_BYTES, key_at, TOKEN_BYTES)]
        kept -= offset
        if kept <= now or (token is not None and tokens[:1] != [token]):
            return None, ()
        identifier, stamp = _unpack_id_and_stamp(blob)
        payload = blob[payload_at:]
        if flags & COMPRESSED_FLAG:
            payload = decompressed(payload)
        entry = Entry(
            Packed(payload) if flags & TYPED_FLAG else decode(payload),
            created - offset,
            None if fresh == inf else fresh - offset,
            None if kept == inf else kept,
            tags,
            bool(flags & _NEGATIVE_FLAG),
            identifier,
            stamp,
        )
        return entry, tokens[1:]
    except (CorruptEnvelopeError, MemoryError):
        raise
    except ZstdMissingError:
        return None, ()
    except Exception as error:
        # A decoder may reject garbage in many ways, endless nesting among them.
        raise CorruptEnvelopeError(f"{type(error).__name__} in an envelope") from error
