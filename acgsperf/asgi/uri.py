"""Target URIs: equal URIs have one key. Normalisation by RFC 3986, 6.2."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

from acgsperf.asgi.fields import Headers, joined

__all__ = ["Target", "path_tag", "related", "target_of", "target_with_host"]

# Longer URIs are not stored.
_MAX_URI: Final = 2_048
_DEFAULT_PORTS: Final = {"http": b":80", "https": b":443"}
# What a URI may contain (RFC 3986, 3.3 and 3.4), besides letters and digits. All else is encoded.
_LEGAL: Final = "-._~!$&'()*+,;=:@/"
_ENCODED: Final = re.compile(rb"%[0-9A-Fa-f]{2}|[^-._~!$&'()*+,;=:@/?%A-Za-z0-9]")
# Servers do not check the host. These characters are encoded, so that no part of it can be read as a path or a query.
_NOT_IN_HOST: Final = re.compile(rb"[/?#\x00-\x20\x7f-\xff]")
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class Target(NamedTuple):
    """The target of a request.

    Attributes:
        uri: the normalised URI, which is the key of the response and a tag of all its variants.
        path: the tag of all responses of the path, whatever their host and query are.
        storable: whether a response may be stored. False for a path with dot segments: an application that does not
            remove them answers for another path than the normalised one.
        bypasses: whether the cache neither answers the request nor stores its response. True if the URI is too long, or
            has no path: "GET .org/" of the host "example" would otherwise be "/" of "example.org".
    """

    uri: str
    path: str
    storable: bool
    bypasses: bool


def target_of(scope: Mapping[str, Any]) -> Target:
    """Return the target of a request."""
    return target_with_host(scope, joined(scope["headers"], b"host") or b"")


def target_with_host(scope: Mapping[str, Any], host: bytes) -> Target:
    """Return the target of a request whose `Host` header is known."""
    return _target(scope.get("scheme", "http"), host, _raw_path(scope), scope.get("query_string", b""))


def path_tag(path: str) -> str:
    """Return the tag of all responses of a path, which may be encoded or decoded.

    Raises:
        ValueError: if it is not a path.
    """
    if not path.startswith("/") or "?" in path or "#" in path:
        raise ValueError(f"path must begin with / and have no query, got {path!r:.100}")
    return _path_tag(_without_dot_segments(_normalised(_quoted(path, _LEGAL + "%"))))


def _path_tag(path: bytes) -> str:
    """Return the tag of a path without dot segments. It is that of the decoded path, which the application sees."""
    return "http-path:" + quote(unquote_to_bytes(path))


def related(scope: Mapping[str, Any], headers: Headers) -> Iterable[str]:
    """Return the URIs of the same origin in `Location` and `Content-Location` (RFC 9111, 4.4)."""
    host = joined(scope["headers"], b"host") or b""
    scheme = scope.get("scheme", "http")
    base = f"{scheme}://{host.decode('latin-1')}{_raw_path(scope).decode('latin-1')}"
    origin = _normalised_host(scheme, host)
    for name in (b"location", b"content-location"):
        value = joined(headers, name)
        if value is None or len(value) > _MAX_URI or len(base) > _MAX_URI:
            continue
        try:
            found = urlsplit(urljoin(base, value.decode("latin-1")))
        except ValueError:
            continue
        other = found.netloc.encode("latin-1")
        if found.scheme == scheme and _normalised_host(scheme, other) == origin:
            yield _target(scheme, other, found.path.encode("latin-1"), found.query.encode("latin-1")).uri


def _raw_path(scope: Mapping[str, Any]) -> bytes:
    # Without `raw_path`, the decoded path is quoted again, so that no part of it can be read as a query.
    return scope.get("raw_path") or _quoted(scope["path"], _LEGAL)


def _quoted(path: str, safe: str) -> bytes:
    try:
        return quote(path, safe, errors="surrogateescape").encode()
    except UnicodeEncodeError:
        # It has surrogates that do not stand for bytes.
        return quote(path, safe, errors="surrogatepass").encode()


def _target(scheme: str, host: bytes, path: bytes, query: bytes) -> Target:
    # A path as long as that is too long even when it is normalised.
    if len(path) + len(query) + len(host) > 3 * _MAX_URI or (path and not path.startswith(b"/")):
        return Target("", "", False, True)
    encoded = _normalised(path).replace(b"?", b"%3F") or b"/"
    clean = _without_dot_segments(encoded)
    uri = f"http:{scheme}://{_normalised_host(scheme, host).decode('latin-1')}{clean.decode('latin-1')}"
    if query:
        uri = f"{uri}?{_normalised(query).decode('latin-1')}"
    return Target(uri, _path_tag(clean), clean == encoded, len(uri) > _MAX_URI)


def _normalised_host(scheme: str, host: bytes) -> bytes:
    host = _NOT_IN_HOST.sub(_one_encoding, host.strip(b" \t").lower())
    for ending in (_DEFAULT_PORTS.get(scheme, b":"), b":"):
        if host.endswith(ending):
            return host.removesuffix(ending)
    return host


def _normalised(part: bytes) -> bytes:
    """Return a path or query whose unreserved characters are not encoded, and whose other encodings are upper-case."""
    return _ENCODED.sub(_one_encoding, part)


def _one_encoding(found: "re.Match[bytes]") -> bytes:
    text = found[0]
    if len(text) == 1:
        return b"%%%02X" % text[0]
    code = int(text[1:], 16)
    return bytes((code,)) if code in _UNRESERVED else text.upper()


def _without_dot_segments(path: bytes) -> bytes:
    """Return a path without `.` and `..` (RFC 3986, 5.2.4)."""
    if b"/." not in path:
        return path
    kept: list[bytes] = []
    segments = path.split(b"/")
    for segment in segments:
        if segment == b"..":
            if len(kept) > 1:
                kept.pop()
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in {b".", b".."}:
        kept.append(b"")
    return b"/".join(kept) if len(kept) > 1 else b"/"
