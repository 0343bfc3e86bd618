"""Whether a response may be stored, how old it is and for how long it is fresh (RFC 9111, 3 and 4.2; RFC 5861)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from acgsperf.asgi.credentials import Reach
from acgsperf.asgi.fields import MAX_FIELD_BYTES, Headers, directives, http_date, joined, members, seconds

__all__ = ["Freshness", "FreshnessOptions", "Timing", "freshness_of"]

# RFC 9110, 15.1, without 206: a part needs a lifetime of its own.
_CACHEABLE_BY_DEFAULT: Final = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})
# The statuses of RFC 9110, for `must-understand`.
_UNDERSTOOD: Final = frozenset(
    {*range(200, 206), *range(300, 304), 305, 307, 308, *range(400, 418), 421, 422, 426, *range(500, 506)}
)
_MAX_HEURISTIC_S: Final = 86_400
_INFINITE_AGE: Final = 2.0**31
# A member of a dictionary (RFC 8941, 3.2). Only integers and booleans are captured: RFC 9213 needs no other values.
_TARGETED: Final = re.compile(
    r"""([a-z*][a-z0-9_.*-]*)(?:=(?:(-?\d{1,15})|(\?[01])|[A-Za-z*][\w!#$%&'*+.^`|~:/-]*|"(?:[^"\\]|\\["\\])*"|-?\d+\.\d+))?"""
    r"""(?:;[ ]*[a-z*][a-z0-9_.*-]*(?:=[^;,"\s]+|="[^"\\]*")?)*"""
)


class Timing(NamedTuple):
    """When a response was requested and received, in seconds since the epoch.

    Attributes:
        requested_at, received_at: by a clock that does not go back.
        wall: when it was received by the wall clock, with which its `Date` is compared.
    """

    requested_at: float
    received_at: float
    wall: float


@dataclass(frozen=True, slots=True)
class FreshnessOptions:
    """The options for responses whose headers do not say how long they may be used. All times are in seconds.

    Attributes:
        ttl: for how long a response without a lifetime is fresh; None: it is not stored.
        heuristic: the share of the time since `Last-Modified` for which such a response is fresh; None: `ttl` applies.
        stale_ttl: for how long a stale response that can be revalidated is kept.
        while_revalidate: `stale-while-revalidate` of responses without that directive.
        if_error: `stale-if-error` of responses without that directive.
    """

    ttl: float | None
    heuristic: float | None
    stale_ttl: float
    while_revalidate: float
    if_error: float


class Freshness(NamedTuple):
    """What the headers of a response say about its use by a shared cache.

    Attributes:
        born_at: when the origin created it, in seconds since the epoch.
        lifetime: the seconds from then on for which it is fresh.
        no_cache: whether it has to be revalidated before every use.
        must_revalidate: whether it must not be used when it is stale.
        while_revalidate: for how many seconds it may be used stale while it is revalidated.
        if_error: for how many seconds it may be used stale if the application fails.
        reach: which requests it may answer.
    """

    born_at: float
    lifetime: float
    no_cache: bool
    must_revalidate: bool
    while_revalidate: float
    if_error: float
    reach: Reach


def freshness_of(status: int, headers: Headers, timing: Timing, options: FreshnessOptions) -> Freshness | None:
    """Return how a response may be used; None if it must not be stored. The caller checks the part that a 206 has."""
    cache_control, targeted = _cache_control(headers)
    if cache_control is None or status < 200 or status == 304 or "private" in cache_control:
        return None
    if "must-understand" in cache_control:
        # RFC 9111, 5.2.2.3: it replaces `no-store`.
        if status not in _UNDERSTOOD:
            return None
    elif "no-store" in cache_control:
        return None
    if joined(headers, b"set-cookie") is not None:
        return None
    no_cache = "no-cache" in cache_control
    public = "public" in cache_control
    lifetime = _lifetime(cache_control, headers, timing, targeted)
    states_use = no_cache or lifetime is not None
    if lifetime is None:
        by_default = _default_lifetime(status, public, headers, timing, options)
        if by_default is None and not no_cache:
            return None
        lifetime = by_default or 0
    if not states_use:
        reach = Reach.ANONYMOUS
    elif public or "s-maxage" in cache_control or "must-revalidate" in cache_control:
        reach = Reach.PUBLIC
    else:
        reach = Reach.SHARED
    # RFC 9111, 5.2.2.10: `s-maxage` implies `proxy-revalidate`. A directive that permits stale use is more specific.
    strict = no_cache or "must-revalidate" in cache_control or "proxy-revalidate" in cache_control
    strict_by_default = strict or "s-maxage" in cache_control
    return Freshness(
        born_at=_born_at(headers, timing),
        lifetime=lifetime,
        no_cache=no_cache,
        must_revalidate=strict_by_default,
        while_revalidate=_stale_use(
            cache_control, "stale-while-revalidate", strict, 0 if strict_by_default else options.while_revalidate
        ),
        if_error=_stale_use(cache_control, "stale-if-error", strict, 0 if strict_by_default else options.if_error),
        reach=reach,
    )


def _cache_control(headers: Headers) -> tuple[Mapping[str, str | None] | None, bool]:
    """Return the directives that apply, and whether they are those of `CDN-Cache-Control` (RFC 9213).

    The directives are None if the header is too long.
    """
    value = joined(headers, b"cdn-cache-control")
    if value is not None and len(value) <= MAX_FIELD_BYTES:
        targeted = _targeted(value.decode("latin-1"))
        if targeted:
            return targeted, True
    value = joined(headers, b"cache-control")
    if value is not None and len(value) > MAX_FIELD_BYTES:
        return None, False
    return directives(value), False


def _targeted(text: str) -> dict[str, str | None]:
    """Return the directives of `CDN-Cache-Control`; empty if it is not a valid dictionary of RFC 8941."""
    found: dict[str, str | None] = {}
    for member in members(text):
        parsed = _TARGETED.fullmatch(member)
        if parsed is None:
            return {}
        name, number, flag = parsed.groups()
        found.pop(name, None)
        if flag != "?0":
            found[name] = number
    # A lifetime that is not an integer is ignored.
    return {name: value for name, value in found.items() if value is not None or name not in {"max-age", "s-maxage"}}


def _lifetime(
    cache_control: Mapping[str, str | None], headers: Headers, timing: Timing, targeted: bool
) -> float | None:
    """Return the lifetime in seconds that the headers of a response state; None if they state none."""
    for directive in ("s-maxage", "max-age"):
        if directive in cache_control:
            # RFC 9111, 4.2.1: a value that is not valid makes the response stale.
            return seconds(cache_control[directive]) or 0
    expires = None if targeted else joined(headers, b"expires")
    if expires is None:
        return None
    until = http_date(expires)
    if until is None:
        return 0
    return max(0.0, until - _dated_at(headers, timing))


def _default_lifetime(
    status: int, public: bool, headers: Headers, timing: Timing, options: FreshnessOptions
) -> float | None:
    """Return the lifetime in seconds of a response that does not state one; None if it has none."""
    if status not in _CACHEABLE_BY_DEFAULT and not public:
        return None
    if options.heuristic is not None:
        modified = http_date(joined(headers, b"last-modified"))
        if modified is not None:
            unchanged = _dated_at(headers, timing) - modified
            return min(max(unchanged, 0) * options.heuristic, _MAX_HEURISTIC_S)
    return options.ttl if status in _CACHEABLE_BY_DEFAULT else None


def _born_at(headers: Headers, timing: Timing) -> float:
    """Return when a response was created (RFC 9111, 4.2.3). An `Age` that is not one number makes it stale."""
    delay = timing.received_at - timing.requested_at
    age = joined(headers, b"age")
    if age is None:
        corrected = delay
    else:
        stated = seconds(age.decode("latin-1").strip(" \t"))
        corrected = _INFINITE_AGE if stated is None else stated + delay
    return timing.received_at - max(corrected, timing.wall - _dated_at(headers, timing))


def _dated_at(headers: Headers, timing: Timing) -> float:
    """Return the `Date` of a response; without a valid one, when it was received."""
    date = http_date(joined(headers, b"date"))
    return timing.wall if date is None else date


def _stale_use(cache_control: Mapping[str, str | None], directive: str, strict: bool, default: float) -> float:
    if strict:
        return 0
    return (seconds(cache_control[directive]) or 0) if directive in cache_control else default
