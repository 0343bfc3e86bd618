"""A shared HTTP cache in a `TieredCache`: which responses may be stored and served, by RFC 9111."""

import hashlib
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from enum import IntEnum
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from msgspec import ValidationError, convert

from acgsperf.cache import TieredCache
from acgsperf.cache.pending import PendingLoad

__all__ = ["CacheableRequest", "Recording", "ResponseCache", "Stored"]

Headers = Sequence[tuple[bytes, bytes]]

# RFC 9110, 15.1, without 206, because partial responses are not combined here.
_CACHEABLE: Final = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
# RFC 9110, 15.4.5.
_IN_NOT_MODIFIED: Final = frozenset({b"cache-control", b"content-location", b"date", b"etag", b"expires", b"vary"})
# RFC 9111, 3.1; Age is computed for each response.
_NOT_STORED: Final = frozenset(
    {
        b"age",
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
_DIRECTIVE: Final = re.compile(r"""([\w-]+)\s*(?:=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,;"]+)))?""")
_MAX_KEY: Final = 2_048
_MAX_SECONDS: Final = 2**31
_MAX_VARYING: Final = 16
_FORMAT: Final = 1


class Reach(IntEnum):
    """Which requests a stored response may answer; each level includes those before it."""

    ANONYMOUS = 0
    """Requests without cookies or credentials: the response has no lifetime of its own."""
    SHARED = 1
    """Also requests with cookies: the response has a lifetime."""
    PUBLIC = 2
    """Also requests with `Authorization`: the response is `public`."""


class Stored(NamedTuple):
    """A response in the cache: JSON-like values and bytes, so that tiers can store it."""

    format: int
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    stored_at: float
    initial_age: int
    lifetime: int
    reach: int
    route: str

    def matches_etag(self, if_none_match: str) -> bool:
        """Return whether its entity tag is in `If-None-Match`, by weak comparison."""
        etag = _joined(self.headers, b"etag")
        tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
        return etag is not None and ("*" in tags or etag.removeprefix("W/") in tags)

    def headers_at(self, now: float, *, not_modified: bool = False) -> list[tuple[bytes, bytes]]:
        """Return its headers and its age; with `not_modified` only the headers of a 304."""
        headers = [
            (name, value) for name, value in self.headers if not not_modified or name.lower() in _IN_NOT_MODIFIED
        ]
        return [*headers, (b"age", str(int(self.age(now))).encode())]

    def age(self, now: float) -> float:
        """Return the seconds since the origin created it."""
        return self.initial_age + max(now - self.stored_at, 0.0)


class CacheableRequest:
    """A request that the cache may answer."""

    __slots__ = ("headers", "if_none_match", "load", "max_age", "reach", "root", "tag", "uses_stored", "variant")

    def __init__(self, root: str, tag: str, headers: Headers, directives: Mapping[str, str | None]) -> None:
        self.root = root
        self.tag = tag
        self.headers = headers
        # The key of the variant that it asks for, if the cache knows what the variants of its URI depend on.
        self.variant: str | None = None
        # What the tiers had before the application was called; None if the response will not be stored.
        self.load: PendingLoad | None = None
        names = {name for name, _ in headers}
        # RFC 9111, 5.4: Pragma counts only without Cache-Control.
        pragma = b"cache-control" not in names and "no-cache" in _directives(_joined(headers, b"pragma"))
        self.uses_stored = "no-cache" not in directives and not pragma
        self.max_age = _seconds(directives["max-age"]) if "max-age" in directives else None
        self.reach = (
            Reach.PUBLIC if b"authorization" in names else Reach.SHARED if b"cookie" in names else Reach.ANONYMOUS
        )
        self.if_none_match = _joined(headers, b"if-none-match")


class Recording:
    """A response that is being sent. Its body is collected as long as it may be stored."""

    __slots__ = (
        "_declared",
        "_headers",
        "_limit",
        "_pieces",
        "_size",
        "_status",
        "initial_age",
        "lifetime",
        "reach",
        "request",
        "storable",
        "varying",
    )

    def __init__(self, request: CacheableRequest, limit: int) -> None:
        self.request = request
        self.storable = False
        self.varying: tuple[str, ...] = ()
        self.lifetime = self.initial_age = 0
        self.reach = Reach.ANONYMOUS
        self._limit = limit
        self._status = 0
        self._headers: Headers = ()
        self._declared: int | None = None
        self._pieces: list[bytes] = []
        self._size = 0

    def begin(self, status: int, headers: Headers, ttl: float | None, now: float) -> None:
        """Decide by status and headers whether it may be stored; `ttl` applies to responses without a lifetime."""
        directives = _directives(_joined(headers, b"cache-control"))
        names = {name.lower() for name, _ in headers}
        if (
            status not in _CACHEABLE
            or b"set-cookie" in names
            or not directives.keys().isdisjoint({"no-store", "no-cache", "private"})
        ):
            return
        lifetime = _lifetime(directives, headers, now)
        self.reach = Reach.PUBLIC if "public" in directives else Reach.ANONYMOUS if lifetime is None else Reach.SHARED
        self.lifetime = lifetime if lifetime is not None else math.ceil(ttl or 0)
        self.initial_age = _seconds(_joined(headers, b"age") or "0")
        length = _joined(headers, b"content-length")
        self._declared = None if length is None else _seconds(length)
        self.varying = tuple(sorted({*(_joined(headers, b"vary") or "").lower().replace(",", " ").split()}))
        self.storable = (
            self.reach >= self.request.reach
            and self.lifetime > self.initial_age
            and (self._declared or 0) <= self._limit
            and "*" not in self.varying
            and len(self.varying) <= _MAX_VARYING
        )
        self._status, self._headers = status, headers

    def add(self, piece: bytes) -> None:
        """Add a part of the body. If the body gets too large, the response is not stored."""
        if not self.storable:
            return
        self._size += len(piece)
        if self._size > self._limit:
            self.give_up()
        else:
            self._pieces.append(bytes(piece))

    def give_up(self) -> None:
        """Drop the body; the response is not stored."""
        self.storable = False
        self._pieces.clear()

    def finished(self, now: float, route: str) -> Stored | None:
        """Return the complete response; None if it may not be stored."""
        if not self.storable or self._declared not in {None, self._size}:
            return None
        connection = _joined(self._headers, b"connection") or ""
        dropped = _NOT_STORED | {name.encode("latin-1") for name in connection.lower().replace(",", " ").split()}
        return Stored(
            format=_FORMAT,
            status=self._status,
            headers=[(bytes(name), bytes(value)) for name, value in self._headers if name.lower() not in dropped],
            body=b"".join(self._pieces),
            stored_at=now,
            initial_age=self.initial_age,
            lifetime=self.lifetime,
            reach=int(self.reach),
            route=route,
        )


class ResponseCache:
    """Stores responses to GET in a `TieredCache`, by scheme, host, path, query and the headers they vary on.

    Args:
        cache: a cache that its owner opens and closes; others may use it too.
        ttl: seconds for which a response without a lifetime of its own is fresh; None: such responses are not stored.
        vary: request headers on which every response depends, in addition to its `Vary` header.
        max_body_bytes: larger bodies are not stored.
        clock: returns seconds since the epoch.
    """

    def __init__(
        self,
        cache: TieredCache[Any],
        *,
        ttl: float | None,
        vary: Iterable[str],
        max_body_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(cache, TieredCache):
            raise TypeError(f"cache must be a TieredCache or None, got {type(cache).__name__}")
        self.cache = cache
        self.max_body_bytes = max_body_bytes
        self.clock = clock
        self._ttl = ttl
        self._vary = tuple(sorted({name.lower() for name in vary}))
        self.hits = self.misses = self.bypassed = self.stored = 0

    def request(self, scope: Mapping[str, Any]) -> CacheableRequest | None:
        """Return the request of a scope; None if the cache must not answer it."""
        headers: Headers = scope["headers"]
        names = {name for name, _ in headers}
        directives = _directives(_joined(headers, b"cache-control")) if b"cache-control" in names else {}
        tag = _uri(scope)
        if (
            scope["method"] not in {"GET", "HEAD"}
            or b"range" in names
            or b"transfer-encoding" in names
            or _joined(headers, b"content-length") not in {None, "0"}
            or "no-store" in directives
            or len(tag) > _MAX_KEY
        ):
            self.bypassed += 1
            return None
        root = _varied(tag, self._vary, headers) if self._vary else tag
        return CacheableRequest(root, tag, headers, directives)

    async def find(self, request: CacheableRequest) -> Stored | None:
        """Return the stored response that answers a request; None for a miss."""
        found = _stored(await self._lookup(request)) if request.uses_stored else None
        if found is not None and request.reach <= found.reach:
            age = found.age(self.clock())
            if age < found.lifetime and (request.max_age is None or age <= request.max_age):
                self.hits += 1
                return found
        self.misses += 1
        return None

    async def _lookup(self, request: CacheableRequest) -> object:
        found = await self.cache.get(request.root)
        varying = _varying(found)
        if varying is None:
            return found
        request.variant = _varied(request.root, varying, request.headers)
        return await self.cache.get(request.variant)

    async def begin(self, request: CacheableRequest) -> None:
        """Prepare to store the response to a GET. Call it before the application computes the response.

        `store` compares what is observed here. If a worker invalidates the URI in the meantime, the response may be out
        of date, and is not stored.
        """
        keys = [request.root] if request.variant is None else [request.root, request.variant]
        request.load = await PendingLoad.begin(self.cache, keys, (request.tag,))

    def record(self, request: CacheableRequest, status: int, headers: Headers) -> Recording:
        """Start recording a response with its status and headers."""
        recording = Recording(request, self.max_body_bytes)
        recording.begin(status, headers, self._ttl, self.clock())
        return recording

    async def store(self, recording: Recording, route: str) -> None:
        """Store a response that has been sent completely, unless something has superseded it since `begin`."""
        request = recording.request
        response = recording.finished(self.clock(), route)
        if response is None or request.load is None:
            return
        key, values = request.root, dict[str, Any]()
        if recording.varying:
            key = _varied(request.root, recording.varying, request.headers)
            values[request.root] = (_FORMAT, recording.varying)
        values[key] = response
        self.stored += key in await request.load.store(values, response.lifetime - response.initial_age)

    async def invalidate(self, scope: Mapping[str, Any]) -> None:
        """Delete what is stored for the URI of an unsafe request that succeeded (RFC 9111, 4.4)."""
        if scope["method"] not in _SAFE and len(tag := _uri(scope)) <= _MAX_KEY:
            await self.cache.invalidate_tag(tag)


def _uri(scope: Mapping[str, Any]) -> str:
    # Without `raw_path`, the decoded path is quoted again, so that no part of it can be read as a query.
    path = scope.get("raw_path") or quote(scope["path"], errors="surrogateescape").encode()
    host = _joined(scope["headers"], b"host") or ""
    uri = f"http:{scope.get('scheme', 'http')}://{host.lower()}{path.decode('latin-1')}"
    query: bytes = scope.get("query_string", b"")
    return f"{uri}?{query.decode('latin-1')}" if query else uri


def _varied(key: str, names: Sequence[str], headers: Headers) -> str:
    # The key contains a digest, because a header may have any length and may be a secret.
    digest = hashlib.sha256()
    for name in names:
        value = _joined(headers, name.encode("latin-1"))
        digest.update(f"{name}:{'-' if value is None else len(value)}:{value or ''}".encode())
    return f"{key} {digest.hexdigest()}"


def _varying(value: object) -> Sequence[str] | None:
    """Return the header names in an entry that lists what the variants of a URI depend on; None for others."""
    return value[1] if isinstance(value, list | tuple) and len(value) == 2 and value[0] == _FORMAT else None


def _stored(value: object) -> Stored | None:
    if isinstance(value, Stored) or value is None:
        return value
    # A tier returns lists. A value of another user, or of another version of this format, is a miss.
    try:
        found = convert(value, Stored)
    except ValidationError:
        return None
    return found if found.format == _FORMAT else None


def _joined(headers: Headers, wanted: bytes) -> str | None:
    """Return the value of a header; several headers are joined by commas."""
    found = [value for name, value in headers if name.lower() == wanted]
    return b", ".join(found).decode("latin-1") if found else None


def _directives(value: str | None) -> dict[str, str | None]:
    """Return the directives of `Cache-Control`; of a repeated one, the first."""
    found: dict[str, str | None] = {}
    for name, quoted, token in _DIRECTIVE.findall(value or ""):
        found.setdefault(name.lower(), quoted or token or None)
    return found


def _seconds(value: str | None) -> int:
    """Return a number of seconds; 0, which means stale, if the value is not a number."""
    if value is None or not (value.isascii() and value.isdecimal()):
        return 0
    return min(int(value[:12]), _MAX_SECONDS)


def _lifetime(directives: Mapping[str, str | None], headers: Headers, now: float) -> int | None:
    """Return for how many seconds a response is fresh by its own headers; None if they do not say."""
    for directive in ("s-maxage", "max-age"):
        if directive in directives:
            return _seconds(directives[directive])
    expires = _joined(headers, b"expires")
    if expires is None:
        return None
    try:
        date = _joined(headers, b"date")
        start = now if date is None else parsedate_to_datetime(date).timestamp()
        return max(0, int(parsedate_to_datetime(expires).timestamp() - start))
    except (ValueError, OverflowError):
        return 0
