"""The variants of a URI, which are responses that depend on request headers, and their keys (RFC 9111, 4.1)."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from acgsperf.asgi.fields import MAX_FIELD_BYTES, Headers, joined, members

__all__ = ["Names", "index_of", "key_of", "sets_in", "varying_on"]

Names = tuple[bytes, ...]

_MAX_NAMES: Final = 16
# The maximum number of sets of headers that the variants of a URI may depend on. The oldest set is dropped.
_MAX_SETS: Final = 8
_MARK: Final = "http-vary"
# The order of their members, and upper or lower case, do not matter.
_UNORDERED: Final = frozenset({b"accept-charset", b"accept-encoding", b"accept-language"})
_MAX_REMEMBERED_BYTES: Final = 256


def varying_on(headers: Headers) -> Names | None:
    """Return the request headers that a response depends on; None if there are too many, or if they are not known."""
    value = joined(headers, b"vary")
    if value is None:
        return ()
    if len(value) > MAX_FIELD_BYTES:
        return None
    names = tuple(sorted({*value.lower().replace(b",", b" ").split()}))
    return None if b"*" in names or len(names) > _MAX_NAMES else names


def key_of(root: str, names: Names, headers: Headers, exact: frozenset[bytes]) -> str:
    """Return the key of a variant.

    Args:
        root: the key of the URI.
        names: the headers that the variant depends on.
        headers: those of the request.
        exact: the names of headers whose values are compared byte by byte, because they are secrets.
    """
    values = tuple([_selecting(headers, name) for name in names])
    # The keys of secrets are not remembered.
    if sum(map(len, values)) <= _MAX_REMEMBERED_BYTES and exact.isdisjoint(names):
        return _known_key(root, names, values, exact)
    return _key(root, names, values, exact)


def _selecting(headers: Headers, wanted: bytes) -> bytes:
    """Return the value of a request header with a prefix, so that an empty header differs from an absent one."""
    found = [value for name, value in headers if name == wanted]
    return b"=" + (found[0] if len(found) == 1 else b", ".join(found)) if found else b""


def _key(root: str, names: Names, values: tuple[bytes, ...], exact: frozenset[bytes]) -> str:
    # The key contains a digest, because a header may have any length and may be a secret.
    digest = hashlib.blake2b(digest_size=20)
    for name, value in zip(names, values, strict=True):
        normal = value if name in exact else value[:1] + _normalised(name, value[1:])
        digest.update(b"%b:%d:%b" % (name, len(normal), normal))
    return f"{root} {digest.hexdigest()}"


_known_key = lru_cache(maxsize=4_096)(_key)


def index_of(sets: Sequence[Names], names: Names, until: float) -> list[Any]:
    """Return the value of the cache that lists the sets of headers that the variants of a URI depend on.

    Args:
        sets: those that are known already, the newest first.
        names: the headers that a new variant depends on.
        until: when the last variant expires, in seconds since the epoch.
    """
    return [_MARK, (names, *(other for other in sets if other != names))[:_MAX_SETS], until]


def sets_in(value: object) -> tuple[tuple[Names, ...], float] | None:
    """Return what `index_of` has put into a value of the cache; None for other values."""
    if type(value) is not list or len(value) != 3 or value[0] != _MARK:
        return None
    _, sets, until = value
    if type(sets) is not tuple:
        # A lower tier returns lists. L1 holds this same list, so replacing its item converts it only once.
        if not _is_index(sets, until):
            return None
        sets = value[1] = tuple(map(tuple, sets))
    return sets, until


def _is_index(sets: object, until: object) -> bool:
    return (
        isinstance(sets, list)
        and isinstance(until, float)
        and all(isinstance(names, list) and all(isinstance(name, bytes) for name in names) for names in sets)
    )


def _normalised(name: bytes, value: bytes) -> bytes:
    """Return a value in a form that is the same for all equal values."""
    text = value.decode("latin-1")
    if name in _UNORDERED:
        found = sorted("".join(member.lower().split()) for member in members(text))
    else:
        # What an empty member means is not known.
        found = members(text, empty=True)
    return ",".join(found).encode("latin-1")
