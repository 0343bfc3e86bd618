"""A request that the cache may answer, and what its headers demand of the cache."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from acgsperf.asgi.credentials import Reach, reach_of
from acgsperf.asgi.fields import MAX_FIELD_BYTES, Headers, directives, seconds

if TYPE_CHECKING:
    from acgsperf.asgi.uri import Target
    from acgsperf.asgi.variants import Names

__all__ = ["READ_HEADERS", "CacheableRequest"]

# The request headers that the cache reads, besides the names of credentials.
READ_HEADERS: Final = frozenset(
    {
        b"authorization",
        b"cache-control",
        b"cookie",
        b"host",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"pragma",
        b"range",
    }
)
# The application has to check these (RFC 9111, 4.3.2).
_PRECONDITIONS: Final = frozenset({b"if-match", b"if-unmodified-since"})
_CARRYING: Final = frozenset({b"authorization", b"cookie"})
_NEVER: Final = 2.0**40


class CacheableRequest:
    """A request that the cache may answer.

    Attributes:
        target: its target.
        root: the key under which the cache has the response, or the list of the headers that its variants depend on.
        headers: all its headers.
        is_head: whether its method is HEAD.
        is_plain: whether it has none of the headers that the cache reads, except `Host`.
        wants_all: whether it has neither conditions nor a range.
        bypasses: whether the cache must not answer it.
        uses_stored: whether a stored response may answer it without being validated.
        max_age, min_fresh, max_stale: its directives, in seconds.
        only_if_cached: whether the application must not be called for it.
        if_none_match, if_modified_since, range, if_range: its headers.
        sets: the sets of headers that the variants of its target depend on, if the cache knows them.
        sets_until: when the last of these variants expires, in seconds since the epoch.
        variant: the key of its newest variant, if the cache knows one.
    """

    is_plain: bool = True
    wants_all: bool = True
    bypasses: bool = False
    uses_stored: bool = True
    max_age: float = _NEVER
    min_fresh: float = 0
    max_stale: float = 0
    only_if_cached: bool = False
    if_none_match: bytes | None = None
    if_modified_since: bytes | None = None
    range: bytes | None = None
    if_range: bytes | None = None
    sets: "tuple[Names, ...]" = ()
    sets_until: float = 0.0
    variant: str = ""
    _carried: tuple[bytes, ...] = ()

    def __init__(self, target: "Target", root: str, headers: Headers, is_head: bool) -> None:
        self.target = target
        self.root = root
        self.headers = headers
        self.is_head = is_head

    def read(self, special: Mapping[bytes, bytes]) -> None:
        """Read those of its headers that the cache reads."""
        self.is_plain = False
        carried = []
        for name, value in special.items():
            if name in _CARRYING or name not in READ_HEADERS:
                carried.append(name)
            elif name == b"cache-control":
                self._read_cache_control(value)
            elif name == b"pragma":
                # RFC 9111, 5.4: Pragma counts only without Cache-Control.
                if b"cache-control" not in special and len(value) <= MAX_FIELD_BYTES:
                    self.uses_stored = "no-cache" not in directives(value)
            elif name in _PRECONDITIONS:
                self.bypasses = True
            else:
                self.wants_all = False
                if name == b"if-none-match":
                    self.if_none_match = value
                elif name == b"if-modified-since":
                    self.if_modified_since = value
                elif not self.is_head and name == b"range":
                    self.range = value
                elif not self.is_head:
                    self.if_range = value
        self._carried = tuple(carried)

    @property
    def is_conditional(self) -> bool:
        """Whether it has a condition."""
        return self.if_none_match is not None or self.if_modified_since is not None or self.if_range is not None

    def reach(self, varying: tuple[bytes, ...]) -> Reach:
        """Return the lowest reach that a response which depends on some headers needs to answer it."""
        return reach_of(self._carried, varying) if self._carried else Reach.ANONYMOUS

    @property
    def flight(self) -> str:
        """The key of the call of the application that answers it. Requests with other credentials have another one."""
        return f"{self.variant or self.root} {self.reach(()):d}"

    def _read_cache_control(self, value: bytes) -> None:
        if len(value) > MAX_FIELD_BYTES:
            self.bypasses = True
            return
        found = directives(value)
        if "no-store" in found:
            self.bypasses = True
        self.uses_stored = "no-cache" not in found
        self.only_if_cached = "only-if-cached" in found
        if "max-age" in found:
            self.max_age = seconds(found["max-age"]) or 0
            # A browser sends `max-age=0` to reload a page. Even a response of the same second is validated then.
            self.uses_stored = self.uses_stored and self.max_age > 0
        if "min-fresh" in found:
            self.min_fresh = seconds(found["min-fresh"]) or 0
        if "max-stale" in found:
            argument = found["max-stale"]
            self.max_stale = _NEVER if argument is None else seconds(argument) or 0
