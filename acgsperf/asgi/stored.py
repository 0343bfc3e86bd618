"""The form in which the cache holds a response."""

from sys import getsizeof
from typing import Final

from msgspec import Struct, ValidationError, convert

from acgsperf.asgi.credentials import Reach
from acgsperf.asgi.fields import Headers, joined
from acgsperf.asgi.freshness import Freshness
from acgsperf.asgi.ranges import Part

__all__ = ["Stored", "cell_of", "headers_to_store", "opened"]

_FORMAT: Final = 2
# About what the numbers, the validators and the attributes of a middleware take.
_REST_BYTES: Final = 900
# RFC 9111, 3.1; Age is computed for each response.
_NOT_STORED: Final = frozenset(
    {
        b"age",
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)


class Stored(Struct, array_like=True, dict=True):
    """A response in the cache: numbers, lists and bytes, so that tiers can store it.

    Attributes:
        format: the version of this form.
        status, headers, body: the response.
        stored_at: when it was received or last validated, in seconds since the epoch.
        kept_for: the seconds after its lifetime for which it is kept.
        etag, last_modified: its validators.
        varying: the request headers that it depends on.
        route: for the latencies.
        part: the part of a whole that the body is; None for a whole.
        Others: see `Freshness`.

    A middleware may add attributes of its own, which the tiers do not get.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    born_at: float
    lifetime: float
    stored_at: float
    kept_for: float
    no_cache: bool
    must_revalidate: bool
    while_revalidate: float
    if_error: float
    reach: int
    etag: bytes | None
    last_modified: bytes | None
    varying: tuple[bytes, ...]
    route: str
    part: Part | None = None
    format: int = _FORMAT

    def __sizeof__(self) -> int:
        """Return its bytes with those of its body and headers, which `weigh_bytes` would not count otherwise."""
        total = Struct.__sizeof__(self) + _REST_BYTES + getsizeof(self.body) + getsizeof(self.headers)
        return total + sum(getsizeof(pair) + getsizeof(pair[0]) + getsizeof(pair[1]) for pair in self.headers)

    @property
    def freshness(self) -> Freshness:
        """How it may be used."""
        return Freshness(
            self.born_at,
            self.lifetime,
            self.no_cache,
            self.must_revalidate,
            self.while_revalidate,
            self.if_error,
            Reach(self.reach),
        )


def cell_of(stored: Stored) -> list[Stored]:
    """Return the value that the cache gets. It is a list, so that `opened` can replace what a tier has returned."""
    return [stored]


def opened(cell: object) -> Stored | None:
    """Return the response in a value of the cache; None if it is the value of another user, or of another version."""
    if type(cell) is not list or len(cell) != 1:
        return None
    inner = cell[0]
    if type(inner) is Stored:
        return inner
    # A lower tier returns lists. L1 holds this same list, so replacing its item converts it only once.
    try:
        stored = convert(inner, Stored)
    except ValidationError:
        return None
    if stored.format != _FORMAT:
        return None
    cell[0] = stored
    return stored


def headers_to_store(headers: Headers, dropped: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the headers of a response that may be stored: not those of its connection, and not `dropped`."""
    connection = joined(headers, b"connection")
    hops = _NOT_STORED | dropped
    if connection is not None:
        hops |= frozenset(connection.lower().replace(b",", b" ").split())
    return [(bytes(name), bytes(value)) for name, value in headers if name.lower() not in hops]
