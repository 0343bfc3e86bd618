"""What is stored under a key: a header, tags, the full key and the value as MessagePack.

    magic    2  b"\\xacG"
    version  1
    flags    1  bit 0: negative
    created  8  seconds since the epoch, IEEE 754, as the two that follow
    fresh    8  infinity for never stale
    kept     8  infinity for no end
    key      4  length in bytes, as the two that follow
    tags     4
    payload  4

All numbers are little-endian; key, tags and payload follow. The tags are a MessagePack array of pairs: a tag and its
generation, an opaque token of the tier. Every hit compares the key, because an address is not an identity.

The format of values is MessagePack, by msgspec: it is the fastest well-maintained one, has bytes, distinguishes
integers and floats, and creates only plain values.

`unseal_many`, in `envelope` (compiled) and `envelope_py`, opens a batch. The compiled one passes to `unseal` what it
does not open itself.
"""

import struct
from collections.abc import Iterable, Sequence
from math import inf
from typing import Any, Final

from msgspec import msgpack
from xxhash import xxh3_128_hexdigest

from acgsperf._native.entry import Entry

MAX_KEY_BYTES: Final = 200
# What a tag adds to an envelope besides its text: MessagePack's framing and a generation.
TAG_OVERHEAD_BYTES: Final = 24

# Magic, version and flags as one number: a plain entry, and a negative one.
PLAIN: Final = int.from_bytes(b"\xacG\x01\x00", "little")
_NEGATIVE: Final = int.from_bytes(b"\xacG\x01\x01", "little")
_HEADER: Final = struct.Struct("<IdddIII")
_HEADER_BYTES: Final = _HEADER.size

_Tags = tuple[tuple[str, bytes], ...]

_encode = msgpack.Encoder().encode
decode = msgpack.Decoder().decode
_decode_tags = msgpack.Decoder(_Tags).decode
_pack_header = _HEADER.pack
_unpack_header = _HEADER.unpack_from


class CorruptEnvelopeError(ValueError):
    """Stored bytes that are not the envelope of the key under which they were found."""


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

    0xff is in no key's bytes, so that no short key has the address of a long one.
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


def size(key: bytes, payload: bytes, tags: Iterable[str]) -> int:
    """Return the largest size that an envelope can have.

    Raises:
        TypeError, ValueError: for a tag that is not a str, or has lone surrogates.
    """
    return _HEADER_BYTES + len(key) + len(payload) + sum(len(str.encode(tag)) + TAG_OVERHEAD_BYTES for tag in tags)


def seal(entry: Entry, key: bytes, payload: bytes, generations: Sequence[bytes] = ()) -> bytes:
    """Return the envelope of an entry whose value `pack_value` has packed.

    Args:
        entry: provides times, tags and flags.
        key: its identity.
        payload: its value.
        generations: one for each tag, in order; none for a tier that finds tags in another way.
    """
    tags = b""
    if entry.tags:
        tags = _encode(tuple(zip(entry.tags, generations or [b""] * len(entry.tags), strict=True)))
    fresh = inf if entry.fresh_until is None else entry.fresh_until
    kept = inf if entry.kept_until is None else entry.kept_until
    lengths = len(key), len(tags), len(payload)
    header = _pack_header(_NEGATIVE if entry.negative else PLAIN, entry.created_at, fresh, kept, *lengths)
    return b"".join((header, key, tags, payload))


def is_of_another_key(blob: bytes | None, key: bytes) -> bool:
    """Returns whether this is the envelope of another key, as if a server had answered another question."""
    if blob is None or len(blob) < _HEADER_BYTES:
        return False
    kind, _, _, _, key_size, tags_size, payload_size = _unpack_header(blob)
    complete = _HEADER_BYTES + key_size + tags_size + payload_size == len(blob)
    return complete and kind in (PLAIN, _NEGATIVE) and blob[_HEADER_BYTES : _HEADER_BYTES + key_size] != key


def unseal(blob: bytes, key: bytes, limit: int, now: float) -> tuple[Entry | None, Sequence[bytes]]:
    """Return the entry in an envelope and the generations of its tags; None and no generations if not kept until now.

    Raises:
        CorruptEnvelopeError: for anything that `seal` did not create for this key, or more than `limit` bytes.
    """
    if len(blob) > limit:
        raise CorruptEnvelopeError(f"an envelope must have at most {limit} bytes, got {len(blob)}")
    try:
        kind, created, fresh, kept, key_size, tags_size, payload_size = _unpack_header(blob)
        tags_at = _HEADER_BYTES + key_size
        payload_at = tags_at + tags_size
        # Lengths are compared with the size before anything of that length is read or created.
        if (
            payload_at + payload_size != len(blob)
            or blob[_HEADER_BYTES:tags_at] != key
            or (kind != PLAIN and kind != _NEGATIVE)
            # Infinity means never, and nothing was created at such a time; NaN is not a time.
            or not -inf < created < inf
            or fresh != fresh
            or kept != kept
        ):
            raise CorruptEnvelopeError("not an envelope of this key")
        value = decode(blob[payload_at:])
        pairs = _decode_tags(blob[tags_at:payload_at]) if tags_size else ()
        if kept <= now:
            return None, ()
        if fresh == inf:
            fresh = None
        if kept == inf:
            kept = None
        if kind == PLAIN and not pairs:
            return Entry(value, created, fresh, kept), ()
        tags, generations = tuple(tag for tag, _ in pairs), tuple(generation for _, generation in pairs)
        return Entry(value, created, fresh, kept, tags, kind == _NEGATIVE), generations
    except (CorruptEnvelopeError, MemoryError):
        raise
    except Exception as error:
        # A decoder may reject garbage in many ways, endless nesting among them.
        raise CorruptEnvelopeError(f"{type(error).__name__} in an envelope") from error
