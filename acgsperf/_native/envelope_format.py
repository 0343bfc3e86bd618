"""What is stored under a key: a header, tags, the full key and the value as MessagePack.

    magic    2  b"\\xacG"
    version  1
    flags    1  bit 0: negative
    created  8  seconds since the epoch, IEEE 754, as the two that follow
    fresh    8  infinity for never stale
    kept     8  infinity for ever
    key      4  length in bytes, as the two that follow
    tags     4
    payload  4

All little-endian; key, tags and payload follow. The tags are a MessagePack array of pairs: a tag and its generation,
an opaque token of the tier. The key is compared on every hit, for an address is not an identity.

MessagePack by msgspec: it is the fastest that is well kept, has bytes, keeps integers and floats apart, and builds
nothing but plain values.

`unseal_many`, in `envelope` (compiled) and `envelope_py`, opens a batch. The compiled one passes on to `unseal` what it
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
# What a tag adds to an envelope beside its text: MessagePack's framing and a generation.
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
    """Stored bytes that are not the envelope of the key that they were found under."""


def identity(key: str) -> bytes:
    """The bytes of a key: UTF-8, where a lone surrogate, which is no text, has bytes too."""
    try:
        return key.encode()
    except UnicodeEncodeError:
        return key.encode(errors="surrogatepass")


def identities(keys: Sequence[str]) -> list[bytes]:
    """The bytes of keys."""
    try:
        return [key.encode() for key in keys]
    except UnicodeEncodeError:
        return [identity(key) for key in keys]


def address(key: bytes) -> bytes:
    """Where a key is stored: under itself, or its xxh3-128 when it is long.

    0xff is in no key's bytes, so that no short key has the address of a long one.
    """
    return key if len(key) <= MAX_KEY_BYTES else b"\xffxxh3:" + xxh3_128_hexdigest(key).encode()


def addresses(keys: list[bytes]) -> list[bytes]:
    """Where keys are stored; the same list where all of them are short."""
    return keys if max(map(len, keys), default=0) <= MAX_KEY_BYTES else [address(key) for key in keys]


def pack_value(value: Any) -> bytes:
    """A value as MessagePack.

    Raises:
        TypeError, ValueError, OverflowError, RecursionError: for what is not JSON-like: other types, lone surrogates,
            integers of more than 64 bits, nesting without end.
    """
    return _encode(value)


def size(key: bytes, payload: bytes, tags: Iterable[str]) -> int:
    """The most bytes that an envelope can take.

    Raises:
        TypeError, ValueError: for a tag that is no text, or has lone surrogates.
    """
    return _HEADER_BYTES + len(key) + len(payload) + sum(len(str.encode(tag)) + TAG_OVERHEAD_BYTES for tag in tags)


def seal(entry: Entry, key: bytes, payload: bytes, generations: Sequence[bytes] = ()) -> bytes:
    """The envelope of an entry whose value `pack_value` has packed.

    Args:
        entry: gives times, tags and flags.
        key: its identity.
        payload: its value.
        generations: one for each tag, in order; none for a tier that finds tags otherwise.
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
    """The entry in an envelope, and the generations of its tags; None, and none, when it is not kept until now.

    Raises:
        CorruptEnvelopeError: for anything that `seal` did not make for this key, and more than `limit` bytes.
    """
    if len(blob) > limit:
        raise CorruptEnvelopeError(f"{len(blob)} bytes in an envelope, of at most {limit}")
    try:
        kind, created, fresh, kept, key_size, tags_size, payload_size = _unpack_header(blob)
        tags_at = _HEADER_BYTES + key_size
        payload_at = tags_at + tags_size
        # Lengths are compared with what is there before anything is read or made of that length.
        if (
            payload_at + payload_size != len(blob)
            or blob[_HEADER_BYTES:tags_at] != key
            or (kind != PLAIN and kind != _NEGATIVE)
            # Infinity stands for never, and nothing was created at such a time; NaN is no time.
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
        # A decoder that is fed garbage may find many things wrong with it, a nesting without end among them.
        raise CorruptEnvelopeError(f"{type(error).__name__} in an envelope") from error
