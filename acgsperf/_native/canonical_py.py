"""The encoder of requests in pure Python: the fallback where nothing compiles, and the reference for every case.

It behaves as `canonical` does, which documents the functions. `canonical` calls this encoder for what it does not
encode itself. So this module defines the canonical bytes, and rejects what has none.
"""

import math
import struct
from collections.abc import Callable, Mapping
from typing import Final

from xxhash import xxh3_128_hexdigest

IMPLEMENTATION: Final = "python"
MAX_DEPTH: Final = 100
# The tiers store a key up to this length unchanged.
MAX_KEY_BYTES: Final = 200

_pack_float: Final = struct.Struct(">d").pack


def fingerprint(request: object, /) -> str:
    """Return the address of a request."""
    return xxh3_128_hexdigest(canonical(request))


def request_key(request: object, /) -> str:
    """Return the cache key of a request."""
    key = canonical(request)
    if len(key) <= MAX_KEY_BYTES:
        return key.decode("latin-1")
    import hashlib  # takes long to import, and few programs need it

    return "sha256:" + hashlib.sha256(key).hexdigest()


def canonical(request: object, /) -> bytes:
    """Return the canonical bytes of a JSON-like value."""
    return _encode(request, 0, ())


_Path = tuple[object, ...]


def _encode(value: object, depth: int, path: _Path) -> bytes:
    encoder = _ENCODERS.get(type(value))
    if encoder is None:
        for base in (dict, list, tuple, str, int, float):
            if isinstance(value, base):
                encoder = _ENCODERS[base]
                break
        else:
            raise TypeError(f"{_at(path)} must be a JSON-like value, got {type(value).__name__}: {value!r:.100}")
    return encoder(value, depth, path)


def _encode_str(value: str, depth: int, path: _Path) -> bytes:
    try:
        text = str.encode(value)
    except UnicodeEncodeError:
        raise ValueError(f"{_at(path)} must be text without lone surrogates, got {value!r:.100}") from None
    return b"s%d:%b" % (len(text), text)


def _encode_int(value: int, depth: int, path: _Path) -> bytes:
    # Hexadecimal has no limit on digits and takes linear time.
    return b"i%b;" % int.__format__(value, "x").encode()


def _encode_float(value: float, depth: int, path: _Path) -> bytes:
    if not math.isfinite(value):
        raise ValueError(f"{_at(path)} must be a finite number, got {value!r}")
    return b"f" + _pack_float(value)


def _encode_bool(value: bool, depth: int, path: _Path) -> bytes:
    return b"t" if value else b"F"


def _encode_none(value: None, depth: int, path: _Path) -> bytes:
    return b"n"


def _encode_array(value: list[object] | tuple[object, ...], depth: int, path: _Path) -> bytes:
    if depth == MAX_DEPTH:
        raise ValueError(f"{_at(path[:3])}… must be nested at most {MAX_DEPTH} deep")
    # Other threads may change a list or a dict meanwhile. A copy is of one moment.
    parts = [_encode(item, depth + 1, (*path, i)) for i, item in enumerate(tuple(value))]
    return b"a%d:%b" % (len(parts), b"".join(parts))


def _encode_object(value: Mapping[object, object], depth: int, path: _Path) -> bytes:
    if depth == MAX_DEPTH:
        raise ValueError(f"{_at(path[:3])}… must be nested at most {MAX_DEPTH} deep")
    items = (value.copy() if type(value) is dict else value).items()
    parts = [_encode_key(key, path) + _encode(item, depth + 1, (*path, key)) for key, item in items]
    # The bytes of a key are never a prefix of another's, so the pairs sort as their keys do.
    parts.sort()
    return b"o%d:%b" % (len(parts), b"".join(parts))


def _encode_key(key: object, path: _Path) -> bytes:
    if not isinstance(key, str | int | float) and key is not None:
        raise TypeError(f"{_at(path)} must have keys of str, int, float, bool or None, got {key!r:.100}")
    return _encode(key, 0, (*path, key))


def _at(path: _Path) -> str:
    return "$" + "".join(
        # Keys come from clients, so only a short and printable part of one is shown.
        f".{step}" if isinstance(step, str) and step.isidentifier() and len(step) <= 40 else f"[{step!r:.40}]"
        for step in path
    )


_ENCODERS: Final[dict[type, Callable[..., bytes]]] = {
    dict: _encode_object,
    list: _encode_array,
    tuple: _encode_array,
    str: _encode_str,
    int: _encode_int,
    float: _encode_float,
    bool: _encode_bool,
    type(None): _encode_none,
}
