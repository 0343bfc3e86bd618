"""Entity tags and dates of modification: conditional requests (RFC 9110, 13) and 304 (RFC 9111, 3.2)."""

import re
from typing import Final

from acgsperf.asgi.fields import Headers, http_date, joined

__all__ = [
    "CONDITIONS",
    "condition_headers",
    "freshened",
    "is_not_modified",
    "is_same_representation",
    "is_validated",
    "not_modified_headers",
    "validators_of",
]

# The conditions of a client that has a response already. The cache evaluates them.
CONDITIONS: Final = frozenset({b"if-none-match", b"if-modified-since"})
# What describes a body, which a 304 does not have (RFC 9110, 15.4.5). All else is about the response, like cookies and
# the headers of CORS.
_NOT_IN_NOT_MODIFIED: Final = frozenset(
    {
        b"accept-ranges",
        b"content-digest",
        b"content-disposition",
        b"content-encoding",
        b"content-language",
        b"content-length",
        b"content-md5",
        b"content-range",
        b"content-type",
        b"digest",
        b"last-modified",
        b"repr-digest",
        b"trailer",
        b"transfer-encoding",
    }
)
# These describe the stored body, which a 304 does not replace.
_NOT_UPDATED: Final = frozenset(
    {b"content-encoding", b"content-length", b"content-md5", b"content-range", b"etag", b"transfer-encoding"}
)
_TAG: Final = re.compile(rb'(?:[Ww]/)?"([^"]*)"')


def is_not_modified(
    if_none_match: bytes | None,
    if_modified_since: bytes | None,
    etag: bytes | None,
    last_modified: bytes | None,
    received_at: float,
) -> bool:
    """Return whether a client has this representation already.

    Args:
        if_none_match: takes precedence over `if_modified_since`.
        if_modified_since: compared with `last_modified`; without that, with `received_at`.
        etag, last_modified: those of the representation.
        received_at: its `Date`, or when it was received, in seconds since the epoch.
    """
    if if_none_match is not None:
        opaque = None if etag is None else _opaque(etag)
        # Searching the text is cheaper than parsing the list, and most tags differ.
        if opaque is None or opaque not in if_none_match:
            return if_none_match.strip() == b"*"
        tags = _TAG.findall(if_none_match)
        return opaque in (tags or [tag.strip() for tag in if_none_match.split(b",")])
    since = http_date(if_modified_since)
    if since is None:
        return False
    modified = http_date(last_modified)
    return (received_at if modified is None else modified) <= since


def is_same_representation(if_range: bytes, etag: bytes | None, last_modified: bytes | None, dated_at: float) -> bool:
    """Return whether `If-Range` is the strong validator of a representation.

    Args:
        if_range: an entity tag or a date.
        etag, last_modified: those of the representation.
        dated_at: its `Date`, in seconds since the epoch.
    """
    if_range = if_range.strip()
    if if_range.startswith(b'"'):
        return if_range == etag
    modified = http_date(if_range)
    # RFC 9110, 8.8.2.2: what was modified in the second of its `Date` may have been modified again in that second.
    return modified is not None and if_range == last_modified and dated_at - modified >= 1


def is_validated(stored: bytes | None, received: bytes | None) -> bool:
    """Return whether a 304 is about the stored response: it has no entity tag, or the same (RFC 9111, 4.3.4)."""
    if received is None or received == stored:
        return True
    tags = _TAG.findall(received)
    return not tags or (stored is not None and _opaque(stored) in tags)


def condition_headers(etag: bytes | None, last_modified: bytes | None) -> list[tuple[bytes, bytes]]:
    """Return the headers that ask whether a stored response is still valid; empty if it has no validators."""
    found = [] if etag is None else [(b"if-none-match", etag)]
    if last_modified is not None:
        found.append((b"if-modified-since", last_modified))
    return found


def freshened(stored: Headers, received: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers of a stored response, updated by those of a 304."""
    updates = [(name, value) for name, value in received if name.lower() not in _NOT_UPDATED]
    # The stored `Date` goes even if there is no new one: the time since then would count as age.
    replaced = {name.lower() for name, _ in updates} | {b"date"}
    return [(name, value) for name, value in stored if name.lower() not in replaced] + updates


def not_modified_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return those headers of a response that a 304 contains."""
    return [(name, value) for name, value in headers if name.lower() not in _NOT_IN_NOT_MODIFIED]


def _opaque(etag: bytes) -> bytes:
    found = _TAG.fullmatch(etag)
    return etag if found is None else found[1]


def validators_of(headers: Headers) -> tuple[bytes | None, bytes | None]:
    """Return `ETag` and `Last-Modified`; None for one that is absent or cannot be used."""
    etag, modified = joined(headers, b"etag"), joined(headers, b"last-modified")
    return etag or None, None if http_date(modified) is None else modified
